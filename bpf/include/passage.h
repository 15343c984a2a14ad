/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A packet on its way through us: what is asked of it, counted and remembered. */
#ifndef PORTOLAN_PASSAGE_H
#define PORTOLAN_PASSAGE_H

#include "connection.h"

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

/* What nobody here serves is the stack's; but what came out of a tunnel must not
 * reach it, with an address on it that is a VIP.
 */
static __always_inline enum act unserved(const struct passage *w)
{
	return w->tunnelled ? ACT_DROP : ACT_PASS;
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

/* Whether the packet may be an answer to a masqueraded request. SCTP keeps its
 * port (connection.h).
 */
static __always_inline bool may_answer(bool v6, const union tuple_key *key, __u8 proto,
				       const struct wire_config *config)
{
	__u16 port = bpf_ntohs(v6 ? key->v6.dport : key->v4.dport);

	return (__u16)(port - config->masquerade_min) < config->masquerade_count ||
	       proto == IPPROTO_SCTP;
}

/* Flows of datagrams move to another endpoint when theirs stops serving. TCP and
 * SCTP never do: what is established is the endpoint's to end.
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
	if (proto != IPPROTO_UDP)
		return syn && (closed(f) || !endpoint_serves(v6, f));
	return !endpoint_serves(v6, f);
}

static __always_inline void forget(bool v6, const struct flow *f, const union tuple_key *key)
{
	struct request *r = scratch();

	if (!r)
		return;
	if (f->action != FLOW_TUNNEL) { /* its other direction is another node's */
		opposite_key(v6, f, protocol(v6, key), &r->key);
		drop_established(v6, &r->key);
		expel(v6, &r->key);
	}
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

#endif
