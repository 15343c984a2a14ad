// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore

/*
 * XDP hook of the node's outward devices: incoming packets, before the stack.
 * What cannot be finished here is passed as it came, and tc serves it. Frames
 * of several buffers are welcome: headers stand in the first one.
 */
#include <linux/bpf.h>

typedef struct xdp_md context_t;
enum { ON_XDP = 1 };

#include "wire.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

static __always_inline int finish(struct xdp_md *xdp, enum act act, const struct passage *w)
{
	switch (act) {
	case ACT_PASS:
	case ACT_RESOLVE:
		return XDP_PASS;
	case ACT_SEND:
		return w->ifindex == xdp->ingress_ifindex ? XDP_TX : bpf_redirect(w->ifindex, 0);
	case ACT_BACK:
		return XDP_TX;
	case ACT_DROP:
		break;
	}
	return XDP_DROP;
}

SEC("xdp.frags")
int portolan_xdp(struct xdp_md *xdp)
{
	struct passage w;

	switch (frame_family(xdp)) {
	case 4:
		w.tunnelled = is_tunnelled(xdp, false) && open_tunnel4(xdp);
		return finish(xdp, incoming(xdp, false, &w), &w);
	case 6:
		w.tunnelled = is_tunnelled(xdp, true) && open_tunnel6(xdp);
		return finish(xdp, incoming(xdp, true, &w), &w);
	}
	return XDP_PASS;
}
