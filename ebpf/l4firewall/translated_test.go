// SPDX-License-Identifier: Apache-2.0

package l4firewall

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

// service is what kube-proxy makes of two Services in the network of a node: addresses
// and ports are others on the wire, and so are the sender's.
const service = `table inet services {
	chain output {
		type nat hook output priority -100
		ip daddr 10.244.99.99 udp dport 53 dnat ip to %[1]s:5353
		ip6 daddr fd00:10:244::9999 udp dport 53 dnat ip6 to [%[2]s]:5353
	}
	chain postrouting {
		type nat hook postrouting priority 100
		udp dport 5353 masquerade to :40000-41000
	}
}
`

var services = [2]netip.Addr{netip.MustParseAddr("10.244.99.99"), netip.MustParseAddr("fd00:10:244::9999")}

// hostPod is a pod on the host's network, where Services stand for another pod.
type hostPod struct {
	t           *testing.T
	n           *sandbox.Node
	f           *Firewall
	pod, other  *sandbox.Pod
	inside, far *sandbox.Peer
	port        uint16
}

const hostSlot = 9

func newHostPod(t *testing.T) *hostPod {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skipf("nothing translates addresses here: %v", err)
	}
	n := sandbox.New(t)
	x := &hostPod{t: t, n: n, f: openFirewall(t, Options{Dir: n.BPFFS()}), pod: n.Pod(sandbox.PodOptions{HostNetwork: true}), other: n.Pod(sandbox.PodOptions{})}
	x.inside, x.far = x.pod.Peer(), x.other.Peer()
	translate(t, n, x.other)
	for family, address := range x.other.Addresses() {
		_, err := x.far.Listen(network(UDP, family), at(address, 5353))
		must(t, err)
	}
	return x
}

func (x *hostPod) set(p *Policy) {
	x.t.Helper()
	must(x.t, x.f.Attach(Target{UID: x.pod.UID(), Slot: hostSlot, Cgroup: x.pod.Cgroup(), HostNetwork: true, Policy: p}))
}

func (x *hostPod) reopen(b build) {
	x.t.Helper()
	must(x.t, x.f.Close())
	x.f = openBuild(x.t, Options{Dir: x.n.BPFFS()}, b)
}

// local is an address of an unconnected socket, with a port that is new. It is kept
// where addresses are translated: another could be one that a flow had before.
func (x *hostPod) local() string {
	x.port++
	return fmt.Sprintf(":%d", 40_000+x.port)
}

// asks sends to a Service from an unconnected socket.
func (x *hostPod) asks(network string, family int, limit time.Duration) error {
	return x.inside.Request(network, x.local(), at(services[family], 53), 10, limit)
}

func (x *hostPod) counted(do func()) Counters {
	x.t.Helper()
	before := read(x.t, x.f, hostSlot)
	do()
	return read(x.t, x.f, hostSlot).minus(before)
}

// comes sends a packet to the pod and waits until a program has seen it.
func (x *hostPod) comes(from, to netip.AddrPort) Counters {
	x.t.Helper()
	return x.counted(func() { arrive(x.t, x.f, hostSlot, x.far, from, to) })
}

// arrive sends a packet to a pod and waits until a program has seen it.
func arrive(t *testing.T, f *Firewall, slot uint32, sender *sandbox.Peer, from, to netip.AddrPort) {
	t.Helper()
	before := read(t, f, slot)
	must(t, sender.SendRaw(sandbox.UDPPacket(from, to, []byte("x"))))
	for deadline := time.Now().Add(long); read(t, f, slot) == before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("nothing has come from %v to %v", from, to)
		}
	}
}

// remembers tells whether the pod has the programs for unconnected sockets.
func (x *hostPod) remembers() bool {
	x.t.Helper()
	dir, err := os.Open(x.pod.Cgroup())
	must(x.t, err)
	defer dir.Close()
	var found []bool
	for _, h := range []hook{sendmsg4, sendmsg6} {
		result, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: hookTypes[h]})
		must(x.t, err)
		pin := linkPin{x.pod.UID(), hostSlot, h}.String()
		_, err = os.Lstat(filepath.Join(x.n.BPFFS(), folder, podsFolder, pin))
		if pinned := err == nil; pinned != (len(result.Programs) == 1) || len(result.Programs) > 1 {
			x.t.Errorf("%d programs at %s, and %s is pinned: %t", len(result.Programs), hookNames[h], pin, pinned)
		}
		found = append(found, len(result.Programs) > 0)
	}
	if found[0] != found[1] {
		x.t.Errorf("attached to sendmsg4 and sendmsg6: %v", found)
	}
	return found[0]
}

// checkNothingLeft finds the pins of a firewall that is attached to nothing.
func (x *hostPod) checkNothingLeft() {
	x.t.Helper()
	x.reopen(current)
	waitForPolicies(x.t, x.f, 0)
	checkPins(x.t, x.n.BPFFS())
}

// The reply to a pod on the host's network passes also where a Service was asked, whose
// addresses are translated in that network.
func TestTranslatedReplies(t *testing.T) {
	x := newHostPod(t)
	lost := one(Egress, Allowed)
	lost[Ingress][Blocked] = 1
	for name, c := range map[string]struct {
		rules Rules
		want  [2][3]uint64
	}{
		"ingress is blocked":   {Rules{Block: true, Ingress: true}, one(Egress, Allowed)},
		"ingress is audited":   {Rules{Block: true, Audit: true, Ingress: true}, one(Egress, Allowed)},
		"both ports allowed":   {both(Rules{Block: true, Allowed: []uint16{53, 5353}}), one(Egress, Allowed)},
		"both ports audited":   {both(Rules{Block: true, Audit: true}), one(Egress, WouldBlock)},
		"asked port allowed":   {both(Rules{Block: true, Allowed: []uint16{53}}), one(Egress, Blocked)},
		"nothing may be asked": {both(Rules{Block: true}), one(Egress, Blocked)},
		// Nothing may be sent to the port that the socket knows.
		"translated port allowed": {both(Rules{Block: true, Allowed: []uint16{5353}}), lost},
	} {
		p := Compile([]Rules{c.rules}, nil)
		passes := c.want[Egress][Blocked] == 0 && c.want[Ingress][Blocked] == 0
		limit := long
		if !passes {
			limit = short
		}
		for family, networks := range [2][]string{{"udp4", "udp4in6"}, {"udp6"}} {
			for _, network := range networks {
				for way, do := range map[string]func() error{
					"connected":   func() error { return x.inside.Dial(network, at(services[family], 53), limit) },
					"unconnected": func() error { return x.asks(network, family, limit) },
				} {
					must(t, x.f.Detach(x.pod.UID())) // What is remembered goes.
					x.set(p)
					if err := do(); (err == nil) != passes {
						t.Errorf("%s, %s, %s: %v, want it to pass: %t", network, way, name, err, passes)
					}
					if got := read(t, x.f, hostSlot).Connections; got != c.want {
						t.Errorf("%s, %s, %s: counted %v, want %v", network, way, name, got, c.want)
					}
				}
			}
		}
	}
}

// Only who was asked may reply, and only as long as the socket talks to it.
func TestTranslatedRepliesOfOthers(t *testing.T) {
	x := newHostPod(t)
	x.set(Compile([]Rules{{Block: true, Ingress: true, Allowed: []uint16{8080}}}, nil))
	for family, service := range services {
		const port = 40_500
		host, other := x.n.Addresses()[family], x.other.Addresses()[family]
		to := netip.AddrPortFrom(host, port)
		name := "asks" + families[family]
		must(t, x.inside.Hold(name, network(UDP, family), fmt.Sprint(":", port), at(service, 53), long))
		got := x.counted(func() {
			for range 3 {
				must(t, x.inside.Ping(name, 10, long))
			}
		})
		if want := (Counters{Connections: one(Egress, Allowed), Packets: [2][2]uint64{{UDP: 3}, {UDP: 3}}}); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
		for what, from := range map[string]netip.AddrPort{
			"another port": netip.AddrPortFrom(service, 54), "another address": netip.AddrPortFrom(service.Next(), 53), "a port of the pod's": netip.AddrPortFrom(other, 53),
		} {
			if got := x.comes(from, to); got.Connections != one(Ingress, Blocked) {
				t.Errorf("%s: what comes from %s counts %v, want it blocked", name, what, got.Connections)
			}
		}
		// Replies go on for as long as they come, without another question.
		reply := func() Counters { return x.comes(netip.AddrPortFrom(other, 5353), to) }
		for range 3 {
			x.f.flows.age(t, 110*time.Second)
			if got := reply(); got.Connections != [2][3]uint64{} {
				t.Errorf("%s: a reply within 120 s counts %v", name, got.Connections)
			}
		}
		x.f.flows.age(t, 121*time.Second)
		if got := reply(); got.Connections != one(Ingress, Blocked) {
			t.Errorf("%s: a reply after that counts %v, want it blocked", name, got.Connections)
		}
	}
}

// Also where there is no nft: a reply to another address of the pod than that which sent
// is known by what was asked for alone.
func TestRepliesToAnotherAddress(t *testing.T) {
	n := sandbox.New(t)
	x := newPair(t, n, openFirewall(t, Options{Dir: n.BPFFS()}), 0, Compile(nil, nil))
	x.serve(5353)
	second := secondAddresses(t, x)
	for _, x.host = range []bool{true, false} {
		must(t, x.f.Detach(x.pod.UID()))
		x.set(Compile([]Rules{{Block: true, Ingress: true}}, nil))
		for family, networks := range [2][]string{{"udp4", "udp4in6"}, {"udp6"}} {
			for _, network := range networks {
				x.port++
				name, server, port := fmt.Sprint(network, x.host), netip.AddrPortFrom(x.other.Addresses()[family], 5353), 30_000+x.port
				must(t, x.inside.Hold(name, network, fmt.Sprint(":", port), server.String(), long))
				want := one(Egress, Allowed)
				if !x.host {
					want[Ingress][Blocked] = 1
				}
				got := x.counted(func() {
					must(t, x.inside.Ping(name, 10, long))
					arrive(t, x.f, x.slot, x.beyond, server, netip.AddrPortFrom(second[family], port))
				})
				if got.Connections != want {
					t.Errorf("%s, on the host's network: %t: counted %v, want %v", network, x.host, got.Connections, want)
				}
			}
		}
	}
}

// secondAddresses gives a pair's pod one more of each family, from which it sends nothing:
// they are deprecated.
func secondAddresses(t *testing.T, x *pair) [2]netip.Addr {
	t.Helper()
	second := [2]netip.Addr{netip.MustParseAddr("10.244.200.1"), netip.MustParseAddr("fd00:10:244::c801")}
	ns, err := netns.GetFromPid(x.inside.PID())
	must(t, err)
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	must(t, err)
	defer h.Close()
	routes, err := h.RouteGet(x.other.IPv4().AsSlice())
	must(t, err)
	eth, err := h.LinkByIndex(routes[0].LinkIndex)
	must(t, err)
	for _, address := range second {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(address.BitLen(), address.BitLen())}, ValidLft: 3600}
		if address.Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		must(t, h.AddrAdd(eth, a))
	}
	return second
}

// A socket whose port lets everything come in has nothing to remember.
func TestServersRememberNothing(t *testing.T) {
	x := newHostPod(t)
	const port = 40_600
	x.set(Compile([]Rules{{Block: true, Ingress: true, Allowed: []uint16{port}}}, nil))
	for family, address := range x.other.Addresses() {
		nobody := at(address, 9) // Its reply would be a flow, too.
		before := x.f.flows.count(t)
		must(t, x.inside.Send(network(UDP, family), fmt.Sprint(":", port), nobody, 10))
		if got := x.f.flows.count(t) - before; got != 1 {
			t.Errorf("IPv%s: %d flows are remembered, want the packet's", families[family], got)
		}
		must(t, x.inside.Send(network(UDP, family), x.local(), nobody, 10))
		if got := x.f.flows.count(t) - before; got != 3 {
			t.Errorf("IPv%s: %d flows are remembered, want the packet's and what was asked for", families[family], got)
		}
	}
}

// The programs for unconnected sockets come and go with the policy, and only pods on
// the host's network have them.
func TestRemembersWhereItMatters(t *testing.T) {
	x := newHostPod(t)
	asking := func(want bool) {
		t.Helper()
		if got := x.remembers(); got != want {
			t.Fatalf("it remembers: %t, want %t", got, want)
		}
		for family := range families {
			must(t, x.asks(network(UDP, family), family, long))
		}
	}
	egressOnly := Compile([]Rules{{Blocked: []uint16{99}, Egress: true}}, nil)
	ingress := Compile([]Rules{{Block: true, Ingress: true}}, nil)
	audit := Compile([]Rules{{Block: true, Ingress: true, Audit: true}}, nil)
	for _, change := range []func(*Policy){x.set, func(p *Policy) { must(t, x.f.SetPolicies(map[types.UID]*Policy{x.pod.UID(): p})) }} {
		x.set(egressOnly)
		asking(false)
		for _, p := range []*Policy{ingress, audit} {
			change(p)
			asking(true)
			change(egressOnly)
			asking(false)
		}
	}
	x.set(ingress)
	for _, b := range []build{laterBuild, current, current} {
		x.reopen(b)
		asking(true)
	}
	// Only Attach tells where the pod is.
	must(t, x.f.SetPolicies(map[types.UID]*Policy{x.pod.UID(): egressOnly}))
	asking(true)
	x.set(egressOnly)
	asking(false)
	x.set(ingress)
	must(t, x.f.Detach(x.pod.UID()))
	asking(false)

	y := newPair(t, x.n, x.f, 1, ingress)
	if a := x.f.attached[y.pod.UID()]; a.links[sendmsg4] != nil || a.links[sendmsg6] != nil {
		t.Error("a pod with a network of its own remembers")
	}
	must(t, x.f.Detach(y.pod.UID()))
	x.checkNothingLeft()
}

// A build that does not know the programs leaves them where it detaches.
func TestStrayPins(t *testing.T) {
	x := newHostPod(t)
	p := Compile([]Rules{both(Rules{Block: true, Allowed: []uint16{53, 5353}})}, nil)
	x.set(p)
	must(t, x.f.Close())
	for h := range sendmsg4 {
		must(t, removeLink(filepath.Join(x.n.BPFFS(), folder, podsFolder, linkPin{x.pod.UID(), hostSlot, h}.String())))
	}
	x.f = openFirewall(t, Options{Dir: x.n.BPFFS()})
	if x.remembers() || len(x.f.Attached()) != 0 {
		t.Errorf("after a build that did not know them they are left, or of %v", x.f.Attached())
	}
	for _, h := range []hook{sendmsg4, sendmsg6} {
		dir, err := os.Open(x.pod.Cgroup())
		must(t, err)
		id, err := cgroupID(dir)
		must(t, errors.Join(err, dir.Close()))
		var storage l4firewallAttachment
		if err := x.f.storages[h].Lookup(storageKey(h, id), &storage); err != nil || storage != (l4firewallAttachment{}) {
			t.Errorf("the storage of %s is %+v (%v), want it cleared", hookNames[h], storage, err)
		}
	}
	x.set(p)
	if !x.remembers() {
		t.Error("attached again it does not remember")
	}
	must(t, x.asks("udp4", 0, long))
	must(t, x.f.Detach(x.pod.UID()))
	x.checkNothingLeft()
}

// translate gives the node's network Services of a pod.
func translate(t *testing.T, n *sandbox.Node, to *sandbox.Pod) {
	t.Helper()
	ns, err := netns.GetFromPid(n.Peer().PID())
	must(t, err)
	defer ns.Close()
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(fmt.Sprintf(service, to.IPv4(), to.IPv6()))
	must(t, within(ns, func() error {
		if out, err := nft.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	}))
}
