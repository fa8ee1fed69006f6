// SPDX-License-Identifier: Apache-2.0

package l4firewall

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/ebpf/l4firewall/nextlayout"
	"github.com/podconfigmap/podconfigmap-controller/internal/bpffs"
	"github.com/podconfigmap/podconfigmap-controller/internal/kernelfeature"
	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

// laterBuild has other layouts of most maps.
var laterBuild = build{load: nextlayout.Load, counters: 2, policies: 2, pods: 2, flows: 4, syns: 1}

const goodPort, badPort = 8080, 8081

// variant returns one of many policies that all let goodPort pass and badPort not.
func variant(i int) *Policy {
	return Compile([]Rules{both(Rules{Block: true, Allowed: []uint16{goodPort, uint16(10_000 + i)}})}, nil)
}

// traffic is requests that must all be answered and probes that never must be,
// in both directions.
type traffic struct {
	x *pair
}

func startTraffic(x *pair) *traffic {
	x.t.Helper()
	x.serve(goodPort, badPort)
	for d, end := range []*sandbox.Peer{x.beyond, x.inside} {
		to := []*sandbox.Pod{x.pod, x.other}[d].Addresses()
		for family := range families {
			for _, p := range []Protocol{TCP, UDP} {
				good := sandbox.Loop{Network: network(p, family), Remote: at(to[family], goodPort), Size: 100, Timeout: long, Every: time.Millisecond}
				must(x.t, end.StartLoop("held "+good.Network, good))
				bad := good
				bad.Remote, bad.Fresh, bad.Timeout = at(to[family], badPort), true, 5*time.Millisecond
				must(x.t, end.StartLoop("bad "+good.Network, bad))
			}
			fresh := sandbox.Loop{Network: network(TCP, family), Remote: at(to[family], goodPort), Size: 10, Fresh: true, Timeout: long, Every: time.Millisecond}
			must(x.t, end.StartLoop("fresh "+fresh.Network, fresh))
		}
	}
	return &traffic{x}
}

// stop ends the traffic and checks it, and the TCP connections that were counted.
func (tr *traffic) stop() {
	x := tr.x
	x.t.Helper()
	// Connections that were tried, by direction and verdict.
	var tried [2][3]uint64
	for d, end := range []*sandbox.Peer{x.beyond, x.inside} {
		for family := range families {
			for _, name := range []string{"held tcp", "fresh tcp", "bad tcp", "held udp", "bad udp"} {
				name += families[family]
				c, err := end.StopLoop(name)
				must(x.t, err)
				bad, udp := strings.HasPrefix(name, "bad"), strings.Contains(name, "udp")
				switch {
				case c.Attempts < uint64(rounds(20, 3)):
					x.t.Errorf("%v %s: only %v", Direction(d), name, c)
				case bad && c.Answered != 0:
					x.t.Errorf("%v %s leaks: %v", Direction(d), name, c)
				case !bad && c.Failed != 0:
					x.t.Errorf("%v %s fails: %v", Direction(d), name, c)
				}
				switch {
				case udp && bad: // Two sockets can have one port, and count once.
				case bad:
					tried[d][Blocked] += c.Attempts
				case strings.HasPrefix(name, "fresh"):
					tried[d][Allowed] += c.Attempts
				default:
					tried[d][Allowed]++
				}
			}
		}
	}
	got := read(x.t, x.f, x.slot).Connections
	for d := range got {
		// Of blocked ones those of UDP count, too: at most as many as were tried.
		if got[d][Allowed] != tried[d][Allowed] || got[d][Blocked] < tried[d][Blocked] || got[d][WouldBlock] != 0 {
			x.t.Errorf("%v: counted %v, tried %v", Direction(d), got[d], tried[d])
		}
	}
}

// 200 changes of rules under traffic: nothing fails, nothing leaks.
func TestChangesWithoutGap(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	x := newPair(t, n, f, 0, variant(0))
	tr := startTraffic(x)
	for i := range rounds(200, 20) {
		if i%2 == 0 {
			x.set(variant(i % 7))
		} else {
			must(t, f.SetPolicies(map[types.UID]*Policy{x.pod.UID(): variant(i)}))
		}
		time.Sleep(10 * time.Millisecond)
	}
	tr.stop()
	waitForPolicies(t, f, 1)
}

// waitForPolicies waits until that many policies are left in the kernel.
func waitForPolicies(t *testing.T, f *Firewall, want int) {
	t.Helper()
	for deadline := time.Now().Add(long); ; time.Sleep(10 * time.Millisecond) {
		f.mu.Lock()
		pins, err := f.policies.pins()
		pins = slices.DeleteFunc(pins, func(p policyPin) bool { return p.key == spareKey })
		placed := len(f.policies.byIndex)
		if f.policies.spare != nil {
			placed--
		}
		f.mu.Unlock()
		must(t, err)
		if len(pins) == want && placed == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d policies are pinned and %d placed, want %d", len(pins), placed, want)
		}
	}
}

// awaitSpare waits until there is a spare, and returns its index.
func awaitSpare(t *testing.T, f *Firewall) (index uint32) {
	t.Helper()
	for deadline := time.Now().Add(long); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		f.mu.Lock()
		spare := f.policies.spare
		f.mu.Unlock()
		if spare != nil {
			return spare.index
		}
	}
	t.Fatal("there is no spare")
	return 0
}

// The next new policy stands where the spare did, which each agent leaves to the next.
func TestSpare(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	x := newPair(t, n, f, 0, variant(0))
	x.serve(goodPort, badPort)
	for i := range 4 {
		index := awaitSpare(t, x.f)
		must(t, x.f.Close())
		x.f = openBuild(t, Options{Dir: n.BPFFS()}, current)
		if got := awaitSpare(t, x.f); got != index {
			t.Errorf("the spare of the agent before has index %d, found %d", index, got)
		}
		p := variant(i + 1)
		x.set(p)
		x.f.mu.Lock()
		if got := x.f.policies.index(p); got != index {
			t.Errorf("the policy stands at %d, the spare stood at %d", got, index)
		}
		x.f.mu.Unlock()
		for _, port := range []uint16{goodPort, badPort} {
			x.check(p, Ingress, TCP, 0, port)
			x.check(p, Egress, UDP, 1, port)
		}
	}
	waitForPolicies(t, x.f, 1)
}

// An agent that was killed before a policy that it had pinned stood in the outer map
// leaves a pin that nothing may be attached by.
func TestPinnedButNotPlaced(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	x := newPair(t, n, f, 0, variant(0))
	x.serve(goodPort, badPort)
	p := variant(1)
	for _, key := range []policyKey{p.key, spareKey} {
		x.f.mu.Lock()
		index, err := x.f.policies.freeIndex()
		must(t, err)
		inner, err := x.f.policies.newInner(p)
		must(t, err)
		pin := policyPin{current.policies, index, key}
		must(t, errors.Join(inner.Pin(filepath.Join(n.BPFFS(), folder, pin.String())), inner.Close()))
		x.f.mu.Unlock()
		must(t, x.f.Close())
		x.f = openBuild(t, Options{Dir: n.BPFFS()}, current)
		if _, err := os.Stat(filepath.Join(n.BPFFS(), folder, pin.String())); key != spareKey && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%v is left: %v", pin, err)
		}
		x.set(p)
		for _, port := range []uint16{goodPort, badPort} {
			x.check(p, Ingress, TCP, 0, port)
			x.check(p, Ingress, UDP, 0, port)
		}
		x.set(variant(0))
	}
}

// Agents come and go under traffic, of one build and of another with other
// layouts and sizes.
func TestAdoptionUnderTraffic(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS(), Slots: 8})
	x := newPair(t, n, f, 7, variant(0))
	tr := startTraffic(x)
	for i := range rounds(24, 6) {
		must(t, x.f.Close())
		o := Options{Dir: n.BPFFS(), Slots: 8 + uint32(i/8), Flows: []uint32{4096, 8192}[i/4%2]}
		x.f = openBuild(t, o, []build{current, laterBuild}[i/2%2])
		if got, want := x.f.Attached(), (Attachment{UID: x.pod.UID(), Slot: 7}); len(got) != 1 || got[0] != want {
			t.Fatalf("adopted %v, want %v", got, want)
		}
		if i%3 == 0 {
			x.set(variant(i))
		}
		time.Sleep(30 * time.Millisecond)
	}
	tr.stop()
	must(t, x.f.Detach(x.pod.UID()))
	must(t, x.f.Close())
	x.f = openFirewall(t, Options{Dir: n.BPFFS()})
	waitForPolicies(t, x.f, 0)
	checkPins(t, n.BPFFS())
}

func isSpare(name string) bool {
	pin, ok := parsePolicyPin(name)
	return ok && pin.key == spareKey
}

// checkPins allows one pin for each map, a spare that comes a while after the start,
// and none for links.
func checkPins(t *testing.T, dir string) {
	t.Helper()
	kinds := map[string]int{}
	list, err := names(filepath.Join(dir, folder))
	must(t, err)
	all := len(list)
	if list = slices.DeleteFunc(list, isSpare); all-len(list) > 1 {
		t.Errorf("%d spares", all-len(list))
	}
	for _, name := range list {
		if !strings.HasPrefix(name, "storage_") {
			name, _, _ = strings.Cut(name, "_")
		}
		kinds[name]++
	}
	for kind, n := range kinds {
		if n != 1 {
			t.Errorf("%d pins of %s", n, kind)
		}
	}
	links, err := names(filepath.Join(dir, folder, podsFolder))
	must(t, err)
	if len(links) != 0 || len(kinds) != 14 {
		t.Errorf("pins: links %v, maps %v", links, kinds)
	}
}

// Environment of a test binary that is a child here, and what it does.
const childVariable = "L4FIREWALL_TEST_CHILD"

// childOrders are what a child gets on its standard input.
type childOrders struct {
	Dir    string
	Later  bool
	Main   Target
	Extras []Target
}

func init() {
	switch os.Getenv(childVariable) {
	case "churn":
		fmt.Fprintln(os.Stderr, churn())
		os.Exit(1)
	case "probe on an old kernel":
		// The kernel then says that it is Linux 2.6, to this process.
		const uname26 = 0x0020000
		if _, _, errno := syscall.RawSyscall(syscall.SYS_PERSONALITY, uname26, 0, 0); errno != 0 {
			fmt.Fprintln(os.Stderr, errno)
			os.Exit(1)
		}
		fallthrough
	case "probe":
		fmt.Println(errors.Join(Probe(), ProbeConnectDenied()))
		os.Exit(0)
	}
}

// churn changes everything all the time, until the process is killed.
func churn() error {
	var o childOrders
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		return err
	}
	b := current
	if o.Later {
		b = laterBuild
	}
	fmt.Println("begins")
	f, err := open(Options{Dir: o.Dir}, b)
	if err != nil {
		return err
	}
	fmt.Println("open")
	for i := 0; ; i++ {
		o.Main.Policy = variant(i % 50)
		if err := f.Attach(o.Main); err != nil {
			return err
		}
		all := map[types.UID]*Policy{}
		for _, extra := range o.Extras {
			extra.Policy = variant(i%50 + int(extra.Slot))
			if err := f.Attach(extra); err != nil {
				return err
			}
			all[extra.UID] = variant(i % 50)
		}
		if err := f.SetPolicies(all); err != nil {
			return err
		}
		for uid := range all {
			if err := f.Detach(uid); err != nil {
				return err
			}
		}
	}
}

func again(t *testing.T, role string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childVariable+"="+role)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// An agent that is killed at any moment leaves what the next one can go on with.
func TestKilledAtAnyMoment(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	x := newPair(t, n, f, 0, variant(0))
	tr := startTraffic(x)
	x.host = true // Which wants all hooks.
	x.set(variant(0))
	orders := childOrders{Dir: n.BPFFS(), Main: x.target(nil)}
	for slot := range uint32(3) {
		extra := n.Pod(sandbox.PodOptions{NoNetwork: true})
		orders.Extras = append(orders.Extras, Target{UID: extra.UID(), Slot: slot + 1, Cgroup: extra.Cgroup()})
	}
	must(t, x.f.Close())
	random := rand.New(rand.NewPCG(5, 6))
	for i := range 30 {
		orders.Later = i%3 == 1
		killChild(t, orders, i%5 != 0, time.Duration(random.IntN(60_000))*time.Microsecond)
		if i%4 != 3 {
			continue // The next child finds what this one left.
		}
		x.f = openBuild(t, Options{Dir: n.BPFFS()}, []build{current, laterBuild}[i/4%2])
		checkAdopted(t, x)
		for _, extra := range orders.Extras { // Whatever state they are in.
			if random.IntN(2) == 0 {
				extra.Policy = variant(3)
				must(t, x.f.Attach(extra))
			}
			must(t, x.f.Detach(extra.UID))
		}
		x.set(variant(1))
		must(t, x.f.Close())
	}
	x.f = openFirewall(t, Options{Dir: n.BPFFS()})
	for _, extra := range orders.Extras {
		must(t, x.f.Detach(extra.UID))
	}
	tr.stop()
	waitForPolicies(t, x.f, 1)
	must(t, x.f.Detach(x.pod.UID()))
	must(t, x.f.Close())
	x.f = openFirewall(t, Options{Dir: n.BPFFS()})
	waitForPolicies(t, x.f, 0)
	checkPins(t, n.BPFFS())
}

// checkAdopted finds the pair's pod attached, with all its links and policies.
func checkAdopted(t *testing.T, x *pair) {
	t.Helper()
	if !slices.Contains(x.f.Attached(), Attachment{UID: x.pod.UID(), Slot: x.slot}) {
		t.Fatalf("the pod is not attached: %v", x.f.Attached())
	}
	a := x.f.attached[x.pod.UID()]
	for h := range hooks {
		if a.links[h] == nil || x.f.policies.byIndex[a.policies[h]] == nil {
			t.Errorf("adopted without %s", hookNames[h])
		}
	}
}

// killChild lets a child work for a while, from its start or from when it has
// opened the firewall, and kills it.
func killChild(t *testing.T, orders childOrders, opened bool, after time.Duration) {
	t.Helper()
	cmd := again(t, "churn")
	input, err := json.Marshal(orders)
	must(t, err)
	cmd.Stdin = strings.NewReader(string(input))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() && opened != (lines.Text() == "open") {
	}
	time.Sleep(after)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if stderr.Len() != 0 {
		t.Fatalf("the child says: %s", stderr.String())
	}
}

// What a layout or a size changes is carried over exactly, to and fro.
func TestLayoutChange(t *testing.T) {
	n := sandbox.New(t)
	o := Options{Dir: n.BPFFS(), Slots: 4, Flows: 1024}
	f := openFirewall(t, o)
	p := Compile([]Rules{both(Rules{Block: true, Allowed: []uint16{goodPort}}), both(Rules{Block: true, Audit: true})}, nil)
	x := newPair(t, n, f, 3, p)
	x.serve(goodPort, badPort)
	var want Counters
	for i, b := range []build{current, laterBuild, laterBuild, current, current} {
		must(t, x.f.Close())
		o.Slots, o.Flows = 4+uint32(i), 1024*uint32(1+i%2)
		x.f = openBuild(t, o, b)
		if i > 0 {
			if got := read(t, x.f, x.slot); got != want {
				t.Fatalf("round %d: carried %+v over, want %+v", i, got, want)
			}
			// A flow of the round before lives on: its reply passes.
			must(t, x.inside.Ping("flow", 10, long))
		}
		// No Attach here: what was adopted must do.
		for _, d := range []Direction{Ingress, Egress} {
			for _, protocol := range []Protocol{TCP, UDP} {
				for family := range families {
					x.check(p, d, protocol, family, goodPort)
					x.check(p, d, protocol, family, badPort)
				}
			}
		}
		if i == 0 {
			must(t, x.inside.Hold("flow", "udp", "", at(x.other.IPv4(), goodPort), long))
			must(t, x.inside.Ping("flow", 10, long))
		}
		time.Sleep(short) // The last segments of closed connections count, too.
		want = read(t, x.f, x.slot)
	}
	if got, want := x.f.flows.flows.MaxEntries(), bucketsFor(1024); got != want {
		t.Errorf("the table of flows has %d buckets, want the %d of the start", got, want)
	}
	must(t, x.f.Detach(x.pod.UID()))
	must(t, x.f.Close())
	o.Flows = 4096
	x.f = openFirewall(t, o)
	if got, want := x.f.flows.flows.MaxEntries(), bucketsFor(4096); got != want {
		t.Errorf("with no pod left the table of flows has %d buckets, want %d", got, want)
	}
	waitForPolicies(t, x.f, 0)
	checkPins(t, n.BPFFS())
}

// A cgroup that goes between two looks at its links is gone, and no more than that.
func TestCgroupGoesDuringAdoption(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	pod := n.Pod(sandbox.PodOptions{NoNetwork: true})
	p := Compile([]Rules{both(Rules{Block: true})}, nil)
	must(t, f.Attach(Target{UID: pod.UID(), Cgroup: pod.Cgroup(), Policy: p}))
	a := f.attached[pod.UID()]
	pod.RemoveCgroup()
	for deadline := time.Now().Add(long); !a.gone() && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	table := f.policies
	f.policies = nil // As it is at that time.
	must(t, f.dropDetached())
	f.policies = table
	if a.cgroup != 0 || a.policies != [hooks]uint32{} || a.links[ingress] == nil {
		t.Errorf("adopted as %+v", a)
	}
	must(t, f.Detach(pod.UID()))
}

func TestGoneCgroups(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	p := Compile([]Rules{both(Rules{Block: true})}, nil)
	var pods []*sandbox.Pod
	for slot := range uint32(6) {
		pod := n.Pod(sandbox.PodOptions{NoNetwork: true})
		must(t, f.Attach(Target{UID: pod.UID(), Slot: slot, Cgroup: pod.Cgroup(), Policy: p}))
		pods = append(pods, pod)
	}
	gone := func() (slots []uint32) {
		for _, a := range f.Attached() {
			if a.CgroupGone {
				slots = append(slots, a.Slot)
			}
		}
		slices.Sort(slots)
		return slots
	}
	pods[1].RemoveCgroup()
	pods[4].RemoveCgroup()
	for deadline := time.Now().Add(long); len(gone()) != 2 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if got := gone(); !slices.Equal(got, []uint32{1, 4}) {
		t.Errorf("gone are %v, want 1 and 4", got)
	}
	must(t, f.Detach(pods[1].UID()))
	must(t, f.Close())
	pods[5].RemoveCgroup()
	f = openBuild(t, Options{Dir: n.BPFFS()}, laterBuild)
	if got := gone(); !slices.Equal(got, []uint32{4, 5}) || len(f.Attached()) != 5 {
		t.Errorf("after another start %v are gone, want 4 and 5, of %v", got, f.Attached())
	}
	// A pod whose cgroup comes again is attached to the new one.
	pods[4].MakeCgroup()
	must(t, f.Attach(Target{UID: pods[4].UID(), Slot: 4, Cgroup: pods[4].Cgroup(), Policy: p}))
	if got := gone(); !slices.Equal(got, []uint32{5}) {
		t.Errorf("then %v are gone, want 5", got)
	}
	for _, pod := range pods {
		must(t, f.Detach(pod.UID()))
	}
	if got := f.Attached(); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	links, err := names(filepath.Join(n.BPFFS(), folder, podsFolder))
	must(t, err)
	if len(links) != 0 {
		t.Errorf("pins left: %v", links)
	}
}

// Detach and Remove let traffic pass again, and a slot's next pod begins anew.
func TestDetach(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	p := Compile([]Rules{{Block: true, Ingress: true}}, nil)
	x := newPair(t, n, f, 0, p)
	x.serve(badPort)
	must(t, x.inside.Hold("flow", "udp", at(x.pod.IPv4(), 4000), at(x.other.IPv4(), badPort), long))
	must(t, x.inside.Ping("flow", 10, long))
	reply := func() error { // It comes back to the echo server, from which it is sent as a reply.
		return x.beyond.SendRaw(sandbox.UDPPacket(netip.AddrPortFrom(x.other.IPv4(), badPort), netip.AddrPortFrom(x.pod.IPv4(), 4000), []byte("x")))
	}
	if got := x.counted(func() { must(t, reply()); time.Sleep(short) }); got != (Counters{Packets: [2][2]uint64{Ingress: {UDP: 1}}}) {
		t.Errorf("a reply counts %+v", got)
	}
	must(t, f.Detach(x.pod.UID()))
	must(t, x.request(Ingress, TCP, 0, badPort, 10, long))
	must(t, x.request(Ingress, UDP, 1, badPort, 10, long))
	x.set(p)
	if got := read(t, f, 0); got != (Counters{}) {
		t.Errorf("attached again it begins with %+v", got)
	}
	// The flow was begun before: it is another pod's, for all the firewall knows.
	if got := x.counted(func() { must(t, reply()); time.Sleep(short) }); got.Connections != one(Ingress, Blocked) {
		t.Errorf("a reply to a flow from before counts %+v, want it blocked", got)
	}
	x.check(p, Ingress, TCP, 0, badPort)
	must(t, f.Close())
	x.check2(Ingress, TCP, badPort, false)
	must(t, Remove(n.BPFFS()))
	x.check2(Ingress, TCP, badPort, true)
	if _, err := os.Stat(filepath.Join(n.BPFFS(), folder)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Remove left its folder (%v)", err)
	}
	must(t, Remove(n.BPFFS()))
	x.f = openFirewall(t, Options{Dir: n.BPFFS()})
	x.check2(Ingress, TCP, badPort, true)
	x.set(p)
	x.check(p, Ingress, TCP, 0, badPort)
}

// check2 tells whether connections pass, without asking for counters.
func (x *pair) check2(d Direction, p Protocol, port uint16, want bool) {
	x.t.Helper()
	for family := range families {
		timeout := short
		if want {
			timeout = long
		}
		if err := x.request(d, p, family, port, 10, timeout); (err == nil) != want {
			x.t.Errorf("%v %s: %v, want it to pass: %v", d, network(p, family), err, want)
		}
	}
}

// count returns how many ways of the table are taken.
func (t *flowTable) count(test *testing.T) (held uint64) {
	test.Helper()
	var bucket l4firewallBucket
	for i := range t.flows.MaxEntries() {
		must(test, t.flows.Lookup(i, &bucket))
		for _, state := range bucket.States {
			if state != 0 {
				held++
			}
		}
	}
	return held
}

// Version 1 of the table of flows was the kernel's LRU. An agent that follows one with
// it makes a table of its own, and goes on.
func TestFirstFlowTable(t *testing.T) {
	n := sandbox.New(t)
	p := Compile([]Rules{both(Rules{Block: true, Allowed: []uint16{goodPort}})}, nil)
	x := newPair(t, n, openFirewall(t, Options{Dir: n.BPFFS()}), 0, p)
	x.serve(goodPort, badPort)
	must(t, x.f.Close())
	first, err := ebpf.NewMap(&ebpf.MapSpec{Name: "flows", Type: ebpf.LRUHash, KeySize: 40, ValueSize: 16, MaxEntries: 65536})
	must(t, err)
	defer first.Close()
	pin := filepath.Join(n.BPFFS(), folder, mapPin("flows", 1, first.MaxEntries()))
	must(t, first.Pin(pin))
	x.f = openFirewall(t, Options{Dir: n.BPFFS()})
	for _, protocol := range []Protocol{TCP, UDP} {
		x.check(p, Ingress, protocol, 0, goodPort)
		x.check(p, Ingress, protocol, 0, badPort)
	}
	if _, err := os.Lstat(pin); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pin of the first table: %v", err)
	}
}

// The table of flows has room for as many as it was made for, all but one of a
// hundred; beyond that it forgets, and says how many.
func TestFlowTable(t *testing.T) {
	n := sandbox.New(t)
	const size = 1024
	room := uint64(bucketsFor(size) * waysPerBucket)
	flows := rounds(8000, 5000)
	f := openFirewall(t, Options{Dir: n.BPFFS(), Flows: size})
	x := newPair(t, n, f, 0, Compile([]Rules{{Block: true, Ingress: true}}, nil))
	x.serve(goodPort)
	sent := 0
	send := func(count int) (evicted uint64) {
		t.Helper()
		for ; sent < count; sent++ {
			packet := sandbox.UDPPacket(netip.AddrPortFrom(x.pod.IPv4(), uint16(10_000+sent)), netip.AddrPortFrom(x.other.IPv4(), 9), nil)
			must(t, x.inside.SendRaw(packet))
		}
		evicted, err := f.FlowEvictions()
		must(t, err)
		held, made := f.flows.count(t), read(t, f, 0).Connections[Egress][Allowed]
		if evicted+held != made || made != uint64(count) || held > room {
			t.Errorf("%d evicted and %d held, of %d, want %d and room for %d", evicted, held, made, count, room)
		}
		return evicted
	}
	if got := send(100); got != 0 {
		t.Errorf("after 100 flows %d are evicted", got)
	}
	// The mean of all keys is 1.
	if got := send(size); got > size/20 {
		t.Errorf("after %d flows %d are evicted", size, got)
	}
	if got := send(flows); got < uint64(flows)-room {
		t.Errorf("%d flows are evicted, want at least %d", got, uint64(flows)-room)
	}

	// What is blocked evicts nothing that lives.
	x.set(Compile([]Rules{both(Rules{Block: true, Allowed: []uint16{goodPort}})}, nil))
	must(t, x.inside.Hold("live", "udp", "", at(x.other.IPv4(), goodPort), long))
	must(t, x.inside.Ping("live", 10, long))
	got := x.counted(func() {
		for i := range flows {
			packet := sandbox.UDPPacket(netip.AddrPortFrom(x.pod.IPv4(), uint16(20_000+i)), netip.AddrPortFrom(x.other.IPv4(), 9), nil)
			for range 2 { // The second counts no more.
				if err := x.inside.SendRaw(packet); !errors.Is(err, syscall.EPERM) {
					t.Fatalf("a blocked flow: %v", err)
				}
			}
		}
		must(t, x.inside.Ping("live", 10, long))
	})
	if want := ([2][3]uint64{Egress: {Blocked: uint64(flows)}}); got.Connections != want {
		t.Errorf("counted %v, want %v", got.Connections, want)
	}
}

// age makes all flows older.
func (t *flowTable) age(test *testing.T, by time.Duration) {
	test.Helper()
	var bucket l4firewallBucket
	for i := range t.flows.MaxEntries() {
		must(test, t.flows.Lookup(i, &bucket))
		for w := range bucket.States {
			if bucket.States[w] != 0 {
				bucket.States[w] -= uint32(by>>27) << 2
				must(test, t.flows.Put(i, bucket))
			}
		}
	}
}

// A flow is forgotten 120 s after its last packet.
func TestFlowsAge(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	x := newPair(t, n, f, 0, Compile([]Rules{{Block: true, Ingress: true}}, nil))
	x.serve(goodPort)
	must(t, x.inside.Hold("flow", "udp", at(x.pod.IPv4(), 4000), at(x.other.IPv4(), goodPort), long))
	reply := func() [2][3]uint64 {
		packet := sandbox.UDPPacket(netip.AddrPortFrom(x.other.IPv4(), goodPort), netip.AddrPortFrom(x.pod.IPv4(), 4000), []byte("x"))
		return x.counted(func() { must(t, x.beyond.SendRaw(packet)); time.Sleep(short) }).Connections
	}
	for _, tc := range []struct {
		by   time.Duration
		want [2][3]uint64
	}{{110 * time.Second, [2][3]uint64{}}, {121 * time.Second, one(Ingress, Blocked)}} {
		got := x.counted(func() { must(t, x.inside.Ping("flow", 10, long)) }).Connections
		if got[Egress][Allowed] > 1 {
			t.Errorf("one flow counts %v", got)
		}
		f.flows.age(t, tc.by)
		if got := reply(); got != tc.want {
			t.Errorf("a reply after %v counts %v, want %v", tc.by, got, tc.want)
		}
	}
	if got := x.counted(func() { must(t, x.inside.Ping("flow", 10, long)) }); got.Connections != one(Egress, Allowed) {
		t.Errorf("after that it counts %v, want a new flow", got.Connections)
	}
}

// Many pods: each new policy is placed once, and then they all change.
func TestThousandPods(t *testing.T) {
	const pods = 1000
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	var took []time.Duration
	var uids []types.UID
	first := variant(0)
	for slot := range uint32(pods) {
		uid := types.UID(uuid.NewString())
		path := filepath.Join(n.Root(), "kubepods", "pod"+string(uid))
		must(t, os.Mkdir(path, 0o755))
		defer os.Remove(path)
		began := time.Now()
		must(t, f.Attach(Target{UID: uid, Slot: slot, Cgroup: path, Policy: first}))
		took = append(took, time.Since(began))
		uids = append(uids, uid)
	}
	slices.Sort(took)
	t.Logf("attaching a pod: median %v, p99 %v", took[pods/2], took[pods*99/100])
	for name, policy := range map[string]func(i int) *Policy{
		"one policy":     func(int) *Policy { return variant(1) },
		"1,000 policies": variant,
	} {
		wanted := map[types.UID]*Policy{}
		for i, uid := range uids {
			wanted[uid] = policy(i)
		}
		began := time.Now()
		must(t, f.SetPolicies(wanted))
		t.Logf("pointing %d pods to %s: %v", pods, name, time.Since(began))
		for _, uid := range uids {
			a := f.attached[uid]
			for h := range hooks {
				if !a.wants(h, wanted[uid]) {
					continue
				}
				var storage l4firewallAttachment
				must(t, f.storages[h].Lookup(storageKey(h, a.cgroup), &storage))
				if storage.Slot != a.slot+1 || storage.Policy != f.policies.byKey[wanted[uid].key].index {
					t.Fatalf("%s: the storage of %s is %+v", name, uid, storage)
				}
			}
		}
	}
	began := time.Now()
	must(t, f.Close())
	f = openFirewall(t, Options{Dir: n.BPFFS()})
	t.Logf("adopting %d pods: %v", pods, time.Since(began))
	if got := len(f.Attached()); got != pods {
		t.Fatalf("adopted %d pods", got)
	}
	began = time.Now()
	for _, uid := range uids {
		must(t, f.Detach(uid))
	}
	t.Logf("detaching a pod: %v on average", time.Since(began)/pods)
	waitForPolicies(t, f, 0)
}

func TestProbe(t *testing.T) {
	must(t, Probe())
	must(t, ProbeConnectDenied())
	// Without rights both say what is missing, and what to do.
	cmd := again(t, "probe")
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	self, err := os.ReadFile(cmd.Path)
	must(t, err)
	cmd.Path = filepath.Join(t.TempDir(), "test") // Where that user can read it.
	must(t, os.WriteFile(cmd.Path, self, 0o755))
	for dir := cmd.Path; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755))
	}
	out, err := cmd.CombinedOutput()
	must(t, err)
	for _, feature := range []string{kernelfeature.L4Firewall, kernelfeature.ConnectDenied} {
		if !strings.Contains(string(out), feature+" is not supported on this node") || !strings.Contains(string(out), "lacks the capability BPF and PERFMON and NET_ADMIN") {
			t.Errorf("without rights: %s", out)
		}
	}
}

func TestProbeOnAnOldKernel(t *testing.T) {
	out, err := again(t, "probe on an old kernel").CombinedOutput()
	must(t, err)
	for _, feature := range []string{kernelfeature.L4Firewall, kernelfeature.ConnectDenied} {
		if want := feature + " is not supported on this node: Linux 2.6."; !strings.Contains(string(out), want) {
			t.Errorf("%s; want %q", out, want)
		}
	}
	if n := strings.Count(string(out), "; use Linux 5.10 or newer"); n != 2 {
		t.Errorf("%s: %d remedies, want 2", out, n)
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open(Options{Dir: t.TempDir()}); !errors.Is(err, bpffs.ErrNotBPFFS) {
		t.Errorf("opening it in another file system: %v", err)
	}
	n := sandbox.New(t)
	openFirewall(t, Options{Dir: n.BPFFS()})
	if err := Remove(n.BPFFS()); !errors.Is(err, bpffs.ErrLocked) {
		t.Errorf("removing it while it is open: %v", err)
	}
}
