// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/podconfigmap/podconfigmap-controller/controllers/nodeagent"
	"github.com/podconfigmap/podconfigmap-controller/internal/telemetry"
)

// Metrics describes the metrics that the agent exposes.
func Metrics() []telemetry.Definition {
	f := telemetry.NewFactory(prometheus.NewRegistry())
	nodeagent.NewMetrics(f, nil)
	return f.Definitions
}
