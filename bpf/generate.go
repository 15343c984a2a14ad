// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the BPF programs: C sources, the objects compiled from
// them, and the Go view of both that bpf2go generates. The generated files are
// committed, so that building Portolan needs no C compiler; `make generate`
// with the pinned compiler gives the same bytes.
//
// There is no logic here and nothing of ours is imported. Packages maps, loader
// and reconcile use it.
package bpf

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -I/usr/include/x86_64-linux-gnu" -type frontend4_key -type frontend6_key -type entry_mark -type frontend4_bucket -type frontend6_bucket -type address -type address_owner -type range_flags -type frontend_state -type slot -type backend_state -type backend_flags -type backend4 -type backend6 -type node_addr_flags -type source4_key -type source6_key -type affinity_key -type affinity -type sock_peer -type sock_rev_key -type cidr -type cidr_set -type node_config -type stale_socket -type reason -type service_name -type flow4_key -type flow6_key -type flow_action -type flow_state -type flow -type flow4 -type flow6 -type fragment_key -type fragment -type device_flags -type device -type wire_config -type refusal_key -type sweep_report -type next_hop -type pressure -type newcomer4 -type newcomer6 -type newcomers4 -type newcomers6 -type tunnel_end_key Lb layout.c -- -Iinclude
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -I/usr/include/x86_64-linux-gnu" -no-global-types Tables tables.c -- -Iinclude
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -I/usr/include/x86_64-linux-gnu" -no-global-types Sock sock.c -- -Iinclude
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -I/usr/include/x86_64-linux-gnu" -no-global-types Close close.c -- -Iinclude
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -I/usr/include/x86_64-linux-gnu" -no-global-types Tc tc.c -- -Iinclude
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -I/usr/include/x86_64-linux-gnu" -no-global-types Xdp xdp.c -- -Iinclude
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -I/usr/include/x86_64-linux-gnu" -no-global-types Sweep sweep.c -- -Iinclude
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -I/usr/include/x86_64-linux-gnu" -no-global-types -type bench_traffic Bench bench.c -- -Iinclude
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -I/usr/include/x86_64-linux-gnu" -no-global-types BenchTc bench_tc.c -- -Iinclude
