// SPDX-License-Identifier: Apache-2.0

package subsystem

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/operator-framework/api/crds"
	operatorsv2 "github.com/operator-framework/api/pkg/operators/v2"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// olm returns a client of an API server that knows OLM's own OperatorCondition.
func olm(t *testing.T) client.Client {
	t.Helper()
	plane, err := controlplane.Start(t.Context(), controlplane.Options{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	scheme := runtime.NewScheme()
	if err := operatorsv2.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	if err := apiextensionsv1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(plane.Config(), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Create(t.Context(), crds.OperatorCondition()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "OLM's kind is served", func(ctx context.Context) error {
		return c.List(ctx, &operatorsv2.OperatorConditionList{})
	})
	return c
}

func eventually(t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, harness.Patience, true, func(ctx context.Context) (bool, error) {
		last = check(ctx)
		return last == nil, nil
	})
	if err != nil {
		t.Fatalf("waiting until %s: %v", what, last)
	}
}

func TestUpgradeableIsReported(t *testing.T) {
	c := olm(t)
	key := types.NamespacedName{Namespace: "default", Name: "podconfigmap-controller.v1"}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	// The object comes late, as a new operator's may: that must only delay it.
	board := &Board{}
	board.Set(State{Busy: "a roll-out", BusyUntil: time.Now().Add(time.Hour)})
	go func() { ended <- (&OperatorCondition{Client: c, Key: key, Board: board}).Start(ctx) }()
	other := metav1.Condition{Type: "Other", Status: metav1.ConditionFalse, Reason: "Foreign", LastTransitionTime: metav1.Now()}
	object := &operatorsv2.OperatorCondition{
		ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name},
		Spec:       operatorsv2.OperatorConditionSpec{Conditions: []metav1.Condition{other}},
	}
	if err := c.Create(ctx, object); err != nil {
		t.Fatal(err)
	}
	reported := func(status metav1.ConditionStatus, message string) {
		t.Helper()
		eventually(t, "Upgradeable is "+string(status), func(ctx context.Context) error {
			if err := c.Get(ctx, key, object); err != nil {
				return err
			}
			if is := meta.FindStatusCondition(object.Spec.Conditions, operatorsv2.Upgradeable); is == nil || is.Status != status || is.Message != message {
				return fmt.Errorf("conditions are %+v", object.Spec.Conditions)
			}
			return nil
		})
	}
	const free = "nothing is under way that an upgrade would disturb"
	reported(metav1.ConditionFalse, "a roll-out")
	board.Set(State{})
	reported(metav1.ConditionTrue, free)
	// What takes too long no longer holds an upgrade back.
	board.Set(State{Busy: "a bad roll-out", BusyUntil: time.Now().Add(3 * time.Second)})
	reported(metav1.ConditionFalse, "a bad roll-out")
	reported(metav1.ConditionTrue, free)
	if kept := meta.FindStatusCondition(object.Spec.Conditions, "Other"); kept == nil || kept.Reason != "Foreign" {
		t.Errorf("another's condition was lost: %+v", object.Spec.Conditions)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
	// Saying the same again writes nothing, not even after a restart.
	version := object.ResourceVersion
	calls := &counting{Client: c}
	ctx, cancel = context.WithCancel(t.Context())
	go func() { ended <- (&OperatorCondition{Client: calls, Key: key, Board: board}).Start(ctx) }()
	eventually(t, "it looks", func(context.Context) error {
		if calls.gets.Load() == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	for range 5 {
		board.Set(State{Problem: time.Now().String()})
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if err := c.Get(t.Context(), key, object); err != nil || object.ResourceVersion != version || calls.gets.Load() != 1 {
		t.Errorf("written again: %v, resource version %s, was %s; %d looks", err, object.ResourceVersion, version, calls.gets.Load())
	}
}

// counting counts reads.
type counting struct {
	client.Client
	gets atomic.Int32
}

func (c *counting) Get(ctx context.Context, key client.ObjectKey, into client.Object, o ...client.GetOption) error {
	defer c.gets.Add(1)
	return c.Client.Get(ctx, key, into, o...)
}

func TestStopEndsTheReport(t *testing.T) {
	c := olm(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	board := &Board{}
	board.Set(State{})
	go func() {
		ended <- (&OperatorCondition{Client: c, Board: board, Key: types.NamespacedName{Namespace: "default", Name: "absent"}}).Start(ctx)
	}()
	time.AfterFunc(100*time.Millisecond, cancel)
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("a stop gives %v", err)
		}
	case <-time.After(harness.Patience):
		t.Fatal("it goes on after the stop")
	}
}
