/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP errors about translated packets. The packet inside an error is one that
 * went out of here, so its tuple turned round is the key of the direction in
 * which the error travels; the entry says what the inner packet was before,
 * and where the error belongs.
 */
#ifndef PORTOLAN_ICMP_H
#define PORTOLAN_ICMP_H

#include "answer.h"
#include "flow.h"

static __always_inline bool is_error(bool v6, __u8 type)
{
	if (v6)
		return type >= 1 && type <= 4;
	return type == ICMP_UNREACHABLE || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETER;
}

static __always_inline bool is_too_big(bool v6, __u8 type, __u8 code)
{
	return v6 ? type == ICMP6_TOO_BIG :
		    type == ICMP_UNREACHABLE && code == ICMP_FRAGMENTATION_NEEDED;
}

/* Where the inner transport header begins; 0 when it cannot be told. */
static __always_inline __u32 inner_transport(context_t *ctx, bool v6, __u32 at, union tuple_key *key)
{
	void *ip = packet_start(ctx) + at;

	if (at > MAX_L4)
		return 0;
	if (v6) {
		struct ipv6hdr *ip6 = ip;
		struct fragment_header *h = (void *)(ip6 + 1);

		if ((void *)(ip6 + 1) > packet_end(ctx) || ip6->version != 6)
			return 0;
		memcpy(&key->v6.src, &ip6->daddr, sizeof(key->v6.src));
		memcpy(&key->v6.dst, &ip6->saddr, sizeof(key->v6.dst));
		key->v6.proto = ip6->nexthdr;
		if (ip6->nexthdr != NEXT_FRAGMENT)
			return at + sizeof(*ip6);
		if ((void *)(h + 1) > packet_end(ctx) || h->offset & bpf_htons(0xfff8))
			return 0;
		key->v6.proto = h->next;
		return at + sizeof(*ip6) + sizeof(*h);
	}
	struct iphdr *ip4 = ip;

	if ((void *)(ip4 + 1) > packet_end(ctx) || ip4->version != 4 || ip4->ihl < 5 ||
	    ip4->frag_off & bpf_htons(IP_OFFSET))
		return 0;
	key->v4.src = ip4->daddr;
	key->v4.dst = ip4->saddr;
	key->v4.proto = ip4->protocol;
	return at + ip4->ihl * 4;
}

/* Reads the key of the direction that an error travels in; returns the offset
 * of the inner ports, 0 when the inner packet is none of ours to understand.
 * end is that of the error's packet: what follows is padding of the link.
 */
static __always_inline __u32 error_key(context_t *ctx, bool v6, __u32 l4, __u32 end,
				       union tuple_key *key)
{
	__u32 at = inner_transport(ctx, v6, l4 + sizeof(struct icmp_header), key);
	struct ports *ports;

	/* Linux 6.12: "R1 offset is outside of the packet": clang knows the bound
	 * and drops the comparison, the verifier has lost it.
	 */
	barrier_var(at);
	if (at > 2048)
		return 0;
	ports = packet_start(ctx) + at;
	if (!at || at + sizeof(*ports) > end || (void *)(ports + 1) > packet_end(ctx) ||
	    !has_ports(v6 ? key->v6.proto : key->v4.proto))
		return 0;
	if (v6) {
		key->v6.sport = ports->dest;
		key->v6.dport = ports->source;
	} else {
		key->v4.sport = ports->dest;
		key->v4.dport = ports->source;
	}
	return at;
}

/* Gives the inner packet its first tuple back. The checksum of its transport
 * header stays: it is often cut off, and nobody checks it.
 */
static __always_inline bool mend_inner(context_t *ctx, bool v6, __u32 l4, __u32 ports_at,
				       const struct flow *f)
{
	void *inner = packet_start(ctx) + l4 + sizeof(struct icmp_header);
	struct ports *ports = packet_start(ctx) + ports_at;

	if (l4 > MAX_L4 || ports_at > 2048 || (void *)(ports + 1) > packet_end(ctx))
		return false;
	*ports = (struct ports){ f->dport, f->sport };
	if (v6) {
		struct ipv6hdr *ip6 = inner;

		if ((void *)(ip6 + 1) > packet_end(ctx))
			return false;
		memcpy(&ip6->saddr, &((const struct flow6 *)f)->dst, sizeof(struct address));
		memcpy(&ip6->daddr, &((const struct flow6 *)f)->src, sizeof(struct address));
		return true;
	}
	struct iphdr *ip4 = inner;

	if ((void *)(ip4 + 1) > packet_end(ctx))
		return false;
	ip4->saddr = ((const struct flow4 *)f)->dst;
	ip4->daddr = ((const struct flow4 *)f)->src;
	ip4->check = adjusted(ip4->check, f->address_delta);
	return true;
}

/* Translates an error by the entry of its direction, whose key names the ends
 * as they were. Whoever sent it keeps its address, unless it is the endpoint,
 * which clients know by the VIP, or the error goes to an endpoint elsewhere,
 * which is told by the address that it knows us by.
 */
static __always_inline bool translate_error(context_t *ctx, bool v6, const struct packet *p,
					    __u32 ports_at, const union tuple_key *key,
					    const struct flow *f, bool hop)
{
	struct address from, src, dst, new_src, new_dst = new_destination(v6, f), named;
	struct iphdr *ip4 = packet_start(ctx) + link_header;
	struct ipv6hdr *ip6 = packet_start(ctx) + link_header;
	struct icmp_header *icmp;
	__u64 outer, delta;

	if (!mend_inner(ctx, v6, p->l4, ports_at, f))
		return false;
	named = v6 ? key->v6.src : mapped(key->v4.src);
	if (v6) {
		if ((void *)(ip6 + 1) > packet_end(ctx))
			return false;
		memcpy(&src, &ip6->saddr, sizeof(src));
		memcpy(&dst, &ip6->daddr, sizeof(dst));
	} else {
		if ((void *)(ip4 + 1) > packet_end(ctx))
			return false;
		src = mapped(ip4->saddr);
		dst = mapped(ip4->daddr);
	}
	from = new_source(v6, f);
	new_src = same_address(&src, &named) || f->action == FLOW_FORWARD ? from : src;
	outer = replaced_address(&src, &new_src) + replaced_address(&dst, &new_dst);
	if (v6) {
		memcpy(&ip6->saddr, &new_src, sizeof(new_src));
		memcpy(&ip6->daddr, &new_dst, sizeof(new_dst));
		ip6->hop_limit -= hop;
	} else {
		ip4->saddr = new_src.w[3];
		ip4->daddr = new_dst.w[3];
		ip4->check = adjusted(ip4->check, (__u64)fold(outer) + (hop ? TTL_DELTA : 0));
		ip4->ttl -= hop;
	}
	icmp = packet_start(ctx) + p->l4;
	if (p->l4 > MAX_L4 || (void *)(icmp + 1) > packet_end(ctx))
		return false;
	delta = f->port_delta;
	if (v6)
		delta += (__u64)f->address_delta + fold(outer);
	icmp->check = adjusted(icmp->check, delta);
	return true;
}

#endif
