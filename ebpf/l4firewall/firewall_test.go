// SPDX-License-Identifier: Apache-2.0

package l4firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

const (
	long = 30 * time.Second
	// short is how long a test waits for what must not come.
	short = 300 * time.Millisecond
)

func openFirewall(t testing.TB, o Options) *Firewall {
	t.Helper()
	return openBuild(t, o, current)
}

// openBuild opens a firewall, to be closed at the end of the test if it is not then.
func openBuild(t testing.TB, o Options, b build) *Firewall {
	t.Helper()
	f, err := open(o, b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !f.closed {
			must(t, f.Close())
		}
	})
	return f
}

// rounds is how often a test does something: fewer times where it is to be short,
// on emulated machines.
func rounds(all, short int) int {
	if testing.Short() {
		return short
	}
	return all
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pair is a pod that the firewall is attached to, and one beyond it.
type pair struct {
	t              *testing.T
	f              *Firewall
	pod, other     *sandbox.Pod
	inside, beyond *sandbox.Peer
	slot           uint32
	port           uint16
	host           bool // Its target is said to be on the host's network.
}

func newPair(t *testing.T, n *sandbox.Node, f *Firewall, slot uint32, p *Policy) *pair {
	t.Helper()
	pod, other := n.Pod(sandbox.PodOptions{}), n.Pod(sandbox.PodOptions{})
	x := &pair{t: t, f: f, pod: pod, other: other, inside: pod.Peer(), beyond: other.Peer(), slot: slot}
	x.set(p)
	return x
}

func (x *pair) target(p *Policy) Target {
	return Target{UID: x.pod.UID(), Slot: x.slot, Cgroup: x.pod.Cgroup(), Own: x.pod.Addresses(), HostNetwork: x.host, Policy: p}
}

func (x *pair) set(p *Policy) {
	x.t.Helper()
	must(x.t, x.f.Attach(x.target(p)))
}

// serve starts echo servers of both protocols and families in both pods.
func (x *pair) serve(ports ...uint16) {
	x.t.Helper()
	for _, port := range ports {
		for i, end := range []*sandbox.Peer{x.inside, x.beyond} {
			for family, address := range []*sandbox.Pod{x.pod, x.other}[i].Addresses() {
				for _, protocol := range []string{"tcp", "udp"} {
					_, err := end.Listen(protocol+families[family], at(address, port))
					must(x.t, err)
				}
			}
		}
	}
}

var families = [2]string{"4", "6"}

func at(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

func network(p Protocol, family int) string { return strings.ToLower(p.String()) + families[family] }

// request exchanges size bytes in the direction, seen from the pod.
func (x *pair) request(d Direction, p Protocol, family int, port uint16, size int, timeout time.Duration) error {
	from, source, to := x.beyond, x.other, x.pod
	if d == Egress {
		from, source, to = x.inside, x.pod, x.other
	}
	local := ""
	if p == UDP { // A port that comes again would be a flow that is remembered.
		x.port++
		local = at(source.Addresses()[family], 30_000+x.port)
	}
	return from.Request(network(p, family), local, at(to.Addresses()[family], port), size, timeout)
}

func read(t testing.TB, f *Firewall, slot uint32) (c Counters) {
	t.Helper()
	found := false
	must(t, f.Read(func(s uint32, now Counters) {
		if s == slot {
			c, found = now, true
		}
	}))
	if !found {
		t.Fatalf("no counters of slot %d", slot)
	}
	return c
}

func (c Counters) minus(before Counters) Counters {
	for d := range c.Connections {
		for v := range c.Connections[d] {
			c.Connections[d][v] -= before.Connections[d][v]
		}
		for p := range c.Packets[d] {
			c.Packets[d][p] -= before.Packets[d][p]
		}
	}
	return c
}

// counted returns what a pair's pod counts during do.
func (x *pair) counted(do func()) Counters {
	x.t.Helper()
	before := read(x.t, x.f, x.slot)
	do()
	return read(x.t, x.f, x.slot).minus(before)
}

// quiet waits until no packet is on its way any more: what closes a TCP connection
// comes after the calls that used it have returned.
func (x *pair) quiet() {
	x.t.Helper()
	before := read(x.t, x.f, x.slot)
	for range 500 {
		time.Sleep(20 * time.Millisecond)
		now := read(x.t, x.f, x.slot)
		if now == before {
			return
		}
		before = now
	}
	x.t.Fatal("the pod is not quiet after 10 s")
}

// one is Counters of a single connection.
func one(d Direction, v Verdict) (c [2][3]uint64) {
	c[d][v] = 1
	return c
}

func both(r Rules) Rules { r.Ingress, r.Egress = true, true; return r }

// Every combination of family, protocol and direction meets every kind of policy.
func TestTraffic(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	const listed, other = 8080, 8081
	x := newPair(t, n, f, 3, Compile(nil, nil))
	x.serve(listed, other)
	for name, p := range map[string]*Policy{
		"nothing asked":                 Compile(nil, nil),
		"block list":                    Compile([]Rules{both(Rules{Blocked: []uint16{listed}})}, nil),
		"default block":                 Compile([]Rules{both(Rules{Block: true})}, nil),
		"default block, allow list":     Compile([]Rules{both(Rules{Block: true, Allowed: []uint16{listed}})}, nil),
		"both lists":                    Compile([]Rules{both(Rules{Block: true, Allowed: []uint16{listed, other}, Blocked: []uint16{other}})}, nil),
		"ingress only":                  Compile([]Rules{{Block: true, Ingress: true}}, nil),
		"egress only":                   Compile([]Rules{{Block: true, Egress: true}}, nil),
		"audit":                         Compile([]Rules{both(Rules{Block: true, Audit: true, Allowed: []uint16{listed}})}, nil),
		"probe port":                    Compile([]Rules{both(Rules{Block: true})}, []uint16{listed}),
		"two configs":                   Compile([]Rules{both(Rules{Blocked: []uint16{listed}}), {Blocked: []uint16{other}, Ingress: true}}, nil),
		"an enforcing and an audit one": Compile([]Rules{both(Rules{Blocked: []uint16{listed}}), both(Rules{Block: true, Audit: true})}, nil),
	} {
		t.Run(name, func(t *testing.T) {
			x.t = t
			x.set(p)
			for _, direction := range []Direction{Ingress, Egress} {
				for _, protocol := range []Protocol{TCP, UDP} {
					for family := range families {
						t.Run(fmt.Sprintf("%v %s", direction, network(protocol, family)), func(t *testing.T) {
							x.t = t
							for _, port := range []uint16{listed, other} {
								x.check(p, direction, protocol, family, port)
							}
						})
					}
				}
			}
		})
	}
}

// blocked makes a request that is not to get through, and waits until a program has
// seen it: on a slow machine it can be on its way for longer than a test waits.
func (x *pair) blocked(d Direction, protocol Protocol, family int, port uint16, size int) error {
	x.t.Helper()
	before := read(x.t, x.f, x.slot).Connections
	err := x.request(d, protocol, family, port, size, short)
	for deadline := time.Now().Add(long); read(x.t, x.f, x.slot).Connections == before; time.Sleep(short / 30) {
		if time.Now().After(deadline) {
			x.t.Errorf("%v %s port %d: nothing is counted after %v", d, network(protocol, family), port, long)
			break
		}
	}
	return err
}

// check makes one connection and compares what becomes of it, and what is
// counted, with the policy's verdict.
func (x *pair) check(p *Policy, d Direction, protocol Protocol, family int, port uint16) {
	x.t.Helper()
	verdict := p.Verdict(d, protocol, port)
	var err error
	began := time.Now()
	got := x.counted(func() {
		if verdict == Blocked {
			err = x.blocked(d, protocol, family, port, 1)
			return
		}
		err = x.request(d, protocol, family, port, 1, long)
	})
	what := fmt.Sprintf("%v %s port %d", d, network(protocol, family), port)
	switch {
	case verdict != Blocked && err != nil:
		x.t.Errorf("%s: %v, want it to pass", what, err)
	case verdict == Blocked && err == nil:
		x.t.Errorf("%s passes", what)
	case verdict == Blocked && d == Egress && (!errors.Is(err, syscall.EPERM) || time.Since(began) > long):
		x.t.Errorf("%s: %v after %v, want EPERM at once", what, err, time.Since(began))
	}
	if want := one(d, verdict); got.Connections != want {
		x.t.Errorf("%s: counted connections %v, want %v", what, got.Connections, want)
	}
	if protocol == UDP { // Of TCP the end of the connection before may still come.
		want := [2]uint64{}
		want[d] = 1
		if verdict != Blocked {
			want[1-d] = 1
		}
		if packets := [2]uint64{got.Packets[Ingress][UDP], got.Packets[Egress][UDP]}; packets != want {
			x.t.Errorf("%s: counted packets %v, want %v", what, packets, want)
		}
	}
}

// Datagrams of 30 kB go in fragments, which the programs see as one.
func TestFragments(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	p := Compile([]Rules{both(Rules{Block: true, Allowed: []uint16{8080}})}, nil)
	x := newPair(t, n, f, 0, p)
	x.serve(8080, 8081)
	for family := range families {
		for _, d := range []Direction{Ingress, Egress} {
			got := x.counted(func() { must(t, x.request(d, UDP, family, 8080, 30_000, long)) })
			want := Counters{Connections: one(d, Allowed), Packets: [2][2]uint64{{UDP: 1}, {UDP: 1}}}
			if got != want {
				t.Errorf("%v IPv%s: %+v, want %+v", d, families[family], got, want)
			}
			got = x.counted(func() {
				if x.blocked(d, UDP, family, 8081, 30_000) == nil {
					t.Errorf("%v IPv%s: a blocked datagram passes", d, families[family])
				}
			})
			if got.Connections != one(d, Blocked) {
				t.Errorf("%v IPv%s: %+v of one that is blocked", d, families[family], got)
			}
		}
		// A later fragment alone, as only a raw socket sends it, says no ports.
		fragment := sandbox.FragmentPacket(x.pod.Addresses()[family], x.other.Addresses()[family], 80, make([]byte, 64))
		if err := x.inside.SendRaw(fragment); !errors.Is(err, syscall.EPERM) {
			t.Errorf("IPv%s: a lone fragment: %v, want EPERM", families[family], err)
		}
	}
	x.set(Compile([]Rules{{Block: true, Ingress: true}}, nil))
	for family := range families {
		fragment := sandbox.FragmentPacket(x.pod.Addresses()[family], x.other.Addresses()[family], 80, make([]byte, 64))
		if err := x.inside.SendRaw(fragment); err != nil {
			t.Errorf("IPv%s: a lone fragment where nothing is blocked: %v", families[family], err)
		}
	}
}

// Extension headers are walked: what is behind them is judged.
func TestExtensionHeaders(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	x := newPair(t, n, f, 0, Compile([]Rules{both(Rules{Block: true, Allowed: []uint16{8080}})}, nil))
	x.serve(8080, 8081)
	for _, extensions := range [][]sandbox.Extension{
		{sandbox.HopByHop}, {sandbox.DestinationOptions}, {sandbox.HopByHop, sandbox.DestinationOptions},
	} {
		for _, d := range []Direction{Ingress, Egress} {
			from, to, server, sender := x.other.IPv6(), x.pod.IPv6(), x.inside, x.beyond
			if d == Egress {
				from, to, server, sender = x.pod.IPv6(), x.other.IPv6(), x.beyond, x.inside
			}
			send := func(port uint16) error {
				return sender.SendRaw(sandbox.UDPPacket(netip.AddrPortFrom(from, 5000+port+uint16(len(extensions))*10+uint16(extensions[0])), netip.AddrPortFrom(to, port), []byte("x"), extensions...))
			}
			before, err := server.Received("udp6", at(to, 8080))
			must(t, err)
			got := x.counted(func() {
				must(t, send(8080))
				received(t, server, "udp6", at(to, 8080), before+1)
			})
			if got.Connections != one(d, Allowed) {
				t.Errorf("%v %v: %+v, want one allowed", d, extensions, got)
			}
			got = x.counted(func() {
				if err := send(8081); d == Egress && !errors.Is(err, syscall.EPERM) {
					t.Errorf("%v to a blocked port: %v, want EPERM", extensions, err)
				}
				time.Sleep(short)
			})
			if got.Connections != one(d, Blocked) {
				t.Errorf("%v %v: %+v, want one blocked", d, extensions, got)
			}
			if count, err := server.Received("udp6", at(to, 8081)); err != nil || count != 0 {
				t.Errorf("%v %v: %d blocked datagrams arrived (%v)", d, extensions, count, err)
			}
		}
	}
}

// received waits until n connections or datagrams have reached a server.
func received(t *testing.T, p *sandbox.Peer, network, server string, n uint64) {
	t.Helper()
	for deadline := time.Now().Add(long); ; time.Sleep(time.Millisecond) {
		got, err := p.Received(network, server)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%s: %d of %d have reached the server (%v)", network, got, n, err)
		}
		if got >= n {
			return
		}
	}
}

func TestEchoPasses(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	x := newPair(t, n, f, 0, Compile([]Rules{both(Rules{Block: true})}, nil))
	got := x.counted(func() {
		for family := range families {
			for _, size := range []int{56, 4000} {
				must(t, x.inside.Echo(x.other.Addresses()[family].String(), size, long))
				must(t, x.beyond.Echo(x.pod.Addresses()[family].String(), size, long))
			}
		}
	})
	if got != (Counters{}) {
		t.Errorf("ICMP counts: %+v", got)
	}
}

// Inside the pod everything passes, with all blocked in both directions, and
// whatever is known of its addresses.
func TestLoopback(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	p := Compile([]Rules{both(Rules{Block: true})}, nil)
	x := newPair(t, n, f, 0, p)
	addresses := append(x.pod.Addresses(), netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback(), netip.MustParseAddr("127.1.2.3"))
	for _, address := range addresses {
		for _, protocol := range []string{"tcp", "udp"} {
			_, err := x.inside.Listen(protocol, at(address, 8080))
			must(t, err)
		}
	}
	for _, knows := range []struct {
		name   string
		own    []netip.Addr
		hostNW bool
	}{
		{"all addresses", x.pod.Addresses(), false},
		{"IPv4 addresses as mapped ones", []netip.Addr{netip.AddrFrom16(x.pod.IPv4().As16()), x.pod.IPv6()}, false},
		{"no address", nil, false},
		{"that it is on the host's network", x.pod.Addresses()[:1], true},
	} {
		t.Run("knows "+knows.name, func(t *testing.T) {
			target := x.target(p)
			target.Own, target.HostNetwork = knows.own, knows.hostNW
			must(t, f.Attach(target))
			x.quiet()
			got := x.counted(func() {
				for _, address := range addresses {
					for _, protocol := range []string{"tcp", "udp"} {
						if err := x.inside.Request(protocol, "", at(address, 8080), 10, long); err != nil {
							t.Errorf("%s to %v: %v", protocol, address, err)
						}
						if address.Is4() {
							if err := x.inside.Dial(protocol+"4in6", at(address, 8080), long); err != nil {
								t.Errorf("%s to %v from an IPv6 socket: %v", protocol, address, err)
							}
						}
					}
				}
				if err := x.inside.Dial("tcp", "0.0.0.0:8080", long); err != nil {
					t.Errorf("to the unspecified address: %v", err)
				}
				x.quiet()
			})
			// Of TCP the end of a connection may still come, and what older kernels
			// send for one that has no socket any more they show no program.
			in, out := got.Packets[Ingress], got.Packets[Egress]
			if got.Connections != [2][3]uint64{} || in[UDP] != out[UDP] || in[UDP] == 0 || in[TCP] == 0 || out[TCP] == 0 {
				t.Errorf("counted %+v, want packets only", got)
			}
			if err := x.inside.Dial("tcp", at(x.other.IPv4(), 8080), long); !errors.Is(err, syscall.EPERM) {
				t.Errorf("to another pod: %v, want EPERM", err)
			}
			if err := x.inside.Dial("tcp4in6", at(x.other.IPv4(), 8080), long); !errors.Is(err, syscall.EPERM) {
				t.Errorf("to another pod from an IPv6 socket: %v, want EPERM", err)
			}
		})
	}
}

// Two pods with policies of their own, and one with none, do not mind each other.
func TestOtherPods(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	a := newPair(t, n, f, 0, Compile([]Rules{both(Rules{Block: true})}, nil))
	b := newPair(t, n, f, 1, Compile([]Rules{both(Rules{Blocked: []uint16{8081}})}, nil))
	a.serve(8080)
	b.serve(8080)
	got := b.counted(func() {
		for family := range families {
			must(t, b.request(Ingress, TCP, family, 8080, 10, long))
			must(t, b.request(Egress, UDP, family, 8080, 10, long))
			// Pods without a firewall.
			must(t, a.beyond.Request(network(TCP, family), "", at(b.other.Addresses()[family], 8080), 10, long))
		}
		if err := a.request(Egress, TCP, 0, 8080, 10, long); !errors.Is(err, syscall.EPERM) {
			t.Errorf("from the pod that may nothing: %v", err)
		}
	})
	if want := ([2][3]uint64{{Allowed: 2}, {Allowed: 2}}); got.Connections != want {
		t.Errorf("counted %v, want %v", got.Connections, want)
	}
	if got := read(t, f, 0).Connections; got != one(Egress, Blocked) {
		t.Errorf("the other pod counts %v", got)
	}
}

// A pod on the host's network is judged by itself, beside the host's processes.
func TestHostNetwork(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	host, other := n.Pod(sandbox.PodOptions{HostNetwork: true}), n.Pod(sandbox.PodOptions{})
	inside, beside, far := host.Peer(), n.Peer(), other.Peer()
	p := Compile([]Rules{both(Rules{Block: true, Allowed: []uint16{8080}})}, nil)
	must(t, f.Attach(Target{UID: host.UID(), Slot: 9, Cgroup: host.Cgroup(), HostNetwork: true, Policy: p}))
	for family, address := range n.Addresses() {
		for _, protocol := range []Protocol{TCP, UDP} {
			nw := network(protocol, family)
			for port := range uint16(2) {
				_, err := inside.Listen(nw, at(address, 8080+port))
				must(t, err)
				_, err = far.Listen(nw, at(other.Addresses()[family], 8080+port))
				must(t, err)
			}
			_, err := beside.Listen(nw, at(address, 8090))
			must(t, err)
			for what, err := range map[string]error{
				"in, allowed":  far.Request(nw, "", at(address, 8080), 10, long),
				"out, allowed": inside.Request(nw, "", at(other.Addresses()[family], 8080), 10, long),
				"beside":       far.Request(nw, "", at(address, 8090), 10, long),
				"own":          inside.Request(nw, "", at(address, 8081), 10, long),
				"the host":     inside.Request(nw, "", at(address, 8090), 10, long),
			} {
				if err != nil {
					t.Errorf("%s %s: %v", nw, what, err)
				}
			}
			if far.Request(nw, "", at(address, 8081), 10, short) == nil {
				t.Errorf("%s in to a blocked port passes", nw)
			}
			if err := inside.Request(nw, "", at(other.Addresses()[family], 8081), 10, long); !errors.Is(err, syscall.EPERM) {
				t.Errorf("%s out to a blocked port: %v, want EPERM", nw, err)
			}
		}
	}
	want := [2][3]uint64{{Allowed: 4, Blocked: 4}, {Allowed: 4, Blocked: 4}}
	if got := read(t, f, 9).Connections; got != want {
		t.Errorf("counted %v, want %v", got, want)
	}
}

// When rules change, connections and flows that live go on, and new ones meet the
// new rules. A SYN that is sent again counts once.
func TestHotChange(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	open := Compile([]Rules{both(Rules{Block: true, Allowed: []uint16{8080}})}, nil)
	shut := Compile([]Rules{both(Rules{Block: true, Allowed: []uint16{8081}})}, nil)
	x := newPair(t, n, f, 0, open)
	x.serve(8080, 8081)
	for family, address := range x.other.Addresses() {
		must(t, x.inside.Hold("tcp"+families[family], network(TCP, family), "", at(address, 8080), long))
	}
	for family, address := range x.pod.Addresses() {
		must(t, x.beyond.Hold("tcp"+families[family], network(TCP, family), "", at(address, 8080), long))
	}
	x.set(shut)
	for family := range families {
		must(t, x.inside.Ping("tcp"+families[family], 1000, long))
		must(t, x.beyond.Ping("tcp"+families[family], 1000, long))
		for _, d := range []Direction{Ingress, Egress} {
			for _, protocol := range []Protocol{TCP, UDP} {
				x.check(shut, d, protocol, family, 8080)
				x.check(shut, d, protocol, family, 8081)
			}
		}
	}
	got := x.counted(func() {
		// The second SYN follows after one second.
		if err := x.request(Ingress, TCP, 0, 8080, 1, 2500*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("to a blocked port: %v, want a time-out", err)
		}
	})
	if got.Packets[Ingress][TCP] < 2 || got.Connections != one(Ingress, Blocked) {
		t.Errorf("%+v, want several packets and one connection", got)
	}
}

// A pod that had nothing to deny is denied connections at once when its policy
// changes to one that does.
func TestConnectDeniedLater(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	x := newPair(t, n, f, 0, Compile([]Rules{{Block: true, Ingress: true}}, nil))
	x.serve(8080)
	p := Compile([]Rules{both(Rules{Block: true})}, nil)
	for i, change := range []func(){
		func() { must(t, f.SetPolicies(map[types.UID]*Policy{x.pod.UID(): p})) },
		func() { x.set(p) },
	} {
		if a := f.attached[x.pod.UID()]; i == 0 && (a.links[connect4] != nil || a.links[connect6] != nil) {
			t.Error("connect is attached with nothing to deny")
		}
		change()
		for family := range families {
			x.check(p, Egress, TCP, family, 8080)
		}
	}
}

// Packets are counted exactly: the same as the pod's own network statistics say.
func TestPackets(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	x := newPair(t, n, f, 0, Compile([]Rules{both(Rules{Block: true, Allowed: []uint16{8080}})}, nil))
	x.serve(8080)
	must(t, x.inside.Hold("out", "tcp", "", at(x.other.IPv4(), 8080), long))
	must(t, x.beyond.Hold("in", "tcp", "", at(x.pod.IPv6(), 8080), long))
	for _, name := range []string{"out", "in"} { // Until every acknowledgement has gone.
		must(t, map[string]*sandbox.Peer{"out": x.inside, "in": x.beyond}[name].Ping(name, 10, long))
	}
	var before, after [2]uint64
	settle := func() (s [2]uint64) {
		for s = segments(t, x.inside.PID()); ; {
			time.Sleep(short)
			next := segments(t, x.inside.PID())
			if next == s {
				return s
			}
			s = next
		}
	}
	before = settle()
	got := x.counted(func() {
		for range 200 {
			must(t, x.inside.Ping("out", 10, long))
			must(t, x.beyond.Ping("in", 10, long))
		}
		after = settle()
	})
	want := [2][2]uint64{Ingress: {TCP: after[Ingress] - before[Ingress]}, Egress: {TCP: after[Egress] - before[Egress]}}
	if got.Packets != want || want[Ingress][TCP] < 400 {
		t.Errorf("counted %v, the pod's network %v", got.Packets, want)
	}
}

// segments returns how many TCP segments a process's network has received and sent.
func segments(t *testing.T, pid int) (s [2]uint64) {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/snmp", pid))
	must(t, err)
	var lines [][]string
	for line := range strings.Lines(string(content)) {
		if strings.HasPrefix(line, "Tcp:") {
			lines = append(lines, strings.Fields(line))
		}
	}
	for d, name := range []string{"InSegs", "OutSegs"} {
		s[d], err = strconv.ParseUint(lines[1][slices.Index(lines[0], name)], 10, 64)
		must(t, err)
	}
	return s
}

func TestAttachRefuses(t *testing.T) {
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS(), Slots: 4})
	pod := n.Pod(sandbox.PodOptions{NoNetwork: true})
	good := Target{UID: pod.UID(), Slot: 3, Cgroup: pod.Cgroup(), Policy: Compile(nil, nil)}
	for name, spoil := range map[string]func(*Target){
		"no policy":           func(x *Target) { x.Policy = nil },
		"a slot too high":     func(x *Target) { x.Slot = 4 },
		"no UID":              func(x *Target) { x.UID = "" },
		"a path for a UID":    func(x *Target) { x.UID = "../a" },
		"a cgroup that is no": func(x *Target) { x.Cgroup = t.TempDir() },
		"a cgroup not there":  func(x *Target) { x.Cgroup += "/none" },
	} {
		target := good
		spoil(&target)
		if err := f.Attach(target); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if got := f.Attached(); len(got) != 0 {
		t.Errorf("attached after refusals: %v", got)
	}
	must(t, f.Attach(good))
	if err := f.SetPolicies(map[types.UID]*Policy{"nobody": good.Policy, good.UID: Compile([]Rules{both(Rules{Block: true})}, nil)}); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("setting the policy of a pod that is not attached: %v", err)
	}
	must(t, f.Detach("nobody"))
}
