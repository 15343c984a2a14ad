/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * loadBalancerSourceRanges at the socket. A packet carries its source; a socket
 * that connects has none yet, so it is judged by the address it would get: the
 * one it is bound to, else its namespace's own. Only guarded frontends come
 * here, so the cost of finding out is theirs alone.
 */
#ifndef PORTOLAN_SOURCES_H
#define PORTOLAN_SOURCES_H

#include "kernel.h"
#include "lookup.h"
#include "ranges.h"
#include <bpf/bpf_core_read.h>

#define IFF_LOOPBACK 8
#define RT_SCOPE_UNIVERSE 0
#define IPV6_ADDR_SCOPE_GLOBAL 0 /* inet6_ifaddr.scope of global addresses */

/* Devices of a namespace that are looked at, and addresses of a device. A pod
 * has lo, one to three devices, and rarely more than two addresses on each.
 */
#define MAX_DEVICES 16
#define MAX_ADDRESSES 8

static __always_inline bool global_address4(struct net_device *dev, struct address *out)
{
	struct in_ifaddr *ifa = BPF_CORE_READ(dev, ip_ptr, ifa_list);

	for (int i = 0; i < MAX_ADDRESSES && ifa; i++) {
		if (BPF_CORE_READ(ifa, ifa_scope) == RT_SCOPE_UNIVERSE) {
			*out = mapped(BPF_CORE_READ(ifa, ifa_local));
			return true;
		}
		ifa = BPF_CORE_READ(ifa, ifa_next);
	}
	return false;
}

/* Linked lists of the kernel are rings through their head: the walk ends where
 * it began. Pointers are plain numbers here, read with bpf_core_read only.
 */
static __always_inline bool global_address6(struct net_device *dev, struct address *out)
{
	struct inet6_dev *dev6 = BPF_CORE_READ(dev, ip6_ptr);
	void *head = (void *)dev6 + bpf_core_field_offset(struct inet6_dev, addr_list);
	struct list_head *node = BPF_CORE_READ(dev6, addr_list.next);
	__u64 offset = bpf_core_field_offset(struct inet6_ifaddr, if_list);

	for (int i = 0; i < MAX_ADDRESSES && node && node != head; i++) {
		struct inet6_ifaddr *ifa = (void *)node - offset;

		if (BPF_CORE_READ(ifa, scope) == IPV6_ADDR_SCOPE_GLOBAL)
			return bpf_core_read(out, sizeof(*out), &ifa->addr) == 0;
		node = BPF_CORE_READ(node, next);
	}
	return false;
}

/* The first global address of the namespace that the caller runs in. A global
 * function, so that the verifier walks its loops once and not on every path
 * that leads here.
 */
__noinline int namespace_address(struct bpf_sock_addr *ctx, struct address *out, bool v6)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct net *net = BPF_CORE_READ(task, nsproxy, net_ns);
	void *head = (void *)net + bpf_core_field_offset(struct net, dev_base_head);
	struct list_head *node = BPF_CORE_READ(net, dev_base_head.next);
	__u64 offset = bpf_core_field_offset(struct net_device, dev_list);

	/* A socket handed over from another namespace is not judged by ours. */
	if (!out || BPF_CORE_READ(net, net_cookie) != bpf_get_netns_cookie(ctx))
		return false;
	for (int i = 0; i < MAX_DEVICES && node && node != head; i++) {
		struct net_device *dev = (void *)node - offset;

		if (!(BPF_CORE_READ(dev, flags) & IFF_LOOPBACK) &&
		    (v6 ? global_address6(dev, out) : global_address4(dev, out)))
			return true;
		node = BPF_CORE_READ(node, next);
	}
	return false;
}

/* The address the socket was bound to, if it was bound to one. A node that has
 * the load balancer's address on a device may call it from there, and is meant
 * by its own address, as in kube-proxy's rules.
 */
static __always_inline bool bound_address(struct bpf_sock_addr *ctx,
					  const struct tuple *t, struct address *out)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return false;
	if (!t->v6) {
		*out = mapped(sk->src_ip4);
		return sk->src_ip4 != 0 && !same_address(out, &t->dst);
	}
	out->w[0] = sk->src_ip6[0];
	out->w[1] = sk->src_ip6[1];
	out->w[2] = sk->src_ip6[2];
	out->w[3] = sk->src_ip6[3];
	return (out->w[0] | out->w[1] | out->w[2] | out->w[3]) != 0 && !same_address(out, &t->dst);
}

static __always_inline bool node_address(const struct tuple *t, struct address *out)
{
	__u32 zero = 0;
	const struct node_config *config = bpf_map_lookup_elem(&node_config, &zero);

	if (!config || !in_host_netns(t))
		return false;
	*out = t->v6 ? config->node_source6 : config->node_source4;
	return (out->w[0] | out->w[1] | out->w[2] | out->w[3]) != 0;
}

/* Whether the client may use a guarded frontend. A client whose address cannot
 * be told may not: a guard that guesses is none.
 */
static __always_inline bool source_allowed(struct bpf_sock_addr *ctx,
					   const struct tuple *t, __u32 service_port)
{
	struct address addr = {};

	if (!bound_address(ctx, t, &addr) && !node_address(t, &addr) &&
	    !namespace_address(ctx, &addr, t->v6))
		return false;
	return in_source_ranges(t, service_port, &addr);
}

#endif
