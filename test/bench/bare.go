// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"syscall"
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
	rate     float64       // per second
	cpu      time.Duration // of the client's process, for each
	parallel int           // of the bare client
	how      string
}

func (s *speed) improve(other speed) {
	if other.rate > s.rate {
		*s = other
	}
}

// bare makes the calls that the operator makes, and nothing else: no watch, no
// queue, and what it sends is prepared beforehand.
type bare struct {
	*bench
	wanted []*corev1.ConfigMap // of variant 0
	made   []*corev1.ConfigMap // as the API server answered last
	best   map[operation]*speed
}

func (b *bench) newBare() (*bare, error) {
	r := &bare{bench: b, made: make([]*corev1.ConfigMap, b.wanted()), best: map[operation]*speed{}}
	for _, o := range operations {
		r.best[o] = &speed{}
	}
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

// round creates, updates in two ways and deletes all ConfigMaps, with each
// parallelism, and keeps the best.
func (r *bare) round(ctx context.Context) error {
	for _, parallel := range parallelisms {
		if err := r.time(ctx, creation, "create", parallel, r.create); err != nil {
			return err
		}
		puts, err := r.puts(1)
		if err != nil {
			return err
		}
		if err := r.time(ctx, updating, "update", parallel, func(ctx context.Context, i int) error {
			return r.put(ctx, i, puts[i])
		}); err != nil {
			return err
		}
		patches, err := r.patches(2)
		if err != nil {
			return err
		}
		if err := r.time(ctx, updating, "JSON patch", parallel, func(ctx context.Context, i int) error {
			return r.patch(ctx, i, patches[i])
		}); err != nil {
			return err
		}
		if err := r.time(ctx, deletion, "delete", parallel, r.delete); err != nil {
			return err
		}
	}
	return nil
}

// time measures one pass over all ConfigMaps.
func (r *bare) time(ctx context.Context, o operation, how string, parallel int, call func(context.Context, int) error) error {
	cpu, began := ownCPU(), time.Now()
	if err := forEach(ctx, len(r.wanted), parallel, call); err != nil {
		return fmt.Errorf("making bare calls (%s): %w", how, err)
	}
	took, n := time.Since(began), len(r.wanted)
	s := speed{rate: float64(n) / took.Seconds(), cpu: (ownCPU() - cpu) / time.Duration(n), parallel: parallel, how: how}
	say("bare %s, %d at a time: %.0f/s, %v of CPU each", how, parallel, s.rate, s.cpu)
	r.best[o].improve(s)
	return nil
}

// ownCPU is the CPU time of this process so far.
func ownCPU() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
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

// patches are JSON patches to a variant, of the operator's shape.
func (r *bare) patches(variant int) ([][]byte, error) {
	all, err := r.configMaps(variant)
	if err != nil {
		return nil, err
	}
	bodies := make([][]byte, len(all))
	for i, cm := range all {
		bodies[i], err = json.Marshal([]map[string]any{
			{"op": "replace", "path": "/metadata/uid", "value": r.made[i].UID},
			{"op": "replace", "path": "/metadata/resourceVersion", "value": r.made[i].ResourceVersion},
			{"op": "add", "path": "/data", "value": cm.Data},
		})
		if err != nil {
			return nil, fmt.Errorf("encoding a patch: %w", err)
		}
	}
	return bodies, nil
}

func (r *bare) patch(ctx context.Context, i int, body []byte) (err error) {
	cm := r.wanted[i]
	r.made[i], err = r.core.ConfigMaps(cm.Namespace).Patch(ctx, cm.Name, types.JSONPatchType, body, metav1.PatchOptions{FieldManager: observed.FieldManager})
	return err
}

func (r *bare) delete(ctx context.Context, i int) error {
	cm := r.made[i]
	return r.core.ConfigMaps(cm.Namespace).Delete(ctx, cm.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &cm.UID, ResourceVersion: &cm.ResourceVersion},
	})
}
