/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Carrying out an entry's rewrite on a packet. */
#ifndef PORTOLAN_REWRITE_H
#define PORTOLAN_REWRITE_H

#include "flow.h"

/* The IP header: new addresses, and one hop less for what is sent on. Returns
 * whether the packet still is what it was parsed as.
 */
static __always_inline bool rewrite_addresses(context_t *ctx, bool v6, const struct flow *f,
					      bool hop)
{
	struct iphdr *ip4 = packet_start(ctx) + link_header;
	struct ipv6hdr *ip6 = packet_start(ctx) + link_header;

	if (v6) {
		const struct flow6 *f6 = (const void *)f;

		if ((void *)(ip6 + 1) > packet_end(ctx))
			return false;
		memcpy(&ip6->saddr, &f6->src, sizeof(f6->src));
		memcpy(&ip6->daddr, &f6->dst, sizeof(f6->dst));
		ip6->hop_limit -= hop;
		return true;
	}
	const struct flow4 *f4 = (const void *)f;

	if ((void *)(ip4 + 1) > packet_end(ctx))
		return false;
	ip4->saddr = f4->src;
	ip4->daddr = f4->dst;
	ip4->check = adjusted(ip4->check, (__u64)f->address_delta + (hop ? TTL_DELTA : 0));
	ip4->ttl -= hop;
	return true;
}

/* The transport checksum on tc. The stack may not have computed it yet
 * (CHECKSUM_PARTIAL: the field holds the sum of the addresses only) or the
 * device may have summed up the whole packet (CHECKSUM_COMPLETE); the helpers
 * know which. With IPv6 they take a changed address for a changed sum of the
 * whole packet although the checksum makes up for it, which is given back.
 */
static __always_inline void update_checksum_tc(context_t *ctx, bool v6, __u32 at, __u64 mangled,
					       __u16 addresses, __u16 ports)
{
	struct __sk_buff *skb = (void *)ctx;

	if (addresses) {
		bpf_l4_csum_replace(skb, at, 0, addresses, BPF_F_PSEUDO_HDR | mangled);
		if (v6)
			bpf_csum_update(skb, addresses);
	}
	if (ports)
		bpf_l4_csum_replace(skb, at, 0, ports, mangled);
}

/* Ports and checksum of the transport header at offset l4. The last thing to
 * be done to a packet on tc: the helpers move it in memory.
 */
static __always_inline bool rewrite_transport(context_t *ctx, bool v6, __u32 l4, __u8 proto,
					      const struct flow *f)
{
	__u16 addresses = f->address_delta, ports = f->port_delta;
	__u16 *check;
	__u64 offset = l4;
	void *header;

	/* Linux 6.1: "R1 offset is outside of the packet": it forgets the bound
	 * of 4 bytes that are put on the stack, not that of 8.
	 */
	barrier_var(offset);
	if (offset > 2048)
		return false;
	header = packet_start(ctx) + offset;
	/* Two checks, because the verifier wants a constant. */
	if (header + 8 > packet_end(ctx) ||
	    (proto == IPPROTO_TCP && header + 20 > packet_end(ctx)))
		return false;
	((struct ports *)header)->source = f->sport;
	((struct ports *)header)->dest = f->dport;
	if (proto == IPPROTO_SCTP)
		return true; /* covers no addresses, and ports did not change */
	if (proto == IPPROTO_TCP) {
		check = header + 16;
		if (ON_XDP)
			*check = adjusted(*check, (__u64)addresses + ports);
		else
			update_checksum_tc(ctx, v6, l4 + 16, 0, addresses, ports);
		return true;
	}
	check = header + 6;
	if (*check == 0)
		return true; /* the sender computed none, as in tunnels over IPv6 (RFC 6935) */
	if (!ON_XDP) {
		update_checksum_tc(ctx, v6, l4 + 6, BPF_F_MARK_MANGLED_0, addresses, ports);
		return true;
	}
	*check = adjusted(*check, (__u64)addresses + ports);
	if (*check == 0)
		*check = 0xffff; /* 0 would say that there is none */
	return true;
}

/* The link header for the device that the packet goes out by. */
static __always_inline bool rewrite_link(context_t *ctx, const __u8 *dst, const __u8 *src)
{
	struct ethhdr *eth = packet_start(ctx);

	if ((void *)(eth + 1) > packet_end(ctx))
		return false;
	memcpy(eth->h_dest, dst, ETH_ALEN);
	memcpy(eth->h_source, src, ETH_ALEN);
	return true;
}

/* Rewrites all of a packet of this kind. */
static __always_inline bool rewrite(context_t *ctx, bool v6, const struct packet *p, __u8 proto,
				    const struct flow *f, bool hop)
{
	if (!rewrite_addresses(ctx, v6, f, hop))
		return false;
	return p->kind == PACKET_LATER || rewrite_transport(ctx, v6, p->l4, proto, f);
}

#endif
