/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Addresses: forms, comparison, and the hash behind vip_filter. */
#ifndef PORTOLAN_ADDRESS_H
#define PORTOLAN_ADDRESS_H

#include "types.h"
#include <bpf/bpf_endian.h>

static __always_inline struct address mapped(__be32 addr4)
{
	struct address a = { { 0, 0, bpf_htonl(0xffff), addr4 } };

	return a;
}

static __always_inline bool is_mapped(const struct address *a)
{
	return (a->w[0] | a->w[1]) == 0 && a->w[2] == bpf_htonl(0xffff);
}

static __always_inline bool same_address(const struct address *a,
					 const struct address *b)
{
	return ((a->w[0] ^ b->w[0]) | (a->w[1] ^ b->w[1]) |
		(a->w[2] ^ b->w[2]) | (a->w[3] ^ b->w[3])) == 0;
}

static __always_inline bool in_cidr(const struct address *a, const struct cidr *c)
{
	return (((a->w[0] & c->mask.w[0]) ^ c->addr.w[0]) |
		((a->w[1] & c->mask.w[1]) ^ c->addr.w[1]) |
		((a->w[2] & c->mask.w[2]) ^ c->addr.w[2]) |
		((a->w[3] & c->mask.w[3]) ^ c->addr.w[3])) == 0;
}

/* The same for IPv4. The CIDR holds the mapped form, so an IPv6 one is told
 * apart by its third word (no unicast prefix has ffff there with zeros ahead).
 */
static __always_inline bool in_cidr4(__be32 addr, const struct cidr *c)
{
	return (c->addr.w[2] == bpf_htonl(0xffff)) &
	       ((addr & c->mask.w[3]) == c->addr.w[3]);
}

/* Multiplicative hashing: the high bits of the product are the good ones.
 * The agent computes the same (maps.FilterHash); addresses are taken as host
 * order words, so that neighbours differ in the low bits.
 */
static __always_inline __u32 filter_hash4(__be32 addr)
{
	return bpf_ntohl(addr) * 0x9e3779b1u;
}

static __always_inline __u32 filter_hash6(const struct address *a)
{
	__u64 high = (__u64)bpf_ntohl(a->w[0]) << 32 | bpf_ntohl(a->w[1]);
	__u64 low = (__u64)bpf_ntohl(a->w[2]) << 32 | bpf_ntohl(a->w[3]);

	return ((high * 0xff51afd7ed558ccdull ^ low) * 0x9e3779b97f4a7c15ull) >> 32;
}

#endif
