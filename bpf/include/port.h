/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Source ports: one under which no answer of another flow can come. */
#ifndef PORTOLAN_PORT_H
#define PORTOLAN_PORT_H

#include "request.h"

/* Whether a socket of this node has the tuple that an answer would come by. */
static __always_inline bool socket_has(context_t *ctx, bool v6, struct request *r)
{
	const struct tuple5 *answer = &r->answer;
	struct bpf_sock_tuple *t = &r->socket;
	__u32 size = v6 ? sizeof(t->ipv6) : sizeof(t->ipv4);
	struct bpf_sock *sk;

	if (v6) {
		memcpy(t->ipv6.saddr, &answer->src, sizeof(answer->src));
		memcpy(t->ipv6.daddr, &answer->dst, sizeof(answer->dst));
		t->ipv6.sport = answer->sport;
		t->ipv6.dport = answer->dport;
	} else {
		t->ipv4.saddr = answer->src.w[3];
		t->ipv4.daddr = answer->dst.w[3];
		t->ipv4.sport = answer->sport;
		t->ipv4.dport = answer->dport;
	}
	if (answer->proto == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(ctx, t, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(ctx, t, size, BPF_F_CURRENT_NETNS, 0);
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

/* How long, in units of 1.07 s, a flow of one request at most, or a connection
 * that was closed, may be silent before another may have its port: at once, as
 * connection tracking forgets such flows; or when no port that was tried is
 * free. An endpoint that still waits (TIME_WAIT) takes a newer SYN, or answers
 * so that the client resets it and sends another (RFC 9293, 3.6.1 and 3.10.7).
 */
#define FORGOTTEN 30
#define SPARE 4

/* The flow that has the answers of r->to, a newcomer in r->other; or NULL. */
static __always_inline struct flow *holder(bool v6, struct request *r)
{
	struct flow *f;

	tuple_to_key(v6, &r->answer, &r->key);
	f = established_flow(v6, &r->key);
	if (f)
		return f;
	return recall(v6, &r->key, &r->other.flow) ? &r->other.flow : NULL;
}

static __always_inline enum claim claim_of(context_t *ctx, struct request *r, bool v6)
{
	struct flow *f = holder(v6, r);

	if (f) {
		__s32 idle = now() - f->last_seen; /* below 0: another CPU saw it since */

		if (leads_to(v6, f, &r->tuple))
			return CLAIM_MINE;
		if ((f == &r->other.flow || closed(f)) && idle > (__s32)r->idle) {
			r->idle = idle;
			r->spare = r->answer.dport;
		}
		return CLAIM_TAKEN;
	}
	if (r->masquerade && r->answer.proto != IPPROTO_SCTP && socket_has(ctx, v6, r))
		return CLAIM_TAKEN;
	return CLAIM_FREE;
}

/* Who has the answers of r->to. Not inlined: Linux 6.1 says "back-edge" when a
 * loop is closed by falling through, which is how clang would lay out the loop
 * that calls them.
 */
static __noinline enum claim who_has4(context_t *ctx, struct request *r)
{
	return claim_of(ctx, r, false);
}

static __noinline enum claim who_has6(context_t *ctx, struct request *r)
{
	return claim_of(ctx, r, true);
}

/* Takes the port of a flow that has gone silent: its request must not lead to
 * the port any more, which is another flow's now.
 */
static __noinline int take_over(struct request *r, bool v6)
{
	struct flow *f;

	if (!r)
		return false;
	r->to.sport = r->spare;
	r->answer.dport = r->spare;
	f = holder(v6, r);
	if (!f)
		return true;
	opposite_key(v6, f, r->answer.proto, &r->key);
	drop_established(v6, &r->key);
	expel(v6, &r->key);
	tuple_to_key(v6, &r->answer, &r->key);
	drop_established(v6, &r->key); /* a newcomer's is written over */
	return true;
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
		if (r->stateless ||
		    (v6 ? who_has6(ctx, r) : who_has4(ctx, r)) != CLAIM_TAKEN)
			return true;
		if (sctp)
			return false;
		if (r->spare && r->idle > FORGOTTEN)
			break;
	}
	return r->spare && take_over(r, v6);
}

#endif
