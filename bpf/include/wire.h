/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What becomes of a packet, whichever hook it came in by: the one source of tc
 * and XDP. docs/wire.md has the tables of cases.
 */
#ifndef PORTOLAN_WIRE_H
#define PORTOLAN_WIRE_H

#include "answer.h"
#include "connection.h"
#include "icmp.h"
#include "rewrite.h"
#include "tunnel.h"

/* Everything about one packet on its way through. */
struct passage {
	struct packet packet;
	union tuple_key key;
	struct address gateway; /* of ACT_RESOLVE */
	__u32 ifindex; /* of ACT_SEND and ACT_RESOLVE */
	bool tunnelled; /* in: the packet came out of a tunnel */
};

static __always_inline __u8 protocol(bool v6, const union tuple_key *key)
{
	return v6 ? key->v6.proto : key->v4.proto;
}

static __always_inline void count(enum reason why)
{
	__u32 index = why;
	__u64 *counter = bpf_map_lookup_elem(&reasons, &index);

	if (counter)
		(*counter)++;
}

/* Counts a refusal, also by what was refused. */
static __always_inline void count_refusal(enum reason why, __u32 frontend, __u32 backend)
{
	struct refusal_key key = { .reason = why, .frontend = frontend, .backend = backend };
	__u64 *counter = bpf_map_lookup_elem(&refusals, &key), one = 1;

	count(why);
	if (counter)
		__sync_fetch_and_add(counter, 1);
	else
		bpf_map_update_elem(&refusals, &key, &one, BPF_NOEXIST);
}

static __always_inline enum act drop_flow(const struct flow *f, enum reason why)
{
	count_refusal(why, f->frontend, f->backend);
	return ACT_DROP;
}

static __always_inline bool maybe_vip(bool v6, const union tuple_key *key)
{
	struct tuple t = { .v6 = v6 };

	if (v6)
		t.dst = key->v6.dst;
	else
		t.dst.w[3] = key->v4.dst;
	return may_be_vip(&t);
}

/* Whether the packet may be an answer to a masqueraded request. */
static __always_inline bool to_masquerade_port(bool v6, const union tuple_key *key,
					       const struct wire_config *config)
{
	__u16 port = bpf_ntohs(v6 ? key->v6.dport : key->v4.dport);

	return (__u16)(port - config->masquerade_min) < config->masquerade_count;
}

/* Flows of datagrams move to another endpoint when theirs stops serving. TCP
 * never does: what is established is the endpoint's to end.
 */
static __always_inline bool endpoint_serves(bool v6, const struct flow *f)
{
	struct backend b;

	return read_backend(v6, f->backend, &b) && b.generation == f->backend_generation &&
	       b.flags & BACKEND_STATE_MASK;
}

static __always_inline bool is_request(const struct flow *f)
{
	return f->action == FLOW_DELIVER || f->action == FLOW_FORWARD || f->action == FLOW_TUNNEL;
}

/* Whether the first packet of a new connection has come for an old entry, or
 * the entry's endpoint is gone.
 */
static __always_inline bool outlived(bool v6, const struct flow *f, __u8 proto, bool syn)
{
	if (!is_request(f))
		return false;
	if (proto == IPPROTO_TCP)
		return syn && (f->state == FLOW_CLOSING || !endpoint_serves(v6, f));
	return !endpoint_serves(v6, f);
}

static __always_inline void forget(bool v6, const struct flow *f, const union tuple_key *key)
{
	struct request *r = scratch();

	if (!r)
		return;
	opposite_key(v6, f, protocol(v6, key), &r->key);
	drop_established(v6, &r->key);
	expel(v6, &r->key);
	drop_established(v6, key);
	expel(v6, key);
}

/* Remembers the ports of a fragmented datagram, or recalls them. */
static __always_inline void fragment_key(bool v6, const struct passage *w,
					 struct fragment_key *key)
{
	key->src = v6 ? w->key.v6.src : mapped(w->key.v4.src);
	key->dst = v6 ? w->key.v6.dst : mapped(w->key.v4.dst);
	key->id = w->packet.fragment;
	key->proto = protocol(v6, &w->key);
}

static __always_inline bool follow_fragments(bool v6, struct passage *w)
{
	struct fragment_key key;
	struct fragment *first, ports;

	if (w->packet.kind != PACKET_FIRST && w->packet.kind != PACKET_LATER)
		return true;
	fragment_key(v6, w, &key);
	if (w->packet.kind == PACKET_FIRST) {
		ports.sport = v6 ? w->key.v6.sport : w->key.v4.sport;
		ports.dport = v6 ? w->key.v6.dport : w->key.v4.dport;
		bpf_map_update_elem(&fragments, &key, &ports, BPF_ANY);
		return true;
	}
	first = bpf_map_lookup_elem(&fragments, &key);
	if (!first)
		return false;
	if (v6) {
		w->key.v6.sport = first->sport;
		w->key.v6.dport = first->dport;
	} else {
		w->key.v4.sport = first->sport;
		w->key.v4.dport = first->dport;
	}
	return true;
}

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

/* What a flow's packets gain on their way. */
static __always_inline __u32 overhead(bool v6, const struct flow *f)
{
	return f->action == FLOW_TUNNEL ? ip_header(v6) : 0;
}

static __always_inline bool too_big(context_t *ctx, bool v6, const struct flow *f, __u32 length)
{
	if (!f->mtu || length + overhead(v6, f) <= f->mtu)
		return false;
	/* What is segmented later is not one packet of this length. */
	return ON_XDP || !((struct __sk_buff *)ctx)->gso_size;
}

static __always_inline enum act expired(context_t *ctx, bool v6, const struct flow *f, __u8 proto)
{
	count_refusal(REASON_TTL, f->frontend, f->backend);
	return answer_error(ctx, v6, proto, v6 ? ICMP6_TIME_EXCEEDED : ICMP_TIME_EXCEEDED, 0, 0) ?
		       ACT_BACK :
		       ACT_DROP;
}

static __always_inline enum act tell_too_big(context_t *ctx, bool v6, const struct flow *f,
					     __u8 proto)
{
	__u32 mtu = f->mtu - overhead(v6, f);

	count_refusal(REASON_TOO_BIG, f->frontend, f->backend);
	return answer_error(ctx, v6, proto, v6 ? ICMP6_TOO_BIG : ICMP_UNREACHABLE,
			    v6 ? 0 : ICMP_FRAGMENTATION_NEEDED, mtu) ?
		       ACT_BACK :
		       ACT_DROP;
}

/* Whether XDP can send by this device; else the packet is left to tc as it
 * came, which finds the same entry.
 */
static __always_inline bool can_send(context_t *ctx, __u32 ifindex)
{
	struct device *d;

	if (!ON_XDP || ifindex == ((struct xdp_md *)ctx)->ingress_ifindex)
		return true;
	d = bpf_map_lookup_elem(&devices, &ifindex);
	return d && d->flags & DEVICE_XDP_TARGET;
}

/* Rewrites a packet that is sent on past the stack. */
static __always_inline enum act send_on(context_t *ctx, bool v6, struct passage *w,
					struct flow *f)
{
	struct wire_config *config = wire();
	__u8 proto = protocol(v6, &w->key);
	__u8 dst_mac[ETH_ALEN], src_mac[ETH_ALEN];
	enum act act = ACT_SEND;

	if (!config)
		return ACT_PASS;
	if (f->route_generation != config->route_generation)
		act = find_egress(ctx, v6, f, w, config->route_generation);
	else
		w->ifindex = f->ifindex;
	if (act == ACT_DROP || (act == ACT_RESOLVE && ON_XDP))
		return act == ACT_DROP ? ACT_DROP : ACT_PASS;
	if (!can_send(ctx, w->ifindex))
		return ACT_PASS;
	/* Nobody is told about an error (RFC 1122, 3.2.2; RFC 4443, 2.4). */
	if (w->packet.ttl <= 1)
		return w->packet.kind == PACKET_ICMP ? ACT_DROP : expired(ctx, v6, f, proto);
	if (act == ACT_SEND && too_big(ctx, v6, f, w->packet.length))
		return w->packet.kind == PACKET_ICMP ? ACT_DROP : tell_too_big(ctx, v6, f, proto);
	if (f->action == FLOW_TUNNEL && !encapsulate(ctx, v6, &w->packet, f))
		return ACT_DROP;
	if (act == ACT_SEND) {
		memcpy(dst_mac, f->dst_mac, ETH_ALEN);
		memcpy(src_mac, f->src_mac, ETH_ALEN);
		if (!rewrite_link(ctx, dst_mac, src_mac))
			return ACT_DROP;
	}
	if (f->action == FLOW_TUNNEL)
		return act;
	return rewrite(ctx, v6, &w->packet, proto, f, true) ? act : ACT_DROP;
}

/* Does what the entry of an incoming packet says. */
static __always_inline enum act carry_out(context_t *ctx, bool v6, struct passage *w,
					  struct flow *f)
{
	switch (f->action) {
	case FLOW_DELIVER:
		return rewrite(ctx, v6, &w->packet, protocol(v6, &w->key), f, false) ? ACT_PASS :
										      ACT_DROP;
	case FLOW_FORWARD:
	case FLOW_RETURN:
	case FLOW_TUNNEL:
		return send_on(ctx, v6, w, f);
	}
	return ACT_PASS;
}

static __always_inline enum act refuse(context_t *ctx, bool v6, const struct passage *w)
{
	__u8 proto = protocol(v6, &w->key);
	bool made;

	if (w->packet.kind == PACKET_LATER)
		return ACT_DROP;
	if (proto == IPPROTO_TCP)
		made = make_reset(ctx, v6, w->packet.l4, w->packet.length);
	else
		made = make_error(ctx, v6, 8, v6 ? ICMP6_UNREACHABLE : ICMP_UNREACHABLE,
				  v6 ? ICMP6_PORT_UNREACHABLE : ICMP_PORT_UNREACHABLE, 0);
	return made ? ACT_BACK : ACT_DROP;
}

static __always_inline enum act first_packet(context_t *ctx, bool v6, struct passage *w, bool syn)
{
	struct request *r = scratch();
	int decision;

	if (!r)
		return ACT_PASS;
	key_to_tuple(v6, &w->key, &r->tuple);
	r->tunnelled = w->tunnelled;
	r->syn = syn || r->tuple.proto != IPPROTO_TCP;
	decision = v6 ? new_flow6(ctx) : new_flow4(ctx);
	switch (decision) {
	case DECIDE_SERVE:
		return carry_out(ctx, v6, w, &r->entry.flow);
	case DECIDE_DROP:
		count_refusal(r->reason, r->frontend, r->backend.id);
		return ACT_DROP;
	case DECIDE_REFUSE:
		count_refusal(r->reason, r->frontend, NOBODY);
		return refuse(ctx, v6, w);
	}
	/* What came out of a tunnel must not reach the stack with a VIP on it. */
	return w->tunnelled ? ACT_DROP : ACT_PASS;
}

/* Moves a flow that has proven itself to where no newcomer can push it out,
 * both entries: r->entry of key, and its opposite. When there is no room it
 * stays where it is, and is served on.
 */
static __always_inline void promote(bool v6, struct request *r, const union tuple_key *key)
{
	opposite_key(v6, &r->entry.flow, protocol(v6, key), &r->key);
	if (!recall(v6, &r->key, &r->other.flow))
		return;
	r->entry.flow.state = r->other.flow.state = FLOW_ESTABLISHED;
	if (put_established(v6, key, &r->entry)) {
		count(REASON_FLOW_TABLE_FULL);
		return;
	}
	if (put_established(v6, &r->key, &r->other)) {
		drop_established(v6, key);
		count(REASON_FLOW_TABLE_FULL);
		return;
	}
	retire(v6, key);
	retire(v6, &r->key);
}

/* The same for a flow whose answers go another way: nothing tells that it was
 * answered but that the client goes on.
 */
static __always_inline void promote_alone(bool v6, struct request *r, const union tuple_key *key)
{
	r->entry.flow.state = FLOW_ESTABLISHED;
	if (put_established(v6, key, &r->entry))
		count(REASON_FLOW_TABLE_FULL);
	else
		retire(v6, key);
}

/* Notes a packet of a newcomer, r->entry of key. A flow is established by the
 * packet after the first answer: for TCP the client's, because an endpoint
 * repeats its answer to whoever opens and is gone.
 */
static __always_inline void note_newcomer(bool v6, struct request *r, const union tuple_key *key,
					  __u8 tcp_flags)
{
	struct flow *f = &r->entry.flow;
	bool tcp = protocol(v6, key) == IPPROTO_TCP;

	if (f->action == FLOW_TUNNEL && !(tcp_flags & (TCP_FIN | TCP_RST))) {
		promote_alone(v6, r, key);
		return;
	}
	if (f->state == FLOW_NEW && !is_request(f)) {
		/* The first answer: both entries know of it. */
		amend(v6, key, FLOW_ESTABLISHED, now());
		opposite_key(v6, f, protocol(v6, key), &r->key);
		amend(v6, &r->key, FLOW_ESTABLISHED, now());
		return;
	}
	if (tcp_flags & (TCP_FIN | TCP_RST))
		amend(v6, key, FLOW_CLOSING, now());
	else if (f->state == FLOW_ESTABLISHED && (is_request(f) || !tcp))
		promote(v6, r, key);
}

static __noinline int icmp_in(context_t *ctx, struct passage *w, bool v6);

/* Counts a packet that opens a connection. */
static __always_inline bool too_many(struct request *r)
{
	return r && (r->stateless = flooded());
}

/* A packet that came in by an outward device, or from a pod. */
static __always_inline enum act incoming(context_t *ctx, bool v6, struct passage *w)
{
	struct wire_config *config = wire();
	struct request *r;
	bool vip, syn;
	struct flow *f;
	__u8 proto;

	parse(ctx, v6, &w->packet, &w->key);
	if (w->packet.kind == PACKET_BROKEN)
		count(REASON_MALFORMED);
	if (w->packet.kind <= PACKET_BROKEN || !config)
		return ACT_PASS;
	vip = w->tunnelled || maybe_vip(v6, &w->key);
	if (w->packet.kind == PACKET_ICMP)
		return icmp_in(ctx, w, v6);
	if (!follow_fragments(v6, w)) {
		if (vip)
			count(REASON_FRAGMENT);
		return ACT_PASS;
	}
	if (!vip && !to_masquerade_port(v6, &w->key, config))
		return ACT_PASS;
	proto = protocol(v6, &w->key);
	syn = (w->packet.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	/* A flood is decided by the tuple alone: no flow is even looked for. */
	if (syn && vip && too_many(scratch()))
		return first_packet(ctx, v6, w, syn);
	f = established_flow(v6, &w->key);
	if (f && !outlived(v6, f, proto, syn)) {
		touch_both(v6, f, proto, w->packet.tcp_flags);
		return carry_out(ctx, v6, w, f);
	}
	/* What opens is decided anew, and as before. */
	if (!f && !syn && (r = scratch()) && recall(v6, &w->key, &r->entry.flow)) {
		f = &r->entry.flow;
		if (!outlived(v6, f, proto, syn)) {
			note_newcomer(v6, r, &w->key, w->packet.tcp_flags);
			return carry_out(ctx, v6, w, f);
		}
	}
	if (f)
		forget(v6, f, &w->key);
	return vip ? first_packet(ctx, v6, w, syn) : ACT_PASS;
}

static __always_inline enum act error_in(context_t *ctx, bool v6, struct passage *w)
{
	struct wire_config *config = wire();
	__u32 ports = error_key(ctx, v6, w->packet.l4, &w->key);
	struct flow *f = ports ? known_flow(v6, &w->key) : NULL;
	enum act act = ACT_SEND;
	bool sent;

	if (!f || !config || f->action == FLOW_ANSWER)
		return ACT_PASS;
	if (f->action == FLOW_TUNNEL) /* about an answer: for the node that sent that */
		return send_on(ctx, v6, w, f);
	sent = f->action != FLOW_DELIVER;
	if (sent && f->route_generation != config->route_generation)
		act = find_egress(ctx, v6, f, w, config->route_generation);
	else
		w->ifindex = f->ifindex;
	if (act == ACT_DROP)
		return ACT_DROP;
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
	__u32 *owner;

	if (v6)
		t.dst = key->v6.dst;
	else
		t.dst.w[3] = key->v4.dst;
	owner = lookup_key(&t, &t.dst, 0, 0);
	return owner && *owner == ADDRESS_PUBLISHED;
}

/* A router says that a packet of ours in a tunnel is too large for its link: the
 * client is told, of the packet that it sent, as if it had come from the VIP.
 * What such a router sends back may end with the inner packet's ports.
 */
static __always_inline enum act tunnel_too_big(context_t *ctx, bool v6, struct passage *w,
					       __u32 mtu)
{
	__u32 size = ip_header(v6), at = link_header + size + sizeof(struct icmp_header);
	struct address end, endpoint;
	struct request *r = scratch();
	struct flow *f;

	if (!r || w->packet.l4 != link_header + size ||
	    !tunnelled_key(ctx, v6, at, &w->key, &end))
		return ACT_PASS;
	f = known_flow(v6, &w->key);
	if (!f || f->action != FLOW_TUNNEL)
		return ACT_PASS;
	endpoint = new_destination(v6, f);
	if (!same_address(&endpoint, &end))
		return ACT_PASS;
	count_refusal(REASON_TOO_BIG, f->frontend, f->backend);
	key_to_tuple(v6, &w->key, &r->tuple);
	turn_round(&r->tuple, &r->to);
	if (!find_way(ctx, &r->to, &r->way, v6, false) ||
	    (ON_XDP && (!r->way.resolved || !can_send(ctx, r->way.ifindex))))
		return ACT_PASS;
	w->ifindex = r->way.ifindex;
	w->gateway = r->way.gateway;
	if (!cut(ctx, sizeof(struct icmp_header) + 2 * size, BPF_F_ADJ_ROOM_FIXED_GSO) ||
	    !make_error(ctx, v6, 8, v6 ? ICMP6_TOO_BIG : ICMP_UNREACHABLE,
			v6 ? 0 : ICMP_FRAGMENTATION_NEEDED, mtu - size))
		return ACT_DROP;
	if (!r->way.resolved)
		return ACT_RESOLVE;
	return rewrite_link(ctx, r->way.dst_mac, r->way.src_mac) ? ACT_SEND : ACT_DROP;
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
		return ACT_PASS;
	if (v6)
		return is_published(true, &w->key) && make_echo_reply(ctx, true, w->packet.l4) ?
			       ACT_BACK :
			       ACT_PASS;
	return is_published(false, &w->key) && make_echo_reply(ctx, false, w->packet.l4) ?
		       ACT_BACK :
		       ACT_PASS;
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
		ports = error_key(ctx, true, w->packet.l4, &w->key);
		f = ports ? known_flow(true, &w->key) : NULL;
		if (f && f->action == FLOW_ANSWER &&
		    !translate_error(ctx, true, &w->packet, ports, &w->key, f, false))
			return ACT_DROP;
		return ACT_PASS;
	}
	ports = error_key(ctx, false, w->packet.l4, &w->key);
	f = ports ? known_flow(false, &w->key) : NULL;
	if (f && f->action == FLOW_ANSWER &&
	    !translate_error(ctx, false, &w->packet, ports, &w->key, f, false))
		return ACT_DROP;
	return ACT_PASS;
}

/* A packet that leaves by an outward device, or towards a pod: the answer of
 * an endpoint here, or none of ours.
 */
static __always_inline enum act outgoing(context_t *ctx, bool v6, struct passage *w)
{
	struct request *r;
	struct flow *f;
	__u8 proto;

	parse(ctx, v6, &w->packet, &w->key);
	if (w->packet.kind <= PACKET_BROKEN)
		return ACT_PASS;
	if (w->packet.kind == PACKET_ICMP)
		return error_out(ctx, w, v6);
	if (!follow_fragments(v6, w))
		return ACT_PASS;
	proto = protocol(v6, &w->key);
	f = established_flow(v6, &w->key);
	if (f) {
		if (f->action != FLOW_ANSWER)
			return ACT_PASS;
		touch_both(v6, f, proto, w->packet.tcp_flags);
	} else {
		r = scratch();
		if (!r || !recall(v6, &w->key, &r->entry.flow) ||
		    r->entry.flow.action != FLOW_ANSWER)
			return ACT_PASS;
		f = &r->entry.flow;
		note_newcomer(v6, r, &w->key, w->packet.tcp_flags);
	}
	return rewrite(ctx, v6, &w->packet, proto, f, false) ? ACT_PASS : ACT_DROP;
}

#endif
