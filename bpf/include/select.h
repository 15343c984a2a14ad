/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a frontend's range word to a backend. */
#ifndef PORTOLAN_SELECT_H
#define PORTOLAN_SELECT_H

#include "address.h"
#include "maps.h"

/* A backend as the rest needs it, whatever the family. */
struct backend {
	struct address addr; /* IPv4 in mapped form */
	__be16 port;
	__u8 flags;
	__u32 id;
	__u32 generation;
	__u32 service_port;
};

static __always_inline __u8 range_flags(__u64 word)
{
	return word >> RANGE_FLAGS_SHIFT;
}

static __always_inline __u32 range_count(__u64 word)
{
	return word >> RANGE_COUNT_SHIFT & RANGE_COUNT_MASK;
}

static __always_inline bool read_backend4(__u32 id, struct backend *out)
{
	struct backend4 *b = bpf_map_lookup_elem(&backends4, &id);

	if (!b)
		return false;
	out->addr.w[0] = 0;
	out->addr.w[1] = 0;
	out->addr.w[2] = bpf_htonl(0xffff);
	out->addr.w[3] = b->addr;
	out->port = b->port;
	out->flags = b->flags;
	out->generation = b->generation;
	out->service_port = b->service_port;
	out->id = id;
	return true;
}

static __always_inline bool read_backend6(__u32 id, struct backend *out)
{
	struct backend6 *b = bpf_map_lookup_elem(&backends6, &id);

	if (!b)
		return false;
	out->addr = b->addr;
	out->port = b->port;
	out->flags = b->flags;
	out->generation = b->generation;
	out->service_port = b->service_port;
	out->id = id;
	return true;
}

static __always_inline bool read_backend(bool v6, __u32 id, struct backend *out)
{
	return v6 ? read_backend6(id, out) : read_backend4(id, out);
}

/* Picks a backend of a range by a hash (any 32 evenly spread bits). The range
 * was written before its word, and neither it nor its backends are used again
 * before every program that may have read the word has ended: no check of
 * generations is needed between the word and the backend.
 */
static __always_inline bool pick(__u64 word, bool v6, __u32 hash, struct backend *out)
{
	__u32 index = (__u32)word + (__u32)((__u64)hash * range_count(word) >> 32);
	struct slot *slot = bpf_map_lookup_elem(&slots, &index);

	return slot && read_backend(v6, slot->backend, out);
}

/* Whether a backend belongs to the set that a range word stands for. */
static __always_inline bool in_set(__u64 word, const struct backend *b)
{
	__u8 member = range_flags(word) & RANGE_LOCAL ? BACKEND_IN_LOCAL :
							BACKEND_IN_CLUSTER;

	return b->flags & member;
}

#endif
