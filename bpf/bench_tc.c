// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore

/* For measuring only: the tc code, as bench.c for XDP. */
#include <linux/bpf.h>

typedef struct __sk_buff context_t;
enum { ON_XDP = 0 };

#include "measure.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tc")
int empty(struct __sk_buff *skb)
{
	return TC_ACT_OK;
}

SEC("tc")
int floor4(struct __sk_buff *skb)
{
	return write_packet(skb, false) ? TC_ACT_OK : TC_ACT_SHOT;
}

SEC("tc")
int floor6(struct __sk_buff *skb)
{
	return write_packet(skb, true) ? TC_ACT_OK : TC_ACT_SHOT;
}

static __always_inline int verdict(enum act act)
{
	switch (act) {
	case ACT_SEND:
	case ACT_BACK:
		return TC_ACT_STOLEN;
	case ACT_DROP:
		return TC_ACT_SHOT;
	default:
		return TC_ACT_OK;
	}
}

SEC("tc")
int run4(struct __sk_buff *skb)
{
	return verdict(measured(skb, false));
}

SEC("tc")
int run6(struct __sk_buff *skb)
{
	return verdict(measured(skb, true));
}
