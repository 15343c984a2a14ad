// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore

/*
 * For measuring only: the XDP code on a packet that is written anew for each
 * run, because a run rewrites it, and a repeated run would meet another packet.
 * The "floor" programs do everything but the work that is measured.
 */
#include <linux/bpf.h>

typedef struct xdp_md context_t;
enum { ON_XDP = 1 };

#include "wire.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

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
static __always_inline bool write_packet(struct xdp_md *xdp, bool v6)
{
	__u32 zero = 0, length = v6 ? 74 : 54, at;
	struct bench_traffic *b = bpf_map_lookup_elem(&traffic, &zero);
	__u8 *frame = packet_start(xdp);

	if (!b || (void *)(frame + 80) > packet_end(xdp))
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

static __always_inline int measured(struct xdp_md *xdp, bool v6)
{
	struct passage w;

	if (!write_packet(xdp, v6))
		return XDP_ABORTED;
	w.tunnelled = is_tunnelled(xdp, v6) && (v6 ? open_tunnel6(xdp) : open_tunnel4(xdp));
	switch (incoming(xdp, v6, &w)) {
	case ACT_SEND:
	case ACT_BACK:
		return XDP_TX;
	case ACT_DROP:
		return XDP_DROP;
	default:
		return XDP_PASS;
	}
}

SEC("xdp")
int empty(struct xdp_md *xdp)
{
	return XDP_PASS;
}

SEC("xdp")
int floor4(struct xdp_md *xdp)
{
	return write_packet(xdp, false) ? XDP_PASS : XDP_ABORTED;
}

SEC("xdp")
int floor6(struct xdp_md *xdp)
{
	return write_packet(xdp, true) ? XDP_PASS : XDP_ABORTED;
}

SEC("xdp")
int run4(struct xdp_md *xdp)
{
	return measured(xdp, false);
}

SEC("xdp")
int run6(struct xdp_md *xdp)
{
	return measured(xdp, true);
}
