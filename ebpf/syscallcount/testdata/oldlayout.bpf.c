// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// The program with other shapes of its pinned maps, for tests of upgrades.
#define NUMBERS 256
#define CGROUPS 4096
#define ROWS call_rows
#include "../syscallcount.bpf.c"
