/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What becomes of a socket call, and how the kernel is told. */
#ifndef PORTOLAN_VERDICT_H
#define PORTOLAN_VERDICT_H

#include "maps.h"

enum verdict {
	VERDICT_PASS,
	VERDICT_TRANSLATE,
	VERDICT_DENY,
};

/* Return values of cgroup programs. */
enum {
	SYS_REJECT = 0,
	SYS_PROCEED = 1,
};

#define EACCES 13
#define EADDRINUSE 98
#define ENETUNREACH 101
#define ECONNREFUSED 111
#define EHOSTUNREACH 113

/* An application's log tells the reasons apart, the two ECONNREFUSED aside. */
static __always_inline int reason_errno(enum reason why)
{
	switch (why) {
	case REASON_NO_LOCAL_ENDPOINT:
		return EHOSTUNREACH;
	case REASON_NO_SERVICE:
		return ENETUNREACH;
	case REASON_SOURCE_RANGE:
		return EACCES;
	case REASON_NODEPORT_TAKEN:
		return EADDRINUSE;
	default:
		return ECONNREFUSED;
	}
}

/* Counts the reason and makes the system call fail with its errno. */
static __always_inline int deny(enum reason why)
{
	__u32 index = why;
	__u64 *counter = bpf_map_lookup_elem(&reasons, &index);

	if (counter)
		(*counter)++;
	bpf_set_retval(-reason_errno(why));
	return SYS_REJECT;
}

#endif
