// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

// reports is an API server that notes when a status was written.
type reports struct {
	client.Client
	mu     sync.Mutex
	writes []time.Time
	err    error // of the next writes
}

func (r *reports) written() []time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.writes)
}

func (r *reports) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

func (r *reports) Get(_ context.Context, key client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	object.SetName(key.Name)
	object.SetUID("u")
	return nil
}

func (r *reports) Apply(context.Context, runtime.ApplyConfiguration, ...client.ApplyOption) error {
	return nil
}

func (r *reports) Status() client.SubResourceWriter { return statuses{reports: r} }

type statuses struct {
	client.SubResourceWriter
	*reports
}

func (s statuses) Apply(context.Context, runtime.ApplyConfiguration, ...client.SubResourceApplyOption) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.writes = append(s.writes, time.Now())
	}
	return s.err
}

// TestWriterPace: the report is written when it changes, at most every five
// seconds, and a write that fails is tried again.
func TestWriterPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &reports{}
		var pods atomic.Int32
		w := NewWriter(Writer{Client: api, Namespace: "operators", Node: "n", Report: func() *v1alpha1.EBPFNodeStatus {
			return &v1alpha1.EBPFNodeStatus{AttachedPods: pods.Load(), Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}}}
		}})
		ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), logr.Discard()))
		done := make(chan error)
		go func() { done <- w.Start(ctx) }()
		tick := func(changes int, differ bool) (written int) {
			before := len(api.written())
			for range changes {
				if differ {
					pods.Add(1)
				}
				w.Changed()
				time.Sleep(100 * time.Millisecond)
				synctest.Wait()
			}
			return len(api.written()) - before
		}
		if n := tick(1, true); n != 1 {
			t.Errorf("the first change is written %d times at once", n)
		}
		if n := tick(600, true); n < 11 || n > 12 {
			t.Errorf("a minute of changes is written %d times", n)
		}
		writes := api.written()
		for i := 1; i < len(writes); i++ {
			if gap := writes[i].Sub(writes[i-1]); gap < writeInterval {
				t.Errorf("two writes %v after each other", gap)
			}
		}
		time.Sleep(2 * writeInterval)
		synctest.Wait()
		if n := tick(600, false); n != 0 {
			t.Errorf("without a change it is written %d times", n)
		}
		before := len(api.written())
		api.fail(errors.New("no luck"))
		tick(50, true)
		api.fail(nil)
		time.Sleep(2 * maxPause)
		synctest.Wait()
		if n := len(api.written()) - before; n != 1 {
			t.Errorf("what could not be written was written %d times later", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestFeaturesAreToldOnce: an Event for each feature that the node lacks.
func TestFeaturesAreToldOnce(t *testing.T) {
	b := newTestBench(t, nil)
	pods := int32(0)
	w := NewWriter(Writer{Client: &reports{}, Namespace: "operators", Node: "n", Events: b.events, Report: func() *v1alpha1.EBPFNodeStatus {
		pods++
		return &v1alpha1.EBPFNodeStatus{AttachedPods: pods, Features: []v1alpha1.EBPFNodeFeature{
			{Name: v1alpha1.FeatureL4Firewall, Supported: true}, {Name: v1alpha1.FeatureSyscallCounter, Reason: "no BTF"},
		}}
	}})
	for range 3 {
		if wrote, err := w.Write(t.Context()); !wrote || err != nil {
			t.Errorf("written: %t, %v", wrote, err)
		}
	}
	const want = corev1.EventTypeWarning + " FeatureUnsupported SyscallCounter is not supported on node n: no BTF"
	if n := len(b.events.Events); n != 1 {
		t.Fatalf("%d Events", n)
	}
	if got := <-b.events.Events; got != want {
		t.Errorf("told %q, want %q", got, want)
	}
}
