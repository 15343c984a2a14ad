/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Answers that we make ourselves, out of the packet that they answer: TCP
 * reset (RFC 9293, 3.10.7.1), ICMP errors (RFC 792, RFC 4443), echo replies.
 */
#ifndef PORTOLAN_ANSWER_H
#define PORTOLAN_ANSWER_H

#include "packet.h"

#define ICMP_ECHO_REPLY 0
#define ICMP_UNREACHABLE 3
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER 12
#define ICMP_PORT_UNREACHABLE 3
#define ICMP_FRAGMENTATION_NEEDED 4

#define ICMP6_UNREACHABLE 1
#define ICMP6_TOO_BIG 2
#define ICMP6_TIME_EXCEEDED 3
#define ICMP6_ECHO 128
#define ICMP6_ECHO_REPLY 129
#define ICMP6_PORT_UNREACHABLE 4

#define ANSWER_TTL 64

struct tcp_header {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack;
	__u8 offset; /* high four bits: length in words */
	__u8 flags;
	__be16 window;
	__u16 check;
	__be16 urgent;
};

struct icmp_header {
	__u8 type;
	__u8 code;
	__u16 check;
	__be32 rest; /* MTU of "too big": the low half for IPv4 */
};

static __always_inline void swap_link(context_t *ctx)
{
	struct ethhdr *eth = packet_start(ctx);
	__u8 mac[ETH_ALEN];

	if (!link_header || (void *)(eth + 1) > packet_end(ctx))
		return;
	memcpy(mac, eth->h_dest, ETH_ALEN);
	memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	memcpy(eth->h_source, mac, ETH_ALEN);
}

/* Cuts or lengthens the packet at its end. */
static __always_inline bool resize(context_t *ctx, __u32 length)
{
	if (ON_XDP) {
		__u32 have = bpf_xdp_get_buff_len((struct xdp_md *)ctx);

		return bpf_xdp_adjust_tail((struct xdp_md *)ctx, (int)(length - have)) == 0;
	}
	return bpf_skb_change_tail((struct __sk_buff *)ctx, length, 0) == 0;
}

/* Takes bytes away between the link header and what follows, or, when there
 * are fewer than none, makes room there.
 */
static __always_inline bool cut(context_t *ctx, int bytes, __u64 flags)
{
	struct ethhdr link = {}, *eth = packet_start(ctx);

	if (!ON_XDP)
		return bpf_skb_adjust_room((struct __sk_buff *)ctx, -bytes, BPF_ADJ_ROOM_MAC,
					   flags) == 0;
	if (link_header) {
		if ((void *)(eth + 1) > packet_end(ctx))
			return false;
		link = *eth;
	}
	if (bpf_xdp_adjust_head((struct xdp_md *)ctx, bytes))
		return false;
	if (link_header) {
		eth = packet_start(ctx);
		if ((void *)(eth + 1) > packet_end(ctx))
			return false;
		*eth = link;
	}
	return true;
}

/* Sum of 16-bit words of a checked header. */
static __always_inline __u64 sum_of(const void *at, __u32 bytes)
{
	const __u16 *words = at;
	__u64 sum = 0;

#pragma unroll
	for (__u32 i = 0; i < bytes / 2; i++)
		sum += words[i];
	return sum;
}

static __always_inline void write_ip4(struct iphdr *ip, __be32 src, __be32 dst, __u8 proto,
				      __u16 length)
{
	ip->version = 4;
	ip->ihl = 5;
	ip->tos = 0;
	ip->tot_len = bpf_htons(length);
	ip->id = 0;
	ip->frag_off = bpf_htons(IP_DF);
	ip->ttl = ANSWER_TTL;
	ip->protocol = proto;
	ip->check = 0;
	ip->saddr = src;
	ip->daddr = dst;
	ip->check = ~fold(sum_of(ip, sizeof(*ip)));
}

static __always_inline void write_ip6(struct ipv6hdr *ip, const struct address *src,
				      const struct address *dst, __u8 next, __u16 payload)
{
	*(__be32 *)ip = bpf_htonl(6 << 28);
	ip->payload_len = bpf_htons(payload);
	ip->nexthdr = next;
	ip->hop_limit = ANSWER_TTL;
	memcpy(&ip->saddr, src, sizeof(*src));
	memcpy(&ip->daddr, dst, sizeof(*dst));
}

/* The sum of a pseudo header (RFC 793, RFC 8200 8.1). */
static __always_inline __u64 pseudo_sum(const struct address *src, const struct address *dst,
					__u8 proto, __u16 length)
{
	return (__u64)src->w[0] + src->w[1] + src->w[2] + src->w[3] + dst->w[0] + dst->w[1] +
	       dst->w[2] + dst->w[3] + bpf_htons(length) + bpf_htons(proto);
}

/* The addresses of the packet as it came, IPv4 in plain (not mapped) form, so
 * that they can be summed.
 */
static __always_inline bool read_ends(context_t *ctx, bool v6, struct address *src,
				      struct address *dst)
{
	struct iphdr *ip4 = packet_start(ctx) + link_header;
	struct ipv6hdr *ip6 = packet_start(ctx) + link_header;

	if (v6) {
		if ((void *)(ip6 + 1) > packet_end(ctx))
			return false;
		memcpy(src, &ip6->saddr, sizeof(*src));
		memcpy(dst, &ip6->daddr, sizeof(*dst));
		return true;
	}
	if ((void *)(ip4 + 1) > packet_end(ctx))
		return false;
	memset(src, 0, sizeof(*src));
	memset(dst, 0, sizeof(*dst));
	src->w[3] = ip4->saddr;
	dst->w[3] = ip4->daddr;
	return true;
}

static __always_inline bool write_ip(context_t *ctx, bool v6, const struct address *src,
				     const struct address *dst, __u8 proto, __u16 payload)
{
	void *ip = packet_start(ctx) + link_header;

	if (ip + (v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) > packet_end(ctx))
		return false;
	if (v6)
		write_ip6(ip, src, dst, proto, payload);
	else
		write_ip4(ip, src->w[3], dst->w[3], proto, payload + sizeof(struct iphdr));
	return true;
}

/* The stack may have left the checksum of the segment to the device: then the
 * field holds the sum of the addresses, and has to hold that again. Whether it
 * does cannot be seen; but a sum that changes by what its parts change by is
 * right either way, and the helper leaves out the parts that do not count.
 */
static __always_inline void reset_checksum_tc(context_t *ctx, __u32 at, __u16 pseudo, __u16 parts)
{
	struct __sk_buff *skb = (void *)ctx;

	bpf_l4_csum_replace(skb, at, 0, pseudo, BPF_F_PSEUDO_HDR);
	bpf_l4_csum_replace(skb, at, 0, parts, 0);
}

#define MAX_TCP_WORDS 15

/* Turns a segment into the reset that answers it. Its checksum is brought
 * about by what changes, so payload may not be lost: segments with data, which
 * no client opens with unless TCP Fast Open is in use, get no answer.
 */
static __always_inline bool make_reset(context_t *ctx, bool v6, const struct packet *p)
{
	__u32 ip_size = v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr), l4 = p->l4;
	struct address src, dst;
	struct tcp_header *tcp;
	__u64 before = 0, after;
	__u32 words, size;
	__u16 check;
	__be32 seq;

	if (p->kind != PACKET_WHOLE || l4 != link_header + ip_size ||
	    !read_ends(ctx, v6, &src, &dst))
		return false;
	tcp = packet_start(ctx) + link_header + ip_size;
	if ((void *)(tcp + 1) > packet_end(ctx) || tcp->flags & TCP_RST)
		return false;
	size = (tcp->offset >> 4) * 4;
	if (p->length != ip_size + size || size < sizeof(*tcp))
		return false;
	words = size / 4;
	for (__u32 i = 0; i < MAX_TCP_WORDS; i++) {
		__u32 *word = (void *)tcp + i * 4;

		if (i >= words)
			break;
		if ((void *)(word + 1) > packet_end(ctx))
			return false;
		before += *word;
	}
	check = tcp->check;
	before -= check; /* its own field is not part of the sum */
	seq = tcp->seq;
	*(struct ports *)tcp = (struct ports){ tcp->dest, tcp->source };
	if (tcp->flags & TCP_ACK) {
		tcp->seq = tcp->ack;
		tcp->ack = 0;
		tcp->flags = TCP_RST;
	} else {
		tcp->seq = 0;
		tcp->ack = bpf_htonl(bpf_ntohl(seq) + (tcp->flags & TCP_SYN ? 1 : 0) +
				     (tcp->flags & TCP_FIN ? 1 : 0));
		tcp->flags = TCP_RST | TCP_ACK;
	}
	tcp->offset = sizeof(*tcp) / 4 << 4;
	tcp->window = 0;
	tcp->urgent = 0;
	tcp->check = 0;
	after = sum_of(tcp, sizeof(*tcp));
	tcp->check = check;

	__u16 parts = fold((__u64)(__u16)~fold(before) + fold(after));
	__u16 pseudo = fold((__u64)(__u16)~bpf_htons(size) + bpf_htons(sizeof(*tcp)));

	if (ON_XDP)
		tcp->check = adjusted(check, (__u64)parts + pseudo);
	if (!write_ip(ctx, v6, &dst, &src, IPPROTO_TCP, sizeof(*tcp)))
		return false;
	swap_link(ctx);
	if (!ON_XDP)
		reset_checksum_tc(ctx, l4 + 16, pseudo, parts);
	return resize(ctx, l4 + sizeof(*tcp));
}

/* Turns a packet into an ICMP error about itself, sent by the address that it
 * was sent to. The error carries the packet's IP header and its transport
 * header without options, which names the flow; an answer longer than what it
 * answers would help a flood. transport is a constant in every caller.
 */
static __always_inline bool make_error(context_t *ctx, bool v6, __u32 transport, __u8 type,
				       __u8 code, __u32 mtu)
{
	__u32 ip_size = v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	__u32 inner = ip_size + transport, outer = ip_size + sizeof(struct icmp_header);
	struct address src, dst;
	struct icmp_header *icmp;
	__u64 sum;

	if (!read_ends(ctx, v6, &src, &dst))
		return false;
	if (!resize(ctx, link_header + inner) ||
	    !cut(ctx, -(int)outer, BPF_F_ADJ_ROOM_FIXED_GSO))
		return false;
	swap_link(ctx);
	if (!write_ip(ctx, v6, &dst, &src, v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP,
		      sizeof(*icmp) + inner))
		return false;
	icmp = packet_start(ctx) + link_header + ip_size;
	if ((void *)(icmp + 1) + inner > packet_end(ctx))
		return false;
	icmp->type = type;
	icmp->code = code;
	icmp->check = 0;
	icmp->rest = bpf_htonl(mtu);
	sum = sum_of(icmp, sizeof(*icmp) + inner);
	if (v6)
		sum += pseudo_sum(&src, &dst, IPPROTO_ICMPV6, sizeof(*icmp) + inner);
	icmp->check = ~fold(sum);
	return true;
}

/* Room for options or extension headers and a transport header. */
#define QUOTE_WITH_OPTIONS 64

/* The same for a packet of any form. Nobody is told about a later fragment (RFC
 * 1122, 3.2.2). What has options must be long enough for the error to name the
 * flow.
 */
static __always_inline bool answer_error(context_t *ctx, bool v6, const struct packet *p,
					 __u8 proto, __u8 type, __u8 code, __u32 mtu)
{
	__u32 ip_size = v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);

	if (p->kind == PACKET_LATER)
		return false;
	if (p->l4 != link_header + ip_size)
		return p->length >= ip_size + QUOTE_WITH_OPTIONS &&
		       make_error(ctx, v6, QUOTE_WITH_OPTIONS, type, code, mtu);
	if (proto == IPPROTO_TCP)
		return make_error(ctx, v6, 20, type, code, mtu);
	return make_error(ctx, v6, 8, type, code, mtu);
}

/* Turns an echo request into its reply. Only the type changes of what the
 * checksum covers, and the addresses' places, which do not count.
 */
static __always_inline bool make_echo_reply(context_t *ctx, bool v6, __u32 l4)
{
	struct icmp_header *icmp = packet_start(ctx) + l4;
	struct iphdr *ip4 = packet_start(ctx) + link_header;
	struct ipv6hdr *ip6 = packet_start(ctx) + link_header;
	struct address src, dst;

	if (l4 > MAX_L4 || (void *)(icmp + 1) > packet_end(ctx) ||
	    !read_ends(ctx, v6, &src, &dst))
		return false;
	icmp->check = adjusted(icmp->check, v6 ? replaced(ICMP6_ECHO, ICMP6_ECHO_REPLY) :
						 replaced(ICMP_ECHO, ICMP_ECHO_REPLY));
	icmp->type = v6 ? ICMP6_ECHO_REPLY : ICMP_ECHO_REPLY;
	if (v6) {
		if ((void *)(ip6 + 1) > packet_end(ctx))
			return false;
		memcpy(&ip6->saddr, &dst, sizeof(dst));
		memcpy(&ip6->daddr, &src, sizeof(src));
		ip6->hop_limit = ANSWER_TTL;
	} else {
		if ((void *)(ip4 + 1) > packet_end(ctx))
			return false;
		ip4->saddr = dst.w[3];
		ip4->daddr = src.w[3];
		ip4->check = adjusted(ip4->check, replaced(ip4->ttl, ANSWER_TTL));
		ip4->ttl = ANSWER_TTL;
	}
	swap_link(ctx);
	return true;
}

#endif
