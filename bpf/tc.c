// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore

/*
 * tc hooks (tcx, else clsact) of the node's outward devices and, if asked for,
 * of pods' devices. TC_ACT_UNSPEC lets the next program decide: we end the way
 * of those packets only that we send or drop.
 */
#include <linux/bpf.h>

typedef struct __sk_buff context_t;
enum { ON_XDP = 0 };

#include "wire.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define PACKET_HOST 0

/* Bytes that must be in the linear part of a packet: a link header, an IPv6
 * header with extensions or an IPv4 one with options, the transport header; or
 * an ICMP error with as much.
 */
#define PULL 160

/* Lets the kernel find the neighbour, and the next hop, too, if there is no
 * gateway. It takes a link header off first, whatever is in it.
 */
static __always_inline int send_to(struct __sk_buff *skb, struct passage *w)
{
	struct address none = {};
	struct bpf_redir_neigh next = {};

	if (!link_header && bpf_skb_change_head(skb, ETH_HLEN, 0))
		return TC_ACT_SHOT;
	if (same_address(&w->gateway, &none))
		return bpf_redirect_neigh(w->ifindex, NULL, 0, 0);
	if (is_mapped(&w->gateway)) {
		next.nh_family = AF_INET;
		next.ipv4_nh = w->gateway.w[3];
	} else {
		next.nh_family = AF_INET6;
		memcpy(next.ipv6_nh, &w->gateway, sizeof(w->gateway));
	}
	return bpf_redirect_neigh(w->ifindex, &next, sizeof(next), 0);
}

static __always_inline int finish(struct __sk_buff *skb, enum act act, struct passage *w)
{
	switch (act) {
	case ACT_PASS:
		return TC_ACT_UNSPEC;
	case ACT_SEND:
		return bpf_redirect(w->ifindex, 0);
	case ACT_RESOLVE:
		return send_to(skb, w);
	case ACT_BACK:
		if (link_header)
			return bpf_redirect(skb->ifindex, 0);
		w->ifindex = skb->ifindex;
		memset(&w->gateway, 0, sizeof(w->gateway));
		return send_to(skb, w);
	case ACT_DROP:
		break;
	}
	return TC_ACT_SHOT;
}

/* Frames in which headers may be read in place; the rest of a packet can be
 * anywhere.
 */
static __always_inline bool linear(struct __sk_buff *skb)
{
	__u32 have = skb->data_end - skb->data;

	return have >= skb->len || have >= PULL ||
	       bpf_skb_pull_data(skb, skb->len < PULL ? skb->len : PULL) == 0;
}

SEC("tc/ingress")
int portolan_tc_ingress(struct __sk_buff *skb)
{
	struct passage w;

	/* What is not for this machine is not ours; but a pod's device may be a
	 * port of a bridge, and its packets for the bridge's own address. A tag
	 * that the device took off belongs to the VLAN's own device.
	 */
	if ((!pod_device && skb->pkt_type != PACKET_HOST) || skb->vlan_present || !linear(skb))
		return TC_ACT_UNSPEC;
	switch (frame_family(skb)) {
	case 4:
		w.tunnelled = is_tunnelled(skb, false) && open_tunnel4(skb);
		return finish(skb, incoming(skb, false, &w), &w);
	case 6:
		w.tunnelled = is_tunnelled(skb, true) && open_tunnel6(skb);
		return finish(skb, incoming(skb, true, &w), &w);
	}
	return TC_ACT_UNSPEC;
}

SEC("tc/egress")
int portolan_tc_egress(struct __sk_buff *skb)
{
	struct passage w;

	if (skb->vlan_present || !linear(skb))
		return TC_ACT_UNSPEC;
	switch (frame_family(skb)) {
	case 4:
		return finish(skb, outgoing(skb, false, &w), &w);
	case 6:
		return finish(skb, outgoing(skb, true, &w), &w);
	}
	return TC_ACT_UNSPEC;
}
