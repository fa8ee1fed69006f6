// SPDX-License-Identifier: Apache-2.0

package status

import (
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/telemetry"
)

// Metrics are those that this controller moves. Only the leader has them.
type Metrics struct {
	*telemetry.Reconciliation
	ready, configMaps *prometheus.GaugeVec
}

// NewMetrics makes them.
func NewMetrics(f *telemetry.Factory, shared *telemetry.Reconciliation) *Metrics {
	return &Metrics{
		Reconciliation: shared,
		ready:          f.Gauge("pcmc_status", "1 where the config's condition Ready is True, else 0. Only the leader has it.", "name", "namespace"),
		configMaps:     f.Gauge("active_configmaps", "ConfigMaps that exist for the config. Only the leader has it.", "namespace", "pcmc_name"),
	}
}

func (m *Metrics) show(pcmc *v1alpha1.PodConfigMapConfig, status *v1alpha1.PodConfigMapConfigStatus, present int) {
	value := 0.0
	if meta.IsStatusConditionTrue(status.Conditions, v1alpha1.ConditionReady) {
		value = 1
	}
	m.ready.WithLabelValues(pcmc.Name, pcmc.Namespace).Set(value)
	m.configMaps.WithLabelValues(pcmc.Namespace, pcmc.Name).Set(float64(present))
}

func (m *Metrics) forget(config types.NamespacedName) {
	m.ready.DeleteLabelValues(config.Name, config.Namespace)
	m.configMaps.DeleteLabelValues(config.Namespace, config.Name)
}
