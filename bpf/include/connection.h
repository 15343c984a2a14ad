/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The first packet of a flow: which endpoint, and which entries. */
#ifndef PORTOLAN_CONNECTION_H
#define PORTOLAN_CONNECTION_H

#include "affinity.h"
#include "port.h"
#include "ranges.h"

static __always_inline struct next_hop *next_hop_of(bool v6, __u32 backend)
{
	return v6 ? bpf_map_lookup_elem(&next_hops6, &backend) :
		    bpf_map_lookup_elem(&next_hops4, &backend);
}

/* The way to the chosen backend: as remembered, else as the kernel says now.
 * Several CPUs may write one entry at once; they write the same, and the
 * generation last. Two endpoints that had one id do not meet here: it was free
 * for longer than a program runs.
 */
static __always_inline bool way_to_backend(context_t *ctx, struct request *r, __u32 routes,
					   bool v6)
{
	struct next_hop *hop = next_hop_of(v6, r->backend.id);
	struct tuple5 *t = &r->to;
	struct way *w = &r->way;

	if (v6 && link_local(&r->tuple.src)) {
		w->inward = false;
		return false;
	}
	if (hop && hop->route_generation == routes &&
	    hop->backend_generation == (__u16)r->backend.generation) {
		w->ifindex = hop->ifindex;
		w->mtu = hop->mtu;
		memcpy(w->dst_mac, hop->dst_mac, ETH_ALEN);
		memcpy(w->src_mac, hop->src_mac, ETH_ALEN);
		w->source = hop->source;
		w->inward = hop->inward;
		w->found = w->resolved = true;
		return true;
	}
	t->src = r->tuple.src;
	t->dst = r->backend.addr;
	if (!find_way(ctx, t, w, v6, true))
		return false;
	if (hop && w->resolved) {
		hop->route_generation = 0;
		barrier();
		hop->ifindex = w->ifindex;
		hop->mtu = w->mtu;
		memcpy(hop->dst_mac, w->dst_mac, ETH_ALEN);
		memcpy(hop->src_mac, w->src_mac, ETH_ALEN);
		hop->source = w->source;
		hop->inward = w->inward;
		hop->backend_generation = r->backend.generation;
		barrier();
		hop->route_generation = routes;
	}
	return true;
}

/* Writes both entries of the flow, or the request's only if there is no action
 * for answers; leaves the request's in r->entry.
 */
static __always_inline void write_flow(struct request *r, bool v6, __u8 action,
				       __u8 answer_action, __u32 route_generation)
{
	union flow_entry *e = &r->entry;

	memset(e, 0, v6 ? sizeof(e->v6) : sizeof(e->v4));
	e->flow.backend = r->backend.id;
	e->flow.backend_generation = r->backend.generation;
	e->flow.frontend = r->frontend;
	e->flow.last_seen = now();
	if (!r->stateless && answer_action) {
		turn_round(&r->tuple, &r->back);
		e->flow.action = answer_action;
		make_entry(v6, &r->answer, &r->back, e);
		tuple_to_key(v6, &r->answer, &r->key);
		enter(v6, &r->key, &e->flow);
	}
	e->flow.action = action;
	e->flow.ifindex = r->way.ifindex;
	e->flow.mtu = r->way.mtu;
	memcpy(e->flow.dst_mac, r->way.dst_mac, ETH_ALEN);
	memcpy(e->flow.src_mac, r->way.src_mac, ETH_ALEN);
	e->flow.route_generation = r->way.resolved ? route_generation : 0;
	make_entry(v6, &r->tuple, &r->to, e);
	if (!r->stateless) {
		tuple_to_key(v6, &r->tuple, &r->key);
		enter(v6, &r->key, &e->flow);
	}
}

/* What the stack delivers needs no way of ours. */
static __always_inline void no_way(struct way *w)
{
	w->ifindex = 0;
	w->mtu = 0;
	w->resolved = false;
	memset(w->dst_mac, 0, ETH_ALEN);
	memset(w->src_mac, 0, ETH_ALEN);
}

static __always_inline bool choose(struct request *r, const struct frontend_state *state,
				   __u64 word, bool v6)
{
	count_new(r);
	if (!(range_flags(word) & RANGE_AFFINITY))
		return pick(word, v6, r->hash, &r->backend);

	r->client.by_address = 1;
	memcpy(r->client.client, &r->tuple.src, sizeof(r->client.client));
	return pick_bound(state, word, v6, r->hash, &r->client, !r->stateless,
			  &r->backend);
}

/* Another node chose the endpoint: it is here, or has gone. */
static __always_inline int find_end(struct request *r, const struct frontend_state *state,
				    bool v6)
{
	struct tunnel_end_key end = { .addr = r->end, .service_port = state->service_port };
	__u32 *backend = bpf_map_lookup_elem(&tunnel_ends, &end);

	if (!backend || !read_backend(v6, *backend, &r->backend) ||
	    !(r->backend.flags & BACKEND_STATE_MASK))
		return decide_drop(r, REASON_NO_ENDPOINT);
	count_new(r);
	r->syn = true; /* that node knows the flow */
	r->direct = false;
	return DECIDE_SERVE;
}

/* The frontend is known: whether this client is served, and by whom. What came
 * from another node is checked as it was there: anybody can send such packets.
 */
static __always_inline int admit(struct request *r, const struct tuple *t,
				 const struct wire_config *config, bool v6)
{
	struct frontend_state *state = bpf_map_lookup_elem(&frontend_state, &r->frontend);
	__u64 word;
	__u8 flags;

	if (!state)
		return DECIDE_PASS;
	/* One load of 8 bytes: the word is replaced as a whole. */
	word = *(volatile __u64 *)(r->inside ? &state->internal : &state->external);
	flags = range_flags(word);
	if (!r->syn && !(flags & RANGE_MAGLEV) && !r->tunnelled)
		return DECIDE_PASS;
	if (no_client(v6, &r->tuple.src))
		return decide_drop(r, REASON_SPOOFED);
	if (flags & RANGE_INSIDE && !r->inside)
		return decide_drop(r, REASON_CLUSTER_IP_OUTSIDE);
	if (flags & RANGE_GUARDED) {
		struct address src = r->tuple.src;

		if (!in_source_ranges(t, state->service_port, &src))
			return decide_drop(r, REASON_SOURCE_RANGE);
	}
	r->hash = tuple_hash(&r->tuple, flags & RANGE_MAGLEV ? MAGLEV_SEED : config->hash_seed);
	if (r->tunnelled)
		return find_end(r, state, v6);
	if (!range_count(word))
		return flags & RANGE_REFUSE ? decide_refuse(r, REASON_NO_ENDPOINT) :
					      decide_drop(r, REASON_NO_LOCAL_ENDPOINT);
	if (!choose(r, state, word, v6))
		return decide_drop(r, REASON_NO_ENDPOINT);
	r->direct = (flags & RANGE_DSR) != 0;
	return DECIDE_SERVE;
}

/* The endpoint is chosen: how it is reached. A request in mid-flow, of which
 * another node may know, is served only if the endpoint sees no difference. An
 * endpoint whose slice names no node may be here all the same: its answers then
 * leave by an outward device, and would not come in by one.
 */
static __always_inline int reach(context_t *ctx, struct request *r,
				 const struct wire_config *config, bool v6)
{
	bool self = same_address(&r->backend.addr, &r->tuple.src);
	bool near = pod_device || r->backend.flags & BACKEND_ON_NODE;
	bool nodeless = r->backend.flags & BACKEND_NODELESS;
	bool direct = r->direct && !near && !self && !masquerade_all;
	/* Before the way is looked up: what is found may be out of date by then. */
	__u32 routes = *(volatile __u32 *)&config->route_generation;

	r->masquerade = !direct && (self || !near || masquerade_near);
	if (r->masquerade && !r->syn)
		return DECIDE_PASS;
	if ((r->masquerade || direct) && !way_to_backend(ctx, r, routes, v6)) {
		if ((!near && !(nodeless && r->way.inward)) || self)
			return decide_drop(r, REASON_NO_ROUTE);
		r->masquerade = direct = false; /* the node itself is no way to go */
	} else if (!near && !self && r->way.inward) {
		r->masquerade = masquerade_near;
		direct = false;
	} else if (direct && nodeless) {
		if (!r->syn)
			return DECIDE_PASS;
		r->masquerade = true; /* who is there may open no tunnels */
		direct = false;
	}
	if (!r->masquerade && !direct)
		no_way(&r->way);
	else if (ON_XDP && !r->tunnelled && !(r->way.resolved && can_send(ctx, r->way.ifindex)))
		return DECIDE_PASS; /* to tc, which must find nothing written yet */
	r->to.src = r->masquerade ? r->way.source : r->tuple.src;
	r->to.dst = r->backend.addr;
	r->to.dport = r->backend.port;
	r->to.proto = r->tuple.proto;
	if (direct) {
		r->to.src = r->way.source;
		r->to.sport = r->tuple.sport;
		write_flow(r, v6, FLOW_TUNNEL, 0, routes);
		return DECIDE_SERVE;
	}
	if (r->tuple.proto == IPPROTO_SCTP && r->to.dport != r->tuple.dport)
		return decide_drop(r, REASON_SCTP_PORT);
	if (!find_port(ctx, r, config, v6, r->hash))
		return decide_drop(r, REASON_MASQUERADE_PORTS);
	if (r->masquerade)
		write_flow(r, v6, FLOW_FORWARD, FLOW_RETURN, routes);
	else
		write_flow(r, v6, FLOW_DELIVER, FLOW_ANSWER, 0);
	return DECIDE_SERVE;
}

/* Whether a packet that another node sent here names a NodePort: the address
 * is that node's.
 */
static __always_inline bool names_nodeport(const struct tuple *t, __u32 *id)
{
	struct address any = {};

	return lookup_key(t, &any, t->port, t->proto, id);
}

static __always_inline int decide(context_t *ctx, struct request *r, bool v6)
{
	struct tuple t = { .dst = r->tuple.dst, .port = r->tuple.dport,
			   .proto = r->tuple.proto, .v6 = v6 };
	struct wire_config *config = wire();
	enum found found;
	int decision;

	if (!config)
		return DECIDE_PASS;
	r->frontend = NOBODY;
	r->backend.id = NOBODY;
	r->inside = !r->tunnelled && (pod_device || is_inside(config, v6, &r->tuple.src));
	found = find_frontend(&t, &r->frontend);
	if (r->tunnelled && found != FOUND_FRONTEND) {
		if (!names_nodeport(&t, &r->frontend))
			return decide_drop(r, REASON_NO_SUCH_PORT);
		found = FOUND_FRONTEND;
	}
	switch (found) {
	case FOUND_FRONTEND:
		decision = admit(r, &t, config, v6);
		return decision == DECIDE_SERVE ? reach(ctx, r, config, v6) : decision;
	case FOUND_NO_PORT:
		return !r->syn ? DECIDE_PASS :
		       r->inside ? decide_refuse(r, REASON_NO_SUCH_PORT) :
				   decide_drop(r, REASON_CLUSTER_IP_OUTSIDE);
	case FOUND_PUBLISHED:
		if (no_client(v6, &r->tuple.src))
			return decide_drop(r, REASON_SPOOFED);
		return decide_refuse(r, REASON_NO_SUCH_PORT);
	case FOUND_NO_SERVICE:
	case FOUND_NOTHING:
		break;
	}
	return DECIDE_PASS;
}

/* Global functions, one a family: the verifier walks each once, whoever calls.
 * They look the request up again, as Linux 6.1 takes no key from an argument:
 * "R2 type=mem expected=fp, pkt, pkt_meta, map_key, map_value".
 */
__noinline int new_flow4(context_t *ctx)
{
	struct request *r = scratch();

	return r ? decide(ctx, r, false) : DECIDE_PASS;
}

__noinline int new_flow6(context_t *ctx)
{
	struct request *r = scratch();

	return r ? decide(ctx, r, true) : DECIDE_PASS;
}

#endif
