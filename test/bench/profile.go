// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
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

// profileOperator runs the operator in this process, and writes a CPU profile
// of each convergence, and profiles of its memory.
func (b *bench) profileOperator(ctx context.Context) error {
	if err := os.MkdirAll(b.profile, 0o755); err != nil {
		return fmt.Errorf("making the folder of profiles: %w", err)
	}
	if err := errors.Join(b.populate(ctx), b.putConfigs(ctx, 0)); err != nil {
		return err
	}
	debug.SetGCPercent(100) // as in a process of its own
	runtime.GC()
	stop, err := b.startCPUProfile(creation)
	if err != nil {
		return err
	}
	op, err := b.startInProcess(ctx)
	if err != nil {
		return err
	}
	best := newRates()
	for _, o := range operations {
		err := b.timeOperator(ctx, op, o, best, func() (time.Time, error) {
			switch o {
			case creation:
				return op.began, nil
			case updating:
				stop, err = b.startCPUProfile(o)
				return time.Now(), errors.Join(err, b.putConfigs(ctx, 1))
			default:
				stop, err = b.startCPUProfile(o)
				return time.Now(), errors.Join(err, b.deleteConfigs(ctx))
			}
		})
		stop()
		if err != nil {
			return err
		}
		if err := b.writeMemoryProfiles(o); err != nil {
			return err
		}
		if o != deletion {
			if err := b.awaitObserved(ctx); err != nil {
				return err
			}
		}
	}
	return op.stop()
}

// startInProcess starts the operator in this process, which can be done once.
func (b *bench) startInProcess(ctx context.Context) (*operator, error) {
	environ, err := harness.ShippedSettings()
	if err != nil {
		return nil, err
	}
	for name, value := range b.environ {
		environ[name] = value
	}
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

func (b *bench) startCPUProfile(o operation) (stop func(), err error) {
	f, err := os.Create(filepath.Join(b.profile, "cpu-"+string(o)+".pprof"))
	if err != nil {
		return nil, fmt.Errorf("making a profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, fmt.Errorf("starting a profile: %w", err)
	}
	return func() {
		pprof.StopCPUProfile()
		f.Close()
	}, nil
}

// writeMemoryProfiles writes one profile, of what was allocated so far and of
// what is in use.
func (b *bench) writeMemoryProfiles(o operation) error {
	runtime.GC()
	f, err := os.Create(filepath.Join(b.profile, "memory-"+string(o)+".pprof"))
	if err != nil {
		return fmt.Errorf("making a profile: %w", err)
	}
	defer f.Close()
	return pprof.Lookup("allocs").WriteTo(f, 0)
}
