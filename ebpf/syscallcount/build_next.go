// SPDX-License-Identifier: Apache-2.0

//go:build nextlayout

package syscallcount

import "github.com/podconfigmap/podconfigmap-controller/ebpf/syscallcount/nextlayout"

type row = nextlayout.Row

// current is for tests of upgrades: an agent with another layout.
var current = layout{version: nextlayout.Version, numbers: Numbers, rows: syscallcountMapSyscallRows, load: nextlayout.Load}

var known = []layout{first, current}
