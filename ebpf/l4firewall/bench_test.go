// SPDX-License-Identifier: Apache-2.0

package l4firewall

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/uuid"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

// BenchmarkTraffic compares ways to filter the traffic of one pod with another: no
// filter, an empty program, this firewall, and others with the same 100 blocked
// ports (iptables: 256). Each round (-benchtime 30x) measures all of them, one after
// the other; the metrics are the medians over the rounds of the CPU time of both
// processes, and of what this firewall's is compared with each other's in the same
// round. All is in network namespaces of the sandbox.

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
	{"nftables", func(b *testing.B, x *benchPair) func() { return x.nft(b, plainRules) }},
	{"nftables-counting", func(b *testing.B, x *benchPair) func() { return x.nft(b, countingRules) }},
	{"nftables-conntrack", func(b *testing.B, x *benchPair) func() {
		return x.nft(b, "ct state established,related accept\n"+plainRules)
	}},
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

// The rules of a chain. This firewall also counts what the second ones count.
const (
	plainRules = `tcp flags & (syn|ack) == syn tcp dport @ports drop
		udp dport @ports drop`
	countingRules = `meta l4proto udp counter udp dport @ports counter drop
		meta l4proto tcp counter tcp flags & (syn|ack) == syn tcp dport @ports counter drop
		tcp flags & (syn|ack) == syn counter`
)

// nft has one table with a set of ports in the client's network.
func (x *benchPair) nft(b *testing.B, rules string) func() {
	set := strings.Trim(strings.ReplaceAll(fmt.Sprint(blockedPorts(100)), " ", ","), "[]")
	chain := func(hook string) string {
		return fmt.Sprintf("chain %s { type filter hook %s priority 0; %s\n}", hook, hook, rules)
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

// operations are what is measured, and how many of them are a burst: some
// milliseconds.
var operations = []struct {
	name string
	n    int
}{{"tcp-request", 400}, {"tcp-connection", 100}, {"udp-request", 400}, {"udp-flow", 200}}

// measure returns the CPU time, in ns, of one operation: the least of some bursts,
// for other load can only add to it.
func (x *benchPair) measure(b *testing.B, operation string, n int) float64 {
	const bursts = 6
	least := math.Inf(1)
	x.do(b, operation, n/4)
	for range bursts {
		began := x.from.cpu(b) + x.to.cpu(b)
		x.do(b, operation, n)
		took := x.from.cpu(b) + x.to.cpu(b) - began
		least = min(least, float64(took)/float64(n))
	}
	return least
}

func (x *benchPair) do(b *testing.B, operation string, n int) {
	fmt.Fprintln(x.from.to, operation, n, x.server.IPv4())
	if !x.from.lines.Scan() || x.from.lines.Text() != "done" {
		b.Fatalf("%s: the client says %q", operation, x.from.lines.Text())
	}
}

func BenchmarkTraffic(b *testing.B) {
	x := newBenchPair(b)
	took := map[string][]float64{} // by operation and filter, one for each round
	order := rand.New(rand.NewPCG(1, 1))
	for b.Loop() {
		// In any order: the first one after another kind of filter pays for the change.
		for _, i := range order.Perm(len(filters)) {
			f := filters[i]
			remove := f.setUp(b, x)
			for _, o := range operations {
				name := o.name + "/" + f.name
				took[name] = append(took[name], x.measure(b, o.name, o.n))
			}
			remove()
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, o := range operations {
		ours := took[o.name+"/ours"]
		for _, f := range filters {
			others := took[o.name+"/"+f.name]
			ratios := make([]float64, len(ours))
			for round := range ours {
				ratios[round] = ours[round] / others[round]
			}
			b.ReportMetric(median(others), o.name+"/"+f.name+"-ns")
			b.ReportMetric(median(ratios), o.name+"/ours:"+f.name)
		}
	}
}

func median(values []float64) float64 {
	values = slices.Sorted(slices.Values(values))
	return values[len(values)/2]
}

func init() {
	role, address, _ := strings.Cut(os.Getenv(benchVariable), " ")
	if role == "" {
		return
	}
	runtime.GOMAXPROCS(4) // system calls that wait keep theirs
	debug.SetGCPercent(-1)
	if role == "server" {
		benchServer(netip.MustParseAddr(address))
	}
	benchClient()
	os.Exit(0)
}

// alone lets the calling thread run on one CPU, in front of all other load, until
// it waits: both processes so take turns in the same order each time.
func alone() {
	runtime.LockOSThread()
	var one unix.CPUSet
	one.Set(0)
	sys(unix.SchedSetaffinity(0, &one))
	sys(unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0))
}

func sys(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// raw makes a system call that Go's runtime does not notice: it would give the
// thread's place to another one.
func raw(number, fd, a, b, c, d uintptr) (int, error) {
	n, _, errno := unix.RawSyscall6(number, fd, a, b, c, d, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

func readInto(fd int, buffer *[64]byte) (int, error) {
	return raw(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(buffer)), uintptr(len(buffer)), 0, 0)
}

func writeFrom(fd int, buffer *[64]byte, n int) error {
	_, err := raw(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(buffer)), uintptr(n), 0, 0)
	return err
}

func socket(kind int) int {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	sys(err)
	sys(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	return fd
}

// benchServer answers datagrams, and what comes over one connection after the
// other, on a thread each.
func benchServer(address netip.Addr) {
	at := &unix.SockaddrInet4{Addr: address.As4(), Port: benchPort}
	udp, tcp := socket(unix.SOCK_DGRAM), socket(unix.SOCK_STREAM)
	sys(unix.Bind(udp, at))
	sys(unix.Bind(tcp, at))
	sys(unix.Listen(tcp, 16))
	go answerDatagrams(udp)
	fmt.Println("ready")
	alone()
	var buffer [64]byte
	for {
		connection, err := raw(unix.SYS_ACCEPT4, uintptr(tcp), 0, 0, unix.SOCK_CLOEXEC, 0)
		sys(err)
		for {
			n, err := readInto(connection, &buffer)
			if n <= 0 || err != nil {
				break
			}
			sys(writeFrom(connection, &buffer, n))
		}
		sys(unix.Close(connection))
	}
}

func answerDatagrams(fd int) {
	alone()
	var buffer [64]byte
	var from unix.RawSockaddrInet4
	for {
		size := uint32(unix.SizeofSockaddrInet4)
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&buffer)), uintptr(len(buffer)), 0,
			uintptr(unsafe.Pointer(&from)), uintptr(unsafe.Pointer(&size)))
		if errno != 0 {
			sys(errno)
		}
		if _, _, errno = unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&buffer)), n, 0,
			uintptr(unsafe.Pointer(&from)), uintptr(size)); errno != 0 {
			sys(errno)
		}
	}
}

// benchClient carries out the lines of its standard input: operation, number, address.
func benchClient() {
	alone()
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var operation, address string
		var n int
		_, err := fmt.Sscan(lines.Text(), &operation, &n, &address)
		sys(err)
		to := &unix.SockaddrInet4{Addr: netip.MustParseAddr(address).As4(), Port: benchPort}
		kind := unix.SOCK_DGRAM
		if strings.HasPrefix(operation, "tcp") {
			kind = unix.SOCK_STREAM
		}
		exchanges(to, kind, n, operation == "tcp-connection" || operation == "udp-flow")
		fmt.Println("done")
	}
}

// exchanges sends requests and waits for the answers, each from a fresh socket or
// all from one.
func exchanges(to unix.Sockaddr, kind, n int, fresh bool) {
	var buffer [64]byte
	fd := -1
	for i := range n {
		if fd < 0 {
			fd = socket(kind)
			sys(unix.Connect(fd, to))
		}
		sys(writeFrom(fd, &buffer, 32))
		_, err := readInto(fd, &buffer)
		sys(err)
		if fresh || i == n-1 {
			// Reset, or the ports would all wait for their time to be over.
			sys(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
			sys(unix.Close(fd))
			fd = -1
		}
	}
}

// manyPods makes so many pods' cgroups and attaches a policy to each; attach is
// told how long each took.
func manyPods(b *testing.B, f *Firewall, root string, pods int, p *Policy, attach func(time.Duration)) (uids []types.UID) {
	b.Helper()
	for slot := range uint32(pods) {
		uid := types.UID(uuid.NewString())
		path := filepath.Join(root, "kubepods", "pod"+string(uid))
		must(b, os.Mkdir(path, 0o755))
		b.Cleanup(func() { must(b, os.Remove(path)) })
		own := []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(slot >> 8), byte(slot)})}
		began := time.Now()
		must(b, f.Attach(Target{UID: uid, Slot: slot, Cgroup: path, Own: own, Policy: p}))
		attach(time.Since(began))
		uids = append(uids, uid)
	}
	return uids
}

// BenchmarkAttach is the cost of attaching one pod, among up to 1,000: with a policy
// that only concerns what comes in, and with one that also denies connections.
func BenchmarkAttach(b *testing.B) {
	for name, rules := range map[string]Rules{
		"ingress": {Block: true, Allowed: blockedPorts(100), Ingress: true},
		"both":    both(Rules{Block: true, Allowed: blockedPorts(100)}),
	} {
		b.Run(name, func(b *testing.B) {
			const pods = 1000
			n := sandbox.New(b)
			f := openFirewall(b, Options{Dir: n.BPFFS()})
			p := Compile([]Rules{rules}, nil)
			// The first pod pays for placing the policy.
			must(b, f.policies.place(p))
			var took []float64
			for b.Loop() {
				uids := manyPods(b, f, n.Root(), pods, p, func(d time.Duration) {
					took = append(took, float64(d.Nanoseconds())/1000)
				})
				b.StopTimer()
				for _, uid := range uids {
					must(b, f.Detach(uid))
				}
				b.StartTimer()
			}
			b.ReportMetric(0, "ns/op")
			slices.Sort(took)
			b.ReportMetric(median(took), "median-µs/pod")
			b.ReportMetric(took[len(took)*99/100], "p99-µs/pod")
		})
	}
}

// BenchmarkSetPolicies is the time in which 1,000 pods change to a new policy, one
// for all; the median.
func BenchmarkSetPolicies(b *testing.B) {
	n := sandbox.New(b)
	f := openFirewall(b, Options{Dir: n.BPFFS()})
	uids := manyPods(b, f, n.Root(), 1000, variant(0), func(time.Duration) {})
	var took []float64
	round := 0
	for b.Loop() {
		round++
		p := variant(round)
		wanted := map[types.UID]*Policy{}
		for _, uid := range uids {
			wanted[uid] = p
		}
		began := time.Now()
		must(b, f.SetPolicies(wanted))
		took = append(took, float64(time.Since(began).Nanoseconds())/1e6)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(took), "median-ms")
}

// BenchmarkRead is the CPU time of reading the counters of 1,000 pods.
func BenchmarkRead(b *testing.B) {
	n := sandbox.New(b)
	f := openFirewall(b, Options{Dir: n.BPFFS()})
	uids := manyPods(b, f, n.Root(), 1000, variant(0), func(time.Duration) {})
	var before, after unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &before))
	for b.Loop() {
		seen := 0
		must(b, f.Read(func(uint32, Counters) { seen++ }))
		if seen != len(uids) {
			b.Fatalf("read %d pods", seen)
		}
	}
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &after))
	cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(cpu)/1e6/float64(b.N), "cpu-ms/op")
}
