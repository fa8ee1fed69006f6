// SPDX-License-Identifier: Apache-2.0

package l4firewall

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

// The benchmarks compare ways to filter the traffic of one pod with another: no
// filter, an empty program, this firewall, and others with the same 100 blocked
// ports (iptables: 256). Each round measures all of them, one after the other; the
// metrics are the lower quartiles over the rounds (-benchtime 40x) of the CPU time
// of both processes, which other load disturbs less than medians, and their ratios
// to no filter. All is in network namespaces of the sandbox.

const benchPort = 9000

func blockedPorts(n int) (list []uint16) {
	for i := range n {
		list = append(list, uint16(20_000+7*i))
	}
	return list
}

// filter is a way to filter a pod's traffic; set up returns what takes it away.
type filter struct {
	name  string
	setUp func(b *testing.B, x *benchPair) (remove func())
}

var filters = []filter{
	{"none", func(*testing.B, *benchPair) func() { return func() {} }},
	{"empty", setUpEmpty},
	{"ours", setUpOurs},
	{"nftables", func(b *testing.B, x *benchPair) func() { return x.nft(b, "") }},
	{"nftables-conntrack", func(b *testing.B, x *benchPair) func() { return x.nft(b, "ct state established,related accept;") }},
	{"iptables-256", setUpIptables},
}

func setUpEmpty(b *testing.B, x *benchPair) func() {
	var links []link.Link
	for h := range connect4 {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: x.client.Cgroup(), Attach: hookTypes[h], Program: x.empty[h]})
		must(b, err)
		links = append(links, l)
	}
	return func() {
		for _, l := range links {
			must(b, l.Close())
		}
	}
}

func setUpOurs(b *testing.B, x *benchPair) func() {
	p := Compile([]Rules{both(Rules{Blocked: blockedPorts(100)})}, nil)
	must(b, x.f.Attach(Target{UID: x.client.UID(), Cgroup: x.client.Cgroup(), Own: x.client.Addresses(), Policy: p}))
	return func() { must(b, x.f.Detach(x.client.UID())) }
}

// nft has one table with a set of ports in the client's network.
func (x *benchPair) nft(b *testing.B, first string) func() {
	set := strings.Trim(strings.ReplaceAll(fmt.Sprint(blockedPorts(100)), " ", ","), "[]")
	chain := func(hook string) string {
		return fmt.Sprintf("chain %s { type filter hook %s priority 0; %s tcp flags & (syn|ack) == syn tcp dport @ports drop; udp dport @ports drop\n}", hook, hook, first)
	}
	x.run(b, fmt.Sprintf("table inet bench { set ports { type inet_service; elements = { %s } }\n%s\n%s\n}\n", set, chain("input"), chain("output")), "nft", "-f", "-")
	return func() { x.run(b, "", "nft", "delete", "table", "inet", "bench") }
}

func setUpIptables(b *testing.B, x *benchPair) func() {
	var rules strings.Builder
	rules.WriteString("*filter\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n")
	for i, port := range blockedPorts(256) {
		fmt.Fprintf(&rules, "-A INPUT -p %[1]s --dport %[2]d -j DROP\n-A OUTPUT -p %[1]s --dport %[2]d -j DROP\n", []string{"tcp", "udp"}[i%2], port)
	}
	rules.WriteString("COMMIT\n")
	x.run(b, rules.String(), "iptables-restore")
	return func() { x.run(b, "", "nft", "flush", "ruleset") }
}

// benchPair is two pods, and a process in each that makes nothing but the system
// calls to be measured.
type benchPair struct {
	f              *Firewall
	client, server *sandbox.Pod
	clientNS       netns.NsHandle
	empty          [connect4]*ebpf.Program
	from, to       *worker
}

func newBenchPair(b *testing.B) *benchPair {
	n := sandbox.New(b)
	x := &benchPair{f: openFirewall(b, Options{Dir: n.BPFFS()}), client: n.Pod(sandbox.PodOptions{}), server: n.Pod(sandbox.PodOptions{})}
	for h := range connect4 {
		var err error
		x.empty[h], err = ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.CGroupSKB, AttachType: hookTypes[h], License: "GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
		})
		must(b, err)
		b.Cleanup(func() { x.empty[h].Close() })
	}
	var err error
	x.clientNS, err = netns.GetFromPid(x.client.Peer().PID())
	must(b, err)
	b.Cleanup(func() { x.clientNS.Close() })
	serverNS, err := netns.GetFromPid(x.server.Peer().PID())
	must(b, err)
	b.Cleanup(func() { serverNS.Close() })
	x.to = startWorker(b, x.server, serverNS, "server")
	x.from = startWorker(b, x.client, x.clientNS, "client")
	return x
}

// within runs a function on a thread in a network namespace.
func within(ns netns.NsHandle, do func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // Never unlocked: the thread ends here.
		err := netns.Set(ns)
		if err == nil {
			err = do()
		}
		result <- err
	}()
	return <-result
}

func (x *benchPair) run(b *testing.B, input, name string, args ...string) {
	b.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(input)
	must(b, within(x.clientNS, func() error {
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", name, err, out)
		}
		return nil
	}))
}

// worker is a process in a pod.
type worker struct {
	cmd   *exec.Cmd
	to    io.WriteCloser
	lines *bufio.Scanner
}

const benchVariable = "L4FIREWALL_BENCH"

func startWorker(b *testing.B, pod *sandbox.Pod, ns netns.NsHandle, role string) *worker {
	b.Helper()
	dir, err := os.Open(pod.Container(role).Cgroup())
	must(b, err)
	defer dir.Close()
	cmd := again2(b)
	cmd.Env = append(os.Environ(), benchVariable+"="+role+" "+pod.IPv4().String())
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	cmd.Stderr = os.Stderr
	w := &worker{cmd: cmd}
	w.to, err = cmd.StdinPipe()
	must(b, err)
	out, err := cmd.StdoutPipe()
	must(b, err)
	w.lines = bufio.NewScanner(out)
	must(b, within(ns, cmd.Start))
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if !w.lines.Scan() {
		b.Fatalf("the %s does not start", role)
	}
	return w
}

func again2(b *testing.B) *exec.Cmd {
	self, err := os.Executable()
	must(b, err)
	return exec.Command(self)
}

// cpu returns the CPU time that a process has used.
func (w *worker) cpu(b *testing.B) time.Duration {
	var now unix.Timespec
	must(b, unix.ClockGettime(int32(^w.cmd.Process.Pid<<3|2), &now)) // clock_getcpuclockid(3)
	return time.Duration(now.Nano())
}

// measure returns the CPU time of one operation.
func (x *benchPair) measure(b *testing.B, operation string, n int) time.Duration {
	x.do(b, operation, n/4)
	began := x.from.cpu(b) + x.to.cpu(b)
	x.do(b, operation, n)
	return (x.from.cpu(b) + x.to.cpu(b) - began) / time.Duration(n)
}

func (x *benchPair) do(b *testing.B, operation string, n int) {
	fmt.Fprintln(x.from.to, operation, n, x.server.IPv4())
	if !x.from.lines.Scan() || x.from.lines.Text() != "done" {
		b.Fatalf("%s: the client says %q", operation, x.from.lines.Text())
	}
}

func benchmark(b *testing.B, operation string, n int) {
	x := newBenchPair(b)
	took := map[string][]float64{}
	for round := 0; b.Loop(); round++ {
		for i := range filters { // Each comes after each other as often.
			f := filters[(i+round)%len(filters)]
			remove := f.setUp(b, x)
			took[f.name] = append(took[f.name], float64(x.measure(b, operation, n)))
			remove()
		}
	}
	quartile := func(list []float64) float64 {
		slices.Sort(list)
		return list[len(list)/4]
	}
	none := quartile(took["none"])
	b.ReportMetric(0, "ns/op")
	for _, f := range filters {
		b.ReportMetric(quartile(took[f.name]), f.name+"-ns")
		b.ReportMetric(quartile(took[f.name])/none, f.name+"-ratio")
	}
}

func BenchmarkTCPRequest(b *testing.B)    { benchmark(b, "tcp", 2000) }
func BenchmarkTCPConnection(b *testing.B) { benchmark(b, "connect", 600) }
func BenchmarkUDPRequest(b *testing.B)    { benchmark(b, "udp", 2000) }
func BenchmarkUDPFlow(b *testing.B)       { benchmark(b, "flow", 600) }

func init() {
	role, address, _ := strings.Cut(os.Getenv(benchVariable), " ")
	if role == "" {
		return
	}
	runtime.LockOSThread()
	var one unix.CPUSet // Both on one CPU: they take turns anyway, and cost the same each time.
	one.Set(0)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		panic(err)
	}
	if role == "server" {
		benchServer(netip.MustParseAddr(address))
	}
	benchClient()
	os.Exit(0)
}

func sys(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func socket(kind int) int {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	sys(err)
	sys(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	return fd
}

// benchServer answers UDP in one process and TCP, one connection at a time, in
// the same: the clients take turns.
func benchServer(address netip.Addr) {
	at := &unix.SockaddrInet4{Addr: address.As4(), Port: benchPort}
	udp, tcp := socket(unix.SOCK_DGRAM), socket(unix.SOCK_STREAM)
	sys(unix.Bind(udp, at))
	sys(unix.Bind(tcp, at))
	sys(unix.Listen(tcp, 16))
	fmt.Println("ready")
	buffer := make([]byte, 64)
	connection := -1
	for {
		polled := []unix.PollFd{{Fd: int32(udp), Events: unix.POLLIN}, {Fd: int32(tcp), Events: unix.POLLIN}, {Fd: int32(connection), Events: unix.POLLIN}}
		if _, err := unix.Poll(polled, -1); err == unix.EINTR {
			continue
		}
		if polled[0].Revents != 0 {
			n, from, err := unix.Recvfrom(udp, buffer, 0)
			sys(err)
			sys(unix.Sendto(udp, buffer[:n], 0, from))
		}
		if polled[2].Revents != 0 {
			if n, err := unix.Read(connection, buffer); err != nil || n == 0 {
				unix.Close(connection)
				connection = -1
			} else if _, err := unix.Write(connection, buffer[:n]); err != nil {
				sys(err)
			}
		} else if polled[1].Revents != 0 && connection < 0 {
			var err error
			connection, _, err = unix.Accept(tcp)
			sys(err)
		}
	}
}

// benchClient carries out the lines of its standard input: operation, number, address.
func benchClient() {
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var operation, address string
		var n int
		if _, err := fmt.Sscan(lines.Text(), &operation, &n, &address); err != nil {
			sys(err)
		}
		to := &unix.SockaddrInet4{Addr: netip.MustParseAddr(address).As4(), Port: benchPort}
		kind := map[string]int{"tcp": unix.SOCK_STREAM, "connect": unix.SOCK_STREAM}[operation]
		if kind == 0 {
			kind = unix.SOCK_DGRAM
		}
		fresh := operation == "connect" || operation == "flow"
		fd := -1
		for range n {
			if fd < 0 {
				fd = socket(kind)
				sys(unix.Connect(fd, to))
			}
			exchange(fd)
			if fresh {
				// Reset, or the ports would all wait for their time to be over.
				sys(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
				sys(unix.Close(fd))
				fd = -1
			}
		}
		if fd >= 0 {
			sys(unix.Close(fd))
		}
		fmt.Println("done")
	}
}

func exchange(fd int) {
	buffer := make([]byte, 32)
	_, err := unix.Write(fd, buffer)
	sys(err)
	_, err = unix.Read(fd, buffer)
	sys(err)
}
