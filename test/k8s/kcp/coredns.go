// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	// The plugins a cluster's Corefile needs to answer for Services, and no
	// others: each import is a plugin that registers itself.
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
	_ "github.com/coredns/coredns/plugin/whoami"
)

// runCoreDNS serves DNS from the Corefile that -conf names, until SIGTERM.
func runCoreDNS() {
	// Directives is the order in which plugins handle a query; CoreDNS refuses
	// a Corefile that uses a plugin missing from it.
	dnsserver.Directives = []string{
		"reload", "ready", "health", "errors", "log", "kubernetes", "whoami",
	}
	coremain.Run()
}
