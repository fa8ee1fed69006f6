// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
)

// nodePause is between two tries to read the node's object.
const nodePause = 5 * time.Second

// errAnew ends an agent that can serve its node better when it begins anew: the
// sizes of its maps, and which programs there are, are settled at the start. What
// is in the kernel works on meanwhile, as in every restart.
var errAnew = errors.New("the agent begins anew")

// beginAnew puts a new agent in the place of this one, in the same process. It
// returns only if that fails.
func beginAnew() error {
	environ := os.Environ() //nolint:forbidigo // handed on, not read
	if err := unix.Exec("/proc/self/exe", os.Args, environ); err != nil {
		return fmt.Errorf("beginning anew: %w", err)
	}
	return nil
}

// improve returns what watches for that the agent should begin anew.
func (n *node) improve(c *clients, s *settings.Settings, size slotting) []manager.Runnable {
	var all []manager.Runnable
	if !size.known {
		all = append(all, manager.RunnableFunc(func(ctx context.Context) error { return n.awaitSize(ctx, c, s) }))
	}
	if n.lacks() {
		all = append(all, manager.RunnableFunc(func(ctx context.Context) error { return n.awaitMended(ctx, s, size.slots) }))
	}
	return all
}

// awaitSize waits until the node's object can be read, and ends the agent where it
// has another number of slots than the node wants.
func (n *node) awaitSize(ctx context.Context, c *clients, s *settings.Settings) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(nodePause):
		}
		wanted, err := wantedSlots(ctx, c, s)
		switch {
		case err != nil:
			continue
		case n.slots == nil || n.slots.Len() == wanted:
			return nil
		}
		klog.FromContext(ctx).Info("Beginning anew: how many pods the node may run is known now", "slots", wanted, "before", n.slots.Len())
		return errAnew
	}
}

// lacks tells whether the node does not support a feature.
func (n *node) lacks() bool {
	for _, supported := range n.supports() {
		if !supported {
			return true
		}
	}
	return false
}

// awaitMended tries from time to time whether what the node lacked at the start is
// there now, and ends the agent then.
func (n *node) awaitMended(ctx context.Context, s *settings.Settings, slots uint32) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(s.ResyncPeriod):
		}
		what, err := n.mended(s, slots)
		if err != nil {
			return err
		}
		if what != "" {
			klog.FromContext(ctx).Info("Beginning anew: what the node lacked is there now", "what", what)
			return errAnew
		}
	}
}

// mended names a feature that the node lacked at the start and supports now, or
// what all of them stand on. The error is of letting go of it again.
func (n *node) mended(s *settings.Settings, slots uint32) (what string, err error) {
	dir := s.EffectiveBPFFSRoot()
	if n.tree == nil || n.slots == nil {
		trial := &node{}
		if trial.openGround(s, slots) == nil {
			what = "the ground of all features"
		}
		return what, errors.Join(trial.close(), trial.closeTree())
	}
	trial := &node{slots: n.slots, firewall: n.firewall}
	supports := n.supports()
	for _, f := range trial.features(dir) {
		if !supports[string(f.name)] && f.open() == nil {
			what = string(f.name)
			break
		}
	}
	trial.slots = nil
	if n.firewall != nil {
		trial.firewall = nil
	}
	return what, trial.close()
}

// closeTree lets go of a tree that was not run.
func (n *node) closeTree() error {
	if n.tree == nil {
		return nil
	}
	return n.tree.Close()
}

// feature is one of what the node may support, and how it is opened.
type feature struct {
	name v1alpha1.EBPFFeature
	open func() error
}

// features are all, in an order in which each finds what it stands on.
func (n *node) features(dir string) []feature {
	return []feature{
		{v1alpha1.FeatureSyscallCounter, func() error { return n.openCounter(dir) }},
		{v1alpha1.FeatureL4Firewall, func() error { return n.openFirewall(dir) }},
		{v1alpha1.FeatureConnectDenied, n.probeConnectDenied},
	}
}
