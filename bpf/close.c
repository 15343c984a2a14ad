// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore

/*
 * Closes connected UDP sockets whose backend stopped serving: nothing else
 * would tell them, and they would talk into the void for ever. The iterator
 * sees the sockets of the network namespace it is opened in.
 *
 * Which sockets are ours, and for which backend, stands in the sockets
 * themselves (sock_peer), so no other socket can be hit.
 */
#include "kernel.h"
#include "peer.h"

#define AF_INET 2
#define IPPROTO_UDP 17

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Since Linux 6.5. Where it is missing, user space closes what is reported. */
extern int bpf_sock_destroy(struct sock_common *sock) __ksym __weak;

/* As kube-proxy does with flows: while a Service has no endpoint, its
 * sockets are left alone, for there is nowhere to send them.
 */
static __always_inline bool somewhere_to_go(const struct sock_peer *peer)
{
	__u32 id = peer->frontend;
	struct frontend_state *state = bpf_map_lookup_elem(&frontend_state, &id);

	if (!state || state->generation != peer->frontend_generation)
		return true; /* the Service is gone: whoever asks again learns so */
	return range_count(*(volatile __u64 *)&state->internal) != 0;
}

/* Whether another Service has the address now that the socket named. */
static __always_inline bool moved(const struct sock_peer *peer, const struct backend *b)
{
	struct tuple t = { .v6 = peer->v6 };
	struct frontend_state *state;
	__u32 id;

	if (!lookup_key(&t, &peer->vip, peer->vip_port, IPPROTO_UDP, &id))
		return false;
	state = bpf_map_lookup_elem(&frontend_state, &id);
	return state && state->service_port != b->service_port;
}

static __always_inline bool backend_serves(const struct sock_peer *peer)
{
	struct backend b;

	return read_backend(peer->v6, peer->backend_id, &b) &&
	       b.generation == peer->backend_generation &&
	       (b.flags & BACKEND_STATE_MASK) != BACKEND_DEAD && !moved(peer, &b);
}

static __always_inline struct address address6(const struct in6_addr *a)
{
	struct address out = { { a->in6_u.u6_addr32[0], a->in6_u.u6_addr32[1],
				 a->in6_u.u6_addr32[2], a->in6_u.u6_addr32[3] } };

	return out;
}

static __always_inline void describe(struct udp_sock *udp, struct stale_socket *out)
{
	struct sock_common *sk = &udp->inet.sk.__sk_common;

	out->family = sk->skc_family;
	out->src_port = bpf_htons(sk->skc_num);
	out->dst_port = sk->skc_dport;
	out->ifindex = sk->skc_bound_dev_if;
	if (sk->skc_family == AF_INET) {
		out->src = mapped(sk->skc_rcv_saddr);
		out->dst = mapped(sk->skc_daddr);
	} else {
		out->src = address6(&sk->skc_v6_rcv_saddr);
		out->dst = address6(&sk->skc_v6_daddr);
	}
}

SEC("iter/udp")
int portolan_close_udp(struct bpf_iter__udp *ctx)
{
	struct udp_sock *udp = ctx->udp_sk;
	struct stale_socket stale = {};
	struct sock_peer *peer;

	if (!udp || udp->inet.sk.__sk_common.skc_dport == 0)
		return 0; /* unconnected: its next datagram picks anew */
	peer = bpf_sk_storage_get(&sock_peer, (struct sock *)udp, NULL, 0);
	if (!peer || backend_serves(peer) || !somewhere_to_go(peer))
		return 0;
	describe(udp, &stale);
	if (!is_backend_of(peer, &stale.dst, stale.dst_port))
		return 0; /* connected elsewhere since */
	stale.cookie = bpf_get_socket_cookie((struct sock *)udp);
	if (may_destroy && bpf_sock_destroy)
		stale.destroyed = bpf_sock_destroy((struct sock_common *)udp) == 0;
	bpf_seq_write(ctx->meta->seq, &stale, sizeof(stale));
	return 0;
}
