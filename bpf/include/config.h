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

/* Whether the socket iterator closes sockets itself where the kernel can. */
const volatile bool may_destroy = true;

#endif
