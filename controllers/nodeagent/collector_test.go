// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/ebpf/l4firewall"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/syscallcount"
	"github.com/podconfigmap/podconfigmap-controller/internal/telemetry"
)

// kernel stands for slots, counter and firewall; it notes what is done to them.
type kernel struct {
	Counter
	Firewall
	slots map[types.UID]uint32
	did   []string
	err   error // of every call that is not a reading
	reads int
	// missedErr is that of Missed.
	missedErr error
	calls     map[uint32]map[uint16]uint64
	pids      []pidCount // of slot 1
	flows     map[uint32]l4firewall.Counters
}

func (k *kernel) do(what string) error {
	k.did = append(k.did, what)
	return k.err
}

func (k *kernel) All() map[types.UID]uint32 { return k.slots }
func (k *kernel) Len() uint32               { return 8 }

// counter and wall give the one type its two roles, whose methods have the same
// names.
type fakeCounter struct{ *kernel }

func (k fakeCounter) Read(each func(uint32, *[syscallcount.Numbers]uint64)) error {
	k.reads++
	for slot, calls := range k.calls {
		var counts [syscallcount.Numbers]uint64
		for number, n := range calls {
			counts[number] = n
		}
		each(slot, &counts)
	}
	return k.err
}

func (k fakeCounter) ReadPIDs(each func(slot, pid uint32, number uint16, count uint64)) error {
	for _, p := range k.pids {
		each(1, p.pid, p.number, p.count)
	}
	return nil
}

func (k fakeCounter) Missed() (uint64, error) { return 6, k.missedErr }

type fakeWall struct{ *kernel }

func (k fakeWall) Read(each func(uint32, l4firewall.Counters)) error {
	for slot, c := range k.flows {
		each(slot, c)
	}
	return nil
}

func (k fakeWall) FlowEvictions() (uint64, error) { return 5, nil }

func TestExposition(t *testing.T) {
	now := time.Unix(1000, 0)
	k := &kernel{
		slots: map[types.UID]uint32{"a": 1, "b": 2, "c": 3},
		calls: map[uint32]map[uint16]uint64{1: {0: 7, 39: 2, 500: 1}, 2: {0: 3}, 3: {0: 99}, 4: {0: 11}},
		pids:  []pidCount{{12, 0, 4}, {13, 0, 3}, {13, 39, 0}},
		flows: map[uint32]l4firewall.Counters{1: {Connections: [2][3]uint64{{1, 2, 3}, {10, 20, 30}}, Packets: [2][2]uint64{{5, 6}, {50, 60}}}, 3: {}},
	}
	m := NewMetrics(telemetry.NewFactory(prometheus.NewRegistry()), map[string]bool{"SyscallCounter": true, "ConnectDenied": false})
	m.collector.now = func() time.Time { return now }
	m.collector.names = map[int]string{0: "read", 39: "getpid"}
	r := NewReconciler(Options{Slots: slotsOf{k}, Counter: fakeCounter{k}, Firewall: fakeWall{k}, Metrics: m, MaxRetries: 5, ResyncPeriod: time.Minute})
	stands := func(name string, slot uint32, export time.Duration, perPID, counted, filtered bool) *standing {
		return &standing{pod: &Pod{Namespace: "shop", Name: name}, slot: slot, export: export, perPID: perPID, counted: counted, filtered: filtered}
	}
	r.board.standings = map[types.UID]*standing{
		"a": stands("a", 1, 30*time.Second, true, true, true),
		"b": stands("b", 2, 10*time.Second, false, true, false),
		"c": stands("c", 3, 0, false, true, true), // not exported
		"d": stands("d", 0, 30*time.Second, false, false, false),
	}
	const rest = `
# HELP podconfigmap_controller_ebpf_attached_programs 1 where a program serves the pod as its configs want it.
# TYPE podconfigmap_controller_ebpf_attached_programs gauge
podconfigmap_controller_ebpf_attached_programs{namespace="shop",pod_name="a",program_type="l4_firewall"} 1
podconfigmap_controller_ebpf_attached_programs{namespace="shop",pod_name="a",program_type="syscall_counter"} 1
podconfigmap_controller_ebpf_attached_programs{namespace="shop",pod_name="b",program_type="syscall_counter"} 1
podconfigmap_controller_ebpf_attached_programs{namespace="shop",pod_name="c",program_type="l4_firewall"} 1
podconfigmap_controller_ebpf_attached_programs{namespace="shop",pod_name="c",program_type="syscall_counter"} 1
# HELP podconfigmap_controller_ebpf_feature_supported 1 where the node supports the feature, else 0; the node's EBPFNode says why.
# TYPE podconfigmap_controller_ebpf_feature_supported gauge
podconfigmap_controller_ebpf_feature_supported{feature="ConnectDenied"} 0
podconfigmap_controller_ebpf_feature_supported{feature="SyscallCounter"} 1
# HELP podconfigmap_controller_ebpf_flow_evictions_total UDP flows that the node's table forgot because it was full; replies to a forgotten flow count as new.
# TYPE podconfigmap_controller_ebpf_flow_evictions_total counter
podconfigmap_controller_ebpf_flow_evictions_total 5
# HELP podconfigmap_controller_ebpf_l4_firewall_total What a pod's firewall saw. stat_type is allowed, blocked or would_block (connections in both directions, also where only one is filtered: TCP's first packets, new UDP flows), tcp_packets or udp_packets.
# TYPE podconfigmap_controller_ebpf_l4_firewall_total counter
podconfigmap_controller_ebpf_l4_firewall_total{namespace="shop",pod_name="a",stat_type="allowed"} 11
podconfigmap_controller_ebpf_l4_firewall_total{namespace="shop",pod_name="a",stat_type="blocked"} 22
podconfigmap_controller_ebpf_l4_firewall_total{namespace="shop",pod_name="a",stat_type="tcp_packets"} 55
podconfigmap_controller_ebpf_l4_firewall_total{namespace="shop",pod_name="a",stat_type="udp_packets"} 66
podconfigmap_controller_ebpf_l4_firewall_total{namespace="shop",pod_name="a",stat_type="would_block"} 33
# HELP podconfigmap_controller_ebpf_missed_syscalls_total System calls of all processes of the node, also of pods that no config selects, that the kernel kept from the program that counts; Linux 7 and newer does so where it preempts the program.
# TYPE podconfigmap_controller_ebpf_missed_syscalls_total counter
podconfigmap_controller_ebpf_missed_syscalls_total 6
# HELP podconfigmap_controller_ebpf_slots How many pods of the node can be served at a time.
# TYPE podconfigmap_controller_ebpf_slots gauge
podconfigmap_controller_ebpf_slots 8
# HELP podconfigmap_controller_ebpf_slots_used How many slots are taken.
# TYPE podconfigmap_controller_ebpf_slots_used gauge
podconfigmap_controller_ebpf_slots_used 3
`
	const calls = `
# HELP podconfigmap_controller_ebpf_syscall_count_total System calls of a pod's processes. With an empty pid it is the pod's total; series with a pid exist only where a config asks for perPID, and are part of that total.
# TYPE podconfigmap_controller_ebpf_syscall_count_total counter
podconfigmap_controller_ebpf_syscall_count_total{namespace="shop",pid="",pod_name="a",syscall="getpid"} 2
podconfigmap_controller_ebpf_syscall_count_total{namespace="shop",pid="",pod_name="a",syscall="read"} 7
podconfigmap_controller_ebpf_syscall_count_total{namespace="shop",pid="",pod_name="a",syscall="syscall_500"} 1
podconfigmap_controller_ebpf_syscall_count_total{namespace="shop",pid="",pod_name="b",syscall="read"} 3
podconfigmap_controller_ebpf_syscall_count_total{namespace="shop",pid="12",pod_name="a",syscall="read"} 4
podconfigmap_controller_ebpf_syscall_count_total{namespace="shop",pid="13",pod_name="a",syscall="read"} 3
`
	expect := func(what, calls, errs string) {
		t.Helper()
		const readErrors = `
# HELP podconfigmap_controller_ebpf_read_errors_total Scrapes at which the kernel's counters could not be read; the values of the last reading were exposed.
# TYPE podconfigmap_controller_ebpf_read_errors_total counter
podconfigmap_controller_ebpf_read_errors_total `
		if err := testutil.CollectAndCompare(m.collector, strings.NewReader(rest+calls+readErrors+errs+"\n")); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	expect("at first", calls, "0")
	reads := k.reads
	k.calls[2] = map[uint16]uint64{0: 4}
	expect("a moment later", calls, "0")
	if k.reads != reads {
		t.Errorf("read %d times within a second", k.reads-reads+1)
	}
	now = now.Add(time.Second)
	later := strings.Replace(calls, `pod_name="b",syscall="read"} 3`, `pod_name="b",syscall="read"} 4`, 1)
	expect("a second later", later, "0")
	now, k.err = now.Add(time.Hour), errors.New("no luck")
	expect("the kernel does not answer", later, "1")
	now, k.err, k.missedErr = now.Add(time.Hour), nil, errors.New("no luck")
	expect("it does not say what it kept from the program", later, "2")
}

// slotsOf leaves out what a test does not need.
type slotsOf struct{ *kernel }

func (s slotsOf) Take(uid types.UID) (uint32, error) {
	if _, taken := s.slots[uid]; !taken {
		s.slots[uid] = uint32(len(s.slots))
	}
	return s.slots[uid], s.do("take " + string(uid))
}

func (s slotsOf) Release(uid types.UID) error {
	delete(s.slots, uid)
	return s.do("release " + string(uid))
}
