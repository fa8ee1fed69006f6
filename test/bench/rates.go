// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// pollEvery is how often the operator's counters are read around its first and
	// its last write: what it did is verified afterwards, so they only tell when
	// that was. In between they are read more seldom, for that costs a millisecond.
	pollEvery  = 50 * time.Millisecond
	pollSeldom = 250 * time.Millisecond
	// crowdPatience is how long one convergence may take.
	crowdPatience = 10 * time.Minute
)

// rates measures what bare calls reach and what the operator does, by turns, so
// that both see the same machine and an equally used etcd.
func (b *bench) rates(ctx context.Context, _ memory) error {
	limits, err := b.newBare()
	if err != nil {
		return err
	}
	best := newRates()
	for i := range b.rounds {
		say("round %d of %d: bare calls", i+1, b.rounds)
		if err := limits.round(ctx); err != nil {
			return err
		}
		say("round %d of %d: the operator", i+1, b.rounds)
		if err := b.putConfigs(ctx, 0); err != nil {
			return err
		}
		if err := b.withOperator(nil, func(op *operator) error { return b.converge(ctx, op, best) }); err != nil {
			return err
		}
	}
	b.reportRates(limits, best)
	return nil
}

// converged is how one convergence of all ConfigMaps went.
type converged struct {
	speed              // from its start
	warm       float64 // per second, from the first write
	reconciles int
	cpu        time.Duration // in all
}

func newRates() map[operation]*converged {
	best := map[operation]*converged{}
	for _, o := range operations {
		best[o] = &converged{}
	}
	return best
}

func (c *converged) improve(other converged) {
	if other.rate > c.rate {
		*c = other
	}
}

// converge has the operator create, update and delete all ConfigMaps.
func (b *bench) converge(ctx context.Context, op *operator, best map[operation]*converged) error {
	// Its creations count from the start of its process.
	if err := b.timeOperator(ctx, op, creation, best, func() (time.Time, error) { return op.began, nil }); err != nil {
		return err
	}
	if err := errors.Join(b.verify(ctx, 0), b.awaitObserved(ctx)); err != nil {
		return err
	}
	if err := b.timeOperator(ctx, op, updating, best, func() (time.Time, error) {
		return time.Now(), b.putConfigs(ctx, 1)
	}); err != nil {
		return err
	}
	if err := errors.Join(b.verify(ctx, 1), b.awaitObserved(ctx)); err != nil {
		return err
	}
	return b.timeOperator(ctx, op, deletion, best, func() (time.Time, error) {
		return time.Now(), b.deleteConfigs(ctx)
	})
}

// timeOperator measures one convergence, which start causes.
func (b *bench) timeOperator(ctx context.Context, op *operator, o operation, best map[operation]*converged, start func() (time.Time, error)) error {
	before := op.reconciles(ctx)
	cpu, err := op.cpu()
	if err != nil {
		return err
	}
	if o == creation {
		before, cpu = 0, 0
	}
	began, err := start()
	if err != nil {
		return err
	}
	firstWrite, err := b.awaitWrites(ctx, op, o)
	if err != nil {
		return fmt.Errorf("waiting until the operator has done all (%s): %w", o, err)
	}
	ended := time.Now()
	after, err := op.cpu()
	if err != nil {
		return err
	}
	n := float64(b.wanted())
	c := converged{
		speed:      speed{rate: n / ended.Sub(began).Seconds(), cpu: (after - cpu) / time.Duration(b.wanted())},
		warm:       n / ended.Sub(firstWrite).Seconds(),
		reconciles: op.reconciles(ctx) - before, cpu: after - cpu,
	}
	say("operator %s: %.0f/s (%.0f/s from the first write), %v of CPU each, %d reconciles", o, c.rate, c.warm, c.speed.cpu, c.reconciles)
	best[o].improve(c)
	return nil
}

// awaitWrites waits until the operator has written every ConfigMap once, and
// tells when it had written none yet.
func (b *bench) awaitWrites(ctx context.Context, op *operator, o operation) (firstWrite time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, crowdPatience)
	defer cancel()
	firstWrite = time.Now()
	for {
		asked := time.Now()
		wrote, pause := op.wrote(ctx, o), pollSeldom
		switch {
		case wrote >= b.wanted():
			return firstWrite, nil
		case wrote == 0:
			firstWrite, pause = asked, pollEvery
		case wrote > b.wanted()*4/5:
			pause = pollEvery
		}
		if err := sleep(ctx, pause); err != nil {
			return firstWrite, err
		}
	}
}

func (b *bench) reportRates(limits *bare, best map[operation]*converged) {
	const wanted = ">= 0.8"
	names := map[operation]string{
		creation: "ConfigMaps created, from the operator's start", updating: "ConfigMaps updated, all configs change",
		deletion: "ConfigMaps deleted, all configs deleted",
	}
	for _, o := range operations {
		b.table.compare(names[o], best[o].rate, "1/s", limits.best[o].rate, wanted)
	}
	b.table.compare("ConfigMaps created, from the operator's first write", best[creation].warm, "1/s", limits.best[creation].rate, "")
	for _, o := range operations {
		l := limits.best[o]
		b.table.add(fmt.Sprintf("best parallelism of bare calls (%s)", l.how), float64(l.parallel), "calls")
	}
	for _, o := range operations {
		b.table.compare(fmt.Sprintf("CPU of the operator for each ConfigMap (%s)", o), micro(best[o].speed.cpu), "µs", micro(limits.best[o].cpu), "")
	}
	for _, o := range operations {
		each := best[o].cpu / time.Duration(max(1, best[o].reconciles))
		b.table.add(fmt.Sprintf("CPU per reconcile (%s, two ConfigMaps)", o), micro(each), "µs")
	}
}

func micro(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
