// SPDX-License-Identifier: Apache-2.0

// Command bench measures the operator's speed and memory against a real etcd
// and API server, and next to each figure what bare client calls reach on the
// same machine in the same run:
//
//	go run ./test/bench [-short] [-pods N] [-namespaces N] [-out FILE] [-rounds N] [-only PARTS] [-set NAME=VALUE,…]
//	go run ./test/bench -profile DIR
//
// The part ebpf, which needs root, nft and iptables, measures what the eBPF
// programs cost next to others that do the same.
//
// It prints a table for each and writes it as JSON, a list of {name, value, unit,
// limit, ratio}. No figure makes it fail: machines differ, and other work may
// share them. What is wrong in the result does, such as a ConfigMap that is
// missing or has other data than it should have.
//
// The API server and etcd run with GOGC=400, as in all tests (package controlplane). With
// Go's default the API server's own garbage collection would take up to a quarter of both
// sides' CPU time, and more of it where more happened before; GOGC=100 in the environment
// shows that.
//
// The garbage collector (kube-controller-manager) does not run: it watches what
// is written, which would cost the same two cores on both sides of each ratio,
// and it would delete next to those whose deletions are measured.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// options say how much is measured.
type options struct {
	pods, namespaces int
	out, ebpfOut     string
	profile          string
	short            bool
	only             []string
	environ          map[string]string // of the operator, on top of the shipped settings

	rounds  int           // of rates; the median counts
	samples int           // of a label change
	steady  time.Duration // the window in which API calls are counted
	resync  time.Duration // while they are
	settle  time.Duration // how long memory may take to come to rest
}

// The parts of a run that -only names.
const (
	partRates   = "rates"
	partSteady  = "steady"
	partLatency = "latency"
	partCode    = "code"
	partEBPF    = "ebpf" // needs no cluster
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	ctrl.SetLogger(logr.Discard())
	// Garbage collection of what the bench holds must not slow the bare client.
	debug.SetGCPercent(400)
	o, err := parse(os.Args[1:])
	if err == nil && o.profile != "" {
		runtime.MemProfileRate = 16 << 10 // before anything that counts is allocated
	}
	if err == nil {
		err = run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (*options, error) {
	o := &options{environ: map[string]string{}, samples: 300, steady: time.Minute, resync: 25 * time.Second, settle: 150 * time.Second}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&o.pods, "pods", 5000, "number of pods")
	flags.IntVar(&o.namespaces, "namespaces", 10, "number of namespaces that they are spread over, with two configs each")
	flags.IntVar(&o.rounds, "rounds", 5, "how often limits and rates are measured; the median counts")
	flags.StringVar(&o.out, "out", filepath.Join("build", "bench", "configmaps.json"), "file for the results as JSON")
	flags.StringVar(&o.profile, "profile", "", "measure nothing: run the operator in this process and write its CPU and memory profiles to this folder")
	flags.StringVar(&o.ebpfOut, "ebpf-out", filepath.Join("build", "bench", "ebpf.json"), "file for the results of ebpf as JSON")
	flags.BoolVar(&o.short, "short", false, "a small run: 300 pods in 3 namespaces, one round, 30 samples, a steady window of 15 s")
	only := flags.String("only", "", "parts to run, separated by commas: rates, steady, latency, code, ebpf; all if empty")
	set := flags.String("set", "", "environment of the operator beyond the shipped settings: NAME=VALUE, separated by commas")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if o.short {
		o.pods, o.namespaces, o.rounds, o.samples = 300, 3, 1, 30
		o.steady, o.resync, o.settle = 15*time.Second, 5*time.Second, 15*time.Second
	}
	if o.namespaces < 1 || o.pods < o.namespaces {
		return nil, errors.New("reading the flags: use at least one namespace, and a pod for each")
	}
	if *only != "" {
		o.only = strings.Split(*only, ",")
	}
	for pair := range strings.SplitSeq(*set, ",") {
		if name, value, ok := strings.Cut(pair, "="); ok {
			o.environ[name] = value
		}
	}
	return o, nil
}

// wants tells whether a part is to be run.
func (o *options) wants(part string) bool { return len(o.only) == 0 || slices.Contains(o.only, part) }

// bench is one run.
type bench struct {
	*options
	*harness.Cluster
	core  corev1client.CoreV1Interface // protobuf, without a limit of its own
	pods  []*observed.Pod
	audit auditLog
	table table
}

// run runs the parts that need a cluster, and then ebpf.
func run(ctx context.Context, o *options) error {
	if o.profile != "" || !slices.Equal(o.only, []string{partEBPF}) {
		if err := inCluster(ctx, o); err != nil {
			return err
		}
	}
	if o.profile != "" || !o.wants(partEBPF) {
		return nil
	}
	return o.ebpf(ctx)
}

func inCluster(ctx context.Context, o *options) (err error) {
	b := &bench{options: o}
	folder, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return fmt.Errorf("making a folder for logs: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	if b.audit, err = newAuditLog(folder); err != nil {
		return err
	}
	b.Cluster, err = harness.StartCluster(ctx, controlplane.Options{APIServerFlags: b.audit.flags(), Progress: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Stop()) }()
	if b.core, err = newCoreClient(b.Config()); err != nil {
		return err
	}
	if o.profile != "" {
		return b.profileOperator(ctx)
	}
	if err := b.measure(ctx); err != nil {
		return err
	}
	b.table.print(os.Stdout)
	return b.table.write(o.out)
}

// measure runs the parts, in an order in which none disturbs another.
func (b *bench) measure(ctx context.Context) error {
	empty, err := b.emptyManager(ctx)
	if err != nil {
		return err
	}
	if err := b.populate(ctx); err != nil {
		return err
	}
	for _, part := range []struct {
		name string
		run  func(context.Context, memory) error
	}{
		{partRates, b.rates},
		{partSteady, b.steadyMinute},
		{partLatency, b.latency},
		{partCode, b.code},
	} {
		if !b.wants(part.name) {
			continue
		}
		began := time.Now()
		if err := part.run(ctx, empty); err != nil {
			return fmt.Errorf("measuring %s: %w", part.name, err)
		}
		say("%s took %s", part.name, time.Since(began).Round(time.Second))
	}
	return nil
}

// progress is where a run tells what it does.
var progress io.Writer = os.Stderr

func say(format string, args ...any) {
	fmt.Fprintf(progress, "%s %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
