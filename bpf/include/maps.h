/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every table, once: who writes it, what a look-up means, what happens when it
 * is full. Sizes given here are the smallest; the agent makes each table as
 * large as what it has to hold and grows it at 80 % (docs/maps.md).
 */
#ifndef PORTOLAN_MAPS_H
#define PORTOLAN_MAPS_H

#include "types.h"
#include <bpf/bpf_helpers.h>

/* Address, port and protocol of a frontend -> its id, constant for its life;
 * or {address, 0, 0} -> enum address_owner. Hashed by frontends.h. Written by
 * the agent through mapped memory: the entry is the last thing to come and the
 * first to go.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 513);
	__type(key, __u32);
	__type(value, struct frontend4_bucket);
} frontends4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 513);
	__type(key, __u32);
	__type(value, struct frontend6_bucket);
} frontends6 SEC(".maps");

/* Frontend id -> range words. Written by the agent through mapped memory. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct frontend_state);
} frontend_state SEC(".maps");

/* Index -> backend of a range. Written by the agent through mapped memory,
 * never where a published range word points.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct slot);
} slots SEC(".maps");

/* Backend id -> where it is and whether it may be used. Written by the agent
 * through mapped memory; an id is used again only after a grace period and
 * with another generation.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct backend4);
} backends4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct backend6);
} backends6 SEC(".maps");

/* One bit for the hash of every address that frontends or node addresses
 * have. A clear bit answers most connects, those to no Service, without a hash
 * look-up; a set one proves nothing. Written by the agent through mapped
 * memory: set before an entry comes, cleared after the last one went.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u64);
} vip_filter SEC(".maps");

/* The one entry holds facts about this node that change while it runs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct node_config);
} node_config SEC(".maps");

/* Address that serves NodePorts -> enum node_addr_flags. Agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __be32);
	__type(value, __u32);
} node_addrs4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct address);
	__type(value, __u32);
} node_addrs6 SEC(".maps");

/* {service port, prefix} -> present: a client that may use the load balancer
 * addresses. Agent; looked at only where RANGE_GUARDED says so. Entries are
 * allocated as they come, so the size is a limit only.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct source4_key);
	__type(value, __u32);
} sources4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct source6_key);
	__type(value, __u32);
} sources6 SEC(".maps");

/* Client and service port -> the backend it stays with. Written here; a full
 * table forgets whoever came least recently, who is then spread anew.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
} affinity SEC(".maps");

/* Socket -> its peer. Kept in the socket, freed with it by the kernel: it
 * cannot leak, cannot be evicted, and needs no program at socket release.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sock_peer);
} sock_peer SEC(".maps");

/* Peers of unconnected UDP sockets that talk to several VIPs in turn. Written
 * here; an evicted pair makes the next datagram pick anew.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct sock_rev_key);
	__type(value, struct sock_peer);
} sock_rev SEC(".maps");

/* enum reason -> calls not let through, per CPU. Written here. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASON_MAX);
	__type(key, __u32);
	__type(value, __u64);
} reasons SEC(".maps");

/* Service port id -> its name, for people and for the next agent. Written by
 * the agent, read by no program.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct service_name);
} service_names SEC(".maps");

#endif
