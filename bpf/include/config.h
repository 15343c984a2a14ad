/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Constants that the loader sets before it loads a program. The verifier knows
 * their values, so what is switched off costs nothing.
 */
#ifndef PORTOLAN_CONFIG_H
#define PORTOLAN_CONFIG_H

#include <linux/types.h>
#include <stdbool.h>

/* Cookie of the network namespace of this node's own processes. */
const volatile __u64 host_netns_cookie;

/* 32 minus log2 of the number of bits of vip_filter. */
const volatile __u32 vip_filter_shift = 16;

/* Of frontends4 and frontends6: what their keys are multiplied by, and 64 minus
 * log2 of the number of buckets.
 */
const volatile __u64 frontends4_multiplier;
const volatile __u64 frontends6_multiplier;
const volatile __u32 frontends4_shift = 55;
const volatile __u32 frontends6_shift = 55;

/* What all addresses in the service CIDRs begin with, of IPv6 ones in the first
 * half: most others are told by it, without a look at the CIDRs. A prefix that
 * is not within its mask matches nothing.
 */
const volatile __be32 service_prefix4 = 1;
const volatile __be32 service_mask4;
const volatile __u64 service_prefix6 = 1;
const volatile __u64 service_mask6;

/* Several CIDRs: what they have in common says little. */
const volatile bool service_wide4;
const volatile bool service_wide6;

/* Whether the socket iterator closes sockets itself where the kernel can. */
const volatile bool may_destroy = true;

#endif
