/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From an address, port and protocol to a frontend. Knows nothing of sockets
 * or packets.
 */
#ifndef PORTOLAN_LOOKUP_H
#define PORTOLAN_LOOKUP_H

#include "address.h"
#include "config.h"
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

static __always_inline bool may_be_vip(const struct tuple *t)
{
	__u32 bit = (t->v6 ? filter_hash6(&t->dst) : filter_hash4(t->dst.w[3])) >>
		    vip_filter_shift;
	__u32 index = bit >> 6;
	__u64 *word = bpf_map_lookup_elem(&vip_filter, &index);

	return word && *word & 1ull << (bit & 63);
}

static __always_inline __u32 *lookup_key(const struct tuple *t,
					 const struct address *addr,
					 __be16 port, __u8 proto)
{
	if (t->v6) {
		struct frontend6_key key;

		/* Written as it is read by the hash, a word at a time: a processor
		 * cannot forward bytes to a wider load, and waits.
		 */
		key.addr = *addr;
		*(volatile __u32 *)&key.port = port | (__u32)proto << 16;
		return bpf_map_lookup_elem(&frontends6, &key);
	}
	struct frontend4_key key;

	*(volatile __u32 *)&key.addr = addr->w[3];
	*(volatile __u32 *)&key.port = port | (__u32)proto << 16;
	return bpf_map_lookup_elem(&frontends4, &key);
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

static __always_inline __u32 *lookup_nodeport(const struct tuple *t,
					      const struct node_config *config)
{
	struct address any = {};
	__u16 port = bpf_ntohs(t->port);

	if (port < config->nodeport_min || port > config->nodeport_max)
		return NULL;
	if (!serves_nodeports(t))
		return NULL;
	return lookup_key(t, &any, t->port, t->proto);
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
	__u32 *owner = lookup_key(t, &t->dst, 0, 0);

	if (owner)
		return *owner == ADDRESS_OURS	   ? FOUND_NO_PORT :
		       *owner == ADDRESS_PUBLISHED ? FOUND_PUBLISHED :
						     FOUND_NOTHING;
	return in_service_cidr(t, config) ? FOUND_NO_SERVICE : FOUND_NOTHING;
}

/* Finds the frontend of a tuple that may_be_vip let through; *id is set for
 * FOUND_FRONTEND only.
 */
static __always_inline enum found find_frontend(const struct tuple *t, __u32 *id)
{
	__u32 zero = 0, *entry;
	const struct node_config *config = bpf_map_lookup_elem(&node_config, &zero);

	if (!config)
		return FOUND_NOTHING;
	entry = lookup_key(t, &t->dst, t->port, t->proto);
	if (!entry)
		entry = lookup_nodeport(t, config);
	if (!entry)
		return classify(t, config);
	*id = *entry;
	return FOUND_FRONTEND;
}

/* Whether an address that cannot be a VIP is one that no Service has. */
static __always_inline bool unassigned(const struct tuple *t)
{
	__u32 zero = 0;
	const struct node_config *config = bpf_map_lookup_elem(&node_config, &zero);

	return config && in_service_cidr(t, config);
}

#endif
