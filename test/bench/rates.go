// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
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

// rates measures what bare calls reach and what the operator does, by turns. Each
// round of the operator is compared with the bare calls before and after it: the pace
// of a shared machine can double between two minutes. The median of the rounds counts.
func (b *bench) rates(ctx context.Context, _ memory) error {
	limits, err := b.newBare()
	if err != nil {
		return err
	}
	if err := limits.choose(ctx); err != nil {
		return err
	}
	all := map[operation][]converged{}
	for i := range b.rounds {
		say("round %d of %d: bare calls", i+1, b.rounds)
		if err := limits.round(ctx); err != nil {
			return err
		}
		say("round %d of %d: the operator", i+1, b.rounds)
		if err := b.putConfigs(ctx, 0); err != nil {
			return err
		}
		if err := b.withOperator(nil, func(op *operator) error { return b.converge(ctx, op, all) }); err != nil {
			return err
		}
	}
	say("bare calls once more")
	if err := limits.round(ctx); err != nil {
		return err
	}
	b.reportRates(limits, all)
	return nil
}

// converged is how one convergence of all ConfigMaps went.
type converged struct {
	speed // from its start
	// perReconcile is the CPU time of one look at a pod.
	perReconcile time.Duration
}

// converge has the operator create, update and delete all ConfigMaps.
func (b *bench) converge(ctx context.Context, op *operator, all map[operation][]converged) error {
	nothing := func(context.Context) error { return nil } // its start is enough
	if err := b.timeOperator(ctx, op, creation, all, nothing); err != nil {
		return err
	}
	if err := errors.Join(b.verify(ctx, 0), b.awaitObserved(ctx)); err != nil {
		return err
	}
	if err := b.timeOperator(ctx, op, updating, all, func(ctx context.Context) error { return b.putConfigs(ctx, 1) }); err != nil {
		return err
	}
	if err := errors.Join(b.verify(ctx, 1), b.awaitObserved(ctx)); err != nil {
		return err
	}
	return b.timeOperator(ctx, op, deletion, all, b.deleteConfigs)
}

// timeOperator measures one convergence, which cause causes. Creations count
// from the start of the operator's process.
func (b *bench) timeOperator(ctx context.Context, op *operator, o operation, all map[operation][]converged, cause func(context.Context) error) error {
	before := op.reconciles(ctx)
	stopProfile, err := b.profiled(o)
	if err != nil {
		return err
	}
	watch, err := startWatch(op.pid)
	if err != nil {
		return err
	}
	if o == creation {
		watch.began, before = op.began, 0
	}
	if err := cause(ctx); err != nil {
		return err
	}
	firstWrite, err := b.awaitWrites(ctx, op, o)
	if err != nil {
		return fmt.Errorf("waiting until the operator has done all (%s): %w", o, err)
	}
	warm := float64(b.wanted()) / time.Since(firstWrite).Seconds()
	s, err := watch.stop(b.wanted())
	if err := errors.Join(err, stopProfile()); err != nil {
		return err
	}
	reconciles := op.reconciles(ctx) - before
	s.warm = warm
	c := converged{speed: s, perReconcile: s.cpu * time.Duration(b.wanted()) / time.Duration(max(1, reconciles))}
	say("operator %s: %v; %.0f/s from the first write, %d reconciles", o, s, warm, reconciles)
	all[o] = append(all[o], c)
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
		select {
		case <-ctx.Done():
			return firstWrite, ctx.Err()
		case <-op.exited:
			return firstWrite, errors.New("the operator ended")
		case <-time.After(pause):
		}
	}
}

func (b *bench) reportRates(limits *bare, all map[operation][]converged) {
	what := map[operation]string{
		creation: "ConfigMaps created, from the operator's start", updating: "ConfigMaps updated, all configs change",
		deletion: "ConfigMaps deleted, all configs deleted",
	}
	for _, o := range operations {
		rates := middle(limits, all, o, func(s speed) float64 { return s.rate })
		b.table.paired(fmt.Sprintf("%s (limit: bare %s)", what[o], limits.choice[o]), rates.value, "1/s", rates.limit, rates.ratio, ">= 0.8")
		if o == creation {
			warm := middle(limits, all, o, func(s speed) float64 { return cmp.Or(s.warm, s.rate) })
			b.table.paired("ConfigMaps created, from the operator's first write", warm.value, "1/s", warm.limit, warm.ratio, "")
		}
		cpu := middle(limits, all, o, func(s speed) float64 { return micro(s.all) })
		b.table.paired(fmt.Sprintf("CPU for each ConfigMap, with the API server's and etcd's (%s; limit: with a bare client)", o),
			cpu.value, "µs", cpu.limit, cpu.ratio, "<= 1.25")
		alone := middle(limits, all, o, func(s speed) float64 { return micro(s.cpu) })
		b.table.paired(fmt.Sprintf("CPU for each ConfigMap, of the operator alone (%s; limit: of a bare client)", o),
			alone.value, "µs", alone.limit, alone.ratio, "")
	}
	for _, o := range operations {
		least := slices.MinFunc(all[o], func(a, b converged) int { return cmp.Compare(a.perReconcile, b.perReconcile) })
		b.table.add(fmt.Sprintf("CPU per reconcile (%s)", o), micro(least.perReconcile), "µs")
	}
}

// compared is a figure of one round of the operator, and the mean of the bare calls
// before and after it.
type compared struct{ value, limit, ratio float64 }

// middle returns the round with the median ratio.
func middle(limits *bare, all map[operation][]converged, o operation, figure func(speed) float64) compared {
	rounds := make([]compared, len(all[o]))
	for i, c := range all[o] {
		limit := (figure(limits.speeds[o][i]) + figure(limits.speeds[o][i+1])) / 2
		value := figure(c.speed)
		rounds[i] = compared{value, limit, value / limit}
	}
	slices.SortFunc(rounds, func(a, b compared) int { return cmp.Compare(a.ratio, b.ratio) })
	return rounds[len(rounds)/2]
}

func micro(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
