# SPDX-License-Identifier: Apache-2.0
# `make` lists the targets.

VERSION ?= $(shell git describe --always --dirty --tags 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)
GO      ?= go

.PHONY: conformance help build generate check-generated lint setup test test-cni test-vm test-k8s demo bench clean

## help: list the targets
help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## build: bin/portolan-agent and bin/portolan; needs Go only
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/portolan-agent ./cmd/portolan

## demo: Services on a small world of namespaces, in half a minute; KEEP=1 leaves a shell in it
demo: build
	CGO_ENABLED=0 $(GO) build -trimpath -o build/demo ./test/demo
	build/demo --agent bin/portolan-agent --cli bin/portolan

## setup: install what the tests need (Debian, root)
setup:
	bash .ci/setup

## generate: compile the BPF programs with the pinned clang
generate:
	cd bpf && $(GO) generate ./

## check-generated: the committed BPF objects are what the sources give
check-generated: generate
	git diff --exit-code --stat -- bpf

## lint: formatting, vet, and the import arrows
lint:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo 'run gofmt -w on these'; exit 1; }
	$(GO) vet ./...
	for module in tools test/k8s test/neighbours; do (cd $$module && $(GO) vet ./...) || exit 1; done

## test: set up, lint, generated code, unit, property and privileged tests (root)
test: setup lint check-generated
	$(GO) test -count=1 -timeout 15m ./...
	cd tools && $(GO) test -count=1 ./...

## conformance: every behaviour of a Service, shown on traffic; writes docs/conformance.md (root)
conformance: setup
	$(GO) test -count=1 -v ./test/conformance -update

## test-vm: the privileged tests on KERNEL=6.1, 6.12 or both (6.1,6.12) in QEMU; VM_ACCEL=kvm, VM_FLAGS='-run X test/e2e'
test-vm: setup
	cd tools && CGO_ENABLED=0 $(GO) build -trimpath -o $(CURDIR)/build/vm ./vm
	build/vm -kernel "$(KERNEL)" $(VM_FLAGS)

## test-k8s: a real control plane from Go modules, and real connections (root)
test-k8s: setup build
	cd test/k8s && PORTOLAN_AGENT=$(CURDIR)/bin/portolan-agent PORTOLAN_CLI=$(CURDIR)/bin/portolan $(GO) test -count=1 -v -timeout 40m ./...

## test-cni: beside real CNI plugins from Go modules, and their iptables rules (root)
test-cni: setup build
	cd test/neighbours && PORTOLAN_AGENT=$(CURDIR)/bin/portolan-agent $(GO) test -count=1 -timeout 10m ./...

## bench: figures beside their baselines, also as build/bench.json (root); PEER=1 measures kube-proxy, too
bench: setup build
	mkdir -p build
	$(GO) run ./test/bench --json build/bench.json
	cd test/k8s && $(GO) run ./bench $(if $(PEER),--peer) --json $(CURDIR)/build/bench.json

## clean: remove what was built
clean:
	rm -rf bin build
