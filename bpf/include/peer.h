/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a socket remembers: which VIP stands for which backend. The latest peer
 * is in the socket's own storage; sockets that talk to several VIPs in turn
 * keep the others in sock_rev.
 */
#ifndef PORTOLAN_PEER_H
#define PORTOLAN_PEER_H

#include "lookup.h"
#include "select.h"

static __always_inline bool is_vip_of(const struct sock_peer *peer,
				      const struct address *addr, __be16 port)
{
	return peer->vip_port == port && same_address(&peer->vip, addr);
}

static __always_inline bool is_backend_of(const struct sock_peer *peer,
					  const struct address *addr, __be16 port)
{
	return peer->backend_port == port && same_address(&peer->backend, addr);
}

/* What was chosen for a tuple. */
struct choice {
	struct backend backend;
	__u32 frontend;
	__u32 frontend_generation;
};

static __always_inline void fill_peer(struct sock_peer *peer,
				      const struct tuple *t,
				      const struct choice *c)
{
	peer->vip = t->dst;
	peer->vip_port = t->port;
	peer->backend = c->backend.addr;
	peer->backend_port = c->backend.port;
	peer->frontend = c->frontend;
	peer->frontend_generation = c->frontend_generation;
	peer->backend_id = c->backend.id;
	peer->backend_generation = c->backend.generation;
	peer->v6 = t->v6;
	peer->several = 0;
	peer->spilled = 0;
}

/* Whether datagrams may go on to the peer's backend: its frontend is still the
 * same one, of the same Service, and the endpoint serves, though perhaps nobody
 * new is sent there.
 */
static __always_inline bool still_serves(const struct sock_peer *peer, bool v6)
{
	__u32 id = peer->frontend;
	struct frontend_state *state = bpf_map_lookup_elem(&frontend_state, &id);
	struct backend b;

	if (!state || state->generation != peer->frontend_generation)
		return false;
	if (!read_backend(v6, peer->backend_id, &b))
		return false;
	return b.generation == peer->backend_generation &&
	       b.service_port == state->service_port &&
	       (b.flags & BACKEND_STATE_MASK) != BACKEND_DEAD;
}

static __always_inline struct sock_rev_key
rev_key(__u64 cookie, const struct address *addr, __be16 port, bool by_vip)
{
	struct sock_rev_key key = {
		.cookie = cookie, .addr = *addr, .port = port, .by_vip = by_vip
	};

	return key;
}

/* Moves a peer out of the socket's storage, because another takes its place. */
static __always_inline void spill_peer(__u64 cookie, const struct sock_peer *peer)
{
	struct sock_rev_key by_vip = rev_key(cookie, &peer->vip, peer->vip_port, true);
	struct sock_rev_key by_backend =
		rev_key(cookie, &peer->backend, peer->backend_port, false);

	bpf_map_update_elem(&sock_rev, &by_vip, peer, BPF_ANY);
	bpf_map_update_elem(&sock_rev, &by_backend, peer, BPF_ANY);
}

#endif
