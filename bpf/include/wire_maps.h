/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The tables of the wire programs, beside those of maps.h. */
#ifndef PORTOLAN_WIRE_MAPS_H
#define PORTOLAN_WIRE_MAPS_H

#include "maps.h"

/* Established flows: packet tuple -> rewrite; two entries a flow. Written here,
 * emptied by the agent's sweep. A plain hash: when it is full newcomers stay
 * where newcomers are, and nobody who is established goes. Entries are
 * allocated as they come, so that an idle node pays for the buckets only.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 524288);
	__type(key, struct flow4_key);
	__type(value, struct flow4);
} flows4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 524288);
	__type(key, struct flow6_key);
	__type(value, struct flow6);
} flows6 SEC(".maps");

/* Hash of a packet tuple -> flows that have not proven themselves: those of
 * which no second request was seen after an answer. They are served like any
 * other. A flood of first packets pushes out only its own kind. Written here.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NEWCOMER_BUCKETS);
	__type(key, __u32);
	__type(value, struct newcomers4);
} newcomers4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NEWCOMER_BUCKETS);
	__type(key, __u32);
	__type(value, struct newcomers6);
} newcomers6 SEC(".maps");

/* Datagram -> ports of its first fragment. Written here. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps");

/* Interface index -> what may be done with the device. Agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct device);
} devices SEC(".maps");

/* The one entry holds what the wire programs need to know of this node. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct wire_config);
} wire_config SEC(".maps");

/* Backend id -> the way to it. A cache, written here: the agent makes it as
 * large as backends4 and backends6, and starts a larger one empty.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct next_hop);
} next_hops4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct next_hop);
} next_hops6 SEC(".maps");

/* Endpoint's address and service port -> backend id. Agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct tunnel_end_key);
	__type(value, __u32);
} tunnel_ends SEC(".maps");

/* The one entry counts new flows and ICMP errors of each CPU. Written here. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pressure);
} pressure SEC(".maps");

/* What was refused, of whom -> packets. Written here on the refusing path. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct refusal_key);
	__type(value, __u64);
} refusals SEC(".maps");

#endif
