// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore

/*
 * No program: every table, for those who want tables only. To read their
 * declarations off an object with programs takes forty times as long.
 */
#include "wire_maps.h"
