/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What becomes of a packet, whichever hook it came in by: the one source of tc
 * and XDP. docs/wire.md has the tables of cases.
 */
#ifndef PORTOLAN_WIRE_H
#define PORTOLAN_WIRE_H

#include "error.h"

static __always_inline enum act refuse(context_t *ctx, bool v6, const struct passage *w)
{
	if (protocol(v6, &w->key) == IPPROTO_TCP)
		return make_reset(ctx, v6, &w->packet) ? ACT_BACK : ACT_DROP;
	return complain(ctx, v6, w, v6 ? ICMP6_UNREACHABLE : ICMP_UNREACHABLE,
			v6 ? ICMP6_PORT_UNREACHABLE : ICMP_PORT_UNREACHABLE, 0);
}

static __always_inline enum act first_packet(context_t *ctx, bool v6, struct passage *w, bool syn)
{
	struct request *r = scratch();
	int decision;

	if (!r)
		return ACT_PASS;
	key_to_tuple(v6, &w->key, &r->tuple);
	r->tunnelled = w->tunnelled;
	r->counted = syn;
	r->syn = syn || r->tuple.proto == IPPROTO_UDP;
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
	if (ON_XDP && r->counted)
		uncount();
	return unserved(w);
}

/* A flow that has no room among the established goes on where it is. */
static __always_inline void stay(bool v6, struct request *r, const union tuple_key *key)
{
	count(REASON_FLOW_TABLE_FULL);
	amend(v6, key, FLOW_ESTABLISHED, now());
	opposite_key(v6, &r->entry.flow, protocol(v6, key), &r->key);
	amend(v6, &r->key, FLOW_ESTABLISHED, now());
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
	r->entry.flow.last_seen = r->other.flow.last_seen = now();
	if (put_established(v6, key, &r->entry)) {
		stay(v6, r, key);
		return;
	}
	if (put_established(v6, &r->key, &r->other)) {
		drop_established(v6, key);
		stay(v6, r, key);
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
	r->entry.flow.last_seen = now();
	if (put_established(v6, key, &r->entry))
		stay(v6, r, key);
	else
		retire(v6, key);
}

/* Notes a packet of a newcomer, r->entry of key. A flow is established by the
 * packet after the first answer: for TCP the client's, because an endpoint
 * repeats its answer to whoever opens and is gone.
 */
static __always_inline void note_packet(bool v6, struct request *r, const union tuple_key *key,
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

/* Not inlined: the stack of its callers has no room for it. */
static __noinline void note_newcomer4(struct request *r, const union tuple_key *key, __u8 tcp_flags)
{
	note_packet(false, r, key, tcp_flags);
}

static __noinline void note_newcomer6(struct request *r, const union tuple_key *key, __u8 tcp_flags)
{
	note_packet(true, r, key, tcp_flags);
}

static __always_inline void note_newcomer(bool v6, struct request *r, const union tuple_key *key,
					  __u8 tcp_flags)
{
	if (v6)
		note_newcomer6(r, key, tcp_flags);
	else
		note_newcomer4(r, key, tcp_flags);
}

/* Whether others have pushed out the entry for the answers to a newcomer's
 * datagram, r->entry: the flow then begins anew, as TCP does with a SYN.
 */
static __always_inline bool unanswerable(bool v6, struct request *r, __u8 proto)
{
	struct flow *f = &r->entry.flow;

	if (proto != IPPROTO_UDP || !is_request(f) || f->action == FLOW_TUNNEL)
		return false;
	opposite_key(v6, f, proto, &r->key);
	return !established_flow(v6, &r->key) && !recall(v6, &r->key, &r->other.flow);
}

/* Counts a packet that opens a connection. */
static __always_inline bool too_many(struct request *r)
{
	return r && (r->stateless = flooded());
}

/* Whether XDP leaves a packet to tc as it came: tc then notes what it says. */
static __always_inline bool left_to_tc(enum act act, const struct flow *f)
{
	return ON_XDP && act == ACT_PASS && f->action != FLOW_DELIVER;
}

/* Counts what is let pass: on tc, which sees all that XDP passes. */
static __always_inline void count_passed(const struct passage *w, enum reason why)
{
	if (!ON_XDP || w->tunnelled) /* out of a tunnel nothing passes */
		count(why);
}

/* A packet that came in by an outward device, or from a pod. */
static __always_inline enum act incoming(context_t *ctx, bool v6, struct passage *w)
{
	struct wire_config *config = wire();
	struct request *r;
	bool vip, syn;
	struct flow *f;
	enum act act;
	__u8 proto;

	parse(ctx, v6, &w->packet, &w->key);
	if (w->packet.kind == PACKET_BROKEN)
		count_passed(w, REASON_MALFORMED);
	if (w->packet.kind <= PACKET_BROKEN || !config)
		return unserved(w);
	vip = w->tunnelled || maybe_vip(v6, &w->key);
	if (w->packet.kind == PACKET_ICMP)
		return icmp_in(ctx, w, v6);
	if (!follow_fragments(v6, w)) {
		if (vip)
			count_passed(w, REASON_FRAGMENT);
		return unserved(w);
	}
	proto = protocol(v6, &w->key);
	if (!vip && !may_answer(v6, &w->key, proto, config))
		return ACT_PASS;
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
		if (!outlived(v6, f, proto, syn) && !unanswerable(v6, r, proto)) {
			act = carry_out(ctx, v6, w, f);
			if (!left_to_tc(act, f))
				note_newcomer(v6, r, &w->key, w->packet.tcp_flags);
			return act;
		}
	}
	if (f)
		forget(v6, f, &w->key);
	return vip ? first_packet(ctx, v6, w, syn) : ACT_PASS;
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
		/* A flow of ours that begins anew has new entries: this is another
		 * connection of the same ports, to the endpoint's own address.
		 */
		if (f->state > FLOW_ESTABLISHED &&
		    (w->packet.tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK)) {
			forget(v6, f, &w->key);
			return ACT_PASS;
		}
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
