/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A new flow on its way to a decision, and what is asked of its tuple. */
#ifndef PORTOLAN_REQUEST_H
#define PORTOLAN_REQUEST_H

#include "newcomer.h"
#include "route.h"
#include "select.h"

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
	struct bpf_sock_tuple socket; /* asked for; the stack has no room for it */
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
	__u8 syn; /* in: TCP or SCTP that opens, or UDP */
	__u8 tunnelled; /* in: another node chose the endpoint */
	__u8 inside; /* internal scope */
	__u8 masquerade;
	__u8 direct; /* endpoints elsewhere answer by themselves */
	__u8 counted; /* in: among the new flows; else when it is to be served */
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

/* Such a source stays on its link: no router passes on what it sends (RFC 4291,
 * 2.5.6), and no answer from elsewhere would find it.
 */
static __always_inline bool link_local(const struct address *a)
{
	return (bpf_ntohl(a->w[0]) & 0xffc00000) == 0xfe800000;
}

/* What this CPU did in the present window. */
static __always_inline struct pressure *pressure_now(void)
{
	__u16 window = bpf_ktime_get_coarse_ns() >> 24;
	__u32 zero = 0;
	struct pressure *p = bpf_map_lookup_elem(&pressure, &zero);

	if (p && p->window != window)
		*p = (struct pressure){ .window = window };
	return p;
}

/* Counts new flows of this CPU; true when there are too many to write down. */
static __always_inline bool flooded(void)
{
	struct pressure *p = pressure_now();

	return !p || ++p->count > new_flow_rate;
}

/* Counts ICMP errors of this CPU; false when there were enough: whoever claims
 * an address of others should not have them flooded (RFC 4443, 2.4).
 */
static __always_inline bool may_complain(void)
{
	struct pressure *p = pressure_now();

	if (!p || p->errors >= icmp_error_rate)
		return false;
	p->errors++;
	return true;
}

/* Counts a packet that may be written down, unless that was done. */
static __always_inline void count_new(struct request *r)
{
	if (r->counted)
		return;
	r->counted = true;
	r->stateless = flooded();
}

/* Takes back what was counted of a packet that tc counts again. */
static __always_inline void uncount(void)
{
	__u32 zero = 0;
	struct pressure *p = bpf_map_lookup_elem(&pressure, &zero);

	if (p && p->count)
		p->count--;
}

static __always_inline void turn_round(const struct tuple5 *t, struct tuple5 *out)
{
	out->src = t->dst;
	out->dst = t->src;
	out->sport = t->dport;
	out->dport = t->sport;
	out->proto = t->proto;
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

#endif
