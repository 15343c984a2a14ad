/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* loadBalancerSourceRanges: whether an address is in those of a service port. */
#ifndef PORTOLAN_RANGES_H
#define PORTOLAN_RANGES_H

#include "lookup.h"

static __always_inline bool in_source_ranges(const struct tuple *t,
					     __u32 service_port,
					     const struct address *addr)
{
	if (t->v6) {
		struct source6_key key = { .prefixlen = 32 + 128,
					   .service_port = service_port,
					   .addr = *addr };

		return bpf_map_lookup_elem(&sources6, &key) != NULL;
	}
	struct source4_key key = { .prefixlen = 32 + 32,
				   .service_port = service_port,
				   .addr = addr->w[3] };

	return bpf_map_lookup_elem(&sources4, &key) != NULL;
}

#endif
