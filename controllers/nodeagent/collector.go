// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/podconfigmap/podconfigmap-controller/ebpf/l4firewall"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/syscallcount"
	"github.com/podconfigmap/podconfigmap-controller/internal/logging"
	"github.com/podconfigmap/podconfigmap-controller/internal/syscalls"
	"github.com/podconfigmap/podconfigmap-controller/internal/telemetry"
)

// maxAge is how old a value may be at a scrape, however long the shortest
// updateInterval: a reading of all pods takes milliseconds, so that more only
// matters when many scrape at once.
const maxAge = time.Second

// The metrics that are read from the kernel at a scrape.
var definitions = []telemetry.Definition{
	{
		Name: "ebpf_syscall_count_total", Type: "counter", Labels: []string{"namespace", "pod_name", "syscall", "pid"},
		Help: "System calls of a pod's processes. With an empty pid it is the pod's total; series with a pid exist only where a config asks for perPID, and are part of that total.",
	},
	{
		Name: "ebpf_missed_syscalls_total", Type: "counter",
		Help: "System calls of all processes of the node, also of pods that no config selects, that the kernel kept from the program that counts; Linux 7 and newer does so where it preempts the program.",
	},
	{
		Name: "ebpf_l4_firewall_total", Type: "counter", Labels: []string{"namespace", "pod_name", "stat_type"},
		Help: "What a pod's firewall saw. stat_type is allowed, blocked or would_block (connections in both directions, also where only one is filtered: TCP's first packets, new UDP flows), tcp_packets or udp_packets.",
	},
	{
		Name: "ebpf_attached_programs", Type: "gauge", Labels: []string{"namespace", "pod_name", "program_type"},
		Help: "1 where a program serves the pod as its configs want it.",
	},
	{
		Name: "ebpf_flow_evictions_total", Type: "counter",
		Help: "UDP flows that the node's table forgot because it was full; replies to a forgotten flow count as new.",
	},
	{Name: "ebpf_read_errors_total", Type: "counter", Help: "Scrapes at which the kernel's counters could not be read; the values of the last reading were exposed."},
	{Name: "ebpf_slots", Type: "gauge", Help: "How many pods of the node can be served at a time."},
	{Name: "ebpf_slots_used", Type: "gauge", Help: "How many slots are taken."},
	{
		Name: "ebpf_feature_supported", Type: "gauge", Labels: []string{"feature"},
		Help: "1 where the node supports the feature, else 0; the node's EBPFNode says why.",
	},
}

func describe(name string) *prometheus.Desc {
	for _, d := range definitions {
		if d.Name == name {
			return prometheus.NewDesc(telemetry.Prefix+d.Name, d.Help, d.Labels, nil)
		}
	}
	panic("no metric of the agent is named " + name)
}

var (
	syscallCount  = describe("ebpf_syscall_count_total")
	missedCalls   = describe("ebpf_missed_syscalls_total")
	firewallCount = describe("ebpf_l4_firewall_total")
	attached      = describe("ebpf_attached_programs")
	flowEvictions = describe("ebpf_flow_evictions_total")
	readErrors    = describe("ebpf_read_errors_total")
	slotsTotal    = describe("ebpf_slots")
	slotsUsed     = describe("ebpf_slots_used")
	supported     = describe("ebpf_feature_supported")
)

// reading is what the kernel counted for one pod.
type reading struct {
	syscalls [syscallcount.Numbers]uint64
	pids     []pidCount
	firewall l4firewall.Counters
}

// nodeReading is what the kernel counted for the whole node.
type nodeReading struct{ evictions, missed uint64 }

type pidCount struct {
	pid    uint32
	number uint16
	count  uint64
}

// collector reads the kernel's counters when it is scraped, once for all
// scrapes within a moment.
type collector struct {
	features map[string]bool
	names    map[int]string
	now      func() time.Time

	mu       sync.Mutex
	from     *Reconciler // nil before there is one
	readAt   time.Time
	readings map[types.UID]*reading
	node     nodeReading
	failures uint64
}

func newCollector(features map[string]bool) *collector {
	return &collector{features: features, names: syscalls.ByNumber(runtime.GOARCH), now: time.Now}
}

func (c *collector) use(r *Reconciler) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.from = r
}

// Describe is part of prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range definitions {
		out <- describe(d.Name)
	}
}

// Collect is part of prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	for feature, works := range c.features {
		out <- gauge(supported, truth(works), feature)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.from == nil {
		return
	}
	c.from.board.mu.RLock()
	defer c.from.board.mu.RUnlock()
	c.refresh()
	for uid, s := range c.from.board.standings {
		c.collectPod(out, s, c.readings[uid])
	}
	out <- counter(readErrors, c.failures)
	if c.from.Firewall != nil {
		out <- counter(flowEvictions, c.node.evictions)
	}
	if c.from.Counter != nil {
		out <- counter(missedCalls, c.node.missed)
	}
	if slots := c.from.Slots; slots != nil {
		out <- gauge(slotsTotal, float64(slots.Len()))
		out <- gauge(slotsUsed, float64(len(slots.All())))
	}
}

// refresh reads the counters of all pods that are exported, unless the last
// reading is young enough for each of them; the board's lock is held. Where they
// cannot be read the last ones stay.
func (c *collector) refresh() {
	age, missing := maxAge, false
	readings := map[types.UID]*reading{}
	for uid, s := range c.from.board.standings {
		if s.export > 0 {
			age, missing = min(age, s.export), missing || c.readings[uid] == nil
			readings[uid] = &reading{}
		}
	}
	if c.now().Sub(c.readAt) < age && !missing {
		return
	}
	node, err := c.read(readings)
	if err != nil {
		c.failures++
		logging.Warning(klog.Background(), "The kernel's counters cannot be read; the last ones stay", "err", err)
		return
	}
	c.readAt, c.readings, c.node = c.now(), readings, node
}

// read fills the readings from the kernel.
func (c *collector) read(readings map[types.UID]*reading) (node nodeReading, err error) {
	slots, perPID := map[uint32]*reading{}, false
	for uid, s := range c.from.board.standings {
		if r := readings[uid]; r != nil && (s.counted || s.filtered) {
			slots[s.slot], perPID = r, perPID || s.perPID
		}
	}
	if c.from.Firewall != nil {
		if node.evictions, err = c.readFirewall(slots); err != nil {
			return node, err
		}
	}
	if c.from.Counter == nil {
		return node, nil
	}
	if node.missed, err = c.from.Counter.Missed(); err != nil {
		return node, fmt.Errorf("reading what the counter of system calls missed: %w", err)
	}
	if len(slots) == 0 {
		return node, nil
	}
	return node, c.readSyscalls(slots, perPID)
}

func (c *collector) readFirewall(slots map[uint32]*reading) (evictions uint64, err error) {
	if evictions, err = c.from.Firewall.FlowEvictions(); err != nil {
		return 0, fmt.Errorf("reading the evictions of flows: %w", err)
	}
	if len(slots) == 0 {
		return evictions, nil
	}
	if err := c.from.Firewall.Read(func(slot uint32, counters l4firewall.Counters) {
		if r := slots[slot]; r != nil {
			r.firewall = counters
		}
	}); err != nil {
		return 0, fmt.Errorf("reading the firewall's counters: %w", err)
	}
	return evictions, nil
}

func (c *collector) readSyscalls(slots map[uint32]*reading, perPID bool) error {
	if err := c.from.Counter.Read(func(slot uint32, counts *[syscallcount.Numbers]uint64) {
		if r := slots[slot]; r != nil {
			r.syscalls = *counts
		}
	}); err != nil {
		return fmt.Errorf("reading the counts of system calls: %w", err)
	}
	if !perPID {
		return nil
	}
	if err := c.from.Counter.ReadPIDs(func(slot, pid uint32, number uint16, count uint64) {
		if r := slots[slot]; r != nil {
			r.pids = append(r.pids, pidCount{pid, number, count})
		}
	}); err != nil {
		return fmt.Errorf("reading the counts of processes: %w", err)
	}
	return nil
}

// collectPod makes one pod's series; its reading may be nil.
func (c *collector) collectPod(out chan<- prometheus.Metric, s *standing, r *reading) {
	namespace, name := s.pod.Namespace, s.pod.Name
	if s.counted {
		out <- gauge(attached, 1, namespace, name, string(SyscallCounter))
	}
	if s.filtered {
		out <- gauge(attached, 1, namespace, name, string(L4Firewall))
	}
	if s.export == 0 || r == nil {
		return
	}
	if s.counted {
		c.collectSyscalls(out, s, r)
	}
	if s.filtered {
		for stat, count := range statistics(&r.firewall) {
			out <- counter(firewallCount, count, namespace, name, stat)
		}
	}
}

func (c *collector) collectSyscalls(out chan<- prometheus.Metric, s *standing, r *reading) {
	namespace, name := s.pod.Namespace, s.pod.Name
	for number, count := range r.syscalls {
		if count > 0 {
			out <- counter(syscallCount, count, namespace, name, c.name(number), "")
		}
	}
	for _, p := range r.pids {
		if s.perPID && p.count > 0 {
			out <- counter(syscallCount, p.count, namespace, name, c.name(int(p.number)), strconv.FormatUint(uint64(p.pid), 10))
		}
	}
}

// statistics sums what the firewall counted over both directions.
func statistics(c *l4firewall.Counters) map[string]uint64 {
	all := map[string]uint64{}
	for direction := range c.Connections {
		connections, packets := &c.Connections[direction], &c.Packets[direction]
		all["allowed"] += connections[l4firewall.Allowed]
		all["blocked"] += connections[l4firewall.Blocked]
		all["would_block"] += connections[l4firewall.WouldBlock]
		all["tcp_packets"] += packets[l4firewall.TCP]
		all["udp_packets"] += packets[l4firewall.UDP]
	}
	return all
}

// name is that of a system call; one that is newer than the tables has its
// number.
func (c *collector) name(number int) string {
	if name, known := c.names[number]; known {
		return name
	}
	return "syscall_" + strconv.Itoa(number)
}

func gauge(d *prometheus.Desc, value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

func counter(d *prometheus.Desc, value uint64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
