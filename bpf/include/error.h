/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP that comes in or goes out: errors about translated packets, about packets
 * in tunnels, and echo requests to addresses that nobody else answers for.
 */
#ifndef PORTOLAN_ERROR_H
#define PORTOLAN_ERROR_H

#include "icmp.h"
#include "send.h"

static __always_inline __u32 about(context_t *ctx, bool v6, struct passage *w)
{
	return error_key(ctx, v6, w->packet.l4, link_header + w->packet.length, &w->key);
}

static __always_inline enum act error_in(context_t *ctx, bool v6, struct passage *w)
{
	struct wire_config *config = wire();
	__u32 ports = about(ctx, v6, w);
	struct flow *f = ports ? known_flow(v6, &w->key) : NULL;
	enum act act = ACT_SEND;
	bool sent;

	if (!f || !config || f->action == FLOW_ANSWER)
		return unserved(w);
	if (f->action == FLOW_TUNNEL) /* about an answer: for the node that sent that */
		return send_on(ctx, v6, w, f);
	sent = f->action != FLOW_DELIVER;
	if (sent && f->route_generation != config->route_generation)
		act = find_egress(ctx, v6, f, w, config->route_generation);
	else
		w->ifindex = f->ifindex;
	if (act == ACT_DROP)
		return ACT_DROP;
	if (sent && act == ACT_SEND)
		act = go(w, f->dst_mac);
	if (sent && ((act == ACT_RESOLVE && ON_XDP) || !can_send(ctx, w->ifindex)))
		return ACT_PASS;
	if (sent && w->packet.ttl <= 1)
		return ACT_DROP; /* no error about an error */
	if (!translate_error(ctx, v6, &w->packet, ports, &w->key, f, sent))
		return ACT_DROP;
	if (sent && act == ACT_SEND && !rewrite_link(ctx, f->dst_mac, f->src_mac))
		return ACT_DROP;
	return sent ? act : ACT_PASS;
}

/* Whether the packet's destination is a load balancer or external address that
 * no node has: nobody else would answer for it.
 */
static __always_inline bool is_published(bool v6, const union tuple_key *key)
{
	struct tuple t = { .v6 = v6 };
	__u32 owner;

	if (v6)
		t.dst = key->v6.dst;
	else
		t.dst.w[3] = key->v4.dst;
	return lookup_key(&t, &t.dst, 0, 0, &owner) && owner == ADDRESS_PUBLISHED;
}

/* An echo request that nobody else would answer. */
static __always_inline enum act echo(context_t *ctx, bool v6, struct passage *w)
{
	struct address src = v6 ? w->key.v6.src : mapped(w->key.v4.src);

	if (!is_published(v6, &w->key))
		return unserved(w);
	if (no_client(v6, &src)) {
		count_refusal(REASON_SPOOFED, NOBODY, NOBODY);
		return ACT_DROP;
	}
	return make_echo_reply(ctx, v6, w->packet.l4) ? ACT_BACK : ACT_PASS;
}

/* A router says that a packet of ours in a tunnel is too large for its link: the
 * client is told, of the packet that it sent, as if it had come from the VIP.
 * What such a router sends back may end with the inner packet's ports.
 */
static __always_inline enum act tunnel_too_big(context_t *ctx, bool v6, struct passage *w,
					       __u32 mtu)
{
	__u32 size = ip_header(v6), at = link_header + size + sizeof(struct icmp_header);
	struct request *r = scratch();
	struct address end, endpoint;
	__u32 frontend, backend;
	enum act act = ACT_RESOLVE;
	struct flow *f;

	if (!r || w->packet.l4 != link_header + size || mtu <= size ||
	    w->packet.length < 3 * size + 2 * sizeof(struct icmp_header) ||
	    !tunnelled_key(ctx, v6, at, &w->key, &end))
		return ACT_PASS;
	f = known_flow(v6, &w->key);
	if (!f || f->action != FLOW_TUNNEL)
		return ACT_PASS;
	endpoint = new_destination(v6, f);
	if (!same_address(&endpoint, &end))
		return ACT_PASS;
	frontend = f->frontend;
	backend = f->backend;
	key_to_tuple(v6, &w->key, &r->tuple);
	turn_round(&r->tuple, &r->to);
	if (!find_way(ctx, &r->to, &r->way, v6, false))
		return ACT_PASS;
	w->ifindex = r->way.ifindex;
	w->gateway = r->way.gateway;
	if (r->way.resolved)
		act = go(w, r->way.dst_mac);
	if (ON_XDP && (act == ACT_RESOLVE || !can_send(ctx, w->ifindex)))
		return ACT_PASS;
	count_refusal(REASON_TOO_BIG, frontend, backend);
	if (!may_complain() ||
	    !cut(ctx, sizeof(struct icmp_header) + 2 * size, BPF_F_ADJ_ROOM_FIXED_GSO) ||
	    !make_error(ctx, v6, 8, v6 ? ICMP6_TOO_BIG : ICMP_UNREACHABLE,
			v6 ? 0 : ICMP_FRAGMENTATION_NEEDED, mtu - size))
		return ACT_DROP;
	if (act == ACT_SEND && !rewrite_link(ctx, r->way.dst_mac, r->way.src_mac))
		return ACT_DROP;
	return act;
}

static __noinline int icmp_in(context_t *ctx, struct passage *w, bool v6)
{
	struct icmp_header *icmp = packet_start(ctx) + w->packet.l4;
	enum act act;
	__u32 mtu;
	__u8 type;

	if (w->packet.l4 > MAX_L4 || (void *)(icmp + 1) > packet_end(ctx))
		return ACT_PASS;
	type = icmp->type;
	mtu = bpf_ntohl(icmp->rest);
	if (is_too_big(v6, type, icmp->code)) {
		act = v6 ? tunnel_too_big(ctx, true, w, mtu) :
			   tunnel_too_big(ctx, false, w, mtu & 0xffff);
		if (act != ACT_PASS)
			return act;
	}
	if (is_error(v6, type))
		return v6 ? error_in(ctx, true, w) : error_in(ctx, false, w);
	if (type != (v6 ? ICMP6_ECHO : ICMP_ECHO))
		return unserved(w);
	return v6 ? echo(ctx, true, w) : echo(ctx, false, w);
}

/* An error that a pod here sends, or the node about a pod's packet. */
static __noinline int error_out(context_t *ctx, struct passage *w, bool v6)
{
	struct icmp_header *icmp = packet_start(ctx) + w->packet.l4;
	struct flow *f;
	__u32 ports;

	if (w->packet.l4 > MAX_L4 || (void *)(icmp + 1) > packet_end(ctx) ||
	    !is_error(v6, icmp->type))
		return ACT_PASS;
	if (v6) {
		ports = about(ctx, true, w);
		f = ports ? known_flow(true, &w->key) : NULL;
		if (f && f->action == FLOW_ANSWER &&
		    !translate_error(ctx, true, &w->packet, ports, &w->key, f, false))
			return ACT_DROP;
		return ACT_PASS;
	}
	ports = about(ctx, false, w);
	f = ports ? known_flow(false, &w->key) : NULL;
	if (f && f->action == FLOW_ANSWER &&
	    !translate_error(ctx, false, &w->packet, ports, &w->key, f, false))
		return ACT_DROP;
	return ACT_PASS;
}

#endif
