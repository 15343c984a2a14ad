/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From a frame to a tuple. What is cut short, source-routed or inconsistent is
 * PACKET_BROKEN, what has no tuple PACKET_OTHER: both are left to the stack.
 */
#ifndef PORTOLAN_PACKET_H
#define PORTOLAN_PACKET_H

#include "address.h"
#include "context.h"

enum packet_kind {
	PACKET_OTHER, /* a protocol that is not translated */
	PACKET_BROKEN, /* cannot be understood, or asks for what is not done */
	PACKET_WHOLE, /* tuple complete */
	PACKET_FIRST, /* first fragment: tuple complete */
	PACKET_LATER, /* later fragment: ports unknown */
	PACKET_ICMP, /* ICMP of this family; ports 0 */
};

/* A packet as it stands in memory. Offsets are from its start. */
struct packet {
	__u32 l4; /* offset of the transport header */
	__u32 fragment; /* id of the datagram */
	__u8 kind;
	__u8 tcp_flags; /* of an SCTP packet that opens, TCP_SYN */
	__u8 ttl;
	__u8 dont_fragment;
	__u32 length; /* of the IP packet, as its header says */
};

/* A tuple in the form that flow tables are keyed by. */
union tuple_key {
	struct flow4_key v4;
	struct flow6_key v6;
};

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

#define SCTP_INIT 1 /* the type of the first chunk */

#define IP_OFFSET 0x1fff
#define IP_MF 0x2000
#define IP_DF 0x4000

/* TTL and protocol stand in one 16-bit word, TTL in its first byte: one less
 * of it, as the little-endian machines that we run on see the word.
 */
#define TTL_DELTA 0xfffe

#ifndef IPPROTO_SCTP
#define IPPROTO_SCTP 132
#endif

struct ports {
	__be16 source;
	__be16 dest;
};

struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset; /* 13 bits of offset, 2 reserved, more */
	__be32 id;
};

struct extension_header {
	__u8 next;
	__u8 length; /* in units of 8 bytes, without the first */
};

static __always_inline __u32 transport_size(__u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
		return 20;
	case IPPROTO_UDP:
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return 8;
	case IPPROTO_SCTP:
		return 12;
	}
	return 0;
}

/* Options that are looked at, no-operations included. More than any sender has
 * use for, and few enough for the verifier to walk them all.
 */
#define MAX_OPTIONS 8

/* A source route would be followed by no router that is not told to; whoever
 * sends one, or options beyond understanding, is left to the stack and its
 * settings. A global function: the verifier walks its loop once.
 */
__noinline int source_routed(context_t *ctx)
{
	struct iphdr *ip = packet_start(ctx) + link_header;
	__u32 at = sizeof(struct iphdr), end;

	if ((void *)(ip + 1) > packet_end(ctx))
		return true;
	end = ip->ihl * 4;
	for (int i = 0; i < MAX_OPTIONS && at < end; i++) {
		__u8 *option = packet_start(ctx) + link_header + (at & 63);

		if ((void *)(option + 1) > packet_end(ctx))
			return true;
		if (option[0] == IPOPT_END)
			return false;
		if (option[0] == IPOPT_NOOP) {
			at++;
			continue;
		}
		if (option[0] == IPOPT_LSRR || option[0] == IPOPT_SSRR ||
		    (void *)(option + 2) > packet_end(ctx) || option[1] < 2)
			return true;
		at += option[1];
	}
	return at != end;
}

/* No transport header begins later; the verifier wants every offset bounded. */
#define MAX_L4 1024

/* Reads ports of the transport header; false when the packet ends before. */
static __always_inline bool read_ports(context_t *ctx, struct packet *p, __u8 proto,
				       struct ports *ports)
{
	void *l4 = packet_start(ctx) + p->l4;

	if (p->l4 > MAX_L4 || l4 + 8 > packet_end(ctx))
		return false;
	*ports = *(struct ports *)l4;
	if (proto == IPPROTO_SCTP) {
		if (l4 + 12 > packet_end(ctx))
			return false;
		if (p->length + link_header > p->l4 + 12 && l4 + 13 <= packet_end(ctx) &&
		    ((__u8 *)l4)[12] == SCTP_INIT)
			p->tcp_flags = TCP_SYN;
		return true;
	}
	if (proto == IPPROTO_TCP) {
		if (l4 + 20 > packet_end(ctx))
			return false;
		p->tcp_flags = ((__u8 *)l4)[13];
		return (((__u8 *)l4)[12] >> 4) >= 5;
	}
	return true;
}

/* Protocols whose ports we know where to find. */
static __always_inline bool has_ports(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_SCTP;
}

/* Whether a frame ends before its IP packet does. Parts of it may lie outside
 * of what can be read in place.
 */
static __always_inline bool cut_short(context_t *ctx, __u32 length)
{
	__u32 need = link_header + length;

	if ((__u64)(packet_end(ctx) - packet_start(ctx)) >= need)
		return false;
	return ON_XDP ? bpf_xdp_get_buff_len((struct xdp_md *)ctx) < need :
			((struct __sk_buff *)ctx)->len < need;
}

static __always_inline void parse4(context_t *ctx, struct packet *p, struct flow4_key *key)
{
	struct iphdr *ip = packet_start(ctx) + link_header;
	struct ports ports = {};
	__u32 length;
	__u16 fragment;

	p->kind = PACKET_BROKEN;
	if ((void *)(ip + 1) > packet_end(ctx) || ip->version != 4 || ip->ihl < 5)
		return;
	length = bpf_ntohs(ip->tot_len);
	if (length < ip->ihl * 4 || cut_short(ctx, length) || (ip->ihl > 5 && source_routed(ctx)))
		return;
	ip = packet_start(ctx) + link_header;
	if ((void *)(ip + 1) > packet_end(ctx))
		return;
	fragment = bpf_ntohs(ip->frag_off);
	p->l4 = link_header + ip->ihl * 4;
	p->length = length;
	p->ttl = ip->ttl;
	p->dont_fragment = (fragment & IP_DF) != 0;
	p->fragment = ip->id;
	key->src = ip->saddr;
	key->dst = ip->daddr;
	key->proto = ip->protocol;
	if (ip->protocol == IPPROTO_ICMP && !(fragment & (IP_OFFSET | IP_MF))) {
		if (length - ip->ihl * 4 >= transport_size(IPPROTO_ICMP))
			p->kind = PACKET_ICMP;
		return;
	}
	if (!has_ports(ip->protocol)) {
		p->kind = PACKET_OTHER;
		return;
	}
	if (fragment & IP_OFFSET) {
		p->kind = PACKET_LATER;
		return;
	}
	if (length - ip->ihl * 4 < transport_size(ip->protocol) ||
	    !read_ports(ctx, p, ip->protocol, &ports))
		return;
	key->sport = ports.source;
	key->dport = ports.dest;
	p->kind = fragment & IP_MF ? PACKET_FIRST : PACKET_WHOLE;
}

/* Extension headers that may come before a transport header. */
#define NEXT_HOP_BY_HOP 0
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_DESTINATION 60
#define MAX_EXTENSIONS 3

/* What extension headers lead to. */
struct extensions {
	__u32 l4; /* offset of the transport header */
	__u32 id; /* of the fragmented datagram */
	__u16 fragment; /* offset and more-flag of a fragment header, | 4 if there is one */
	__u8 next; /* in: the first header's type; out: the transport's */
	__u8 pad;
};

/* Walks to the transport header. Routing headers are left to the stack: what
 * they name is not where the packet goes. A global function: the verifier
 * walks its loop once, and few packets come here.
 */
__noinline int skip_extensions(context_t *ctx, struct extensions *e)
{
	__u32 at = link_header + sizeof(struct ipv6hdr);

	if (!e)
		return false;
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		struct fragment_header *h = packet_start(ctx) + at;

		if (e->next != NEXT_HOP_BY_HOP && e->next != NEXT_DESTINATION &&
		    e->next != NEXT_FRAGMENT)
			break;
		if (at > MAX_L4 || (void *)(h + 1) > packet_end(ctx))
			return false;
		if (e->next == NEXT_FRAGMENT) {
			e->fragment = bpf_ntohs(h->offset) | 4; /* a reserved bit */
			e->id = h->id;
			at += sizeof(*h);
		} else {
			at += (((struct extension_header *)h)->length + 1) * 8;
		}
		e->next = h->next;
		if (e->fragment & 0xfff8)
			break; /* no header follows in a later fragment */
	}
	e->l4 = at;
	return at <= MAX_L4;
}

static __always_inline void parse6(context_t *ctx, struct packet *p, struct flow6_key *key)
{
	struct ipv6hdr *ip = packet_start(ctx) + link_header;
	struct ports ports = {};
	struct extensions e = { .l4 = link_header + sizeof(*ip) };

	p->kind = PACKET_BROKEN;
	if ((void *)(ip + 1) > packet_end(ctx) || ip->version != 6)
		return;
	memcpy(&key->src, &ip->saddr, sizeof(key->src));
	memcpy(&key->dst, &ip->daddr, sizeof(key->dst));
	p->length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	if (cut_short(ctx, p->length))
		return;
	p->ttl = ip->hop_limit;
	p->dont_fragment = true;
	e.next = ip->nexthdr;
	if (!has_ports(e.next) && e.next != IPPROTO_ICMPV6 && !skip_extensions(ctx, &e))
		return;
	p->l4 = e.l4;
	p->fragment = e.id;
	key->proto = e.next;
	if (e.next == IPPROTO_ICMPV6 && !e.fragment) {
		if (p->length + link_header >= p->l4 + transport_size(e.next))
			p->kind = PACKET_ICMP;
		return;
	}
	if (!has_ports(e.next)) {
		p->kind = PACKET_OTHER;
		return;
	}
	if (e.fragment & 0xfff8) {
		p->kind = PACKET_LATER;
		return;
	}
	if (p->length + link_header < p->l4 + transport_size(e.next) ||
	    !read_ports(ctx, p, e.next, &ports))
		return;
	key->sport = ports.source;
	key->dport = ports.dest;
	p->kind = e.fragment & 1 ? PACKET_FIRST : PACKET_WHOLE;
}

/* Reads the packet's tuple into key, whose padding is cleared. */
static __always_inline void parse(context_t *ctx, bool v6, struct packet *p,
				  union tuple_key *key)
{
	p->tcp_flags = 0;
	if (v6) {
		memset(&key->v6, 0, sizeof(key->v6));
		parse6(ctx, p, &key->v6);
	} else {
		memset(&key->v4, 0, sizeof(key->v4));
		parse4(ctx, p, &key->v4);
	}
}

/* The family of a frame, 0 when it is neither or carries a VLAN tag: tagged
 * frames are for the VLAN's own device.
 */
static __always_inline int frame_family(context_t *ctx)
{
	struct ethhdr *eth = packet_start(ctx);
	__u8 *first = packet_start(ctx);

	if (link_header) {
		if ((void *)(eth + 1) > packet_end(ctx))
			return 0;
		return eth->h_proto == bpf_htons(ETH_P_IP) ? 4 :
		       eth->h_proto == bpf_htons(ETH_P_IPV6) ? 6 : 0;
	}
	if ((void *)(first + 1) > packet_end(ctx))
		return 0;
	return *first >> 4;
}

#endif
