// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

const long = 30 * time.Second

// at is an address that a test listens at.
func at(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

// listen starts an echo server at a free port.
func listen(t *testing.T, p *Peer, network string, a netip.Addr) string {
	t.Helper()
	address, err := p.Listen(network, at(a, 0))
	if err != nil {
		t.Fatal(err)
	}
	return address
}

func TestPodPath(t *testing.T) {
	const uid = "0c1e7e4e-6c9a-4f4e-9d3a-2f1b8e7a6d5c"
	for _, tc := range []struct {
		driver Driver
		qos    corev1.PodQOSClass
		want   string
	}{
		{Cgroupfs, corev1.PodQOSGuaranteed, "kubepods/pod" + uid},
		{Cgroupfs, "", "kubepods/pod" + uid},
		{Cgroupfs, corev1.PodQOSBurstable, "kubepods/burstable/pod" + uid},
		{Cgroupfs, corev1.PodQOSBestEffort, "kubepods/besteffort/pod" + uid},
		{Systemd, corev1.PodQOSGuaranteed, "kubepods.slice/kubepods-pod0c1e7e4e_6c9a_4f4e_9d3a_2f1b8e7a6d5c.slice"},
		{Systemd, corev1.PodQOSBurstable, "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0c1e7e4e_6c9a_4f4e_9d3a_2f1b8e7a6d5c.slice"},
		{Systemd, corev1.PodQOSBestEffort, "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0c1e7e4e_6c9a_4f4e_9d3a_2f1b8e7a6d5c.slice"},
	} {
		if got := PodPath(tc.driver, tc.qos, uid); got != tc.want {
			t.Errorf("PodPath(%s, %s) = %s, want %s", tc.driver, tc.qos, got, tc.want)
		}
	}
}

// A process is where it should be from birth, of every driver and QoS class.
func TestPlace(t *testing.T) {
	n := New(t)
	for _, driver := range []Driver{Cgroupfs, Systemd} {
		for _, qos := range []corev1.PodQOSClass{corev1.PodQOSGuaranteed, corev1.PodQOSBurstable, corev1.PodQOSBestEffort} {
			p := n.Pod(PodOptions{Driver: driver, QoS: qos})
			c := p.Container("app")
			if filepath.Dir(c.Cgroup()) != p.Cgroup() {
				t.Errorf("container %s is not in pod %s", c.Cgroup(), p.Cgroup())
			}
			peer := c.Peer()
			if got := cgroupOf(t, peer.PID()); !strings.HasSuffix(c.Cgroup(), got) || got == "/" {
				t.Errorf("%s %s: process is in cgroup %s, want %s", driver, qos, got, c.Cgroup())
			}
			born := c.Connect("tcp", "127.0.0.1:1", time.Second)
			if got := cgroupOf(t, born.PID()); !strings.HasSuffix(c.Cgroup(), got) || got == "/" {
				t.Errorf("%s %s: newborn is in cgroup %s, want %s", driver, qos, got, c.Cgroup())
			}
			if netnsOf(t, peer.PID()) == netnsOf(t, os.Getpid()) || netnsOf(t, peer.PID()) != netnsOf(t, born.PID()) {
				t.Errorf("%s %s: wrong network namespace", driver, qos)
			}
		}
	}
	host, bare := n.Pod(PodOptions{HostNetwork: true}), n.Pod(PodOptions{NoNetwork: true})
	outside := netnsOf(t, n.Peer().PID())
	if netnsOf(t, host.Peer().PID()) != outside || netnsOf(t, bare.Peer().PID()) != outside {
		t.Error("pods without a network of their own are not in the node's network namespace")
	}
	if len(bare.Addresses()) != 0 || host.IPv4() != n.Addresses()[0] {
		t.Errorf("addresses %v and %v", bare.Addresses(), host.Addresses())
	}
}

// Where the kernel cannot give birth to a process in a cgroup (before 5.7) it
// enters by itself.
func TestEnterCgroup(t *testing.T) {
	n := New(t)
	c := n.Pod(PodOptions{NoNetwork: true}).Container("old")
	peer, err := c.startPeerOutside()
	if err != nil {
		t.Fatal(err)
	}
	c.add(peer)
	l := &life{procs: -1, parent: uintptr(os.Getpid()), wait: unix.NsecToTimespec(long.Nanoseconds())}
	l.aim(netip.MustParseAddrPort("127.0.0.1:1"))
	pid, err := c.forkOutside(l)
	if err != nil {
		t.Fatal(err)
	}
	c.add(&Newborn{pid: pid})
	for deadline := time.Now().Add(long); ; time.Sleep(time.Millisecond) {
		if strings.HasSuffix(c.Cgroup(), cgroupOf(t, pid)) && strings.HasSuffix(c.Cgroup(), cgroupOf(t, peer.PID())) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes are in %s and %s", cgroupOf(t, pid), cgroupOf(t, peer.PID()))
		}
	}
}

// cgroupOf is the path of a process's cgroup, from the mount.
func cgroupOf(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSpace(path)
		}
	}
	t.Fatalf("process %d has no cgroup v2", pid)
	return ""
}

func netnsOf(t *testing.T, pid int) string {
	t.Helper()
	id, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Everybody talks with everybody: pods, pods on the host's network, the node.
func TestTraffic(t *testing.T) {
	n := New(t)
	a, b, host := n.Pod(PodOptions{}), n.Pod(PodOptions{Driver: Systemd, QoS: corev1.PodQOSBurstable}), n.Pod(PodOptions{HostNetwork: true})
	from, to, node := a.Peer(), b.Peer(), host.Peer()
	for _, server := range []struct {
		peer      *Peer
		addresses []netip.Addr
	}{{to, b.Addresses()}, {node, host.Addresses()}, {from, a.Addresses()}, {from, []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}}} {
		for i, address := range server.addresses {
			family := []string{"4", "6"}[i]
			for _, network := range []string{"tcp", "udp", "mptcp"} {
				network += family
				t.Run(network+" "+address.String(), func(t *testing.T) {
					t.Parallel()
					exchange(t, from, server.peer, network, address)
				})
			}
			t.Run("echo "+address.String(), func(t *testing.T) {
				t.Parallel()
				for _, size := range []int{0, 56, 4000} {
					if err := from.Echo(address.String(), size, long); err != nil {
						t.Errorf("ICMP echo of %d bytes: %v", size, err)
					}
				}
			})
		}
	}
}

// exchange sends all that goes over sockets from one peer to another.
func exchange(t *testing.T, from, to *Peer, network string, address netip.Addr) {
	server := listen(t, to, network, address)
	if err := from.Dial(network, server, long); err != nil {
		t.Error(err)
	}
	for _, size := range []int{1, 1400, 30_000} {
		if err := from.Request(network, "", server, size, long); err != nil {
			t.Errorf("request of %d bytes: %v", size, err)
		}
	}
	name := network + server
	if err := from.Hold(name, network, "", server, long); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := from.Ping(name, 100, long); err != nil {
			t.Error(err)
		}
	}
	if err := from.Close(name); err != nil {
		t.Error(err)
	}
	if err := from.Ping(name, 100, long); err == nil {
		t.Error("a closed connection answers")
	}
	want := uint64(5) // connections
	if strings.HasPrefix(network, "udp") {
		want = 8
		if err := from.Send(network, "", server, 0); err != nil {
			t.Error(err)
		}
	}
	received(t, to, network, server, want)
	if err := to.Unlisten(network, server); err != nil {
		t.Error(err)
	}
	if _, err := to.Received(network, server); err == nil {
		t.Error("a server that was stopped still counts")
	}
}

// A socket's own address is the one that was asked for, and mapped addresses go
// over IPv6 sockets.
func TestLocalAndMapped(t *testing.T) {
	n := New(t)
	a, b := n.Pod(PodOptions{}), n.Pod(PodOptions{})
	from, to := a.Peer(), b.Peer()
	for _, network := range []string{"tcp", "udp"} {
		server := listen(t, to, network+"4", b.IPv4())
		local := at(a.IPv4(), 4321)
		if err := from.Request(network, local, server, 10, long); err != nil {
			t.Errorf("%s from %s: %v", network, local, err)
		}
		if err := from.Dial(network+"4in6", server, long); err != nil {
			t.Errorf("%s from an IPv6 socket: %v", network, err)
		}
		want := uint64(2)
		if network == "udp" { // Unconnected, and no IPv4 socket for sure.
			if err := from.Request(network+"4in6", "[::]:4322", server, 10, long); err != nil {
				t.Errorf("%s from an IPv6 socket: %v", network, err)
			}
			want++
		}
		received(t, to, network+"4", server, want)
	}
}

// What goes wrong inside is told outside, with its error number.
func TestFailures(t *testing.T) {
	n := New(t)
	a, b := n.Pod(PodOptions{}), n.Pod(PodOptions{})
	from := a.Peer()
	for _, address := range b.Addresses() {
		if err := from.Dial("tcp", at(address, 1), long); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("connecting to a closed port: %v, want ECONNREFUSED", err)
		}
		err := from.Dial("udp", at(address, 1), long)
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("asking a closed port: %v, want ECONNREFUSED", err)
		}
	}
	for _, network := range []string{"tcp", "tcp4in6"} {
		err := from.Dial(network, "10.244.255.1:1", 20*time.Millisecond)
		var failure *Failure
		if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &failure) || !failure.Timeout() {
			t.Errorf("%s to nobody: %v, want a time-out", network, err)
		}
	}
	for what, err := range map[string]error{
		"listening at a foreign address": second(from.Listen("tcp", at(b.IPv4(), 1))),
		"a server that is not there":     second(from.Received("tcp", "1.2.3.4:5")),
		"a connection that is not there": from.Ping("none", 1, time.Second),
		"a loop that is not there":       second(from.StopLoop("none")),
		"a packet that is none":          from.SendRaw([]byte{0x60}),
		"a call that is not there":       from.CallNumber(100_000, -1, 1),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	from.Stop()
	if err := from.Dial("tcp", "127.0.0.1:1", time.Second); err == nil {
		t.Error("a process that has ended answers")
	}
}

func second[T any](_ T, err error) error { return err }

func TestLoop(t *testing.T) {
	n := New(t)
	a, b := n.Pod(PodOptions{}), n.Pod(PodOptions{})
	from, to := a.Peer(), b.Peer()
	for _, network := range []string{"tcp", "udp"} {
		server := listen(t, to, network, b.IPv6())
		for _, fresh := range []bool{false, true} {
			name := fmt.Sprint(network, fresh)
			if err := from.StartLoop(name, Loop{Network: network, Remote: server, Size: 20, Fresh: fresh, Timeout: long}); err != nil {
				t.Fatal(err)
			}
			if err := from.StartLoop(name, Loop{Network: network, Remote: server}); err == nil {
				t.Error("two loops of one name")
			}
			answered(t, from, name, 50)
			counts, err := from.StopLoop(name)
			if err != nil || counts.Failed != 0 || counts.Answered != counts.Attempts || counts.Longest <= 0 {
				t.Errorf("%s: %v (%v)", name, counts, err)
			}
			begun := map[string]uint64{"tcpfalse": 1, "tcptrue": counts.Attempts}[name]
			if counts.Begun != begun {
				t.Errorf("%s: %d connections begun, want %d", name, counts.Begun, begun)
			}
		}
	}
	// Failures are counted, too.
	if err := from.StartLoop("refused", Loop{Network: "tcp", Remote: at(b.IPv4(), 1)}); err != nil {
		t.Fatal(err)
	}
	for {
		counts, err := from.LoopCounts("refused")
		if err != nil || counts.Answered != 0 {
			t.Fatalf("%v (%v)", counts, err)
		}
		if counts.Failed > 10 && strings.Contains(counts.LastError, "refused") {
			break
		}
		time.Sleep(time.Millisecond)
	}
}

// answered waits for n answers of a loop.
func answered(t *testing.T, p *Peer, name string, n uint64) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		counts, err := p.LoopCounts(name)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("waiting for %d answers: %v (%v)", n, counts, err)
		}
		if counts.Answered >= n {
			return
		}
	}
}

// A newborn connects before anything else, and says what became of it.
func TestNewborn(t *testing.T) {
	n := New(t)
	a, b := n.Pod(PodOptions{}), n.Pod(PodOptions{})
	to, c := b.Peer(), a.Container("main")
	for _, address := range b.Addresses() {
		for _, network := range []string{"tcp", "udp"} {
			server := listen(t, to, network, address)
			newborn := c.Connect(network, server, long)
			until(t, newborn, func(c NewbornCounts) bool { return c.Through >= 100 })
			counts := newborn.Stop()
			if counts.Through != counts.Attempts {
				t.Errorf("%s: %+v", network, counts)
			}
			atLeast(t, to, network, server, counts.Through)
		}
		refused := c.Connect("tcp", at(address, 1), long)
		until(t, refused, func(c NewbornCounts) bool { return c.Failed >= 10 && c.LastErrno == syscall.ECONNREFUSED })
	}
	unanswered := c.Connect("tcp", "10.244.255.1:1", time.Millisecond)
	until(t, unanswered, func(c NewbornCounts) bool { return c.Unanswered >= 3 && c.Through == 0 })
	if _, err := c.FirstCalls(1000); err != nil {
		t.Error(err)
	}
}

// A newborn keeps nothing of its parent's open.
func TestNewbornFiles(t *testing.T) {
	n := New(t)
	newborn := n.Pod(PodOptions{NoNetwork: true}).Container("main").Connect("tcp", "127.0.0.1:1", long)
	until(t, newborn, func(c NewbornCounts) bool { return c.Attempts > 0 })
	files, err := os.ReadDir("/proc/" + strconv.Itoa(newborn.PID()) + "/fd")
	if err != nil || len(files) > 1 { // one: the socket of an attempt
		t.Errorf("it has %d files (%v)", len(files), err)
	}
}

func until(t *testing.T, b *Newborn, done func(NewbornCounts) bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(b.Counts()); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after a minute: %+v", b.Counts())
		}
	}
}

// Crafted packets arrive as they are.
func TestSendRaw(t *testing.T) {
	n := New(t)
	a, b := n.Pod(PodOptions{}), n.Pod(PodOptions{})
	from, to := a.Peer(), b.Peer()
	for i, address := range b.Addresses() {
		server := netip.MustParseAddrPort(listen(t, to, "udp", address))
		source := netip.AddrPortFrom(a.Addresses()[i], 999)
		for name, packet := range map[string][]byte{
			"plain":             UDPPacket(source, server, []byte("hello")),
			"extension headers": UDPPacket(source, server, []byte("hello"), HopByHop, DestinationOptions),
		} {
			before, _ := to.Received("udp", server.String())
			if err := from.SendRaw(packet); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			received(t, to, "udp", server.String(), before+1)
		}
	}
}

// A lone fragment arrives as one: the receiver begins to put a datagram together.
func TestFragments(t *testing.T) {
	n := New(t)
	a, b := n.Pod(PodOptions{}), n.Pod(PodOptions{})
	from, to := a.Peer(), b.Peer()
	for i, c := range []struct{ file, counter string }{{"snmp", "ReasmReqds"}, {"snmp6", "Ip6ReasmReqds"}} {
		before := networkCounter(t, to.PID(), c.file, c.counter)
		if err := from.SendRaw(FragmentPacket(a.Addresses()[i], b.Addresses()[i], 1480, make([]byte, 64))); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(long); networkCounter(t, to.PID(), c.file, c.counter) != before+1; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s has not moved", c.counter)
			}
		}
	}
}

// networkCounter reads a counter of a process's network namespace. snmp has a line
// of names above each line of values, snmp6 a name and its value a line.
func networkCounter(t *testing.T, pid int, file, name string) int {
	t.Helper()
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/net/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		value := ""
		if len(fields) == 2 && fields[0] == name {
			value = fields[1]
		} else if at := slices.Index(names, name); at >= 0 && names[0] == fields[0] {
			value = fields[at]
		}
		if number, err := strconv.Atoi(value); err == nil {
			return number
		}
		names = fields
	}
	t.Fatalf("%s has no %s", file, name)
	return 0
}

// atLeast waits until n connections or datagrams have reached a server.
func atLeast(t *testing.T, p *Peer, network, server string, n uint64) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		got, err := p.Received(network, server)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%s: %d of %d have reached the server (%v)", network, got, n, err)
		}
		if got >= n {
			return
		}
	}
}

// received waits until n connections or datagrams have reached a server, and
// expects no more.
func received(t *testing.T, p *Peer, network, server string, n uint64) {
	t.Helper()
	atLeast(t, p, network, server, n)
	if got, err := p.Received(network, server); err != nil || got != n {
		t.Errorf("%s: %d have reached the server (%v), want %d", network, got, err, n)
	}
}

func TestCalls(t *testing.T) {
	n := New(t)
	p := n.Pod(PodOptions{NoNetwork: true}).Peer()
	var wg sync.WaitGroup
	for cpu := -1; cpu < 2; cpu++ {
		wg.Go(func() {
			if err := p.Calls(cpu, 10_000); err != nil {
				t.Errorf("on CPU %d: %v", cpu, err)
			}
		})
	}
	wg.Wait()
	if err := p.Calls(1000, 1); err == nil {
		t.Error("a CPU that is not there made calls")
	}
}

// The cgroup can come later than the pod, go earlier, and come again.
func TestCgroupLife(t *testing.T) {
	n := New(t)
	p := n.NewPod(PodOptions{Driver: Systemd})
	if _, err := os.Stat(p.Cgroup()); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("NewPod made a cgroup (%v)", err)
	}
	for range 2 {
		p.MakeCgroup()
		peer := p.Peer()
		if err := os.Mkdir(filepath.Join(p.Container("main").Cgroup(), "nested"), 0o755); err != nil {
			t.Fatal(err)
		}
		p.Container("other").Remove()
		p.Container("other")
		p.RemoveCgroup()
		if err := unix.Kill(peer.PID(), 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("the process is still there (%v)", err)
		}
		if _, err := os.Stat(p.Cgroup()); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("the cgroup is still there (%v)", err)
		}
	}
	p.Remove()
	p.Remove()
}

func BenchmarkPod(b *testing.B) {
	n := New(b)
	for b.Loop() {
		n.Pod(PodOptions{}).Remove()
	}
}

func BenchmarkPeer(b *testing.B) {
	c := New(b).Pod(PodOptions{}).Container("main")
	for b.Loop() {
		c.Peer().Stop()
	}
}

func BenchmarkNewborn(b *testing.B) {
	c := New(b).Pod(PodOptions{}).Container("main")
	for b.Loop() {
		if _, err := c.FirstCalls(1); err != nil {
			b.Fatal(err)
		}
	}
}
