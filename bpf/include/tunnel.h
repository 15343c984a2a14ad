/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Direct server return: a packet for an endpoint on another node goes there
 * inside another one, with the endpoint's address outside and itself unchanged
 * (RFC 2003, RFC 2473). The endpoint's node takes it out, finds the endpoint by
 * that address, and answers the client by itself.
 */
#ifndef PORTOLAN_TUNNEL_H
#define PORTOLAN_TUNNEL_H

#include "answer.h"
#include "connection.h"
#include "icmp.h"

#ifndef IPPROTO_IPV6
#define IPPROTO_IPV6 41
#endif

static __always_inline __u32 ip_header(bool v6)
{
	return v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
}

/* Whether a packet carries another one of its family: a glance at each packet. */
static __always_inline bool is_tunnelled(context_t *ctx, bool v6)
{
	struct ipv6hdr *ip6 = packet_start(ctx) + link_header;
	struct iphdr *ip4 = packet_start(ctx) + link_header;

	if (v6)
		return (void *)(ip6 + 1) <= packet_end(ctx) && ip6->nexthdr == IPPROTO_IPV6;
	return (void *)(ip4 + 1) <= packet_end(ctx) && ip4->protocol == IPPROTO_IPIP;
}

/* A router takes one from what it passes on, also into a tunnel. */
static __always_inline void take_hop(bool v6, void *ip)
{
	struct ipv6hdr *ip6 = ip;
	struct iphdr *ip4 = ip;

	if (v6) {
		ip6->hop_limit--;
		return;
	}
	ip4->check = adjusted(ip4->check, TTL_DELTA);
	ip4->ttl--;
}

/* Puts a packet into another one, from this node to the endpoint of f. The flow
 * label is the client's port, so that flows may take different paths (RFC 6438).
 * Marks of congestion (ECN) are not for the outer header: where the packet is
 * taken out they would be lost (RFC 6040, 4.3).
 * tc makes the TCP segments of a packet that is cut up later that much smaller;
 * datagrams stay as they are.
 */
static __always_inline bool encapsulate(context_t *ctx, bool v6, const struct packet *p,
					__u8 proto, const struct flow *f)
{
	__u64 flags = v6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;
	__u32 size = ip_header(v6);
	__be32 class = 0;
	__u8 tos = 0;
	void *ip = packet_start(ctx) + link_header;

	if (ip + size > packet_end(ctx))
		return false;
	take_hop(v6, ip);
	if (v6)
		class = *(__be32 *)ip & bpf_htonl(0x0fc00000);
	else
		tos = ((struct iphdr *)ip)->tos & 0xfc;
	if (proto != IPPROTO_TCP)
		flags |= BPF_F_ADJ_ROOM_FIXED_GSO;
	if (!cut(ctx, -(int)size, flags))
		return false;
	ip = packet_start(ctx) + link_header;
	if (ip + size > packet_end(ctx))
		return false;
	if (v6) {
		const struct flow6 *f6 = (const void *)f;

		write_ip6(ip, &f6->src, &f6->dst, IPPROTO_IPV6, p->length);
		*(__be32 *)ip |= class | bpf_htonl(bpf_ntohs(f->sport));
	} else {
		const struct flow4 *f4 = (const void *)f;
		struct iphdr *ip4 = ip;

		write_ip4(ip4, f4->src, f4->dst, IPPROTO_IPIP, p->length + size);
		ip4->check = adjusted(ip4->check, replaced(0, bpf_htons(tos)));
		ip4->tos = tos;
	}
	return true;
}

/* What of a packet inside another one must be known to tell whose it is. */
struct inside {
	union tuple_key key;
	__u32 l4; /* offset of the transport header; 0: the packet is none of ours */
	__u32 end; /* of the packet, as it says itself */
	__u32 fragment; /* id of the datagram, if it is a later fragment of one */
	bool later;
};

static __always_inline void look_inside4(context_t *ctx, struct inside *in)
{
	struct iphdr *ip = packet_start(ctx) + link_header + sizeof(struct iphdr);

	if ((void *)(ip + 1) > packet_end(ctx) || ip->version != 4 || ip->ihl < 5)
		return;
	in->key.v4.src = ip->saddr;
	in->key.v4.dst = ip->daddr;
	in->key.v4.proto = ip->protocol;
	in->later = ip->frag_off & bpf_htons(IP_OFFSET);
	in->fragment = ip->id;
	in->l4 = link_header + sizeof(*ip) + ip->ihl * 4;
	in->end = link_header + sizeof(*ip) + bpf_ntohs(ip->tot_len);
}

static __always_inline void look_inside6(context_t *ctx, struct inside *in)
{
	struct ipv6hdr *ip = packet_start(ctx) + link_header + sizeof(struct ipv6hdr);
	struct fragment_header *h = (void *)(ip + 1);

	if ((void *)(ip + 1) > packet_end(ctx) || ip->version != 6)
		return;
	memcpy(&in->key.v6.src, &ip->saddr, sizeof(in->key.v6.src));
	memcpy(&in->key.v6.dst, &ip->daddr, sizeof(in->key.v6.dst));
	in->key.v6.proto = ip->nexthdr;
	in->l4 = link_header + 2 * sizeof(*ip);
	in->end = in->l4 + bpf_ntohs(ip->payload_len);
	if (ip->nexthdr != NEXT_FRAGMENT)
		return;
	in->l4 = 0;
	if ((void *)(h + 1) > packet_end(ctx))
		return;
	in->key.v6.proto = h->next;
	in->later = bpf_ntohs(h->offset) & 0xfff8;
	in->fragment = h->id;
	in->l4 = link_header + 2 * sizeof(*ip) + sizeof(*h);
}

/* Whether the packet inside is for a port of ours: one of its address, which
 * may be this node's, too, or a NodePort, whose address may be another node's.
 */
static __always_inline bool for_our_port(context_t *ctx, bool v6, const struct inside *in,
					 struct tuple *t)
{
	struct ports *ports;
	__u64 at = in->l4;
	__u32 id;

	barrier_var(at);
	if (at > MAX_L4)
		return false;
	ports = packet_start(ctx) + at;
	if ((void *)(ports + 1) > packet_end(ctx))
		return false;
	t->port = ports->dest;
	t->proto = v6 ? in->key.v6.proto : in->key.v4.proto;
	if (!has_ports(t->proto))
		return false;
	/* One after the other: two look-ups side by side take too much stack. */
#pragma clang loop unroll(disable)
	for (int i = 0; i < 2; i++) {
		if (lookup_key(t, &t->dst, t->port, t->proto, &id))
			return true;
		memset(&t->dst, 0, sizeof(t->dst));
	}
	return false;
}

static __always_inline bool is_ours(context_t *ctx, bool v6, struct inside *in, struct request *r)
{
	struct tuple t = { .v6 = v6 };
	struct fragment_key first;
	__u32 owner;

	if (v6)
		t.dst = in->key.v6.dst;
	else
		t.dst.w[3] = in->key.v4.dst;
	/* The filter alone says so of others' tunnels, too, now and then. */
	if (may_be_vip(&t) && lookup_key(&t, &t.dst, 0, 0, &owner))
		return true;
	if (in->later) {
		first.src = v6 ? in->key.v6.src : mapped(in->key.v4.src);
		first.dst = v6 ? in->key.v6.dst : mapped(in->key.v4.dst);
		first.id = in->fragment;
		first.proto = v6 ? in->key.v6.proto : in->key.v4.proto;
		return bpf_map_lookup_elem(&fragments, &first) != NULL;
	}
	if ((v6 ? in->key.v6.proto : in->key.v4.proto) == (v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP)) {
		memset(&r->key, 0, sizeof(r->key));
		return error_key(ctx, v6, in->l4, in->end, &r->key) && known_flow(v6, &r->key);
	}
	return for_our_port(ctx, v6, in, &t);
}

/* Reads the tuple of a packet without options inside one at an offset, and where
 * that one was sent: what an error about it carries.
 */
static __always_inline bool tunnelled_key(context_t *ctx, bool v6, __u32 at, union tuple_key *key,
					  struct address *end)
{
	void *ip = packet_start(ctx) + at;
	struct ports *ports = ip + 2 * ip_header(v6);

	/* Eight bytes of the transport header, as RFC 792 promises of the outer. */
	if ((void *)ports + 8 > packet_end(ctx))
		return false;
	if (v6) {
		struct ipv6hdr *outer = ip, *inner = outer + 1;

		if (outer->nexthdr != IPPROTO_IPV6 || !has_ports(inner->nexthdr))
			return false;
		memcpy(end, &outer->daddr, sizeof(*end));
		memcpy(&key->v6.src, &inner->saddr, sizeof(key->v6.src));
		memcpy(&key->v6.dst, &inner->daddr, sizeof(key->v6.dst));
		key->v6.sport = ports->source;
		key->v6.dport = ports->dest;
		key->v6.proto = inner->nexthdr;
		return true;
	}
	struct iphdr *outer = ip, *inner = outer + 1;

	if (outer->protocol != IPPROTO_IPIP || outer->ihl != 5 || inner->ihl != 5 ||
	    !has_ports(inner->protocol) || inner->frag_off & bpf_htons(IP_OFFSET))
		return false;
	*end = mapped(outer->daddr);
	key->v4.src = inner->saddr;
	key->v4.dst = inner->daddr;
	key->v4.sport = ports->source;
	key->v4.dport = ports->dest;
	key->v4.proto = inner->protocol;
	return true;
}

/* Takes a packet out of the one around it, if that was sent to an endpoint here
 * on behalf of a Service; tells whether it did. Other people's tunnels, which
 * may end at the same addresses, are let pass.
 */
static __always_inline int open_tunnel(context_t *ctx, bool v6)
{
	struct tunnel_end_key key = {};
	struct inside in = {};
	struct request *r = scratch();
	void *ip = packet_start(ctx) + link_header;

	if (!r || ip + ip_header(v6) > packet_end(ctx))
		return false;
	if (v6) {
		struct ipv6hdr *ip6 = ip;

		if (ip6->version != 6 ||
		    cut_short(ctx, sizeof(*ip6) + bpf_ntohs(ip6->payload_len)))
			return false;
		memcpy(&key.addr, &ip6->daddr, sizeof(key.addr));
	} else {
		struct iphdr *ip4 = ip;

		if (ip4->version != 4 || ip4->ihl != 5 ||
		    ip4->frag_off & bpf_htons(IP_OFFSET | IP_MF) ||
		    bpf_ntohs(ip4->tot_len) < sizeof(*ip4) ||
		    cut_short(ctx, bpf_ntohs(ip4->tot_len)))
			return false;
		key.addr = mapped(ip4->daddr);
	}
	if (!bpf_map_lookup_elem(&tunnel_ends, &key))
		return false;
	if (v6)
		look_inside6(ctx, &in);
	else
		look_inside4(ctx, &in);
	if (!in.l4 || !is_ours(ctx, v6, &in, r))
		return false;
	r->end = key.addr;
	return cut(ctx, ip_header(v6), BPF_F_ADJ_ROOM_FIXED_GSO);
}

/* Global functions: the verifier walks each once. */
__noinline int open_tunnel4(context_t *ctx)
{
	return open_tunnel(ctx, false);
}

__noinline int open_tunnel6(context_t *ctx)
{
	return open_tunnel(ctx, true);
}

#endif
