/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Doing what an entry says: delivering a packet, or sending it on past the stack. */
#ifndef PORTOLAN_SEND_H
#define PORTOLAN_SEND_H

#include "passage.h"
#include "rewrite.h"
#include "tunnel.h"

/* Looks up the way of a flow's packets anew, and notes it when it is whole. */
static __always_inline enum act find_egress(context_t *ctx, bool v6, struct flow *f,
					    struct passage *w, __u32 generation)
{
	struct request *r = scratch();

	if (!r)
		return ACT_DROP;
	r->to.src = new_source(v6, f);
	r->to.dst = new_destination(v6, f);
	if (!find_way(ctx, &r->to, &r->way, v6, false))
		return drop_flow(f, REASON_NO_ROUTE);
	w->ifindex = r->way.ifindex;
	if (!r->way.resolved) {
		w->gateway = r->way.gateway;
		return ACT_RESOLVE;
	}
	f->route_generation = 0;
	f->ifindex = r->way.ifindex;
	f->mtu = r->way.mtu;
	memcpy(f->dst_mac, r->way.dst_mac, ETH_ALEN);
	memcpy(f->src_mac, r->way.src_mac, ETH_ALEN);
	barrier();
	f->route_generation = generation;
	return ACT_SEND;
}

/* The act by which a packet goes a way that is known. Where there is no link
 * header, neither here nor there, the kernel sends: devices of IPIP ask for the
 * packet's route, and what comes without a header needs one to be made.
 */
static __always_inline enum act go(struct passage *w, const __u8 *dst_mac)
{
	__u64 mac = 0;

	memcpy(&mac, dst_mac, ETH_ALEN);
	if (link_header && mac)
		return ACT_SEND;
	memset(&w->gateway, 0, sizeof(w->gateway));
	return ACT_RESOLVE;
}

/* What a flow's packets gain on their way. */
static __always_inline __u32 overhead(bool v6, const struct flow *f)
{
	return f->action == FLOW_TUNNEL ? ip_header(v6) : 0;
}

/* The length of the packets that this one is cut into later, of which each has
 * so many bytes of the payload; 0 when it cannot be told. A tunnel makes TCP
 * segments that much smaller.
 */
static __always_inline __u32 segment_length(context_t *ctx, bool v6, const struct passage *w,
					    const struct flow *f, __u32 payload)
{
	struct tcp_header *tcp = packet_start(ctx) + w->packet.l4;
	__u32 headers = w->packet.l4 - link_header;

	switch (protocol(v6, &w->key)) {
	case IPPROTO_UDP:
		return headers + transport_size(IPPROTO_UDP) + payload + overhead(v6, f);
	case IPPROTO_TCP:
		if (w->packet.l4 > MAX_L4 || (void *)(tcp + 1) > packet_end(ctx))
			return 0;
		return headers + (tcp->offset >> 4) * 4 + payload;
	}
	return 0;
}

static __always_inline bool too_big(context_t *ctx, bool v6, const struct passage *w,
				    const struct flow *f)
{
	__u32 payload;

	if (!f->mtu || w->packet.length + overhead(v6, f) <= f->mtu)
		return false;
	payload = ON_XDP ? 0 : ((struct __sk_buff *)ctx)->gso_size;
	return !payload || segment_length(ctx, v6, w, f, payload) > f->mtu;
}

/* Answers a packet by an error; there may have been too many. */
static __always_inline enum act complain(context_t *ctx, bool v6, const struct passage *w,
					 __u8 type, __u8 code, __u32 mtu)
{
	if (may_complain() &&
	    answer_error(ctx, v6, &w->packet, protocol(v6, &w->key), type, code, mtu))
		return ACT_BACK;
	return ACT_DROP;
}

static __always_inline enum act expired(context_t *ctx, bool v6, const struct passage *w,
					const struct flow *f)
{
	count_refusal(REASON_TTL, f->frontend, f->backend);
	return complain(ctx, v6, w, v6 ? ICMP6_TIME_EXCEEDED : ICMP_TIME_EXCEEDED, 0, 0);
}

static __always_inline enum act tell_too_big(context_t *ctx, bool v6, const struct passage *w,
					     const struct flow *f)
{
	__u32 mtu = f->mtu - overhead(v6, f);

	count_refusal(REASON_TOO_BIG, f->frontend, f->backend);
	return complain(ctx, v6, w, v6 ? ICMP6_TOO_BIG : ICMP_UNREACHABLE,
			v6 ? 0 : ICMP_FRAGMENTATION_NEEDED, mtu);
}

/* The packet cannot become what it should. Counted by reason only: there is no
 * room on the stack for a refusal's key (Linux 6.1).
 */
static __always_inline enum act misfit(void)
{
	count(REASON_MALFORMED);
	return ACT_DROP;
}

/* Rewrites a packet that is sent on past the stack. */
static __always_inline enum act send_on(context_t *ctx, bool v6, struct passage *w,
					struct flow *f)
{
	struct wire_config *config = wire();
	__u8 proto = protocol(v6, &w->key);
	__u8 dst_mac[ETH_ALEN], src_mac[ETH_ALEN];
	enum act act = ACT_SEND;
	bool known;

	if (!config)
		return ACT_PASS;
	if (f->route_generation != config->route_generation)
		act = find_egress(ctx, v6, f, w, config->route_generation);
	else
		w->ifindex = f->ifindex;
	known = act == ACT_SEND;
	if (known)
		act = go(w, f->dst_mac);
	if (act == ACT_DROP || (act == ACT_RESOLVE && ON_XDP))
		return act == ACT_DROP ? ACT_DROP : ACT_PASS;
	if (!can_send(ctx, w->ifindex))
		return ACT_PASS;
	/* Nobody is told about an error (RFC 1122, 3.2.2; RFC 4443, 2.4). */
	if (w->packet.ttl <= 1)
		return w->packet.kind == PACKET_ICMP ? ACT_DROP : expired(ctx, v6, w, f);
	if (known && too_big(ctx, v6, w, f))
		return w->packet.kind == PACKET_ICMP ? ACT_DROP : tell_too_big(ctx, v6, w, f);
	if (f->action == FLOW_TUNNEL && !encapsulate(ctx, v6, &w->packet, proto, f))
		return misfit();
	if (act == ACT_SEND) {
		memcpy(dst_mac, f->dst_mac, ETH_ALEN);
		memcpy(src_mac, f->src_mac, ETH_ALEN);
		if (!rewrite_link(ctx, dst_mac, src_mac))
			return misfit();
	}
	if (f->action == FLOW_TUNNEL)
		return act;
	return rewrite(ctx, v6, &w->packet, proto, f, true) ? act : misfit();
}

/* Does what the entry of an incoming packet says. */
static __always_inline enum act carry_out(context_t *ctx, bool v6, struct passage *w,
					  struct flow *f)
{
	switch (f->action) {
	case FLOW_DELIVER:
		if (!rewrite(ctx, v6, &w->packet, protocol(v6, &w->key), f, false))
			return misfit();
		return ACT_PASS;
	case FLOW_FORWARD:
	case FLOW_RETURN:
	case FLOW_TUNNEL:
		return send_on(ctx, v6, w, f);
	}
	return unserved(w);
}

#endif
