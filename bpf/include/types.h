/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Layouts of every table. The Go package of this folder is generated from
 * them, so they are written down once, here. Fields that begin with the
 * comment "network" hold network byte order; everything else is host order.
 * Padding is explicit: user space writes these structures byte for byte.
 */
#ifndef PORTOLAN_TYPES_H
#define PORTOLAN_TYPES_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

/* Bumped when a layout below changes in a way that an older or newer agent
 * would misread; pinned tables of another layout are refused, not guessed at.
 */
#define LAYOUT_VERSION 3

/* An IPv6 address, or an IPv4 one in its mapped form ::ffff:a.b.c.d, so that
 * the core of the load balancer knows one kind of address only. Network order.
 */
struct address {
	__be32 w[4];
};

struct frontend4_key {
	__be32 addr; /* 0: any address of this node that serves NodePorts */
	__be16 port; /* network; 0 with proto 0: the address as such, see below */
	__u8 proto;
	__u8 pad;
};
_Static_assert(sizeof(struct frontend4_key) == 8, "one word to hash");

struct frontend6_key {
	struct address addr;
	__be16 port;
	__u8 proto;
	__u8 pad;
};
_Static_assert(sizeof(struct frontend6_key) == 20, "no hidden padding");

/* The frontends tables are arrays of buckets. An entry stands in the bucket
 * that its key hashes to or, if that was full when it came, in the first one
 * with room on the key's own way through the table, PROBES_MAX buckets at most.
 * Every bucket counts who passed over it: a look-up ends where nobody did.
 *
 * An entry's tag is stored last when it comes. What went is marked, and is not
 * written while programs may still read it.
 *
 * The number of buckets is a power of two. One more follows, whose first tag is
 * the table's multiplier (frontends.h).
 */
#define BUCKET_ENTRIES 4
#define PROBES_MAX 8

/* What the pad byte of the key says in a tag. */
enum entry_mark {
	ENTRY_USED = 1,
	ENTRY_REMOVED = 2,
};

struct frontend4_bucket {
	__u64 tags[BUCKET_ENTRIES]; /* struct frontend4_key, marked; 0: no entry */
	__u32 values[BUCKET_ENTRIES];
	__u32 passed;
	__u32 pad[3];
};
_Static_assert(sizeof(struct frontend4_bucket) == 64, "a cache line");

struct frontend6_bucket {
	/* port, proto and mark of struct frontend6_key, and the value above them */
	__u64 tags[BUCKET_ENTRIES];
	struct address addrs[BUCKET_ENTRIES];
	__u32 passed;
	__u32 pad;
};
_Static_assert(sizeof(struct frontend6_bucket) == 104, "no hidden padding");

/* Values of the frontends maps that are no id. They stand at {address, port 0,
 * protocol 0} and say what becomes of ports that the address does not have.
 */
enum address_owner {
	ADDRESS_OURS = 0xffffffff, /* refuse: the Service has no such port */
	ADDRESS_ELSEWHERE = 0xfffffffe, /* pass: another proxy serves it */
	/* A load balancer or external address that is none of this node's: on the
	 * wire other ports are refused, for a socket they are somebody else's.
	 */
	ADDRESS_PUBLISHED = 0xfffffffd,
};

/* A range word says where a frontend's backends stand and what to do when
 * there are none. One aligned 8-byte store replaces it, which is what makes a
 * new set of backends visible as a whole: base:32, count:24, flags:8 from the
 * least significant bit up.
 */
#define RANGE_COUNT_SHIFT 32
#define RANGE_COUNT_MASK 0xffffff
#define RANGE_FLAGS_SHIFT 56

enum range_flags {
	RANGE_REFUSE = 1, /* empty because no endpoint anywhere could serve */
	RANGE_AFFINITY = 2, /* a client stays with its backend */
	RANGE_GUARDED = 4, /* clients outside the source ranges are refused */
	RANGE_LOCAL = 8, /* the set of policy Local, not that of Cluster */
	RANGE_INSIDE = 16, /* not for traffic from outside: dropped there */
	RANGE_MAGLEV = 32, /* the tuple's hash alone names the backend, on every node */
	RANGE_DSR = 64, /* endpoints elsewhere answer clients directly */
};

struct frontend_state {
	__u64 external; /* range word for traffic from outside the cluster */
	__u64 internal; /* range word for this node's sockets and pods */
	__u32 service_port; /* id of the service port: key of affinity, sources */
	__u32 affinity_timeout; /* seconds */
	__u32 generation; /* changes whenever the id gets another frontend */
	__u32 pad;
};
_Static_assert(sizeof(struct frontend_state) == 32, "half a cache line");

/* A slot names a backend of a range. */
struct slot {
	__u32 backend;
	__u32 generation; /* of the backend when the slot was written */
};
_Static_assert(sizeof(struct slot) == 8, "one store");

/* Low two bits of the flags: may the backend still be used? */
enum backend_state {
	BACKEND_DEAD = 0, /* does not serve, or is no backend at all */
	BACKEND_ACTIVE = 1,
	BACKEND_DRAINING = 2, /* still serves: what flows to it goes on */
};

#define BACKEND_STATE_MASK 3

enum backend_flags {
	BACKEND_IN_CLUSTER = 4, /* member of its service port's Cluster set */
	BACKEND_IN_LOCAL = 8, /* member of its Local set */
	BACKEND_ON_NODE = 16, /* runs on this node */
	BACKEND_NODELESS = 32, /* no slice says on which node it is: perhaps on none */
};

/* The word that holds the flags is the only one that changes while a backend
 * can be seen; it is replaced by one store.
 */
struct backend4 {
	__be32 addr;
	__be16 port;
	__u8 proto;
	__u8 flags;
	__u32 service_port;
	__u32 generation;
	__be32 masquerade; /* source address of this node towards the backend */
	__u32 pad;
};
_Static_assert(sizeof(struct backend4) == 24, "three words");

struct backend6 {
	struct address addr;
	__be16 port;
	__u8 proto;
	__u8 flags;
	__u32 generation;
	__u32 service_port;
	__u32 pad;
	struct address masquerade;
};
_Static_assert(sizeof(struct backend6) == 48, "six words");

/* Flags of an address that serves NodePorts. */
enum node_addr_flags {
	NODE_ADDR_HOST_ONLY = 1, /* loopback: means the node in its own namespace only */
};

/* Longest-prefix keys of loadBalancerSourceRanges. The service port leads, so
 * every prefix is at least 32 bits long.
 */
struct source4_key {
	__u32 prefixlen; /* 32 + length of the prefix */
	__u32 service_port;
	__be32 addr;
};
_Static_assert(sizeof(struct source4_key) == 12, "no hidden padding");

struct source6_key {
	__u32 prefixlen;
	__u32 service_port;
	struct address addr;
};
_Static_assert(sizeof(struct source6_key) == 24, "no hidden padding");

/* Who a client is, for session affinity: sockets are known by their network
 * namespace (its cookie), because a socket that connects has no address yet.
 */
struct affinity_key {
	__u64 client[2]; /* {namespace cookie, 0}, or an address */
	__u32 service_port;
	__u32 by_address; /* 0: client is a namespace */
};
_Static_assert(sizeof(struct affinity_key) == 24, "no hidden padding");

struct affinity {
	__u32 backend;
	__u32 generation;
	__u64 last_seen; /* ns, coarse monotonic clock */
};
_Static_assert(sizeof(struct affinity) == 16, "no hidden padding");

/* Where a socket's traffic really goes: what the application named (the VIP)
 * and what it got (the backend). Kept in the socket itself, so it lives and
 * dies with it.
 */
struct sock_peer {
	struct address vip;
	struct address backend;
	__be16 vip_port;
	__be16 backend_port;
	__u32 frontend;
	__u32 frontend_generation;
	__u32 backend_id;
	__u32 backend_generation;
	__u8 v6; /* which tables the ids are of: 0 IPv4, 1 IPv6 */
	__u8 several; /* the socket has other peers in sock_rev */
	__u8 spilled; /* this peer stands in sock_rev, too */
	__u8 pad;
};
_Static_assert(sizeof(struct sock_peer) == 56, "no hidden padding");

/* Peers of an unconnected UDP socket beyond its latest one. Each stands twice:
 * by the VIP, so that the socket stays with its backend, and by the backend,
 * so that the answer gets the VIP's name.
 */
struct sock_rev_key {
	__u64 cookie;
	struct address addr;
	__be16 port;
	__u16 by_vip; /* 1: addr and port are the VIP's; 0: the backend's */
	__u32 pad;
};
_Static_assert(sizeof(struct sock_rev_key) == 32, "no hidden padding");

/* Service CIDRs: an address inside that no Service has is refused. Two sets,
 * so that a change is written beside the set in use and switched to at once.
 */
#define MAX_SERVICE_CIDRS 8

struct cidr {
	struct address addr;
	struct address mask;
};

struct cidr_set {
	__u32 count;
	__u32 pad;
	struct cidr cidrs[MAX_SERVICE_CIDRS];
};

struct node_config {
	__u32 active_cidrs; /* 0 or 1 */
	__u16 nodeport_min; /* NodePorts in use lie within; min > max: none */
	__u16 nodeport_max;
	struct cidr_set cidrs[2];
	__u32 layout;
	__u32 pad;
	struct address node_source4; /* this node's address towards the outside */
	struct address node_source6;
};

/* Whose a service port id is: for people and for the next agent. */
#define NAME_MAX_LEN 64

struct service_name {
	__u8 namespace[NAME_MAX_LEN]; /* NUL-terminated */
	__u8 name[NAME_MAX_LEN];
	__u8 port[NAME_MAX_LEN];
	__u8 proto;
	__u8 family; /* 4 or 6 */
	__u8 type; /* of the Service, as the agent's model counts */
	__u8 pad;
};
_Static_assert(sizeof(struct service_name) == 196, "no hidden padding");

/* What the socket iterator says of each connected UDP socket whose backend
 * stopped serving; user space closes those that the kernel did not.
 */
struct stale_socket {
	__u64 cookie;
	struct address src; /* IPv4 in mapped form */
	struct address dst;
	__be16 src_port;
	__be16 dst_port;
	__u32 ifindex; /* bound device, or 0 */
	__u16 family;
	__u8 destroyed; /* 1: closed already */
	__u8 pad[5];
};
_Static_assert(sizeof(struct stale_socket) == 56, "no hidden padding");

/* Flows: connections that the wire programs translate. An entry is keyed by a
 * packet's own tuple and holds the whole rewrite. A flow has two, one a
 * direction, and each names the other: the key of the answer is the rewritten
 * request turned round.
 */
struct flow4_key {
	__be32 src;
	__be32 dst;
	__be16 sport; /* 0 for protocols without ports */
	__be16 dport;
	__u8 proto;
	__u8 pad[3];
};
_Static_assert(sizeof(struct flow4_key) == 16, "no hidden padding");

struct flow6_key {
	struct address src;
	struct address dst;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3];
};
_Static_assert(sizeof(struct flow6_key) == 40, "no hidden padding");

/* What is done with a packet of a flow. */
enum flow_action {
	FLOW_DELIVER = 1, /* request to an endpoint here: rewrite dst, the stack routes */
	FLOW_FORWARD = 2, /* request to an endpoint elsewhere: rewrite all, send on */
	FLOW_ANSWER = 3, /* answer of an endpoint here, leaving: rewrite src */
	FLOW_RETURN = 4, /* answer from elsewhere: rewrite all, send to the client */
	/* Request to an endpoint elsewhere that answers by itself: put into a
	 * tunnel from src to dst. The one entry of its flow here.
	 */
	FLOW_TUNNEL = 5,
};

/* How long a flow without packets lives is told by what was seen of it. */
enum flow_state {
	FLOW_NEW = 0, /* one direction only */
	FLOW_ESTABLISHED = 1,
	FLOW_CLOSING = 2, /* FIN seen of both directions, or of the only one */
	FLOW_RESET = 3, /* RST seen, and nothing since */
	FLOW_FIN_SENT = 4, /* FIN seen of this direction */
	FLOW_FIN_RECEIVED = 5, /* FIN seen of the other direction */
};

struct flow {
	__be16 sport; /* new ports */
	__be16 dport;
	__u16 address_delta; /* what the new addresses add to a checksum, */
	__u16 port_delta; /* and the new ports; as ones' complement sums */
	__u32 backend;
	__u32 backend_generation;
	__u32 frontend;
	__u32 last_seen; /* coarse monotonic clock, in units of 2^30 ns */
	__u32 route_generation; /* at which the egress below was looked up; 0: never */
	__u32 ifindex;
	__u8 dst_mac[6];
	__u8 src_mac[6];
	__u16 mtu;
	__u8 action;
	__u8 state;
};
_Static_assert(sizeof(struct flow) == 48, "no hidden padding");

struct flow4 {
	struct flow flow;
	__be32 src; /* new addresses */
	__be32 dst;
};
_Static_assert(sizeof(struct flow4) == 56, "within a cache line");

struct flow6 {
	struct flow flow;
	struct address src;
	struct address dst;
};
_Static_assert(sizeof(struct flow6) == 80, "no hidden padding");

/* Flows that have not proven themselves live in buckets of an array: a new one
 * takes the place of the oldest of its bucket. No memory is taken or given back,
 * and what a flood pushes out is as young as itself.
 */
#define NEWCOMER_BUCKETS 16384 /* a power of two */
#define NEWCOMER_WAYS 4

struct newcomer4 {
	struct flow4_key key;
	struct flow4 flow;
};
_Static_assert(sizeof(struct newcomer4) == 72, "no hidden padding");

struct newcomer6 {
	struct flow6_key key;
	struct flow6 flow;
};
_Static_assert(sizeof(struct newcomer6) == 120, "no hidden padding");

struct newcomers4 {
	struct bpf_spin_lock lock;
	__u32 hand; /* whose turn it is to go, among the oldest */
	struct newcomer4 way[NEWCOMER_WAYS];
};

struct newcomers6 {
	struct bpf_spin_lock lock;
	__u32 hand; /* whose turn it is to go, among the oldest */
	struct newcomer6 way[NEWCOMER_WAYS];
};

/* Ports of a fragmented datagram, for the fragments that do not carry them. */
struct fragment_key {
	struct address src; /* IPv4 in mapped form */
	struct address dst;
	__u32 id;
	__u32 proto;
};
_Static_assert(sizeof(struct fragment_key) == 40, "no hidden padding");

struct fragment {
	__be16 sport;
	__be16 dport;
};

/* Devices that the wire programs may send on, by interface index. */
enum device_flags {
	DEVICE_XDP_TARGET = 1, /* takes frames from XDP_REDIRECT */
	DEVICE_NO_LINK_HEADER = 2, /* packets begin with the IP header */
	DEVICE_INWARD = 4, /* leads to what is on this node: no program sees answers come */
};

struct device {
	__u32 flags;
	__be32 source4; /* our address on it, to masquerade with; 0: none */
	struct address source6;
};
_Static_assert(sizeof(struct device) == 24, "no hidden padding");

/* What the wire programs need to know of this node. */
struct wire_config {
	__u32 route_generation; /* never 0; bumped when routes, neighbours or links change */
	__u32 hash_seed;
	__u16 masquerade_min; /* ports [min, min + count) are the programs' own */
	__u16 masquerade_count;
	__u32 active_inside; /* 0 or 1: which set below is in use */
	struct cidr_set inside[2]; /* pods' addresses: their traffic has internal scope */
};

/* The way to an endpoint elsewhere, found once for all its flows. */
struct next_hop {
	__u32 route_generation; /* at which it was looked up; 0: not yet */
	__u32 ifindex;
	__u8 dst_mac[6];
	__u8 src_mac[6];
	__u16 mtu;
	__u16 backend_generation; /* its low half: the id may have come to another endpoint */
	struct address source; /* of this node towards there; IPv4 in mapped form */
	__u8 inward; /* the endpoint is on this node, whatever its slice says */
	__u8 pad[3];
};
_Static_assert(sizeof(struct next_hop) == 44, "no hidden padding");

/* Where tunnels end: endpoints of this node whose Services are answered
 * directly. Service port 0 stands for any, and its value means nothing.
 */
struct tunnel_end_key {
	struct address addr; /* IPv4 in mapped form */
	__u32 service_port;
};
_Static_assert(sizeof(struct tunnel_end_key) == 20, "no hidden padding");

/* What one CPU did within a window of 2^24 ns. */
struct pressure {
	__u16 window;
	__u16 errors; /* ICMP errors sent */
	__u32 count; /* new flows */
};

/* Refused packets by what was refused; written on that path only. */
struct refusal_key {
	__u32 reason;
	__u32 frontend; /* ~0: none */
	__u32 backend; /* ~0: none */
};
_Static_assert(sizeof(struct refusal_key) == 12, "no hidden padding");

/* What a sweep found and did, of both families. */
struct sweep_report {
	__u64 now; /* in: coarse clock as in last_seen; 0: read it */
	__u32 flows; /* entries found: two a flow */
	__u32 removed; /* of them, because they were idle */
};
_Static_assert(sizeof(struct sweep_report) == 16, "no hidden padding");

/* Why a socket call or a packet was not let through, or was let through
 * untranslated; also the index of its counter.
 */
enum reason {
	REASON_NONE = 0,
	REASON_NO_ENDPOINT = 1, /* no endpoint anywhere: ECONNREFUSED */
	REASON_NO_LOCAL_ENDPOINT = 2, /* policy Local, none here: EHOSTUNREACH */
	REASON_NO_SUCH_PORT = 3, /* the Service has no such port: ECONNREFUSED */
	REASON_NO_SERVICE = 4, /* unassigned address in a service CIDR: ENETUNREACH */
	REASON_SOURCE_RANGE = 5, /* client outside loadBalancerSourceRanges: EACCES */
	REASON_NODEPORT_TAKEN = 6, /* bind() to a NodePort in use: EADDRINUSE */
	/* On the wire only. */
	REASON_CLUSTER_IP_OUTSIDE = 7, /* ClusterIP from outside the cluster: dropped */
	REASON_MASQUERADE_PORTS = 8, /* no port left towards this endpoint: dropped */
	REASON_NO_ROUTE = 9, /* the node has no route to the endpoint or client */
	REASON_TTL = 10, /* expired: time exceeded is sent */
	REASON_TOO_BIG = 11, /* larger than the path: packet too big is sent */
	REASON_FRAGMENT = 12, /* came before the first of its datagram: left alone */
	REASON_MALFORMED = 13, /* cut short or inconsistent: left to the stack, or, if found late, dropped */
	REASON_SPOOFED = 14, /* claims this node's or no unicast address: dropped */
	REASON_FLOW_TABLE_FULL = 15, /* served without state of its own */
	REASON_SCTP_PORT = 16, /* SCTP would need another port: dropped */
	REASON_MAX = 17,
};

#endif
