// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore

/*
 * The sweep: removes flows that had no packet for as long as their state
 * allows. The agent runs it, in its own context, so that it takes no time from
 * packets; tables are walked in the kernel and never copied out. A flow that
 * gets a packet meanwhile has been seen just now and stays: last_seen is
 * compared at the moment of removal.
 */
#include "wire_maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Lives in units of 2^30 ns (1.07 s). */
const volatile __u32 tcp_established_life = 20117; /* 6 hours */
const volatile __u32 tcp_half_closed_life = 3353; /* 1 hour */
const volatile __u32 tcp_closing_life = 60;
const volatile __u32 datagram_life = 168; /* 3 minutes */

#ifndef IPPROTO_TCP
#define IPPROTO_TCP 6
#endif

struct bpf_map;

struct sweep {
	__u32 now;
	__u32 flows;
	__u32 removed;
};

static __always_inline bool idle(const struct flow *f, __u8 proto, __u32 now)
{
	__u32 life = tcp_established_life;

	if (proto != IPPROTO_TCP)
		life = datagram_life;
	else if (f->state == FLOW_FIN_SENT || f->state == FLOW_FIN_RECEIVED)
		life = tcp_half_closed_life;
	else if (f->state != FLOW_ESTABLISHED)
		life = tcp_closing_life;
	/* Signed: a packet may have been seen since now was read. */
	return (__s32)(now - f->last_seen) > (__s32)life;
}

static long sweep4(struct bpf_map *map, struct flow4_key *key, struct flow4 *f, struct sweep *s)
{
	s->flows++;
	if (idle(&f->flow, key->proto, s->now) && !bpf_map_delete_elem(&flows4, key))
		s->removed++;
	return 0;
}

static long sweep6(struct bpf_map *map, struct flow6_key *key, struct flow6 *f, struct sweep *s)
{
	s->flows++;
	if (idle(&f->flow, key->proto, s->now) && !bpf_map_delete_elem(&flows6, key))
		s->removed++;
	return 0;
}

SEC("syscall")
int portolan_sweep(struct sweep_report *report)
{
	struct sweep s = { .now = report->now };

	if (!s.now)
		s.now = bpf_ktime_get_ns() >> 30; /* the same clock, read finely */
	bpf_for_each_map_elem(&flows4, sweep4, &s, 0);
	bpf_for_each_map_elem(&flows6, sweep6, &s, 0);
	report->now = s.now;
	report->flows = s.flows;
	report->removed = s.removed;
	return 0;
}
