// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

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

// slotCount is how many pods can be served at a time: as many as the node may
// run, and an eighth more for those that end while others begin.
func slotCount(ctx context.Context, c *clients, s *settings.Settings) uint32 {
	ctx, cancel := context.WithTimeout(ctx, nodeTime)
	defer cancel()
	node, err := c.kubernetes.CoreV1().Nodes().Get(ctx, s.NodeName, metav1.GetOptions{})
	if err != nil {
		logging.Warning(klog.FromContext(ctx), "How many pods the node may run is not known", "node", s.NodeName, "err", err, "assumed", defaultSlots)
		return defaultSlots
	}
	pods := node.Status.Capacity.Pods().Value()
	if pods <= 0 {
		return defaultSlots
	}
	return uint32(min(pods+pods/8+1, maxSlots))
}
