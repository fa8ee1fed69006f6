// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"github.com/podconfigmap/podconfigmap-controller/ebpf/podslots"
	"github.com/podconfigmap/podconfigmap-controller/internal/logging"
	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
)

const (
	// defaultSlots is how many pods can be served where the node does not say how
	// many it may run, and maxSlots how many at most. A slot costs 4 KiB a CPU.
	defaultSlots = 1024
	maxSlots     = 16384
	// nodeTime is how long the node's object may take to read: enforcement does
	// not depend on it, so a start does not wait for an API server.
	nodeTime = 5 * time.Second
)

// slotting is how many pods can be served at a time, and whether the node said so.
type slotting struct {
	slots uint32
	known bool
}

// slotCount asks the node. Without an answer the number of an earlier agent stays.
func slotCount(ctx context.Context, c *clients, s *settings.Settings) slotting {
	ctx, cancel := context.WithTimeout(ctx, nodeTime)
	defer cancel()
	slots, err := wantedSlots(ctx, c, s)
	if err == nil {
		return slotting{slots, true}
	}
	slots = defaultSlots
	if pinned, err := podslots.Pinned(s.EffectiveBPFFSRoot()); err == nil {
		slots = pinned
	}
	logging.Warning(klog.FromContext(ctx), "How many pods the node may run is not known yet", "node", s.NodeName, "err", err, "assumed", slots)
	return slotting{slots, false}
}

// wantedSlots is as many as the node may run, and an eighth more for those that end
// while others begin.
func wantedSlots(ctx context.Context, c *clients, s *settings.Settings) (uint32, error) {
	node, err := c.kubernetes.CoreV1().Nodes().Get(ctx, s.NodeName, metav1.GetOptions{})
	if err != nil {
		return 0, err
	}
	pods := node.Status.Capacity.Pods().Value()
	if pods <= 0 {
		return defaultSlots, nil
	}
	return uint32(min(pods+pods/8+1, maxSlots)), nil
}
