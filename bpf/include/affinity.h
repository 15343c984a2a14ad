/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Session affinity (sessionAffinity: ClientIP), per client and service port. */
#ifndef PORTOLAN_AFFINITY_H
#define PORTOLAN_AFFINITY_H

#include "select.h"

/* The backend that the client is bound to, while the binding is young enough
 * and the backend is in the set: a binding never outlives its endpoint's use.
 */
static __always_inline bool bound_backend(const struct frontend_state *state,
					  __u64 word, bool v6,
					  struct affinity *entry, __u64 now,
					  struct backend *out)
{
	/* Signed: another CPU may have renewed it since now was read. */
	if ((__s64)(now - entry->last_seen) >= state->affinity_timeout * 1000000000ll)
		return false;
	return read_backend(v6, entry->backend, out) &&
	       out->generation == entry->generation &&
	       out->service_port == state->service_port && in_set(word, out);
}

/* Picks the client's backend, and renews the binding; binds a client that is not
 * bound yet if bind says so.
 */
static __always_inline bool pick_bound(const struct frontend_state *state,
				       __u64 word, bool v6, __u32 hash,
				       struct affinity_key *key, bool bind,
				       struct backend *out)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct affinity *entry, fresh;

	key->service_port = state->service_port;
	entry = bpf_map_lookup_elem(&affinity, key);
	if (entry && bound_backend(state, word, v6, entry, now, out)) {
		entry->last_seen = now;
		return true;
	}
	if (!pick(word, v6, hash, out))
		return false;
	if (!bind)
		return true;
	fresh.backend = out->id;
	fresh.generation = out->generation;
	fresh.last_seen = now;
	bpf_map_update_elem(&affinity, key, &fresh, BPF_ANY);
	return true;
}

#endif
