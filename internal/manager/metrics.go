// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/podconfigmap/podconfigmap-controller/controllers/configmaps"
	"github.com/podconfigmap/podconfigmap-controller/controllers/status"
	"github.com/podconfigmap/podconfigmap-controller/internal/telemetry"
)

// Metrics describes the metrics that the manager exposes.
func Metrics() []telemetry.Definition {
	f := telemetry.NewFactory(prometheus.NewRegistry())
	newMetrics(f)
	return f.Definitions
}

func newMetrics(f *telemetry.Factory) (*configmaps.Metrics, *status.Metrics) {
	shared := telemetry.NewReconciliation(f)
	return configmaps.NewMetrics(f, shared), status.NewMetrics(f, shared)
}
