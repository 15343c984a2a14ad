/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What differs between tc and XDP, for the code that is one for both. tc.c and
 * xdp.c define context_t (what a program is called with) and ON_XDP before they
 * include anything that includes this. ON_XDP is a constant, so the compiler
 * keeps one side only.
 */
#ifndef PORTOLAN_CONTEXT_H
#define PORTOLAN_CONTEXT_H

#include "types.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>

#define memcpy __builtin_memcpy
#define memset __builtin_memset
#define barrier() asm volatile("" ::: "memory")

/* Bytes before the IP header: 14, or 0 on devices without a link header. */
const volatile __u32 link_header = ETH_HLEN;

/* The program is attached to a pod's device: its traffic has internal scope. */
const volatile bool pod_device = false;

/* Endpoints see this node as the source of everything: those elsewhere, and
 * those here. Answers of endpoints here come to this node's own address then,
 * and only programs on the pods' devices see them.
 */
const volatile bool masquerade_all = false;
const volatile bool masquerade_near = false;

/* New flows a CPU may write in a window of 2^24 ns (16.8 ms). */
const volatile __u32 new_flow_rate = 2000;

/* ICMP errors that a CPU may send in such a window: 1,900 a second. */
const volatile __u32 icmp_error_rate = 32;

/* What a packet's way through us ends in. */
enum act {
	ACT_PASS, /* to the stack, or to the next program */
	ACT_DROP,
	ACT_SEND, /* rewritten, with a new link header: out by a device */
	ACT_RESOLVE, /* as ACT_SEND, but the link header is the kernel's to write: tc only */
	ACT_BACK, /* became an answer to its sender: out where it came in */
};

/* Written as the instruction they are: the compiler likes to keep ctx + offset
 * in a register, and the verifier takes an unmodified ctx only.
 */
static __always_inline void *packet_start(context_t *ctx)
{
	void *at;

	asm volatile("%0 = *(u32 *)(%1 + %2)"
		     : "=r"(at)
		     : "r"(ctx), "i"(__builtin_offsetof(context_t, data)));
	return at;
}

static __always_inline void *packet_end(context_t *ctx)
{
	void *at;

	asm volatile("%0 = *(u32 *)(%1 + %2)"
		     : "=r"(at)
		     : "r"(ctx), "i"(__builtin_offsetof(context_t, data_end)));
	return at;
}

/* Checksums are ones' complement sums: byte order does not matter as long as
 * everything is loaded alike (RFC 1071), and a sum changes by what its parts
 * change by (RFC 1624).
 */
static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* What a checksum gains when a becomes b; 64 bits hold many of them unfolded. */
static __always_inline __u64 replaced(__u32 a, __u32 b)
{
	return (__u64)(__u32)~a + b;
}

static __always_inline __u64 replaced_address(const struct address *a, const struct address *b)
{
	return replaced(a->w[0], b->w[0]) + replaced(a->w[1], b->w[1]) +
	       replaced(a->w[2], b->w[2]) + replaced(a->w[3], b->w[3]);
}

/* The checksum field after its message gained delta. */
static __always_inline __u16 adjusted(__u16 check, __u64 delta)
{
	return ~fold((__u64)(__u16)~check + delta);
}

#endif
