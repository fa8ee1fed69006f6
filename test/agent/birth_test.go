// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

const (
	births = 200
	// firstProcess is how long after its cgroup a pod's first process may begin:
	// a runtime needs longer to set up a pod's sandbox.
	firstProcess = 20 * time.Millisecond
)

// bothWays blocks port 81 in both directions.
func bothWays() *v1alpha1.L4Firewall {
	f := blocking(81)
	f.Directions = []v1alpha1.FirewallDirection{v1alpha1.FirewallDirectionIngress, v1alpha1.FirewallDirectionEgress}
	return f
}

// TestBirth makes pods' cgroups one after the other, and measures how long each
// is without its programs. A process that connects from its first instruction
// on, 20 ms after the cgroup was made, must never get through, unless the machine
// was too busy to let the agent run until then.
func TestBirth(t *testing.T) {
	skipShort(t)
	w := newWorld(t, shared, births+10)
	w.config("c", v1alpha1.EBPFConfig{
		SyscallMonitoring: &v1alpha1.SyscallMonitoring{Enabled: true}, L4Firewall: bothWays(),
	})
	var pods []*pod
	for i := range births {
		pods = append(pods, w.bind(fmt.Sprintf("p%d", i), sandbox.PodOptions{}))
	}
	w.start()
	server := w.node.Peer()
	address, err := server.Listen("tcp", fmt.Sprintf("%s:81", w.node.Addresses()[0]))
	must(t, err)
	outside := w.node.Pod(sandbox.PodOptions{}).Container("main").Connect("tcp", address, patience)
	w.eventually("a pod without rules gets through", func() error {
		if outside.Counts().Through == 0 {
			return fmt.Errorf("%+v", outside.Counts())
		}
		return nil
	})
	outside.Stop()

	took, late := make([]time.Duration, births), 0
	for i, p := range pods {
		began := time.Now()
		p.MakeCgroup()
		attached := make(chan time.Duration, 1)
		go func() { attached <- untilAttached(p, began) }()
		time.Sleep(firstProcess - time.Since(began))
		// An attempt that is under way at the moment of enforcement is not answered.
		newborn := p.Container("main").Connect("tcp", address, dialTime)
		w.eventually("the newborn is denied", func() error {
			if c := newborn.Counts(); c.Denied < 20 {
				return fmt.Errorf("pod %d (%s): %+v; attached: %t", i, p.UID(), c, isAttached(p))
			}
			return nil
		})
		c := newborn.Stop()
		took[i] = <-attached
		switch {
		case c.Failed > 0, c.Through+c.Unanswered > 0 && took[i] <= firstProcess:
			t.Errorf("pod %d, enforced after %v: %+v", i, took[i], c)
		case took[i] > firstProcess:
			late++ // the machine had no time for the agent
			t.Logf("pod %d was enforced only after %v: %+v", i, took[i], c)
		}
	}
	first := took[0]
	slices.Sort(took)
	figure(t, "birth: from mkdir of a pod's cgroup to enforced, %d pods: median %v, p99 %v, worst %v, the first %v; %d later than the first process",
		births, took[births/2].Round(time.Microsecond), took[births*99/100].Round(time.Microsecond), took[births-1].Round(time.Microsecond), first.Round(time.Microsecond), late)
}

// TestFirstCalls counts what pods' first processes do, 20 ms after their cgroup
// was made.
func TestFirstCalls(t *testing.T) {
	skipShort(t)
	const pods = 50
	w := newWorld(t, shared, pods)
	w.config("c", v1alpha1.EBPFConfig{
		SyscallMonitoring: &v1alpha1.SyscallMonitoring{Enabled: true, SyscallNames: []v1alpha1.SyscallName{"getppid"}}, MetricsExport: exported(),
	})
	var all []*pod
	for i := range pods {
		all = append(all, w.bind(fmt.Sprintf("p%d", i), sandbox.PodOptions{NoNetwork: true}))
	}
	w.start()
	for i, p := range all {
		p.MakeCgroup()
		w.attached(p, "syscall_counter")
		for _, container := range []string{"first", "second"} {
			if _, err := p.Container(container).FirstCalls(100 + i); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, p := range all {
		w.eventually("the calls are counted", func() error {
			if got := w.calls(p, "getppid"); got != uint64(200+2*i) {
				return fmt.Errorf("pod %d: %d calls counted, want %d", i, got, 200+2*i)
			}
			return nil
		})
	}
}

// untilAttached polls the kernel until the pod's cgroup has its last program; it
// gives up after the tests' patience.
func untilAttached(p *pod, began time.Time) time.Duration {
	for time.Since(began) < patience && !isAttached(p) {
		time.Sleep(100 * time.Microsecond)
	}
	return time.Since(began)
}

func isAttached(p *pod) bool {
	dir, err := os.Open(p.Cgroup())
	if err != nil {
		return false
	}
	defer dir.Close()
	result, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: ebpf.AttachCGroupInet6Connect})
	return err == nil && len(result.Programs) > 0
}

// figure prints what was measured, and adds it to build/agent.txt.
func figure(t *testing.T, format string, args ...any) {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	t.Log(line)
	fmt.Println(line)
	root, err := harness.Root()
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(root, "build"), 0o755))
	file, err := os.OpenFile(filepath.Join(root, "build", "agent.txt"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	must(t, err)
	_, err = fmt.Fprintln(file, line)
	must(t, errors.Join(err, file.Close()))
}
