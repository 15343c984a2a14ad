/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows that have not proven themselves, in the buckets of an array. Entries
 * are copied in and out under the bucket's lock, because several CPUs may hold
 * packets of one flow, or of two that share a bucket.
 */
#ifndef PORTOLAN_NEWCOMER_H
#define PORTOLAN_NEWCOMER_H

#include "flow.h"

static __always_inline __u32 bucket_of(bool v6, const union tuple_key *key)
{
	const __u64 *w = (const void *)key;
	__u64 h = w[0] * 0x9e3779b97f4a7c15ull;

	h = (h ^ h >> 32 ^ w[1]) * 0xff51afd7ed558ccdull;
	if (v6) {
		h = (h ^ h >> 32 ^ w[2]) * 0xc4ceb9fe1a85ec53ull;
		h = (h ^ h >> 32 ^ w[3]) * 0x9e3779b97f4a7c15ull;
		h = (h ^ h >> 32 ^ w[4]) * 0xff51afd7ed558ccdull;
	}
	return (h >> 32) & (NEWCOMER_BUCKETS - 1);
}

static __always_inline bool same_key(bool v6, const void *a, const union tuple_key *b)
{
	const __u64 *x = a, *y = (const void *)b;

	if (v6)
		return ((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]) |
			(x[4] ^ y[4])) == 0;
	return ((x[0] ^ y[0]) | (x[1] ^ y[1])) == 0;
}

static __always_inline void copy_flow(bool v6, void *to, const void *from)
{
	if (v6)
		memcpy(to, from, sizeof(struct flow6));
	else
		memcpy(to, from, sizeof(struct flow4));
}

/* A bucket begins with its lock, whatever the family. */
static __always_inline void *bucket(bool v6, const union tuple_key *key)
{
	__u32 index = bucket_of(v6, key);

	return v6 ? bpf_map_lookup_elem(&newcomers6, &index) :
		    bpf_map_lookup_elem(&newcomers4, &index);
}

static __always_inline void *way_key(bool v6, void *bucket, int i)
{
	return v6 ? (void *)&((struct newcomers6 *)bucket)->way[i].key :
		    (void *)&((struct newcomers4 *)bucket)->way[i].key;
}

static __always_inline struct flow *way_flow(bool v6, void *bucket, int i)
{
	return v6 ? &((struct newcomers6 *)bucket)->way[i].flow.flow :
		    &((struct newcomers4 *)bucket)->way[i].flow.flow;
}

/* Lives in units of 1.07 s: of a newcomer without packets, as long as the sweep
 * leaves a flow of datagrams; and of one that was moved to the established,
 * which counts for a packet that missed it there a moment ago. Nobody sweeps
 * here: whoever looks has to mind the age.
 */
#define NEWCOMER_LIFE 168
#define RETIRED_AGE (1u << 31) /* how old a newcomer is made that was moved */
#define RETIRED_LIFE 2

static __always_inline bool counts(const struct flow *f)
{
	__u32 age = now() - f->last_seen;

	/* Unsigned: an age below RETIRED_AGE wraps round to a large one. */
	return f->action && (age <= NEWCOMER_LIFE || age - RETIRED_AGE <= RETIRED_LIFE);
}

/* Reads the newcomer of a key into out. */
static __always_inline bool recall(bool v6, const union tuple_key *key, struct flow *out)
{
	void *b = bucket(v6, key);
	bool found = false;

	if (!b)
		return false;
	bpf_spin_lock(b);
#pragma unroll
	for (int i = 0; i < NEWCOMER_WAYS; i++) {
		if (!found && same_key(v6, way_key(v6, b, i), key)) {
			copy_flow(v6, out, way_flow(v6, b, i));
			found = true;
		}
	}
	bpf_spin_unlock(b);
	return found && counts(out);
}

/* Writes the newcomer of a key, in the place of what it was, else of the
 * bucket's oldest: the clock is coarse, so among equals the hand decides, which
 * goes round.
 */
static __always_inline void enter(bool v6, const union tuple_key *key, const struct flow *f)
{
	__u32 best = 0, hand, *turn;
	__u64 most = 0;
	void *b = bucket(v6, key);

	if (!b)
		return;
	turn = v6 ? &((struct newcomers6 *)b)->hand : &((struct newcomers4 *)b)->hand;
	bpf_spin_lock(b);
	hand = *turn;
	*turn = hand + 1;
#pragma unroll
	for (int i = 0; i < NEWCOMER_WAYS; i++) {
		struct flow *w = way_flow(v6, b, i);
		__u64 age = (__u64)(__u32)(f->last_seen - w->last_seen) << 1;

		age |= (hand & (NEWCOMER_WAYS - 1)) == i;
		if (same_key(v6, way_key(v6, b, i), key))
			age = ~0ull;
		else if (!w->action)
			age = ~0ull - 1;
		if (age > most) {
			best = i;
			most = age;
		}
	}
#pragma unroll
	for (int i = 0; i < NEWCOMER_WAYS; i++) {
		if (i == best) {
			if (v6)
				memcpy(way_key(v6, b, i), key, sizeof(key->v6));
			else
				memcpy(way_key(v6, b, i), key, sizeof(key->v4));
			copy_flow(v6, way_flow(v6, b, i), f);
		}
	}
	bpf_spin_unlock(b);
}

/* Notes what was seen of a newcomer; removes it when state is NEWCOMER_GONE. */
#define NEWCOMER_GONE 0xff

static __always_inline void amend(bool v6, const union tuple_key *key, __u8 state, __u32 seen)
{
	void *b = bucket(v6, key);

	if (!b)
		return;
	bpf_spin_lock(b);
#pragma unroll
	for (int i = 0; i < NEWCOMER_WAYS; i++) {
		struct flow *w = way_flow(v6, b, i);

		if (same_key(v6, way_key(v6, b, i), key)) {
			if (state == NEWCOMER_GONE)
				w->action = 0;
			w->state = state;
			w->last_seen = seen;
		}
	}
	bpf_spin_unlock(b);
}

/* Makes a newcomer the first of its bucket to go. It stays until then: another
 * CPU may have missed it among the established a moment ago, and looks here.
 */
static __always_inline void retire(bool v6, const union tuple_key *key)
{
	amend(v6, key, FLOW_ESTABLISHED, now() - RETIRED_AGE);
}

static __always_inline void expel(bool v6, const union tuple_key *key)
{
	amend(v6, key, NEWCOMER_GONE, 0);
}

#endif
