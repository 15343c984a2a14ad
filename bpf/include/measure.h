/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * For measuring only: packets that are written anew for each run, because a run
 * rewrites them, and a repeated run would meet another packet.
 */
#ifndef PORTOLAN_MEASURE_H
#define PORTOLAN_MEASURE_H

#include "wire.h"

struct bench_traffic {
	__u8 frame[80]; /* Ethernet, IP without options, TCP */
	__u32 flows; /* so many clients in turn; 0: the frame as it is */
	__u32 at; /* whose turn it is */
	__u32 clients; /* the varying 32 bits of the first client's address */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bench_traffic);
} traffic SEC(".maps");

/* Clients differ in address and port: 1,024 ports of each address. */
static __always_inline bool write_packet(context_t *ctx, bool v6)
{
	__u32 zero = 0, length = v6 ? 74 : 54, at;
	struct bench_traffic *b = bpf_map_lookup_elem(&traffic, &zero);
	__u8 *frame = packet_start(ctx);

	if (!b || (void *)(frame + 80) > packet_end(ctx))
		return false;
	at = b->at + 1;
	if (at >= b->flows)
		at = 0;
	b->at = at;
#pragma unroll
	for (__u32 i = 0; i < 80; i += 4)
		if (i < length)
			*(__u32 *)(frame + i) = *(__u32 *)(b->frame + i);
	if (!b->flows)
		return true;
	*(__be32 *)(frame + (v6 ? 34 : 26)) = bpf_htonl(b->clients + (at >> 10));
	*(__be16 *)(frame + (v6 ? 54 : 34)) = bpf_htons(1024 + (at & 1023));
	return true;
}

/* All that becomes of a packet. */
static __always_inline enum act measured(context_t *ctx, bool v6)
{
	struct passage w;

	if (!write_packet(ctx, v6))
		return ACT_DROP;
	w.tunnelled = is_tunnelled(ctx, v6) && (v6 ? open_tunnel6(ctx) : open_tunnel4(ctx));
	return incoming(ctx, v6, &w);
}

/* The steps of a packet's way one after the other: what each adds is its price. */
enum step {
	STEP_PARSE,
	STEP_FILTER, /* may it be a VIP? */
	STEP_FLOW, /* the look-up of an established flow */
	STEP_NEWCOMER, /* the look-up of one that is not */
	STEP_FRONTEND, /* instead: whose is the VIP? */
	STEP_PICK, /* state word, slot, backend */
};

static __always_inline bool walk(context_t *ctx, bool v6, enum step last)
{
	struct request *r = scratch();
	struct frontend_state *state;
	struct passage w;
	struct tuple t = { .v6 = v6 };
	__u32 id = 0;

	if (!r || !write_packet(ctx, v6))
		return false;
	parse(ctx, v6, &w.packet, &w.key);
	if (last == STEP_PARSE)
		return w.packet.kind == PACKET_WHOLE;
	if (!maybe_vip(v6, &w.key) || last == STEP_FILTER)
		return last == STEP_FILTER;
	if (last == STEP_FLOW)
		return established_flow(v6, &w.key) != NULL;
	if (last == STEP_NEWCOMER)
		return recall(v6, &w.key, &r->entry.flow);
	key_to_tuple(v6, &w.key, &r->tuple);
	t.dst = r->tuple.dst;
	t.port = r->tuple.dport;
	t.proto = r->tuple.proto;
	if (find_frontend(&t, &id) != FOUND_FRONTEND || last == STEP_FRONTEND)
		return last == STEP_FRONTEND;
	state = bpf_map_lookup_elem(&frontend_state, &id);
	return state && pick(*(volatile __u64 *)&state->external, v6, tuple_hash(&r->tuple, 1), &r->backend);
}

#endif
