// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore

/*
 * For measuring only: the XDP code. The "floor" programs do everything but the
 * work that is measured; the others end with XDP_TX when it was done as
 * expected, or with what became of the packet.
 */
#include <linux/bpf.h>

typedef struct xdp_md context_t;
enum { ON_XDP = 1 };

#include "measure.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

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

static __always_inline int verdict(enum act act)
{
	switch (act) {
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
int run4(struct xdp_md *xdp)
{
	return verdict(measured(xdp, false));
}

SEC("xdp")
int run6(struct xdp_md *xdp)
{
	return verdict(measured(xdp, true));
}

SEC("xdp")
int parse4_only(struct xdp_md *xdp)
{
	return walk(xdp, false, STEP_PARSE) ? XDP_TX : XDP_DROP;
}

SEC("xdp")
int filter4(struct xdp_md *xdp)
{
	return walk(xdp, false, STEP_FILTER) ? XDP_TX : XDP_DROP;
}

SEC("xdp")
int flow4(struct xdp_md *xdp)
{
	return walk(xdp, false, STEP_FLOW) ? XDP_TX : XDP_DROP;
}

SEC("xdp")
int newcomer4(struct xdp_md *xdp)
{
	return walk(xdp, false, STEP_NEWCOMER) ? XDP_TX : XDP_DROP;
}

SEC("xdp")
int frontend4(struct xdp_md *xdp)
{
	return walk(xdp, false, STEP_FRONTEND) ? XDP_TX : XDP_DROP;
}

SEC("xdp")
int pick4(struct xdp_md *xdp)
{
	return walk(xdp, false, STEP_PICK) ? XDP_TX : XDP_DROP;
}
