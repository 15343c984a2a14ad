/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The first packet of a flow: which endpoint, which source port, which entries. */
#ifndef PORTOLAN_CONNECTION_H
#define PORTOLAN_CONNECTION_H

#include "affinity.h"
#include "newcomer.h"
#include "ranges.h"
#include "route.h"

enum decision {
	DECIDE_PASS,
	DECIDE_DROP,
	DECIDE_REFUSE, /* with an answer that says so */
	DECIDE_SERVE, /* the entry says how */
};

/* One new flow on its way to a decision: larger than a stack has room for. */
struct request {
	struct tuple5 tuple; /* in */
	struct tuple5 to; /* what the tuple becomes */
	struct tuple5 answer; /* to, turned round */
	struct tuple5 back; /* what the answer becomes: tuple, turned round */
	struct affinity_key client;
	union tuple_key key;
	struct way way;
	union flow_entry entry;
	union flow_entry other; /* of the opposite direction, or another flow's */
	struct backend backend;
	struct address end; /* in: of the tunnel that the packet came in */
	__u32 frontend;
	__u32 reason;
	__u32 hash; /* of the tuple */
	__u32 idle; /* the longest silence of a flow whose port was tried, */
	__be16 spare; /* and that port; 0: none */
	__u16 pad;
	__u8 syn; /* in: TCP that opens, or no TCP */
	__u8 tunnelled; /* in: another node chose the endpoint */
	__u8 inside; /* internal scope */
	__u8 masquerade;
	__u8 direct; /* endpoints elsewhere answer by themselves */
	__u8 stateless; /* too many: nothing is written */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct request);
} request_scratch SEC(".maps");

#define NOBODY 0xffffffff

static __always_inline int decide_drop(struct request *r, enum reason why)
{
	r->reason = why;
	return DECIDE_DROP;
}

static __always_inline int decide_refuse(struct request *r, enum reason why)
{
	r->reason = why;
	return DECIDE_REFUSE;
}

/* Maglev: every node has to choose alike. It must never change. */
#define MAGLEV_SEED 0x706f7274

/* Spreads tuples evenly, and the same on every node that has the same seed. */
static __always_inline __u32 tuple_hash(const struct tuple5 *t, __u32 seed)
{
	const __u64 *src = (const void *)&t->src, *dst = (const void *)&t->dst;
	__u64 ports = (__u64)t->sport << 32 | (__u32)t->dport << 16 | t->proto;
	__u64 h = (src[0] ^ seed) * 0x9e3779b97f4a7c15ull;

	h = (h ^ h >> 32 ^ src[1]) * 0xff51afd7ed558ccdull;
	h = (h ^ h >> 32 ^ dst[0]) * 0xc4ceb9fe1a85ec53ull;
	h = (h ^ h >> 32 ^ dst[1]) * 0x9e3779b97f4a7c15ull;
	h = (h ^ h >> 32 ^ ports) * 0xff51afd7ed558ccdull;
	h = (h ^ h >> 32) * 0xc4ceb9fe1a85ec53ull;
	return h >> 32;
}

static __always_inline bool is_inside(const struct wire_config *config, bool v6,
				      const struct address *src)
{
	const struct cidr_set *set = &config->inside[config->active_inside & 1];

	for (int i = 0; i < MAX_SERVICE_CIDRS; i++) {
		if (i >= set->count)
			return false;
		if (v6 ? in_cidr(src, &set->cidrs[i]) : in_cidr4(src->w[3], &set->cidrs[i]))
			return true;
	}
	return false;
}

/* Nobody may be answered at such a source: unspecified, loopback, multicast,
 * broadcast. For IPv6 the mapped form is no address on a wire either.
 */
static __always_inline bool no_client(bool v6, const struct address *a)
{
	__u32 top = bpf_ntohl(v6 ? a->w[0] : a->w[3]);

	if (!v6)
		return top == 0 || top >> 24 == 127 || top >> 28 >= 14;
	return top >> 24 == 0xff || is_mapped(a) ||
	       ((a->w[0] | a->w[1] | a->w[2]) == 0 && bpf_ntohl(a->w[3]) <= 1);
}

/* Counts new flows of this CPU; true when there are too many to write down. */
static __always_inline bool flooded(void)
{
	__u32 zero = 0, window = bpf_ktime_get_coarse_ns() >> 24;
	struct pressure *p = bpf_map_lookup_elem(&pressure, &zero);

	if (!p)
		return true;
	if (p->window != window) {
		p->window = window;
		p->count = 0;
	}
	return ++p->count > new_flow_rate;
}

/* Whether a socket of this node has the tuple that an answer would come by. */
static __always_inline bool socket_has(context_t *ctx, bool v6, const struct tuple5 *answer)
{
	struct bpf_sock_tuple t = {};
	__u32 size = v6 ? sizeof(t.ipv6) : sizeof(t.ipv4);
	struct bpf_sock *sk;

	if (v6) {
		memcpy(t.ipv6.saddr, &answer->src, sizeof(answer->src));
		memcpy(t.ipv6.daddr, &answer->dst, sizeof(answer->dst));
		t.ipv6.sport = answer->sport;
		t.ipv6.dport = answer->dport;
	} else {
		t.ipv4.saddr = answer->src.w[3];
		t.ipv4.daddr = answer->dst.w[3];
		t.ipv4.sport = answer->sport;
		t.ipv4.dport = answer->dport;
	}
	if (answer->proto == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(ctx, &t, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(ctx, &t, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

static __always_inline bool leads_to(bool v6, const struct flow *f, const struct tuple5 *t)
{
	struct address src = new_source(v6, f), dst = new_destination(v6, f);

	return f->sport == t->dport && f->dport == t->sport && same_address(&src, &t->dst) &&
	       same_address(&dst, &t->src);
}

enum claim {
	CLAIM_TAKEN,
	CLAIM_FREE,
	CLAIM_MINE, /* this very flow has it already */
};

/* How long, in units of 1.07 s, a flow of one request at most may be silent
 * before another may have its port: at once, as connection tracking forgets
 * such flows; or when no port that was tried is free.
 */
#define FORGOTTEN 30
#define SPARE 4

/* Who has the answers of r->to. Not inlined: Linux 6.1 says "back-edge" when a
 * loop is closed by falling through, which is how clang would lay out the loop
 * that calls it.
 */
static __noinline enum claim who_has(context_t *ctx, struct request *r, bool v6)
{
	struct flow *f;

	tuple_to_key(v6, &r->answer, &r->key);
	f = established_flow(v6, &r->key);
	if (f)
		return leads_to(v6, f, &r->tuple) ? CLAIM_MINE : CLAIM_TAKEN;
	if (recall(v6, &r->key, &r->other.flow)) {
		f = &r->other.flow;
		if (leads_to(v6, f, &r->tuple))
			return CLAIM_MINE;
		if (now() - f->last_seen > r->idle) {
			r->idle = now() - f->last_seen;
			r->spare = r->answer.dport;
		}
		return CLAIM_TAKEN;
	}
	if (r->masquerade && socket_has(ctx, v6, &r->answer))
		return CLAIM_TAKEN;
	return CLAIM_FREE;
}

/* Takes the port of a flow that has gone silent: its request must not lead to
 * the port any more, which is another flow's now.
 */
static __noinline int take_over(struct request *r, bool v6)
{
	if (!r)
		return false;
	r->to.sport = r->spare;
	r->answer.dport = r->spare;
	tuple_to_key(v6, &r->answer, &r->key);
	if (recall(v6, &r->key, &r->other.flow)) {
		opposite_key(v6, &r->other.flow, r->answer.proto, &r->key);
		expel(v6, &r->key);
	}
	return true;
}

static __always_inline void turn_round(const struct tuple5 *t, struct tuple5 *out)
{
	out->src = t->dst;
	out->dst = t->src;
	out->sport = t->dport;
	out->dport = t->sport;
	out->proto = t->proto;
}

/* Ports that are tried before a new flow is refused. With four fifths of the
 * range taken one flow in a thousand is refused by mistake.
 */
#define PORT_TRIES 32

static __always_inline __be16 candidate(const struct wire_config *config, __u32 hash, __u32 i)
{
	__u32 spread = (hash ^ config->hash_seed) * 0x9e3779b1u + i * 0x85ebca6bu;

	return bpf_htons(config->masquerade_min +
			 (__u16)((__u64)spread * config->masquerade_count >> 32));
}

/* Finds a source port under which no answer of another flow can come. What
 * needs no masquerade keeps the client's port unless another flow of that port
 * goes to the same endpoint, through another VIP. The first candidate depends
 * on the tuple only: a retransmitted request gets it again. SCTP's checksum
 * could not follow another port.
 */
static __always_inline bool find_port(context_t *ctx, struct request *r,
				      const struct wire_config *config, bool v6, __u32 hash)
{
	bool sctp = r->tuple.proto == IPPROTO_SCTP;

	turn_round(&r->to, &r->answer);
	r->idle = SPARE;
	r->spare = 0;
	for (__u32 i = 0; i < PORT_TRIES; i++) {
		r->to.sport = i == 0 && (sctp || !r->masquerade) ? r->tuple.sport :
								   candidate(config, hash, i);
		r->answer.dport = r->to.sport;
		if (r->stateless || who_has(ctx, r, v6) != CLAIM_TAKEN)
			return true;
		if (sctp)
			return false;
		if (r->spare && r->idle > FORGOTTEN)
			break;
	}
	return r->spare && take_over(r, v6);
}

static __always_inline struct next_hop *next_hop_of(bool v6, __u32 backend)
{
	return v6 ? bpf_map_lookup_elem(&next_hops6, &backend) :
		    bpf_map_lookup_elem(&next_hops4, &backend);
}

/* The way to the chosen backend: as remembered, else as the kernel says now.
 * Several CPUs may write one entry at once; they write the same, and the
 * generation last.
 */
static __always_inline bool way_to_backend(context_t *ctx, struct request *r,
					   const struct wire_config *config, bool v6)
{
	struct next_hop *hop = next_hop_of(v6, r->backend.id);
	struct tuple5 *t = &r->to;
	struct way *w = &r->way;

	if (hop && hop->route_generation == config->route_generation) {
		w->ifindex = hop->ifindex;
		w->mtu = hop->mtu;
		memcpy(w->dst_mac, hop->dst_mac, ETH_ALEN);
		memcpy(w->src_mac, hop->src_mac, ETH_ALEN);
		w->source = hop->source;
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
		barrier();
		hop->route_generation = config->route_generation;
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
	if (!(range_flags(word) & RANGE_AFFINITY))
		return pick(word, v6, r->hash, &r->backend);

	r->client.by_address = 1;
	memcpy(r->client.client, &r->tuple.src, sizeof(r->client.client));
	return pick_bound(state, word, v6, r->hash, &r->client, &r->backend);
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
 * another node may know, is served only if the endpoint sees no difference.
 */
static __always_inline int reach(context_t *ctx, struct request *r,
				 const struct wire_config *config, bool v6)
{
	bool self = same_address(&r->backend.addr, &r->tuple.src);
	bool near = pod_device || r->backend.flags & BACKEND_ON_NODE;
	bool direct = r->direct && !near && !self && !masquerade_all;

	r->masquerade = !direct && (self || !near || masquerade_all);
	if (r->masquerade && !r->syn)
		return DECIDE_PASS;
	if (!r->masquerade && !direct)
		no_way(&r->way);
	else if (!way_to_backend(ctx, r, config, v6))
		return decide_drop(r, REASON_NO_ROUTE);
	if (r->tuple.proto != IPPROTO_TCP)
		r->stateless = flooded(); /* of TCP the first segment was counted */
	r->to.src = r->masquerade ? r->way.source : r->tuple.src;
	r->to.dst = r->backend.addr;
	r->to.dport = r->backend.port;
	r->to.proto = r->tuple.proto;
	if (direct) {
		r->to.src = r->way.source;
		r->to.sport = r->tuple.sport;
		write_flow(r, v6, FLOW_TUNNEL, 0, config->route_generation);
		return DECIDE_SERVE;
	}
	if (r->tuple.proto == IPPROTO_SCTP && r->to.dport != r->tuple.dport)
		return decide_drop(r, REASON_SCTP_PORT);
	if (!find_port(ctx, r, config, v6, r->hash))
		return decide_drop(r, REASON_MASQUERADE_PORTS);
	if (r->masquerade)
		write_flow(r, v6, FLOW_FORWARD, FLOW_RETURN, config->route_generation);
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
	__u32 *entry = lookup_key(t, &any, t->port, t->proto);

	if (entry)
		*id = *entry;
	return entry != NULL;
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
		return decide_refuse(r, REASON_NO_SUCH_PORT);
	case FOUND_NO_SERVICE:
	case FOUND_NOTHING:
		break;
	}
	return DECIDE_PASS;
}

static __always_inline struct request *scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&request_scratch, &zero);
}

/* The entry of a flow, established or not, or NULL. */
static __always_inline struct flow *known_flow(bool v6, const union tuple_key *key)
{
	struct flow *f = established_flow(v6, key);
	struct request *r;

	if (f)
		return f;
	r = scratch();
	return r && recall(v6, key, &r->entry.flow) ? &r->entry.flow : NULL;
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
