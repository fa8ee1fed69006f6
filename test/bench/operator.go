// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/podconfigmap/podconfigmap-controller/internal/telemetry"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// operator is a running operator: a process of its own, or, for profiles, part
// of this one.
type operator struct {
	began  time.Time
	pid    int
	scrape func(context.Context) (map[string]*dto.MetricFamily, error)
	stop   func() error
	log    func() string
	exited <-chan struct{} // closed when it has ended
}

// startOperator starts the operator with the shipped settings and the
// environment on top.
func (b *bench) startOperator(environ map[string]string) (*operator, error) {
	all := maps.Clone(harness.PatientLease)
	maps.Copy(all, b.environ)
	maps.Copy(all, environ)
	began := time.Now()
	m, err := b.StartManager(all)
	if err != nil {
		return nil, err
	}
	return &operator{
		began: began, pid: m.PID(), scrape: m.Scrape, stop: m.Stop, exited: m.Exited(),
		log: func() string { return m.LogTail(30) },
	}, nil
}

// withOperator runs do next to an operator.
func (b *bench) withOperator(environ map[string]string, do func(*operator) error) error {
	op, err := b.startOperator(environ)
	if err != nil {
		return err
	}
	if err := do(op); err != nil {
		return errors.Join(err, op.stop(), errors.New(op.log()))
	}
	return op.stop()
}

// wrote is how many ConfigMaps the operator created, updated or deleted.
func (op *operator) wrote(ctx context.Context, o operation) int {
	return int(op.sum(ctx, "configmap_operations_total", "operation", string(o), "result", "success"))
}

// reconciles is how often it looked at a pod.
func (op *operator) reconciles(ctx context.Context) int {
	return int(op.sum(ctx, "reconciliation_duration_seconds", "resource_type", telemetry.Pod))
}

// sum adds up a metric of the operator over the series that have the labels,
// given as names and values; of a histogram, the observations. An operator that
// does not answer yet did nothing yet.
func (op *operator) sum(ctx context.Context, name string, labels ...string) float64 {
	families, err := op.scrape(ctx)
	if err != nil {
		return 0
	}
	total := 0.0
	for _, m := range families[telemetry.Prefix+name].GetMetric() {
		if hasLabels(m, labels) {
			total += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return total
}

func hasLabels(m *dto.Metric, labels []string) bool {
	for i := 0; i+1 < len(labels); i += 2 {
		found := false
		for _, l := range m.GetLabel() {
			found = found || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
		}
		if !found {
			return false
		}
	}
	return true
}

// cpu is the CPU time of its process so far.
func (op *operator) cpu() (time.Duration, error) {
	_, cpu, err := processTimes(op.pid)
	if err != nil {
		return 0, fmt.Errorf("reading the operator's CPU time: %w", err)
	}
	return cpu, nil
}

// ticks of 10 ms are what the kernel gives CPU times in.
const tick = 10 * time.Millisecond

// processTimes reads a process's parent and its CPU time. Source:
// proc_pid_stat(5), fields 4, 14 and 15.
func processTimes(pid int) (parent int, cpu time.Duration, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the command before it may hold spaces
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, 0, fmt.Errorf("reading /proc/%d/stat: the line is too short", pid)
	}
	parent, errParent := strconv.Atoi(fields[1])
	user, errUser := strconv.Atoi(fields[11])
	system, errSystem := strconv.Atoi(fields[12])
	return parent, time.Duration(user+system) * tick, errors.Join(errParent, errUser, errSystem)
}

// allCPU is the CPU time so far of this process and its children: the operator,
// the API server and etcd.
func allCPU() (time.Duration, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, fmt.Errorf("reading CPU times: %w", err)
	}
	total := time.Duration(0)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// A process that ends meanwhile is none of ours.
		if parent, cpu, err := processTimes(pid); err == nil && (parent == os.Getpid() || pid == os.Getpid()) {
			total += cpu
		}
	}
	return total, nil
}

// memory is what the operator's process takes, in bytes.
type memory struct {
	resident, anonymous, heap float64
}

// settledMemory waits until the resident memory falls no more: until two minutes
// have passed, Go need not even have collected its garbage, and it returns free
// memory to the kernel little by little.
func (op *operator) settledMemory(ctx context.Context, limit time.Duration) (memory, error) {
	const step = 5 * time.Second
	began := time.Now()
	var last memory
	for fallen := began; ; {
		now, err := op.memory(ctx)
		if err != nil {
			return now, err
		}
		if last.resident == 0 || now.resident < last.resident*0.995 {
			fallen = time.Now()
		}
		if last = now; time.Since(began) >= limit || limit > time.Minute && time.Since(fallen) > 130*time.Second {
			return now, nil
		}
		select {
		case <-ctx.Done():
			return now, ctx.Err()
		case <-time.After(step):
		}
	}
}

func (op *operator) memory(ctx context.Context) (memory, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", op.pid))
	if err != nil {
		return memory{}, fmt.Errorf("reading the operator's memory: %w", err)
	}
	m := memory{}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kib, _ := strconv.ParseFloat(fields[1], 64)
		switch fields[0] {
		case "VmRSS:":
			m.resident = kib * 1024
		case "RssAnon:":
			m.anonymous = kib * 1024
		}
	}
	families, err := op.scrape(ctx)
	if err != nil {
		return m, fmt.Errorf("reading the operator's heap: %w", err)
	}
	for _, g := range families["go_memstats_heap_alloc_bytes"].GetMetric() {
		m.heap = g.GetGauge().GetValue()
	}
	return m, nil
}

// emptyManager measures the memory of an operator that has nothing to do.
func (b *bench) emptyManager(ctx context.Context) (m memory, err error) {
	err = b.withOperator(nil, func(op *operator) error {
		if err := waitFor(ctx, harness.Patience, func() bool { _, err := op.scrape(ctx); return err == nil }); err != nil {
			return fmt.Errorf("waiting for the operator: %w", err)
		}
		say("letting an empty manager settle")
		m, err = op.settledMemory(ctx, b.settle/3)
		return err
	})
	return m, err
}

// waitFor polls until done.
func waitFor(ctx context.Context, limit time.Duration, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}
