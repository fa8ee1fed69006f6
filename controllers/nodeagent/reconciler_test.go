// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/l4firewall"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/podslots"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/syscallcount"
	"github.com/podconfigmap/podconfigmap-controller/internal/telemetry"
)

func (k fakeCounter) Watched() map[uint32]bool { return map[uint32]bool{1: true, 5: true} }

func (k fakeCounter) Watch(slot uint32, cgroup string, _ syscallcount.Settings) error {
	return k.do(fmt.Sprintf("watch %d %s", slot, cgroup))
}

func (k fakeCounter) Unwatch(slots ...uint32) error {
	slices.Sort(slots)
	return k.do(fmt.Sprint("unwatch ", slots))
}

func (k fakeWall) Attach(t l4firewall.Target) error {
	return k.do(fmt.Sprintf("attach %s %d", t.UID, t.Slot))
}

func (k fakeWall) SetPolicies(all map[types.UID]*l4firewall.Policy) error {
	return k.do(fmt.Sprint("policies ", slices.Sorted(maps.Keys(all))))
}

func (k fakeWall) Detach(uid types.UID) error { return k.do("detach " + string(uid)) }

func (k fakeWall) Attached() []l4firewall.Attachment {
	return []l4firewall.Attachment{{UID: "a", Slot: 1}, {UID: "lost", Slot: 6}}
}

// groups are the pods' cgroups: their ids by path, which is /UID.
type groups map[string]uint64

func (g groups) Path(uid types.UID) (string, bool) {
	_, ok := g["/"+string(uid)]
	return "/" + string(uid), ok
}

func (g groups) place(path string) place {
	if g[path] == 0 {
		return place{}
	}
	return place{path, g[path]}
}

func (g groups) busy(string) bool { return false }

// testBench is a reconciler over fakes.
type testBench struct {
	*Reconciler
	t      *testing.T
	kernel *kernel
	groups groups
	events *events.FakeRecorder
}

func newTestBench(t *testing.T, slots map[types.UID]uint32) *testBench {
	k := &kernel{slots: slots}
	b := &testBench{t: t, kernel: k, groups: groups{}, events: events.NewFakeRecorder(100)}
	b.Reconciler = NewReconciler(Options{
		Slots: slotsOf{k}, Counter: fakeCounter{k}, Firewall: fakeWall{k}, Cgroups: b.groups, Events: b.events,
		Metrics:    NewMetrics(telemetry.NewFactory(prometheus.NewRegistry()), nil),
		MaxRetries: 3, ResyncPeriod: time.Hour, Changed: func() {},
	})
	b.cgroups = b.groups
	return b
}

// expect works off what is to do, and compares what was done to the kernel.
func (b *testBench) expect(what string, want ...string) {
	b.t.Helper()
	b.work(context.Background(), b.intake.take())
	if !slices.Equal(b.kernel.did, want) {
		b.t.Errorf("%s: did %q, want %q", what, b.kernel.did, want)
	}
	b.kernel.did = nil
}

func (b *testBench) pod(uid types.UID) *Pod {
	return &Pod{Namespace: "shop", Name: "pod-" + string(uid), UID: uid, ObjectUID: uid, Labels: map[string]string{"app": "web"}}
}

func both() *v1alpha1.EBPFConfig {
	e := count("read")
	e.L4Firewall = &v1alpha1.L4Firewall{Enabled: true, BlockedPorts: []v1alpha1.Port{81}}
	return e
}

func TestOneLife(t *testing.T) {
	b := newTestBench(t, map[types.UID]uint32{})
	b.intake.podSeen(b.pod("a"))
	b.expect("no config")
	b.intake.configSeen(newConfig("c", "web", both()))
	b.expect("no cgroup")
	b.groups["/a"] = 7
	b.intake.look("a")
	b.expect("birth", "take a", "attach a 0", "watch 0 /a")
	b.intake.look("a")
	b.expect("nothing new")
	delete(b.groups, "/a")
	b.intake.look("a")
	b.expect("its cgroup went", "unwatch [0]", "detach a", "release a")
	b.groups["/a"] = 8
	b.intake.look("a")
	b.expect("another cgroup", "take a", "attach a 0", "watch 0 /a")
	b.intake.configGone(types.NamespacedName{Namespace: "shop", Name: "c"})
	b.expect("the config went", "unwatch [0]", "detach a", "release a")
	b.intake.podGone(b.pod("a"))
	b.expect("the pod went")
	if len(b.pods) > 0 || len(b.board.standings) > 0 {
		t.Errorf("remembered: %v, %v", b.pods, b.board.standings)
	}
}

func TestCrowdsGoTogether(t *testing.T) {
	b := newTestBench(t, map[types.UID]uint32{})
	b.intake.configSeen(newConfig("c", "", both()))
	for _, uid := range []types.UID{"a", "b"} {
		b.groups["/"+string(uid)] = 7
		b.intake.podSeen(b.pod(uid))
	}
	b.work(t.Context(), b.intake.take())
	b.kernel.did = nil
	changed := both()
	changed.L4Firewall.BlockedPorts = nil
	next := newConfig("c", "", changed)
	next.Generation++
	b.intake.configSeen(next)
	b.work(t.Context(), b.intake.take())
	if len(b.kernel.did) != 3 || b.kernel.did[0] != "policies [a b]" {
		t.Errorf("new rules: did %q", b.kernel.did)
	}
	if got := statusOf(&NodeFacts{}, b.board.all()).Configs; len(got) != 1 || got[0].Attached != 2 || got[0].Generation != 4 {
		t.Errorf("reported %+v", got)
	}
	b.kernel.did = nil
	b.intake.configGone(next.Key())
	b.work(t.Context(), b.intake.take())
	if len(b.kernel.did) != 5 || b.kernel.did[0] != "unwatch [0 1]" {
		t.Errorf("the config went: did %q", b.kernel.did)
	}
}

func TestAdoption(t *testing.T) {
	b := newTestBench(t, map[types.UID]uint32{"a": 1, "dead": 2})
	b.intake.configSeen(newConfig("c", "web", both()))
	b.groups["/a"] = 7
	b.intake.podSeen(b.pod("a"))
	if err := b.adopt(); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(b.kernel.did); got != "[detach lost unwatch [5]]" {
		t.Errorf("at the start: %s", got)
	}
	b.kernel.did = nil
	b.work(t.Context(), b.intake.take())
	if got := fmt.Sprint(b.kernel.did); got != "[attach a 1 watch 1 /a release dead]" {
		t.Errorf("the first look: %s", got)
	}
}

func TestFailures(t *testing.T) {
	b := newTestBench(t, map[types.UID]uint32{})
	b.intake.configSeen(newConfig("c", "web", both()))
	b.groups["/a"] = 7
	b.intake.podSeen(b.pod("a"))
	b.kernel.err = &podslots.FullError{Slots: 3}
	b.expect("no slot", "take a")
	if n := len(b.events.Events); n != 2 {
		t.Errorf("%d Events, want one a program", n)
	}
	b.intake.look("a")
	b.expect("still none", "take a")
	if n := len(b.events.Events); n != 2 {
		t.Errorf("%d Events, nothing is new", n)
	}
	if n := testutil.ToFloat64(b.Metrics.errors.WithLabelValues("shop", "pod-a", "l4_firewall", "no_slot")); n != 2 {
		t.Errorf("%v failures counted", n)
	}
	if s := b.board.standings["a"]; s.firewall != failed || s.syscalls != failed {
		t.Errorf("stands %+v", s)
	}
	b.kernel.err = nil
	b.intake.look("a")
	b.expect("a slot is free", "take a", "attach a 0", "watch 0 /a")
	if s := b.board.standings["a"]; s.firewall != atWork || s.syscalls != atWork || b.pods["a"].again != nil {
		t.Errorf("stands %+v", s)
	}
	// A pod that cannot be let go of keeps its slot.
	b.kernel.err = errors.New("no luck")
	b.intake.podGone(b.pod("a"))
	b.expect("it cannot be detached", "unwatch [0]", "detach a")
	if b.kernel.err = nil; b.pods["a"].again == nil {
		t.Error("no other look is planned")
	}
	b.intake.look("a")
	b.expect("it can", "unwatch [0]", "detach a", "release a")
	if n := testutil.CollectAndCount(b.Metrics.errors); n != 0 {
		t.Errorf("%d series of a pod that is gone", n)
	}
}

func TestTheCgroupGoesMeanwhile(t *testing.T) {
	b := newTestBench(t, map[types.UID]uint32{})
	b.intake.configSeen(newConfig("c", "web", both()))
	b.groups["/a"] = 7
	b.intake.podSeen(b.pod("a"))
	j := b.observe(b.intake.take()[0])
	j.do = makePlan(&j.seen)
	b.kernel.err = nil
	delete(b.groups, "/a")
	b.Firewall = gone{b.Firewall}
	b.serve(j)
	if len(j.failures) > 0 || !j.vanished {
		t.Errorf("failures %v", j.failures)
	}
}

// gone is a firewall whose pods have no cgroup.
type gone struct{ Firewall }

func (gone) Attach(l4firewall.Target) error { return syscall.ENOENT }

func TestClassify(t *testing.T) {
	for want, errs := range map[ErrorType][]error{
		NoSlot:        {&podslots.FullError{}},
		CgroupMissing: {errNoCgroup},
		CgroupGone:    {syscall.ENOENT, syscall.ENODEV, &syscallcount.GoneError{}},
		Permission:    {syscall.EPERM, syscall.EACCES},
		NoSpace:       {syscall.ENOMEM, syscall.ENOSPC, syscall.E2BIG, &syscallcount.FullError{}},
		Kernel:        {syscall.EINVAL},
		Other:         {errors.New("x")},
	} {
		for _, err := range errs {
			if got := classify(fmt.Errorf("doing: %w", err)); got != want {
				t.Errorf("%v is %q, want %q", err, got, want)
			}
		}
		if want.Meaning() == "" || !slices.Contains(ErrorTypes(), want) || strings.ToLower(string(want)) != string(want) {
			t.Errorf("%q is not documented", want)
		}
	}
}
