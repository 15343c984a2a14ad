// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore

/*
 * No program: the unit that the Go view of every layout is generated from. A
 * type is described in an object only where something refers to it.
 */
#include "types.h"

struct layout {
	struct frontend4_key frontend4_key;
	struct frontend6_key frontend6_key;
	enum entry_mark entry_mark;
	struct frontend4_bucket frontend4_bucket;
	struct frontend6_bucket frontend6_bucket;
	enum address_owner address_owner;
	enum range_flags range_flags;
	struct frontend_state frontend_state;
	struct slot slot;
	enum backend_state backend_state;
	enum backend_flags backend_flags;
	struct backend4 backend4;
	struct backend6 backend6;
	enum node_addr_flags node_addr_flags;
	struct source4_key source4_key;
	struct source6_key source6_key;
	struct affinity_key affinity_key;
	struct affinity affinity;
	struct sock_peer sock_peer;
	struct sock_rev_key sock_rev_key;
	struct node_config node_config;
	struct stale_socket stale_socket;
	enum reason reason;
	struct service_name service_name;
	struct flow4_key flow4_key;
	struct flow6_key flow6_key;
	enum flow_action flow_action;
	enum flow_state flow_state;
	struct flow flow;
	struct flow4 flow4;
	struct flow6 flow6;
	struct fragment_key fragment_key;
	struct fragment fragment;
	enum device_flags device_flags;
	struct device device;
	struct wire_config wire_config;
	struct refusal_key refusal_key;
	struct sweep_report sweep_report;
	struct next_hop next_hop;
	struct pressure pressure;
	struct newcomers4 newcomers4;
	struct newcomers6 newcomers6;
	struct tunnel_end_key tunnel_end_key;
};

const struct layout *layout_of_every_table;
