// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/controllers/configmaps"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
)

const (
	// sampleTimeout is how long one ConfigMap may take to follow its pod.
	sampleTimeout = time.Minute
	// betweenSamples leaves the API server at rest.
	betweenSamples = 20 * time.Millisecond
	// maxCrowds is how many convergences may be probed for enough samples.
	maxCrowds = 12
)

// latency measures how long a ConfigMap takes to follow a label of its pod, at
// rest and while a change of all configs keeps the operator busy.
func (b *bench) latency(ctx context.Context, empty memory) error {
	if err := b.putConfigs(ctx, 0); err != nil {
		return err
	}
	return b.withOperator(nil, func(op *operator) error {
		if err := b.awaitObserved(ctx); err != nil {
			return err
		}
		if err := sleep(ctx, quiet); err != nil {
			return err
		}
		p := &prober{bench: b}
		rest, err := p.atRest(ctx)
		if err != nil {
			return err
		}
		crowd, err := p.inCrowds(ctx, op)
		if err != nil {
			return err
		}
		b.reportLatency(rest, crowd)
		full, err := op.settledMemory(ctx, b.settle)
		if err != nil {
			return err
		}
		b.reportMemory("having updated all", empty, full)
		return nil
	})
}

// prober changes a label of one pod after the other.
type prober struct {
	*bench
	next int
}

// sample changes a label of the next pod and waits until its second ConfigMap
// has the new value. The time counts from before the change is sent.
func (p *prober) sample(ctx context.Context) (time.Duration, error) {
	p.next++
	// Far apart, so that one pod's turn comes again late.
	pod := p.pods[p.next*7919%len(p.pods)]
	ctx, cancel := context.WithTimeout(ctx, sampleTimeout)
	defer cancel()
	took, err := p.follow(ctx, pod, strconv.Itoa(p.next))
	if err != nil {
		return 0, fmt.Errorf("changing a label of pod %s: %w", pod.Key(), err)
	}
	return took, nil
}

func (p *prober) follow(ctx context.Context, pod *observed.Pod, value string) (time.Duration, error) {
	all := p.core.ConfigMaps(pod.Namespace.Value())
	name := configmaps.ConfigMapName(pod.Name, "summary")
	// It begins with the ConfigMap as it is.
	events, err := all.Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String(), ResourceVersion: "0",
	})
	if err != nil {
		return 0, err
	}
	defer events.Stop()
	<-events.ResultChan()
	body := fmt.Appendf(nil, `{"metadata":{"labels":{%q:%q}}}`, probeLabel, value)
	began := time.Now()
	if _, err := p.core.Pods(pod.Namespace.Value()).Patch(ctx, pod.Name, types.MergePatchType, body, metav1.PatchOptions{}); err != nil {
		return 0, err
	}
	for e := range events.ResultChan() {
		if cm, ok := e.Object.(*corev1.ConfigMap); ok && cm.Data[probeKey] == value {
			return time.Since(began), nil
		}
	}
	return 0, errors.Join(errors.New("its ConfigMap did not follow"), ctx.Err())
}

func (p *prober) atRest(ctx context.Context) (samples, error) {
	say("changing labels at rest, %d times", p.samples)
	var all samples
	for len(all) < p.samples {
		took, err := p.sample(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, took)
		if err := sleep(ctx, betweenSamples); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// inCrowds changes labels during as many convergences as it takes.
func (p *prober) inCrowds(ctx context.Context, op *operator) (samples, error) {
	var all samples
	for crowd := 1; crowd <= maxCrowds && len(all) < p.samples; crowd++ {
		say("changing labels in a crowd, %d of %d done", len(all), p.samples)
		some, err := p.inCrowd(ctx, op, crowd)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

// inCrowd takes samples from the change of all configs on until nine tenths of
// the ConfigMaps have followed.
func (p *prober) inCrowd(ctx context.Context, op *operator, variant int) (samples, error) {
	var all samples
	end := op.wrote(ctx, updating) + p.wanted()*9/10
	if err := p.putConfigs(ctx, variant); err != nil {
		return nil, err
	}
	for {
		took, err := p.sample(ctx)
		if err != nil {
			return nil, err
		}
		if op.wrote(ctx, updating) > end {
			break
		}
		all = append(all, took)
	}
	return all, p.awaitObserved(ctx)
}

// samples are how long single label changes took.
type samples []time.Duration

// quantile returns the sample below or at which that share of all is.
func (s samples) quantile(q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	at := min(len(sorted)-1, int(q*float64(len(sorted))))
	return float64(sorted[at]) / float64(time.Millisecond)
}

func (b *bench) reportLatency(rest, crowd samples) {
	for _, r := range []struct {
		when string
		samples
	}{{"at rest", rest}, {"in a crowd", crowd}} {
		b.table.add(fmt.Sprintf("label change to ConfigMap %s, median of %d", r.when, len(r.samples)), r.quantile(0.5), "ms")
		if r.when == "at rest" {
			b.table.add("label change to ConfigMap at rest, p99", r.quantile(0.99), "ms")
			continue
		}
		b.table.compare("label change to ConfigMap in a crowd, p99", r.quantile(0.99), "ms", 10*rest.quantile(0.99), "<= 1")
	}
}
