// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"slices"
	"time"

	"github.com/podconfigmap/podconfigmap-controller/ebpf/l4firewall"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/syscallcount"
	"github.com/podconfigmap/podconfigmap-controller/internal/syscalls"
)

// wanted is what the configs of its namespace want for one pod.
type wanted struct {
	// syscalls is nil where no config wants them counted.
	syscalls *syscallcount.Settings
	// rules are the firewall's, one entry a config; none where none wants one.
	rules []l4firewall.Rules
	// export is how old exported counters may be; 0 where they are not exported.
	export time.Duration
	// sources are the configs that want a program, in the order of their names.
	sources []*Config
}

// any tells whether a program is wanted.
func (w *wanted) any() bool { return w.syscalls != nil || len(w.rules) > 0 }

// numbering gives the numbers of system calls by name.
type numbering map[string]uint16

// newNumbering reads the table of an architecture, named as in runtime.GOARCH.
func newNumbering(arch string) numbering {
	n := numbering{}
	for number, name := range syscalls.ByNumber(arch) {
		if number < syscallcount.Numbers {
			n[name] = uint16(number)
		}
	}
	return n
}

// resolve composes what the configs want for a pod: names of system calls are
// united, rules stand side by side, any export wins with the shortest interval.
// A pod that is over, or nil, gets nothing. It is pure.
func (n numbering) resolve(pod *Pod, configs []*Config) wanted {
	var w wanted
	if pod == nil || pod.Over {
		return w
	}
	var calls []*syscallWish
	for _, c := range configs {
		if !c.selector.Matches(pod.Labels) {
			continue
		}
		w.export = shorter(w.export, c.export)
		if c.firewall != nil {
			w.rules = append(w.rules, *c.firewall)
		}
		if c.syscalls != nil {
			calls = append(calls, c.syscalls)
		}
		if c.firewall != nil || c.syscalls != nil {
			w.sources = append(w.sources, c)
		}
	}
	w.syscalls = n.unite(calls)
	return w
}

// shorter is the shorter of two intervals, of which 0 is none.
func shorter(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return a + b
	}
	return min(a, b)
}

// unite makes one setting of what several configs want counted; nil for none.
func (n numbering) unite(wishes []*syscallWish) *syscallcount.Settings {
	if len(wishes) == 0 {
		return nil
	}
	s, all := &syscallcount.Settings{}, false
	var names []string
	for _, wish := range wishes {
		s.PerPID = s.PerPID || wish.perPID
		all = all || len(wish.names) == 0
		names = append(names, wish.names...)
	}
	if !all {
		s.Numbers = n.numbers(names)
	}
	return s
}

// numbers are ascending, and never nil: names that this architecture lacks
// count nothing, where nil would count all.
func (n numbering) numbers(names []string) []uint16 {
	numbers := []uint16{}
	for _, name := range names {
		if number, known := n[name]; known {
			numbers = append(numbers, number)
		}
	}
	slices.Sort(numbers)
	return slices.Compact(numbers)
}
