/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From an address, port and protocol to a frontend. Knows nothing of sockets
 * or packets.
 */
#ifndef PORTOLAN_LOOKUP_H
#define PORTOLAN_LOOKUP_H

#include "address.h"
#include "config.h"
#include "frontends.h"
#include "maps.h"

/* What a client addresses. v6 is a constant in every caller, so the compiler
 * keeps one family's code only.
 */
struct tuple {
	struct address dst; /* IPv4 in mapped form */
	__be16 port;
	__u8 proto;
	bool v6;
	void *ctx; /* of the socket hook, to ask for the client when needed; else NULL */
};

enum found {
	FOUND_NOTHING, /* no business of ours: pass */
	FOUND_FRONTEND,
	FOUND_NO_PORT, /* a Service's address, but no port of it */
	FOUND_NO_SERVICE, /* in a service CIDR, but nobody's address */
	FOUND_PUBLISHED, /* a load balancer or external address, but no port of it */
};

static __always_inline bool filtered(__u32 hash)
{
	__u32 bit = hash >> vip_filter_shift, index = bit >> 6;
	__u64 *word = bpf_map_lookup_elem(&vip_filter, &index);

	return word && *word & 1ull << (bit & 63);
}

static __always_inline bool may_be_vip(const struct tuple *t)
{
	return filtered(t->v6 ? filter_hash6(&t->dst) : filter_hash4(t->dst.w[3]));
}

/* Whether an address is no Service's and could not be: what most calls are to.
 * Nothing is kept in memory for that.
 */
static __always_inline bool nobodys4(__be32 dst)
{
	return (dst & service_mask4) != service_prefix4 && !filtered(filter_hash4(dst));
}

static __always_inline bool nobodys6(const struct address *dst)
{
	__u64 first = (__u64)dst->w[1] << 32 | dst->w[0];

	return (first & service_mask6) != service_prefix6 && !filtered(filter_hash6(dst));
}

static __always_inline bool lookup_key(const struct tuple *t,
				       const struct address *addr,
				       __be16 port, __u8 proto, __u32 *value)
{
	__u32 service = port | (__u32)proto << 16 | ENTRY_USED << 24;

	return t->v6 ? find6(addr, service, value) : find4(addr->w[3], service, value);
}

/* Whether the client is in the node's own network namespace: no packet's is. */
static __always_inline bool in_host_netns(const struct tuple *t)
{
	return t->ctx && bpf_get_netns_cookie(t->ctx) == host_netns_cookie;
}

/* Whether the address serves NodePorts for this client. Loopback does for the
 * node itself only: in a pod it means the pod.
 */
static __always_inline bool serves_nodeports(const struct tuple *t)
{
	__u32 *flags = t->v6 ? bpf_map_lookup_elem(&node_addrs6, &t->dst) :
			       bpf_map_lookup_elem(&node_addrs4, &t->dst.w[3]);

	return flags && (!(*flags & NODE_ADDR_HOST_ONLY) || in_host_netns(t));
}

static __always_inline bool lookup_nodeport(const struct tuple *t,
					    const struct node_config *config,
					    __u32 *id)
{
	struct address any = {};
	__u16 port = bpf_ntohs(t->port);

	if (port < config->nodeport_min || port > config->nodeport_max)
		return false;
	if (!serves_nodeports(t))
		return false;
	return lookup_key(t, &any, t->port, t->proto, id);
}

/* The sets are few and short: comparing is cheaper than a look-up. */
static __always_inline bool in_service_cidr(const struct tuple *t,
					    const struct node_config *config)
{
	const struct cidr_set *set = &config->cidrs[config->active_cidrs & 1];

	for (int i = 0; i < MAX_SERVICE_CIDRS; i++) {
		if (i >= set->count)
			return false;
		if (t->v6 ? in_cidr(&t->dst, &set->cidrs[i]) :
			    in_cidr4(t->dst.w[3], &set->cidrs[i]))
			return true;
	}
	return false;
}

/* What an address that is no frontend of this port is. */
static __always_inline enum found classify(const struct tuple *t,
					   const struct node_config *config)
{
	__u32 owner;

	if (lookup_key(t, &t->dst, 0, 0, &owner))
		return owner == ADDRESS_OURS	  ? FOUND_NO_PORT :
		       owner == ADDRESS_PUBLISHED ? FOUND_PUBLISHED :
						    FOUND_NOTHING;
	return in_service_cidr(t, config) ? FOUND_NO_SERVICE : FOUND_NOTHING;
}

/* Finds the frontend of a tuple that may_be_vip let through; *id is set for
 * FOUND_FRONTEND only.
 */
static __always_inline enum found find_frontend(const struct tuple *t, __u32 *id)
{
	__u32 zero = 0;
	const struct node_config *config = bpf_map_lookup_elem(&node_config, &zero);

	if (!config)
		return FOUND_NOTHING;
	if (lookup_key(t, &t->dst, t->port, t->proto, id) ||
	    lookup_nodeport(t, config, id))
		return FOUND_FRONTEND;
	return classify(t, config);
}

/* Whether an address that cannot be a VIP is one that no Service has. */
static __always_inline bool unassigned(const struct tuple *t)
{
	__u32 zero = 0;
	const struct node_config *config = bpf_map_lookup_elem(&node_config, &zero);

	return config && in_service_cidr(t, config);
}

#endif
