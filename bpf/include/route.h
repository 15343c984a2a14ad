/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Where a packet goes next: the kernel's own routing, asked once and kept. */
#ifndef PORTOLAN_ROUTE_H
#define PORTOLAN_ROUTE_H

#include "flow.h"

#ifndef AF_INET
#define AF_INET 2
#define AF_INET6 10
#endif

#define EINVAL 22
#ifndef BPF_FIB_LOOKUP_SRC
#define BPF_FIB_LOOKUP_SRC (1U << 4)
#endif

static __always_inline struct wire_config *wire(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&wire_config, &zero);
}

/* A way found. A neighbour that is not resolved yet is no failure on tc, where
 * the kernel finds it while it sends.
 */
struct way {
	__u32 ifindex;
	__u16 mtu;
	__u8 resolved;
	__u8 found;
	__u8 inward; /* to this node itself, or to what is on it */
	__u8 dst_mac[ETH_ALEN];
	__u8 src_mac[ETH_ALEN];
	struct address source; /* this node's towards there; mapped */
	struct address gateway; /* next hop to resolve; mapped for IPv4 */
	struct bpf_fib_lookup query; /* here because the stack has no room for it */
};

static __always_inline void ask_for(struct bpf_fib_lookup *q, bool v6, __u32 ifindex,
				    const struct address *src, const struct address *dst)
{
	memset(q, 0, sizeof(*q));
	q->ifindex = ifindex;
	q->tot_len = 1; /* asks for the path MTU to be told, and is never too long */
	if (v6) {
		q->family = AF_INET6;
		memcpy(q->ipv6_src, src, sizeof(*src));
		memcpy(q->ipv6_dst, dst, sizeof(*dst));
	} else {
		q->family = AF_INET;
		q->ipv4_src = src->w[3];
		q->ipv4_dst = dst->w[3];
	}
}

static __always_inline struct device *device_of(const struct way *w)
{
	__u32 ifindex = w->ifindex; /* a key on the stack: Linux 6.1 wants it there */

	return bpf_map_lookup_elem(&devices, &ifindex);
}

/* Whether XDP can send by this device; else the packet is left to tc as it
 * came.
 */
static __always_inline bool can_send(context_t *ctx, __u32 ifindex)
{
	struct device *d;

	if (!ON_XDP || ifindex == ((struct xdp_md *)ctx)->ingress_ifindex)
		return true;
	d = bpf_map_lookup_elem(&devices, &ifindex);
	return d && d->flags & DEVICE_XDP_TARGET;
}

/* The node's address on a device, for kernels whose look-up does not tell. */
static __always_inline void device_source(bool v6, struct way *w)
{
	struct device *d = device_of(w);

	memset(&w->source, 0, sizeof(w->source));
	if (d)
		w->source = v6 ? d->source6 : mapped(d->source4);
}

/* Finds the way of a packet that came in by a device, from src to dst, as the
 * kernel would forward it. with_source asks for this node's address towards
 * dst, too. A global function: the verifier walks it once.
 */
__noinline int find_way(context_t *ctx, struct tuple5 *t, struct way *w, bool v6,
			bool with_source)
{
	struct bpf_fib_lookup *q;
	bool told = with_source, bare = false;
	__u32 ifindex = ON_XDP ? ((struct xdp_md *)ctx)->ingress_ifindex :
				 ((struct __sk_buff *)ctx)->ifindex;
	long rc;

	if (!t || !w)
		return 0;
	q = &w->query;
	ask_for(q, v6, ifindex, &t->src, &t->dst);
	rc = bpf_fib_lookup(ctx, q, sizeof(*q), with_source ? BPF_FIB_LOOKUP_SRC : 0);
	if (rc == -EINVAL && with_source) {
		told = false;
		ask_for(q, v6, ifindex, &t->src, &t->dst);
		rc = bpf_fib_lookup(ctx, q, sizeof(*q), 0);
	}
	w->found = rc == BPF_FIB_LKUP_RET_SUCCESS || rc == BPF_FIB_LKUP_RET_NO_NEIGH;
	w->resolved = rc == BPF_FIB_LKUP_RET_SUCCESS;
	w->ifindex = q->ifindex;
	w->inward = rc == BPF_FIB_LKUP_RET_NOT_FWDED;
	if (w->found) {
		struct device *d = device_of(w);

		w->inward = d && d->flags & DEVICE_INWARD;
		bare = d && d->flags & DEVICE_NO_LINK_HEADER;
	}
	w->mtu = q->mtu_result;
	memcpy(w->dst_mac, q->dmac, ETH_ALEN);
	memcpy(w->src_mac, q->smac, ETH_ALEN);
	if (q->family == AF_INET6)
		memcpy(&w->gateway, q->ipv6_dst, sizeof(w->gateway));
	else
		w->gateway = mapped(q->ipv4_dst);
	if (bare) { /* the kernel sends there, and routes again (send.h) */
		memset(w->dst_mac, 0, ETH_ALEN);
		memset(&w->gateway, 0, sizeof(w->gateway));
	}
	if (!with_source)
		return w->found;
	if (!told)
		device_source(v6, w);
	else if (v6)
		memcpy(&w->source, q->ipv6_src, sizeof(w->source));
	else
		w->source = mapped(q->ipv4_src);
	return w->found;
}

#endif
