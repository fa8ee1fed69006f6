// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/controllers/configmaps"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
)

// parallelisms are how many bare calls are made at the same time.
var parallelisms = []int{8, 32, 128}

// operation is a phase in which every ConfigMap is written once.
type operation string

const (
	creation operation = "create"
	updating operation = "update"
	deletion operation = "delete"
)

var operations = []operation{creation, updating, deletion}

// speed is how fast an operation went, of all ConfigMaps.
type speed struct {
	rate float64       // per second
	warm float64       // the operator's from its first write; bare calls have no other
	cpu  time.Duration // of the process that made the calls, for each
	all  time.Duration // of the API server and etcd, too, for each
}

func (s speed) String() string {
	return fmt.Sprintf("%.0f/s, %v of CPU each, %v of all", s.rate, s.cpu, s.all)
}

// stopwatch measures one pass over all ConfigMaps.
type stopwatch struct {
	began    time.Time
	pid      int // of the process that makes the calls
	cpu, all time.Duration
}

func startWatch(pid int) (w stopwatch, err error) {
	w.pid, w.began = pid, time.Now()
	if w.cpu, w.all, err = w.read(); err != nil {
		return w, fmt.Errorf("reading CPU times: %w", err)
	}
	return w, nil
}

func (w *stopwatch) read() (cpu, all time.Duration, err error) {
	if _, cpu, err = processTimes(w.pid); err != nil {
		return 0, 0, err
	}
	all, err = allCPU()
	return cpu, all, err
}

// stop returns the speed of n writes since the start.
func (w *stopwatch) stop(n int) (speed, error) {
	took := time.Since(w.began)
	cpu, all, err := w.read()
	each := func(d time.Duration) time.Duration { return d / time.Duration(n) }
	return speed{rate: float64(n) / took.Seconds(), cpu: each(cpu - w.cpu), all: each(all - w.all)}, err
}

// bare makes the calls that the operator makes, and nothing else: no watch, no
// queue, and what it sends is prepared beforehand.
type bare struct {
	*bench
	wanted  []*corev1.ConfigMap // of variant 0
	variant int                 // of the last pass
	made    []*corev1.ConfigMap // as the API server answered last
	choice  map[operation]pass
	speeds  map[operation][]speed // with the choice
}

// pass is one way to make the calls of an operation.
type pass struct {
	operation
	how      string
	parallel int
}

func (p pass) String() string { return fmt.Sprintf("%s, %d at a time", p.how, p.parallel) }

const (
	byUpdate         = "update"
	byJSONPatch      = "JSON patch"
	byStrategicPatch = "strategic merge patch"
)

func (b *bench) newBare() (*bare, error) {
	r := &bare{bench: b, made: make([]*corev1.ConfigMap, b.wanted()), choice: map[operation]pass{}, speeds: map[operation][]speed{}}
	var err error
	r.wanted, err = b.configMaps(0)
	return r, err
}

func (b *bench) configMaps(variant int) ([]*corev1.ConfigMap, error) {
	all := make([]*corev1.ConfigMap, b.wanted())
	err := b.eachWanted(variant, func(i int, pod *observed.Pod, config *configmaps.Config) error {
		cm, failure := configmaps.New(pod, config)
		if failure != nil {
			return failure
		}
		all[i] = cm
		return nil
	})
	return all, err
}

// choose tries every way and parallelism, and remembers the fastest of each
// operation.
func (r *bare) choose(ctx context.Context) error {
	best := map[operation]float64{}
	for _, parallel := range parallelisms {
		for _, p := range []pass{
			{creation, "create", parallel}, {updating, byUpdate, parallel}, {updating, byJSONPatch, parallel},
			{updating, byStrategicPatch, parallel}, {deletion, "delete", parallel},
		} {
			s, err := r.time(ctx, p)
			if err != nil {
				return err
			}
			if s.rate > best[p.operation] {
				best[p.operation], r.choice[p.operation] = s.rate, p
			}
		}
	}
	return nil
}

// round creates, updates and deletes all ConfigMaps in the ways chosen.
func (r *bare) round(ctx context.Context) error {
	for _, o := range operations {
		s, err := r.time(ctx, r.choice[o])
		if err != nil {
			return err
		}
		r.speeds[o] = append(r.speeds[o], s)
	}
	return nil
}

// time measures one pass over all ConfigMaps.
func (r *bare) time(ctx context.Context, p pass) (speed, error) {
	call, err := r.prepare(p)
	if err != nil {
		return speed{}, err
	}
	watch, err := startWatch(os.Getpid())
	if err != nil {
		return speed{}, err
	}
	if err := forEach(ctx, len(r.wanted), p.parallel, call); err != nil {
		return speed{}, fmt.Errorf("making bare calls (%s): %w", p, err)
	}
	s, err := watch.stop(len(r.wanted))
	say("bare %s: %v", p, s)
	return s, err
}

// prepare makes all that the calls of a pass send.
func (r *bare) prepare(p pass) (func(ctx context.Context, i int) error, error) {
	r.variant++ // or an update would change nothing
	switch p.how {
	case byUpdate:
		bodies, err := r.puts(r.variant)
		return func(ctx context.Context, i int) error { return r.put(ctx, i, bodies[i]) }, err
	case byJSONPatch:
		return r.patchWith(types.JSONPatchType, func(made, wanted *corev1.ConfigMap) any {
			return []map[string]any{
				{"op": "replace", "path": "/metadata/uid", "value": made.UID},
				{"op": "replace", "path": "/metadata/resourceVersion", "value": made.ResourceVersion},
				{"op": "add", "path": "/data", "value": wanted.Data},
			}
		})
	case byStrategicPatch:
		return r.patchWith(types.StrategicMergePatchType, func(made, wanted *corev1.ConfigMap) any {
			wanted.Data["$patch"] = "replace"
			return map[string]any{
				"metadata": map[string]any{"uid": made.UID, "resourceVersion": made.ResourceVersion}, "data": wanted.Data,
			}
		})
	}
	if p.operation == creation {
		r.variant = 0
		return r.create, nil
	}
	return r.delete, nil
}

func (r *bare) create(ctx context.Context, i int) (err error) {
	cm := r.wanted[i]
	r.made[i], err = r.core.ConfigMaps(cm.Namespace).Create(ctx, cm, metav1.CreateOptions{FieldManager: observed.FieldManager})
	return err
}

// puts are the bodies of updates to a variant. They leave out the managed
// fields, which the API server then keeps as they are.
func (r *bare) puts(variant int) ([]*corev1.ConfigMap, error) {
	all, err := r.configMaps(variant)
	for i, cm := range all {
		cm.UID, cm.ResourceVersion = r.made[i].UID, r.made[i].ResourceVersion
	}
	return all, err
}

func (r *bare) put(ctx context.Context, i int, cm *corev1.ConfigMap) (err error) {
	r.made[i], err = r.core.ConfigMaps(cm.Namespace).Update(ctx, cm, metav1.UpdateOptions{FieldManager: observed.FieldManager})
	return err
}

// patchWith prepares patches to the variant, each conditioned on the UID and the
// resource version, as all that the operator writes is.
func (r *bare) patchWith(kind types.PatchType, body func(made, wanted *corev1.ConfigMap) any) (func(ctx context.Context, i int) error, error) {
	all, err := r.configMaps(r.variant)
	if err != nil {
		return nil, err
	}
	bodies := make([][]byte, len(all))
	for i, cm := range all {
		if bodies[i], err = json.Marshal(body(r.made[i], cm)); err != nil {
			return nil, fmt.Errorf("encoding a patch: %w", err)
		}
	}
	return func(ctx context.Context, i int) (err error) {
		cm := r.wanted[i]
		r.made[i], err = r.core.ConfigMaps(cm.Namespace).Patch(ctx, cm.Name, kind, bodies[i], metav1.PatchOptions{FieldManager: observed.FieldManager})
		return err
	}, nil
}

func (r *bare) delete(ctx context.Context, i int) error {
	cm := r.made[i]
	return r.core.ConfigMaps(cm.Namespace).Delete(ctx, cm.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &cm.UID, ResourceVersion: &cm.ResourceVersion},
	})
}
