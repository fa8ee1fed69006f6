// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//go:build ignore

// The counter as a later build may have it: with larger structs.
#define NEXT_LAYOUT
#include "../syscallcount.bpf.c"
