/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Entries of the flow tables: finding, writing, ageing them. */
#ifndef PORTOLAN_FLOW_H
#define PORTOLAN_FLOW_H

#include "packet.h"
#include "wire_maps.h"

/* A flow in the making, whatever the family: both ends of the packet and what
 * they become. IPv4 addresses in mapped form.
 */
struct tuple5 {
	struct address src;
	struct address dst;
	__be16 sport;
	__be16 dport;
	__u32 proto;
};

/* The coarse clock in units of 1.07 s: fine enough for what lives for tens of
 * seconds, and coarse enough that an entry is rarely written for it.
 */
static __always_inline __u32 now(void)
{
	return bpf_ktime_get_coarse_ns() >> 30;
}

static __always_inline struct flow *established_flow(bool v6, const union tuple_key *key)
{
	return v6 ? bpf_map_lookup_elem(&flows6, &key->v6) :
		    bpf_map_lookup_elem(&flows4, &key->v4);
}

static __always_inline void tuple_to_key(bool v6, const struct tuple5 *t, union tuple_key *key)
{
	if (v6) {
		key->v6.src = t->src;
		key->v6.dst = t->dst;
		key->v6.sport = t->sport;
		key->v6.dport = t->dport;
		key->v6.proto = t->proto;
		memset(key->v6.pad, 0, sizeof(key->v6.pad));
	} else {
		key->v4.src = t->src.w[3];
		key->v4.dst = t->dst.w[3];
		key->v4.sport = t->sport;
		key->v4.dport = t->dport;
		key->v4.proto = t->proto;
		memset(key->v4.pad, 0, sizeof(key->v4.pad));
	}
}

static __always_inline void key_to_tuple(bool v6, const union tuple_key *key, struct tuple5 *t)
{
	if (v6) {
		t->src = key->v6.src;
		t->dst = key->v6.dst;
		t->sport = key->v6.sport;
		t->dport = key->v6.dport;
		t->proto = key->v6.proto;
	} else {
		t->src = mapped(key->v4.src);
		t->dst = mapped(key->v4.dst);
		t->sport = key->v4.sport;
		t->dport = key->v4.dport;
		t->proto = key->v4.proto;
	}
}

static __always_inline struct address new_source(bool v6, const struct flow *f)
{
	return v6 ? ((const struct flow6 *)f)->src : mapped(((const struct flow4 *)f)->src);
}

static __always_inline struct address new_destination(bool v6, const struct flow *f)
{
	return v6 ? ((const struct flow6 *)f)->dst : mapped(((const struct flow4 *)f)->dst);
}

/* The key of the other direction: the rewritten packet turned round. */
static __always_inline void opposite_key(bool v6, const struct flow *f, __u8 proto,
					 union tuple_key *key)
{
	if (v6) {
		const struct flow6 *f6 = (const void *)f;

		key->v6.src = f6->dst;
		key->v6.dst = f6->src;
		key->v6.sport = f->dport;
		key->v6.dport = f->sport;
		key->v6.proto = proto;
		memset(key->v6.pad, 0, sizeof(key->v6.pad));
	} else {
		const struct flow4 *f4 = (const void *)f;

		key->v4.src = f4->dst;
		key->v4.dst = f4->src;
		key->v4.sport = f->dport;
		key->v4.dport = f->sport;
		key->v4.proto = proto;
		memset(key->v4.pad, 0, sizeof(key->v4.pad));
	}
}

/* An entry under construction; big enough for either family. */
union flow_entry {
	struct flow flow;
	struct flow4 v4;
	struct flow6 v6;
};

/* Makes the entry that turns packets of tuple from into tuple to. */
static __always_inline void make_entry(bool v6, const struct tuple5 *from,
				       const struct tuple5 *to, union flow_entry *e)
{
	__u64 addresses;

	if (v6) {
		e->v6.src = to->src;
		e->v6.dst = to->dst;
		addresses = replaced_address(&from->src, &to->src) +
			    replaced_address(&from->dst, &to->dst);
	} else {
		e->v4.src = to->src.w[3];
		e->v4.dst = to->dst.w[3];
		addresses = replaced(from->src.w[3], to->src.w[3]) +
			    replaced(from->dst.w[3], to->dst.w[3]);
	}
	e->flow.sport = to->sport;
	e->flow.dport = to->dport;
	e->flow.address_delta = fold(addresses);
	e->flow.port_delta = fold((__u64)(__u16)~from->sport + to->sport +
				  (__u16)~from->dport + to->dport);
}

static __always_inline long put_established(bool v6, const union tuple_key *key, const void *e)
{
	return v6 ? bpf_map_update_elem(&flows6, &key->v6, e, BPF_ANY) :
		    bpf_map_update_elem(&flows4, &key->v4, e, BPF_ANY);
}

static __always_inline void drop_established(bool v6, const union tuple_key *key)
{
	if (v6)
		bpf_map_delete_elem(&flows6, &key->v6);
	else
		bpf_map_delete_elem(&flows4, &key->v4);
}

/* Whether nothing more is to come. */
static __always_inline bool closed(const struct flow *f)
{
	return f->state == FLOW_CLOSING || f->state == FLOW_RESET;
}

/* The state of an established flow after a packet. A direction that is closed
 * may be silent for as long as the other one takes to answer; and a RST may be
 * anybody's, out of the window: what follows takes it back.
 */
static __always_inline __u8 state_after(const struct flow *f, __u8 tcp_flags)
{
	if (f->state == FLOW_CLOSING)
		return FLOW_CLOSING;
	if (tcp_flags & TCP_RST)
		return FLOW_RESET;
	if (tcp_flags & TCP_FIN)
		return f->state == FLOW_FIN_RECEIVED || f->action == FLOW_TUNNEL ? FLOW_CLOSING :
										 FLOW_FIN_SENT;
	return f->state == FLOW_RESET ? FLOW_ESTABLISHED : f->state;
}

/* Notes that a flow had a packet, in both its entries: a direction that is
 * silent lives as long as the other one talks. Once in a unit of time only, so
 * that many packets of one flow do not fight over its cache lines.
 */
static __always_inline void touch_both(bool v6, struct flow *f, __u8 proto, __u8 tcp_flags)
{
	__u8 state = state_after(f, tcp_flags);
	bool changed = state != f->state;
	union tuple_key key;
	struct flow *other;
	__u32 t = now();

	if (f->last_seen == t && !changed)
		return;
	f->last_seen = t;
	if (changed)
		f->state = state;
	if (f->action == FLOW_TUNNEL)
		return; /* the other direction is another node's */
	opposite_key(v6, f, proto, &key);
	other = established_flow(v6, &key);
	if (!other)
		return;
	other->last_seen = t;
	if (changed)
		other->state = state == FLOW_FIN_SENT ? FLOW_FIN_RECEIVED : state;
}

#endif
