// SPDX-License-Identifier: Apache-2.0

// Package subsystem keeps the node agents in step with the feature flag, and
// tells the cluster's package manager what is under way.
package subsystem

import (
	"context"
	"errors"
	"fmt"
	"time"

	operatorsv2 "github.com/operator-framework/api/pkg/operators/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/internal/logging"
)

// +kubebuilder:rbac:groups=operators.coreos.com,resources=operatorconditions,verbs=get;update,namespace=system

// OperatorCondition reports to the Operator Lifecycle Manager whether the
// operator may be upgraded now. It is a manager's Runnable, and the leader's
// alone.
type OperatorCondition struct {
	// Client reads and writes without a cache: one object, when something changes.
	Client client.Client
	// Key names the OperatorCondition that OLM made for this operator.
	Key types.NamespacedName
	// Board shows what is under way.
	Board *Board
}

// NeedLeaderElection is true: the leader speaks for the operator.
func (o *OperatorCondition) NeedLeaderElection() bool { return true }

// Start reports Upgradeable whenever it changes, trying again for as long as it
// takes, until the context ends. That OLM cannot be told is no reason to stop the
// operator.
func (o *OperatorCondition) Start(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	changed <- struct{}{}
	o.Board.OnChange(func() {
		select {
		case changed <- struct{}{}:
		default: // it will look anyway
		}
	})
	var told metav1.Condition
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-expiry(told, o.Board.State()):
		}
		state := o.Board.State()
		if now := upgradeable(state, time.Now()); state.Known && now != told {
			if o.tell(ctx, now) != nil {
				return nil // the context has ended
			}
			told = now
		}
	}
}

// expiry fires when what was reported to be under way no longer counts.
func expiry(told metav1.Condition, s State) <-chan time.Time {
	if told.Status != metav1.ConditionFalse || s.Busy == "" {
		return nil
	}
	return time.After(time.Until(s.BusyUntil))
}

// upgradeable is the condition to report. What is under way holds an upgrade
// back for a limited time, or a bad roll-out would block its own mending.
func upgradeable(s State, now time.Time) metav1.Condition {
	if s.Busy != "" && now.Before(s.BusyUntil) {
		return metav1.Condition{Type: operatorsv2.Upgradeable, Status: metav1.ConditionFalse, Reason: "AgentsChanging", Message: s.Busy}
	}
	return metav1.Condition{
		Type: operatorsv2.Upgradeable, Status: metav1.ConditionTrue,
		Reason: "Ready", Message: "nothing is under way that an upgrade would disturb",
	}
}

// tell reports until it succeeds; the error is that of the context.
func (o *OperatorCondition) tell(ctx context.Context, c metav1.Condition) error {
	backoff := wait.Backoff{Duration: time.Second, Factor: 2, Steps: 1 << 30, Cap: 5 * time.Minute}
	return wait.ExponentialBackoffWithContext(ctx, backoff, func(ctx context.Context) (bool, error) {
		err := o.report(ctx, c)
		if err != nil {
			logging.Warning(klog.FromContext(ctx), "OLM does not know yet whether the operator may be upgraded", "operatorCondition", o.Key, "err", err)
		}
		return err == nil, nil
	})
}

func (o *OperatorCondition) report(ctx context.Context, c metav1.Condition) error {
	operator := &operatorsv2.OperatorCondition{}
	err := o.Client.Get(ctx, o.Key, operator)
	if err != nil {
		return fmt.Errorf("reading OperatorCondition %q: %w", o.Key.Name, err)
	}
	c.ObservedGeneration = operator.Generation
	before := meta.FindStatusCondition(operator.Spec.Conditions, c.Type)
	if before != nil && before.Status == c.Status && before.Reason == c.Reason && before.Message == c.Message {
		return nil
	}
	meta.SetStatusCondition(&operator.Spec.Conditions, c)
	err = o.Client.Update(ctx, operator, client.FieldOwner("podconfigmap-controller"))
	switch {
	case apierrors.IsConflict(err):
		return errors.New("it changed meanwhile")
	case err != nil:
		return fmt.Errorf("writing OperatorCondition %q: %w", o.Key.Name, err)
	}
	return nil
}
