// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"time"

	"github.com/go-logr/logr"
	dto "github.com/prometheus/client_model/go"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/podconfigmap/podconfigmap-controller/internal/manager"
	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// profileOperator runs the operator in this process, so that convergences are
// profiled.
func (b *bench) profileOperator(ctx context.Context) error {
	if err := os.MkdirAll(b.profile, 0o755); err != nil {
		return fmt.Errorf("making the folder of profiles: %w", err)
	}
	if err := errors.Join(b.populate(ctx), b.putConfigs(ctx, 0)); err != nil {
		return err
	}
	debug.SetGCPercent(100) // as in a process of its own
	if err := b.writeMemoryProfile("start"); err != nil {
		return err
	}
	op, err := b.startInProcess(ctx)
	if err != nil {
		return err
	}
	return errors.Join(b.converge(ctx, op, map[operation][]converged{}), op.stop())
}

// startInProcess starts the operator in this process, which can be done once.
func (b *bench) startInProcess(ctx context.Context) (*operator, error) {
	environ, err := harness.ShippedSettings()
	if err != nil {
		return nil, err
	}
	maps.Copy(environ, harness.PatientLease)
	maps.Copy(environ, b.environ)
	environ["METRICS_ADDR"], environ["HEALTH_PROBE_ADDR"] = "0", "0"
	s, err := settings.Parse(environ)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(klog.NewContext(ctx, logr.Discard()))
	ended := make(chan error, 1)
	op := &operator{
		began: time.Now(), pid: os.Getpid(), scrape: gather,
		stop: func() error { cancel(); return <-ended },
		log:  func() string { return "" },
	}
	go func() { ended <- manager.Run(ctx, b.Config(), s) }()
	return op, nil
}

func gather(context.Context) (map[string]*dto.MetricFamily, error) {
	families, err := metrics.Registry.Gather()
	byName := map[string]*dto.MetricFamily{}
	for _, f := range families {
		byName[f.GetName()] = f
	}
	return byName, err
}

// profiled starts the CPU profile of a convergence, where profiles are wanted;
// stop writes it, and one of the memory.
func (b *bench) profiled(o operation) (stop func() error, err error) {
	if b.profile == "" {
		return func() error { return nil }, nil
	}
	f, err := os.Create(filepath.Join(b.profile, "cpu-"+string(o)+".pprof"))
	if err != nil {
		return nil, fmt.Errorf("making a profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, fmt.Errorf("starting a profile: %w", err)
	}
	return func() error {
		pprof.StopCPUProfile()
		return errors.Join(f.Close(), b.writeMemoryProfile(string(o)))
	}, nil
}

// writeMemoryProfile writes what was allocated so far and what of it is in use.
func (b *bench) writeMemoryProfile(when string) error {
	runtime.GC()
	f, err := os.Create(filepath.Join(b.profile, "memory-"+when+".pprof"))
	if err != nil {
		return fmt.Errorf("making a profile: %w", err)
	}
	defer f.Close()
	return pprof.Lookup("allocs").WriteTo(f, 0)
}
