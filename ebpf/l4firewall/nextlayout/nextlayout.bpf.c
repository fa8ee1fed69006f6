// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//go:build ignore

// The firewall as a later build may have it: with larger structs.
#define NEXT_LAYOUT
#include "../l4firewall.bpf.c"
