// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/controllers/nodeagent"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/l4firewall"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/podslots"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/syscallcount"
	"github.com/podconfigmap/podconfigmap-controller/internal/bpffs"
	"github.com/podconfigmap/podconfigmap-controller/internal/logging"
	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
	"github.com/podconfigmap/podconfigmap-controller/internal/version"
)

// cleanupPause is between two tries to clean up, or to report it; it grows to a
// minute.
var cleanupPause = wait.Backoff{Duration: time.Second, Factor: 2, Steps: 1 << 30, Cap: time.Minute}

// Cleanup takes away everything that agents left on this node, reports it, and
// stays until the context ends: a DaemonSet would start again what ends. That
// either does not work is tried again for as long as it takes.
func Cleanup(ctx context.Context, config *rest.Config, s *settings.Settings) error {
	logger := klog.FromContext(ctx)
	logger.Info("Cleaning up", "mode", "agent --cleanup", "version", version.String(), "node", s.NodeName, "pins", s.EffectiveBPFFSRoot())
	err := wait.ExponentialBackoffWithContext(ctx, cleanupPause, func(context.Context) (bool, error) {
		err := removeAll(s.EffectiveBPFFSRoot())
		if err != nil {
			logging.Warning(logger, "The node is not clean yet; trying again", "err", err)
		}
		return err == nil, nil
	})
	if err != nil {
		return unlessStopped(ctx, err)
	}
	logger.Info("Nothing of the agent is left in the kernel")
	c, err := newClients(config)
	if err != nil {
		return err
	}
	err = wait.ExponentialBackoffWithContext(ctx, cleanupPause, func(ctx context.Context) (bool, error) {
		err := reportDetached(ctx, c, s)
		if err != nil {
			logging.Warning(logger, "That the node is clean is not reported yet; trying again", "err", err)
		}
		return err == nil, nil
	})
	if err != nil {
		return unlessStopped(ctx, err)
	}
	logger.Info("Reported; waiting to be stopped")
	<-ctx.Done()
	return nil
}

func unlessStopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// removeAll detaches every program and removes every pin of the directory, and
// the directory.
func removeAll(dir string) error {
	switch err := bpffs.Check(dir); {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, bpffs.ErrNotBPFFS):
		return nil // there can be no pins
	case err != nil:
		return err
	}
	// An agent that is about to end could attach again what is removed.
	lock, err := bpffs.Lock(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	err = errors.Join(l4firewall.Remove(dir), syscallcount.Remove(dir), podslots.Remove(dir))
	if err != nil {
		return fmt.Errorf("removing what is pinned in %s: %w", dir, err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing %s, which should be empty: %w", dir, err)
	}
	return nil
}

// reportDetached says in the EBPFNode that nothing is left on the node.
func reportDetached(ctx context.Context, c *clients, s *settings.Settings) error {
	w := nodeagent.NewWriter(nodeagent.Writer{Client: c.objects, Namespace: s.PodNamespace, Node: s.NodeName, Report: detachedStatus})
	_, err := w.Write(ctx)
	return err
}

func detachedStatus() *v1alpha1.EBPFNodeStatus {
	status := &v1alpha1.EBPFNodeStatus{KernelVersion: kernelVersion(), Architecture: runtime.GOARCH, CgroupVersion: cgroupVersion(), BTF: hasBTF()}
	meta.SetStatusCondition(&status.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonCleanedUp, Message: "the agent was told to clean up",
	})
	meta.SetStatusCondition(&status.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionDetached, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonCleanedUp,
		Message: "no program, map, pin or attachment of the agent is left on the node",
	})
	return status
}
