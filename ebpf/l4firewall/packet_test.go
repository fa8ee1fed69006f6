// SPDX-License-Identifier: Apache-2.0

package l4firewall

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

// parsed is what the reference reads in a packet.
type parsed struct {
	protocol         Protocol
	counted          bool // it is of TCP or UDP
	broken           bool // its ports cannot be told
	source, dest     netip.AddrPort
	sequence         uint32
	syn              bool
	neitherTCPNorUDP bool
}

// parse is the reference parser: plain Go, on x/net's headers.
func parse(etherType uint16, b []byte) parsed {
	switch etherType {
	case unix.ETH_P_IP:
		return parse4(b)
	case unix.ETH_P_IPV6:
		return parse6(b)
	}
	return parsed{neitherTCPNorUDP: true}
}

func parse4(b []byte) parsed {
	if len(b) < ipv4.HeaderLen {
		return parsed{broken: true}
	}
	if b[9] != unix.IPPROTO_TCP && b[9] != unix.IPPROTO_UDP {
		return parsed{neitherTCPNorUDP: true}
	}
	h, err := ipv4.ParseHeader(b)
	if err != nil || h.Len < ipv4.HeaderLen || h.FragOff != 0 {
		return transport(b[9], nil, nil, nil)
	}
	return transport(b[9], b[h.Len:], h.Src.To16(), h.Dst.To16())
}

func parse6(b []byte) parsed {
	h, err := ipv6.ParseHeader(b)
	if err != nil {
		return parsed{broken: true}
	}
	next, rest, later := byte(h.NextHeader), b[ipv6.HeaderLen:], false
	for headers := 0; ; headers++ {
		if next == unix.IPPROTO_TCP || next == unix.IPPROTO_UDP {
			if later {
				rest = nil
			}
			return transport(next, rest, h.Src, h.Dst)
		}
		if !slices.Contains([]byte{unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS, unix.IPPROTO_FRAGMENT, unix.IPPROTO_AH}, next) {
			return parsed{neitherTCPNorUDP: true}
		}
		if later || headers == 8 || len(rest) < 4 {
			return parsed{broken: true}
		}
		length := (int(rest[1]) + 1) * 8
		switch next {
		case unix.IPPROTO_FRAGMENT:
			length = 8
			later = binary.BigEndian.Uint16(rest[2:])>>3 != 0
		case unix.IPPROTO_AH:
			length = (int(rest[1]) + 2) * 4
		}
		next, rest = rest[0], rest[min(length, len(rest)):]
	}
}

func transport(protocol byte, b, source, dest []byte) parsed {
	p := parsed{protocol: UDP, counted: true}
	need := 8
	if protocol == unix.IPPROTO_TCP {
		p.protocol, need = TCP, 20
	}
	if len(b) < need {
		p.broken = true
		return p
	}
	address := func(ip net.IP, port []byte) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(ip)), binary.BigEndian.Uint16(port))
	}
	p.source, p.dest = address(source, b), address(dest, b[2:])
	if p.protocol == TCP {
		p.sequence = binary.BigEndian.Uint32(b[4:])
		p.syn = b[13]&0x12 == 0x02
	}
	return p
}

// model is the reference for what the programs remember and count.
type model struct {
	policy  *Policy
	syns    map[parsed]Verdict
	flows   map[[2]netip.AddrPort]Direction // local, remote -> who began
	blocked map[[2]netip.AddrPort][2]bool
	met     map[string]int // what kinds of packets
}

func newModel(p *Policy) *model {
	return &model{policy: p, syns: map[parsed]Verdict{}, flows: map[[2]netip.AddrPort]Direction{}, blocked: map[[2]netip.AddrPort][2]bool{}, met: map[string]int{}}
}

// meet tells whether a packet passes, and what it counts.
func (m *model) meet(d Direction, p parsed) (passes bool, c Counters) {
	if p.counted {
		c.Packets[d][p.protocol]++
	}
	defer func() {
		m.met[fmt.Sprint(p.protocol, " broken ", p.broken, " syn ", p.syn, " passes ", passes, " counts ", c.Connections != [2][3]uint64{})]++
	}()
	switch {
	case p.neitherTCPNorUDP:
		return true, c
	case p.broken:
		return m.policy.allows(d), c
	case p.protocol == UDP:
		return m.meetUDP(d, p, c)
	case !p.syn:
		return true, c
	}
	verdict := m.policy.Verdict(d, TCP, p.dest.Port())
	p.neitherTCPNorUDP = d == Egress // a key for each direction
	if _, seen := m.syns[p]; !seen {
		c.Connections[d][verdict]++
	}
	m.syns[p] = verdict
	return verdict != Blocked, c
}

func (m *model) meetUDP(d Direction, p parsed, c Counters) (bool, Counters) {
	flow := [2]netip.AddrPort{p.source, p.dest}
	if d == Ingress {
		flow = [2]netip.AddrPort{p.dest, p.source}
	}
	began, live := m.flows[flow]
	if live && began != d {
		return true, c
	}
	verdict := m.policy.Verdict(d, UDP, p.dest.Port())
	if verdict == Blocked {
		seen := m.blocked[flow]
		if !seen[d] {
			c.Connections[d][Blocked]++
		}
		seen[d] = true
		m.blocked[flow] = seen
		return false, c
	}
	if !live {
		c.Connections[d][verdict]++
		m.flows[flow] = d
	}
	return true, c
}

// bench runs the programs on packets that no device brings, in a network
// namespace of its own: there a packet can come from a device that is not lo.
type testbench struct {
	work     chan func()
	programs [2]*ebpf.Program
	counters *ebpf.Map
	flows    *flowTable
	memory   []*ebpf.Map // that of blocked flows and SYNs
	ifindex  uint32
	model    *model
	met      int
}

const benchSlot = 2

func newTestbench(t testing.TB, p *Policy) *testbench {
	t.Helper()
	return newTestbenchOf(t, p, bucketsFor(1<<15))
}

// newTestbenchOf has a table of flows with so many buckets.
func newTestbenchOf(t testing.TB, p *Policy, buckets uint32) *testbench {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("loading BPF programs needs root")
	}
	must(t, rlimit.RemoveMemlock())
	b := &testbench{work: make(chan func()), model: newModel(p)}
	b.addThread(t)
	t.Cleanup(func() { close(b.work) })
	b.load(t, p, buckets)
	return b
}

// addThread starts a thread that runs programs, beside the others.
func (b *testbench) addThread(t testing.TB) {
	t.Helper()
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // Never unlocked: the namespace goes with the thread.
		ready <- b.enter()
		for do := range b.work {
			do()
		}
	}()
	must(t, <-ready)
}

func (b *testbench) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "one"}, PeerName: "two"}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	l, err := netlink.LinkByName("one")
	if err != nil {
		return err
	}
	b.ifindex = uint32(l.Attrs().Index)
	return nil
}

// load loads the programs. The storage of an attachment, which there is none of
// in a test run, is an array's value in its place; all else is as it is.
func (b *testbench) load(t testing.TB, p *Policy, buckets uint32) {
	t.Helper()
	spec, err := current.load()
	must(t, err)
	spec.Maps["attachment"] = &ebpf.MapSpec{Name: "attachment", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}
	for h := range hooks {
		delete(spec.Maps, "storage_"+hookNames[h])
		if h > egress {
			delete(spec.Programs, hookNames[h])
			continue
		}
		useCoarseClock(spec.Programs[hookNames[h]])
		replaced := 0
		list := spec.Programs[hookNames[h]].Instructions
		for i := range list {
			switch {
			case list[i].Reference() == "storage_"+hookNames[h]:
				list[i] = asm.LoadMapValue(asm.R1, 0, 0).WithMetadata(list[i].Metadata).WithReference("attachment")
			case list[i].IsBuiltinCall() && list[i].Constant == int64(asm.FnGetLocalStorage):
				list[i] = asm.Mov.Reg(asm.R0, asm.R1).WithMetadata(list[i].Metadata)
				replaced++
			}
		}
		if replaced != 1 {
			t.Fatalf("%s reads its storage %d times", hookNames[h], replaced)
		}
	}
	for name, entries := range map[string]uint32{"flows": buckets, "blocked": 1 << 15, "syns": 1 << 15} {
		spec.Maps[name].MaxEntries = entries
	}
	must(t, setHash(spec, drawFlowKeys()))
	spec.Maps["pods"].MaxEntries, spec.Maps["counters"].MaxEntries, spec.Maps["policies"].MaxEntries = 4, 4, 4
	loaded, err := ebpf.NewCollection(spec)
	must(t, err)
	t.Cleanup(loaded.Close)
	b.programs = [2]*ebpf.Program{loaded.Programs["ingress"], loaded.Programs["egress"]}
	b.counters = loaded.Maps["counters"]
	b.flows = &flowTable{flows: loaded.Maps["flows"], events: loaded.Maps["events"]}
	b.memory = []*ebpf.Map{loaded.Maps["blocked"], loaded.Maps["syns"]}
	inner, err := ebpf.NewMap(spec.Maps["policies"].InnerMap)
	must(t, err)
	defer inner.Close()
	must(t, inner.Put(uint32(0), p.words(int(inner.ValueSize()/8))))
	must(t, loaded.Maps["policies"].Put(uint32(1), inner))
	must(t, loaded.Maps["attachment"].Put(uint32(0), l4firewallAttachment{Slot: benchSlot + 1, Policy: 1}))
}

// forget empties the tables, in the kernel and in the model: they must neither
// fill up nor age, which the model does not know.
func (b *testbench) forget(t testing.TB) {
	t.Helper()
	for _, m := range b.memory {
		for {
			key, err := m.NextKeyBytes(nil)
			must(t, err)
			if key == nil {
				break
			}
			must(t, m.Delete(key))
		}
	}
	flows := b.flows.flows
	for i := range flows.MaxEntries() {
		must(t, flows.Put(i, make([]byte, flows.ValueSize())))
	}
	met := b.model.met
	b.model = newModel(b.model.policy)
	b.model.met = met
}

// run runs a program on a packet, so many times.
func (b *testbench) run(d Direction, etherType uint16, packet []byte, times int) (passes bool, err error) {
	frame := append(make([]byte, 12, 14+len(packet)), byte(etherType>>8), byte(etherType))
	// From struct __sk_buff: only ifindex is not 0.
	context := struct {
		_       [10]uint32
		Ifindex uint32
		_       [37]uint32
	}{Ifindex: b.ifindex}
	done := make(chan struct{})
	b.work <- func() {
		defer close(done)
		var result uint32
		result, err = b.programs[d].Run(&ebpf.RunOptions{Data: append(frame, packet...), Context: context, Repeat: uint32(times)})
		passes = result&1 != 0
	}
	<-done
	return passes, err
}

func (b *testbench) read(t testing.TB) (c Counters) {
	t.Helper()
	var rows []l4firewallCounters
	must(t, b.counters.Lookup(uint32(benchSlot), &rows))
	for i := range rows {
		c.add(&rows[i])
	}
	return c
}

// compare meets one packet in the kernel and in the model.
func (b *testbench) compare(t testing.TB, d Direction, etherType uint16, packet []byte) {
	t.Helper()
	if b.met++; b.met%5000 == 0 {
		b.forget(t)
	}
	before := b.read(t)
	passes, err := b.run(d, etherType, packet, 1)
	if err != nil {
		// The kernel takes no packet shorter than its header to the test.
		if len(packet) < ipv6.HeaderLen {
			return
		}
		t.Fatalf("%v %#x %.200x: %v", d, etherType, packet, err)
	}
	got := b.read(t).minus(before)
	p := parse(etherType, packet)
	wantPasses, want := b.model.meet(d, p)
	if passes != wantPasses || !reflect.DeepEqual(got, want) {
		t.Fatalf("%v %#x %.200x\nread as %+v\npasses %v, counts %+v\nwant   %v, counts %+v", d, etherType, packet, p, passes, got, wantPasses, want)
	}
}

// mixedPolicy has ports of each verdict next to each other.
func mixedPolicy() *Policy {
	var blocked, audited []uint16
	for port := range uint16(2000) {
		switch port % 3 {
		case 0:
			blocked = append(blocked, port)
		case 1:
			audited = append(audited, port)
		}
	}
	return Compile([]Rules{both(Rules{Blocked: blocked}), both(Rules{Blocked: audited, Audit: true}), {Block: true, Allowed: ports(0, 40000), Ingress: true}}, nil)
}

func ports(from, to int) (list []uint16) {
	for port := from; port < to; port++ {
		list = append(list, uint16(port))
	}
	return list
}

// generator writes packets: right ones, and such with a mistake or several.
type generator struct{ *rand.Rand }

func (g generator) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(g.Uint32())
	}
	return b
}

func (g generator) port() uint16 {
	if g.IntN(4) == 0 {
		return uint16(g.Uint32())
	}
	return uint16(g.IntN(12)) + [...]uint16{0, 1990, 39995, 65524}[g.IntN(4)]
}

func (g generator) transport() (protocol byte, b []byte) {
	b = binary.BigEndian.AppendUint16(nil, g.port())
	b = binary.BigEndian.AppendUint16(b, g.port())
	switch g.IntN(5) {
	case 0:
		return [...]byte{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6, unix.IPPROTO_ESP, unix.IPPROTO_NONE, unix.IPPROTO_SCTP, 41}[g.IntN(6)], append(b, g.bytes(g.IntN(40))...)
	case 1, 2:
		b = append(b, 0, 0, 0, byte(g.IntN(3)), 0, 0, 0, 0, 5<<4, [...]byte{0x02, 0x02, 0x02, 0x12, 0x10, 0x18, 0x04, 0x01, 0xc2}[g.IntN(9)], 0, 0, 0, 0, 0, 0)
		return unix.IPPROTO_TCP, append(b, g.bytes(g.IntN(20))...)
	default:
		return unix.IPPROTO_UDP, append(b, append([]byte{0, 8, 0, 0}, g.bytes(g.IntN(20))...)...)
	}
}

func (g generator) packet4() []byte {
	protocol, body := g.transport()
	options := g.IntN(2) * g.IntN(11) * 4
	h := make([]byte, 20+options)
	h[0] = 4<<4 | byte(5+options/4)
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(body)))
	if g.IntN(8) == 0 {
		binary.BigEndian.PutUint16(h[6:], uint16(g.Uint32()))
	}
	h[8], h[9] = 64, protocol
	copy(h[12:], []byte{10, 0, 0, byte(g.IntN(2)), 10, 0, 0, byte(g.IntN(2))})
	return append(h, body...)
}

func (g generator) packet6() []byte {
	next, body := g.transport()
	for range g.IntN(2) * g.IntN(11) {
		kind := [...]byte{unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS, unix.IPPROTO_FRAGMENT, unix.IPPROTO_AH}[g.IntN(5)]
		var h []byte
		switch kind {
		case unix.IPPROTO_FRAGMENT:
			h = []byte{next, byte(g.Uint32()), 0, byte(g.IntN(8)), 0, 0, 0, 1}
			if g.IntN(6) == 0 {
				h[2], h[3] = byte(g.Uint32()), byte(g.Uint32())
			}
		case unix.IPPROTO_AH:
			n := g.IntN(6)
			h = append([]byte{next, byte(n)}, make([]byte, (n+2)*4-2)...)
		default:
			n := g.IntN(3)
			if g.IntN(20) == 0 {
				n = g.IntN(256)
			}
			h = append([]byte{next, byte(n)}, make([]byte, (n+1)*8-2)...)
		}
		next, body = kind, append(h, body...)
	}
	h := make([]byte, 40)
	h[0], h[6], h[7] = 6<<4, next, 64
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	h[8], h[23], h[24], h[39] = 0xfd, byte(g.IntN(2)), 0xfd, byte(g.IntN(2))
	return append(h, body...)
}

// packet returns one with its EtherType.
func (g generator) packet() (uint16, []byte) {
	if g.IntN(20) == 0 {
		return [...]uint16{unix.ETH_P_IP, unix.ETH_P_IPV6, unix.ETH_P_ARP}[g.IntN(3)], g.bytes(g.IntN(120))
	}
	etherType, b := uint16(unix.ETH_P_IP), []byte(nil)
	if g.IntN(2) == 0 {
		b = g.packet4()
	} else {
		etherType, b = unix.ETH_P_IPV6, g.packet6()
	}
	b = b[:min(len(b), longestPacket)]
	switch g.IntN(6) {
	case 0:
		b = b[:g.IntN(len(b)+1)]
	case 1:
		for range 1 + g.IntN(4) {
			b[g.IntN(len(b))] = byte(g.Uint32())
		}
	}
	return etherType, b
}

// longestPacket is what fits into a test run.
const longestPacket = 3000

// packetsVariable asks for more packets than the usual run has.
const packetsVariable = "L4FIREWALL_FUZZ_PACKETS"

func TestParserAgainstReference(t *testing.T) {
	packets, each := rounds(20_000, 4_000), rounds(5_000, 1_000)
	if more := os.Getenv(packetsVariable); more != "" {
		var err error
		packets, err = strconv.Atoi(more)
		must(t, err)
	}
	policies := []*Policy{mixedPolicy(), Compile([]Rules{both(Rules{Block: true})}, nil), Compile([]Rules{{Block: true, Ingress: true}}, nil), Compile(nil, nil)}
	met := map[string]int{}
	for round := 0; round*each < packets; round++ {
		t.Run(fmt.Sprintf("packets from %d on", round*each), func(t *testing.T) {
			b := newTestbench(t, policies[round%len(policies)])
			b.model.met = met
			g := generator{rand.New(rand.NewPCG(uint64(round), 3))}
			type packetSent struct {
				direction Direction
				etherType uint16
				packet    []byte
			}
			var sent packetSent
			var recent []packetSent
			for range min(each, packets-round*each) {
				sent.etherType, sent.packet = g.packet()
				sent.direction = Direction(g.IntN(2))
				if g.IntN(4) == 0 && len(recent) > 0 { // One of them again.
					sent = recent[g.IntN(len(recent))]
				}
				b.compare(t, sent.direction, sent.etherType, sent.packet)
				recent = append(recent[max(0, len(recent)-20):], sent)
			}
		})
	}
	for _, kind := range []string{ // Those that matter were among them, often.
		"TCP broken true syn false passes false counts false", "UDP broken true syn false passes true counts false",
		"TCP broken false syn true passes true counts true", "TCP broken false syn true passes false counts true",
		"TCP broken false syn true passes true counts false", "TCP broken false syn false passes true counts false",
		"UDP broken false syn false passes true counts true", "UDP broken false syn false passes false counts true",
		"UDP broken false syn false passes true counts false", "UDP broken false syn false passes false counts false",
	} {
		if met[kind] < rounds(20, 0) {
			t.Errorf("%d packets were %q", met[kind], kind)
		}
	}
}

func FuzzParser(f *testing.F) {
	g := generator{rand.New(rand.NewPCG(7, 7))}
	for i := range 200 {
		etherType, packet := g.packet()
		f.Add(i%2 == 0, etherType == unix.ETH_P_IPV6, packet)
	}
	b := newTestbench(f, mixedPolicy())
	f.Fuzz(func(t *testing.T, out, six bool, packet []byte) {
		if len(packet) > longestPacket {
			return
		}
		etherType, d := uint16(unix.ETH_P_IP), Ingress
		if six {
			etherType = unix.ETH_P_IPV6
		}
		if out {
			d = Egress
		}
		b.compare(t, d, etherType, packet)
	})
}

// Several CPUs begin flows in one bucket, the same ones and others: each flow that
// counts has a way, or has lost it to one that counts.
func TestFlowsOfOneBucket(t *testing.T) {
	b := newTestbenchOf(t, Compile(nil, nil), 1)
	b.addThread(t)
	const each = 5000
	udp := func(port int) []byte {
		from, to := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
		return sandbox.UDPPacket(netip.AddrPortFrom(from, uint16(port)), netip.AddrPortFrom(to, 9), nil)
	}
	var threads errgroup.Group
	for thread := range 2 {
		threads.Go(func() error {
			for i := range each {
				port := 1000 + i
				if i%3 == 0 {
					port += 10_000 * (1 + thread)
				}
				if passes, err := b.run(Egress, unix.ETH_P_IP, udp(port), 1); err != nil || !passes {
					return fmt.Errorf("packet %d passes: %v, %w", i, passes, err)
				}
			}
			return nil
		})
	}
	must(t, threads.Wait())
	evicted, err := b.flows.countEvictions()
	must(t, err)
	held, counted := b.flows.count(t), b.read(t)
	if made := counted.Connections[Egress][Allowed]; evicted+held != made || held != waysPerBucket || made < each {
		t.Errorf("%d evicted and %d held, of %d", evicted, held, made)
	}
	if got := counted.Packets[Egress][UDP]; got != 2*each {
		t.Errorf("%d packets count, want %d", got, 2*each)
	}
	t.Logf("%d of %d packets began a flow", counted.Connections[Egress][Allowed], 2*each)
}

// Loopback passes whatever it is.
func TestLoopbackDevicePasses(t *testing.T) {
	b := newTestbench(t, Compile([]Rules{both(Rules{Block: true})}, nil))
	b.ifindex = 0 // The test run takes lo for it.
	g := generator{rand.New(rand.NewPCG(8, 8))}
	for range 2000 {
		etherType, packet := g.packet()
		if len(packet) < ipv6.HeaderLen {
			continue
		}
		if passes, err := b.run(Direction(g.IntN(2)), etherType, packet, 1); err != nil || !passes {
			t.Fatalf("%#x %.200x: passes %v (%v)", etherType, packet, passes, err)
		}
	}
}

// BenchmarkPrograms measures the programs alone, on one packet again and again.
func BenchmarkPrograms(b *testing.B) {
	bench := newTestbench(b, Compile([]Rules{both(Rules{Blocked: []uint16{9}})}, nil))
	from, to := netip.MustParseAddrPort("10.0.0.1:4000"), netip.MustParseAddrPort("10.0.0.2:80")
	tcp := func(flags byte) []byte {
		header := sandbox.Header4(from.Addr(), to.Addr(), unix.IPPROTO_TCP, 0, 20)
		return append(header, 0x0f, 0xa0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, flags, 0, 0, 0, 0, 0, 0)
	}
	for _, tc := range []struct {
		name      string
		direction Direction
		packet    []byte
	}{
		{"TCP established", Egress, tcp(0x10)},
		{"TCP SYN again", Egress, tcp(0x02)},
		{"UDP", Egress, sandbox.UDPPacket(from, to, []byte("x"))},
		{"UDP reply", Ingress, sandbox.UDPPacket(to, from, []byte("x"))},
		{"UDP blocked", Egress, sandbox.UDPPacket(from, netip.AddrPortFrom(to.Addr(), 9), []byte("x"))},
	} {
		b.Run(tc.name, func(b *testing.B) {
			if _, err := bench.run(tc.direction, unix.ETH_P_IP, tc.packet, b.N); err != nil {
				b.Fatal(err)
			}
		})
	}
}
