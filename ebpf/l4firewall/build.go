// SPDX-License-Identifier: Apache-2.0

//go:build !nextlayout

package l4firewall

var current = build{load: loadL4firewall, counters: 1, policies: 1, pods: 1, flows: 4, syns: 1}
