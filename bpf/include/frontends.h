/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The look-up in frontends4 and frontends6: open addressing over buckets of
 * four in mapped arrays. The kernel looks arrays up inline, so this
 * costs a few loads where a hash map costs a call; and the agent, who writes
 * mapped memory, publishes a frontend with one store (maps/frontends.go, which
 * has the same arithmetic).
 */
#ifndef PORTOLAN_FRONTENDS_H
#define PORTOLAN_FRONTENDS_H

#include "address.h"
#include "config.h"
#include "maps.h"

/* A pointer that the processor cannot read through before it has the word: the
 * rest of an entry was stored before its tag, and must be read after it. The
 * barrier is an address dependency, which is free.
 */
static __always_inline const void *once_read(const void *p, __u64 word)
{
	asm volatile("%1 &= 0\n\t%0 += %1" : "+r"(p), "+r"(word));
	return p;
}

/* Multiplying by a number that nobody outside knows spreads any addresses,
 * also those that somebody chose to fall together.
 */
static __always_inline __u64 spread4(__u64 tag)
{
	__u64 x = tag * frontends4_multiplier;

	return (x ^ x >> 32) * frontends4_multiplier;
}

static __always_inline __u64 spread6(const struct address *a, __u32 service)
{
	__u64 high = (__u64)a->w[1] << 32 | a->w[0];
	__u64 low = (__u64)a->w[3] << 32 | a->w[2];
	__u64 x = (high * frontends6_multiplier ^ low) * frontends6_multiplier;

	return ((x ^ x >> 32) + service) * frontends6_multiplier;
}

/* The way of a key through the table: from the bucket that the high bits of its
 * hash say on, with a stride of the middle ones, which is odd and so leads
 * everywhere.
 */
static __always_inline __u32 probe(__u64 hash, __u32 shift, __u32 i)
{
	return (__u32)((hash >> shift) + i * (hash >> 8 | 1)) & (~0ull >> shift);
}

/* The value of an address, port and protocol; false when there is none. The
 * verifier sees a constant number of rounds, and an index that the array
 * checks.
 */
static __always_inline bool find4(__be32 addr, __u32 service, __u32 *value)
{
	__u64 tag = (__u64)service << 32 | addr, hash = spread4(tag);

#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < PROBES_MAX; i++) {
		__u32 index = probe(hash, frontends4_shift, i);
		const struct frontend4_bucket *b = bpf_map_lookup_elem(&frontends4, &index);

		if (!b)
			return false;
#pragma unroll
		for (int j = 0; j < BUCKET_ENTRIES; j++) {
			__u64 found = *(const volatile __u64 *)&b->tags[j];

			if (found == tag) {
				b = once_read(b, found);
				*value = *(const volatile __u32 *)&b->values[j];
				return true;
			}
		}
		if (!*(const volatile __u32 *)&b->passed)
			return false;
	}
	return false;
}

static __always_inline bool find6(const struct address *addr, __u32 service, __u32 *value)
{
	__u64 hash = spread6(addr, service);

#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < PROBES_MAX; i++) {
		__u32 index = probe(hash, frontends6_shift, i);
		const struct frontend6_bucket *b = bpf_map_lookup_elem(&frontends6, &index);

		if (!b)
			return false;
#pragma unroll
		for (int j = 0; j < BUCKET_ENTRIES; j++) {
			__u64 found = *(const volatile __u64 *)&b->tags[j];

			if ((__u32)found == service) {
				const struct frontend6_bucket *read = once_read(b, found);

				if (same_address(&read->addrs[j], addr)) {
					*value = found >> 32;
					return true;
				}
			}
		}
		if (!*(const volatile __u32 *)&b->passed)
			return false;
	}
	return false;
}

#endif
