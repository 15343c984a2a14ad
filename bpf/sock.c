// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore

/*
 * Services at the socket: the address an application names is translated once,
 * when it connects (or sends, on an unconnected UDP socket), and named back to
 * it when it asks. Established connections never meet this code.
 *
 * Each hook parses its context into a tuple, asks the core, applies the answer.
 */
#include "affinity.h"
#include "lookup.h"
#include "peer.h"
#include "select.h"
#include "sources.h"
#include "verdict.h"

#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_SCTP 132
#define IPPROTO_MPTCP 262

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The destination a hook was called with. Contexts allow 4-byte reads only. */
static __always_inline struct address ctx_address(struct bpf_sock_addr *ctx, bool v6_ctx)
{
	struct address a;

	if (!v6_ctx)
		return mapped(ctx->user_ip4);
	a.w[0] = ctx->user_ip6[0];
	a.w[1] = ctx->user_ip6[1];
	a.w[2] = ctx->user_ip6[2];
	a.w[3] = ctx->user_ip6[3];
	return a;
}

static __always_inline void set_ctx_address(struct bpf_sock_addr *ctx, bool v6_ctx,
					    const struct address *a, __be16 port)
{
	if (v6_ctx) {
		ctx->user_ip6[0] = a->w[0];
		ctx->user_ip6[1] = a->w[1];
		ctx->user_ip6[2] = a->w[2];
		ctx->user_ip6[3] = a->w[3];
	} else {
		ctx->user_ip4 = a->w[3];
	}
	ctx->user_port = port;
}

/* Which protocol a Service would call it; 0 for sockets that have no ports. */
static __always_inline __u8 service_proto(__u32 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
	case IPPROTO_MPTCP:
		return IPPROTO_TCP;
	case IPPROTO_UDP:
		return IPPROTO_UDP;
	case IPPROTO_SCTP:
		return IPPROTO_SCTP;
	}
	return 0;
}

static __always_inline enum reason why_empty(__u64 word)
{
	return range_flags(word) & RANGE_REFUSE ? REASON_NO_ENDPOINT :
						  REASON_NO_LOCAL_ENDPOINT;
}

/* Chooses the backend of a frontend for this socket. */
static __always_inline enum reason choose(struct bpf_sock_addr *ctx,
					  const struct tuple *t,
					  struct frontend_state *state,
					  struct backend *out)
{
	__u64 word = *(volatile __u64 *)&state->internal;
	__u32 hash = bpf_get_prandom_u32();

	if (range_flags(word) & RANGE_GUARDED &&
	    !source_allowed(ctx, t, state->service_port))
		return REASON_SOURCE_RANGE;
	if (range_count(word) == 0)
		return why_empty(word);
	if (range_flags(word) & RANGE_AFFINITY) {
		struct affinity_key key = { .client = { bpf_get_netns_cookie(ctx) } };

		if (!pick_bound(state, word, t->v6, hash, &key, true, out))
			return REASON_NO_ENDPOINT;
	} else if (!pick(word, t->v6, hash, out)) {
		return REASON_NO_ENDPOINT;
	}
	return REASON_NONE;
}

/* Finds the backend for a tuple: VERDICT_PASS when the address is no Service's,
 * VERDICT_TRANSLATE with *out filled, or VERDICT_DENY with *why.
 */
static __always_inline enum verdict resolve(struct bpf_sock_addr *ctx,
					    const struct tuple *t,
					    struct choice *out,
					    enum reason *why)
{
	struct frontend_state *state;
	__u32 id = 0;

	switch (find_frontend(t, &id)) {
	case FOUND_NOTHING:
	case FOUND_PUBLISHED: /* a node may use such an address for more than Services */
		return VERDICT_PASS;
	case FOUND_NO_PORT:
		*why = REASON_NO_SUCH_PORT;
		return VERDICT_DENY;
	case FOUND_NO_SERVICE:
		*why = REASON_NO_SERVICE;
		return VERDICT_DENY;
	case FOUND_FRONTEND:
		break;
	}
	state = bpf_map_lookup_elem(&frontend_state, &id);
	if (!state)
		return VERDICT_PASS;
	*why = choose(ctx, t, state, &out->backend);
	if (*why != REASON_NONE)
		return VERDICT_DENY;
	out->frontend = id;
	out->frontend_generation = state->generation;
	return VERDICT_TRANSLATE;
}

/* Reads the port and protocol of a call; false for sockets without ports. */
static __always_inline bool parse(struct bpf_sock_addr *ctx, struct tuple *t)
{
	t->proto = service_proto(ctx->protocol);
	t->port = ctx->user_port;
	t->ctx = ctx;
	return t->proto != 0;
}

/* A call to an address that no Service has, near those that they could have. */
static __always_inline int not_a_vip(struct bpf_sock_addr *ctx, const struct tuple *t)
{
	if (unassigned(t) && service_proto(ctx->protocol))
		return deny(REASON_NO_SERVICE);
	return SYS_PROCEED;
}

/* Connected sockets ------------------------------------------------------- */

static __always_inline int connect(struct bpf_sock_addr *ctx, bool v6_ctx,
				   struct tuple *t)
{
	enum reason why = REASON_NONE;
	struct choice chosen = {};
	struct sock_peer *peer;

	if ((t->v6 ? service_wide6 : service_wide4) && !may_be_vip(t))
		return not_a_vip(ctx, t);
	if (!parse(ctx, t))
		return SYS_PROCEED;
	switch (resolve(ctx, t, &chosen, &why)) {
	case VERDICT_PASS:
		return SYS_PROCEED;
	case VERDICT_DENY:
		return deny(why);
	case VERDICT_TRANSLATE:
		break;
	}
	set_ctx_address(ctx, v6_ctx, &chosen.backend.addr, chosen.backend.port);
	/* Out of memory for the name is no reason to refuse: the connection
	 * works, and the application sees the backend's address.
	 */
	peer = bpf_sk_storage_get(&sock_peer, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (peer)
		fill_peer(peer, t, &chosen);
	return SYS_PROCEED;
}

SEC("cgroup/connect4")
int portolan_connect4(struct bpf_sock_addr *ctx)
{
	__be32 dst = ctx->user_ip4;

	if (nobodys4(dst))
		return SYS_PROCEED;
	struct tuple t = { .dst = mapped(dst), .v6 = false };

	return connect(ctx, false, &t);
}

SEC("cgroup/connect6")
int portolan_connect6(struct bpf_sock_addr *ctx)
{
	struct address dst = ctx_address(ctx, true);

	/* Two copies, each for a constant family. */
	if (is_mapped(&dst)) {
		if (nobodys4(dst.w[3]))
			return SYS_PROCEED;
		struct tuple t = { .dst = dst, .v6 = false };

		return connect(ctx, true, &t);
	}
	if (nobodys6(&dst))
		return SYS_PROCEED;
	struct tuple t = { .dst = dst, .v6 = true };

	return connect(ctx, true, &t);
}

/* The application asks whom it is connected to: it gets the name it used. The
 * address is compared, because a UDP socket may be connected anew elsewhere.
 */
static __always_inline int getpeername(struct bpf_sock_addr *ctx, bool v6_ctx)
{
	struct sock_peer *peer = bpf_sk_storage_get(&sock_peer, ctx->sk, NULL, 0);
	struct address addr = ctx_address(ctx, v6_ctx);

	if (peer && is_backend_of(peer, &addr, ctx->user_port))
		set_ctx_address(ctx, v6_ctx, &peer->vip, peer->vip_port);
	return SYS_PROCEED;
}

SEC("cgroup/getpeername4")
int portolan_getpeername4(struct bpf_sock_addr *ctx)
{
	return getpeername(ctx, false);
}

SEC("cgroup/getpeername6")
int portolan_getpeername6(struct bpf_sock_addr *ctx)
{
	return getpeername(ctx, true);
}

/* Unconnected UDP --------------------------------------------------------- */

/* Whether the socket knows the backend under another VIP already: the answers
 * of the two could not be told apart.
 */
static __always_inline bool collides(const struct sock_peer *old, __u64 cookie,
				     const struct sock_peer *fresh)
{
	struct sock_rev_key key;
	struct sock_peer *other;

	if (is_backend_of(old, &fresh->backend, fresh->backend_port))
		return true;
	key = rev_key(cookie, &fresh->backend, fresh->backend_port, false);
	other = bpf_map_lookup_elem(&sock_rev, &key);
	return other && !is_vip_of(other, &fresh->vip, fresh->vip_port);
}

/* A second VIP on one socket: takes up the backend this socket had there, or
 * picks one, trying a few times for one it does not know under another VIP.
 */
static __always_inline enum verdict next_peer(struct bpf_sock_addr *ctx,
					      const struct tuple *t,
					      struct sock_peer *old,
					      struct sock_peer *fresh,
					      enum reason *why)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct sock_rev_key key = rev_key(cookie, &t->dst, t->port, true);
	struct sock_peer *known;
	struct choice chosen = {};
	enum verdict verdict = VERDICT_PASS;

	old->several = 1; /* also when it comes back */
	if (!old->spilled) {
		old->spilled = 1;
		spill_peer(cookie, old);
	}
	known = bpf_map_lookup_elem(&sock_rev, &key);
	if (known && still_serves(known, t->v6)) {
		*fresh = *known;
		return VERDICT_TRANSLATE;
	}
	for (int tries = 0; tries < 3; tries++) {
		verdict = resolve(ctx, t, &chosen, why);
		if (verdict != VERDICT_TRANSLATE)
			return verdict;
		fill_peer(fresh, t, &chosen);
		if (!collides(old, cookie, fresh))
			break;
	}
	fresh->several = 1;
	fresh->spilled = 1;
	spill_peer(cookie, fresh);
	return verdict;
}

static __always_inline int sendmsg(struct bpf_sock_addr *ctx, bool v6_ctx,
				   struct tuple *t)
{
	struct sock_peer fresh = {}, *peer;
	enum reason why = REASON_NONE;
	struct choice chosen = {};
	enum verdict verdict;
	bool same;

	if ((t->v6 ? service_wide6 : service_wide4) && !may_be_vip(t))
		return not_a_vip(ctx, t);
	if (!parse(ctx, t))
		return SYS_PROCEED;
	peer = bpf_sk_storage_get(&sock_peer, ctx->sk, NULL, 0);
	same = peer && is_vip_of(peer, &t->dst, t->port);
	if (same && still_serves(peer, t->v6)) {
		set_ctx_address(ctx, v6_ctx, &peer->backend, peer->backend_port);
		return SYS_PROCEED;
	}
	if (peer && !same) {
		verdict = next_peer(ctx, t, peer, &fresh, &why);
	} else {
		verdict = resolve(ctx, t, &chosen, &why);
		fill_peer(&fresh, t, &chosen);
		fresh.several = peer && peer->several;
	}
	if (verdict == VERDICT_PASS)
		return SYS_PROCEED;
	if (verdict == VERDICT_DENY)
		return deny(why);
	set_ctx_address(ctx, v6_ctx, &fresh.backend, fresh.backend_port);
	if (!peer)
		peer = bpf_sk_storage_get(&sock_peer, ctx->sk, NULL,
					  BPF_SK_STORAGE_GET_F_CREATE);
	if (peer)
		*peer = fresh;
	return SYS_PROCEED;
}

SEC("cgroup/sendmsg4")
int portolan_sendmsg4(struct bpf_sock_addr *ctx)
{
	__be32 dst = ctx->user_ip4;

	if (nobodys4(dst))
		return SYS_PROCEED;
	struct tuple t = { .dst = mapped(dst), .v6 = false };

	return sendmsg(ctx, false, &t);
}

/* Datagrams to IPv4-mapped addresses come through sendmsg4. */
SEC("cgroup/sendmsg6")
int portolan_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct address dst = ctx_address(ctx, true);

	if (nobodys6(&dst))
		return SYS_PROCEED;
	struct tuple t = { .dst = dst, .v6 = true };

	return sendmsg(ctx, true, &t);
}

/* The application sees the answer come from the address it sent to. */
static __always_inline int recvmsg(struct bpf_sock_addr *ctx, bool v6_ctx)
{
	struct sock_peer *peer = bpf_sk_storage_get(&sock_peer, ctx->sk, NULL, 0);
	struct address addr;
	struct sock_rev_key key;

	if (!peer)
		return SYS_PROCEED;
	addr = ctx_address(ctx, v6_ctx);
	if (!is_backend_of(peer, &addr, ctx->user_port)) {
		if (!peer->several)
			return SYS_PROCEED;
		key = rev_key(bpf_get_socket_cookie(ctx), &addr, ctx->user_port, false);
		peer = bpf_map_lookup_elem(&sock_rev, &key);
		if (!peer)
			return SYS_PROCEED;
	}
	set_ctx_address(ctx, v6_ctx, &peer->vip, peer->vip_port);
	return SYS_PROCEED;
}

SEC("cgroup/recvmsg4")
int portolan_recvmsg4(struct bpf_sock_addr *ctx)
{
	return recvmsg(ctx, false);
}

SEC("cgroup/recvmsg6")
int portolan_recvmsg6(struct bpf_sock_addr *ctx)
{
	return recvmsg(ctx, true);
}

/* Servers ----------------------------------------------------------------- */

/* A socket of the node that binds a NodePort in use would never be reached by
 * it: connections go to the Service. The call fails instead of the traffic.
 */
static __always_inline bool takes_nodeport(struct tuple *t, bool any)
{
	__u32 zero = 0, id;
	struct address unspecified = {};
	const struct node_config *config = bpf_map_lookup_elem(&node_config, &zero);
	__u16 port = bpf_ntohs(t->port);

	if (!config || port < config->nodeport_min || port > config->nodeport_max)
		return false;
	if (!in_host_netns(t))
		return false;
	return (any || serves_nodeports(t)) &&
	       lookup_key(t, &unspecified, t->port, t->proto, &id);
}

SEC("cgroup/post_bind4")
int portolan_post_bind4(struct bpf_sock *ctx)
{
	struct tuple t = {
		.dst = mapped(ctx->src_ip4),
		.port = bpf_htons(ctx->src_port),
		.proto = service_proto(ctx->protocol),
		.ctx = ctx,
	};

	return takes_nodeport(&t, ctx->src_ip4 == 0) ? deny(REASON_NODEPORT_TAKEN) :
						       SYS_PROCEED;
}

/* A socket bound to :: takes the port of both families. */
SEC("cgroup/post_bind6")
int portolan_post_bind6(struct bpf_sock *ctx)
{
	struct tuple t = {
		.dst = { { ctx->src_ip6[0], ctx->src_ip6[1], ctx->src_ip6[2],
			   ctx->src_ip6[3] } },
		.port = bpf_htons(ctx->src_port),
		.proto = service_proto(ctx->protocol),
		.ctx = ctx,
	};
	bool any = (t.dst.w[0] | t.dst.w[1] | t.dst.w[2] | t.dst.w[3]) == 0;
	bool taken = false;

	if (!is_mapped(&t.dst)) {
		t.v6 = true;
		taken = takes_nodeport(&t, any);
	}
	if (!taken && (any || is_mapped(&t.dst))) {
		t.v6 = false;
		taken = takes_nodeport(&t, any);
	}
	return taken ? deny(REASON_NODEPORT_TAKEN) : SYS_PROCEED;
}
