// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// outcome is what became of one program for one pod.
type outcome int

const (
	notWanted   outcome = iota
	pending             // it will be tried, or waits for the pod's cgroup
	atWork              // in the kernel, as the configs want it
	failed              // the node should serve it, and could not
	unsupported         // the node cannot serve it
)

// standing is how things stand for one pod. It is immutable.
type standing struct {
	pod     *Pod
	slot    uint32
	sources []*Config
	// export is how old exported counters may be; 0 where they are not exported.
	export time.Duration
	perPID bool

	syscalls, firewall outcome
	// counted and filtered tell what is attached, be it with older settings.
	counted, filtered bool
	// failures hold why, for each program that failed.
	failures []*failure
}

func (s *standing) of(program Program) outcome {
	if program == SyscallCounter {
		return s.syscalls
	}
	return s.firewall
}

// board shows how things stand. Who reads the kernel's counters holds its read
// lock, so that no slot goes from one pod to another meanwhile.
type board struct {
	mu        sync.RWMutex
	standings map[types.UID]*standing
}

// all returns every standing.
func (b *board) all() []*standing {
	b.mu.RLock()
	defer b.mu.RUnlock()
	all := make([]*standing, 0, len(b.standings))
	for _, s := range b.standings {
		all = append(all, s)
	}
	return all
}
