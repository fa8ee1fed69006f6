// SPDX-License-Identifier: Apache-2.0

//go:build nextlayout

package l4firewall

import "github.com/podconfigmap/podconfigmap-controller/ebpf/l4firewall/nextlayout"

// current is for tests of upgrades: an agent with other layouts.
var current = build{load: nextlayout.Load, counters: 2, policies: 2, pods: 2, flows: 4, syns: 1}
