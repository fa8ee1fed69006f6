// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/internal/telemetry"
)

// Metrics are those of the agent.
type Metrics struct {
	errors    *prometheus.CounterVec
	collector *collector
}

// NewMetrics makes them. The features are those of the node, and whether it
// supports them.
func NewMetrics(f *telemetry.Factory, features map[string]bool) *Metrics {
	m := &Metrics{
		errors: f.Counter("ebpf_program_errors_total",
			"What went wrong with a pod's programs, by error_type. program_type is syscall_counter or l4_firewall.",
			"namespace", "pod_name", "program_type", "error_type"),
		collector: newCollector(features),
	}
	f.Collector(m.collector, definitions...)
	return m
}

// use has the metrics read from what the reconciler serves, from now on.
func (m *Metrics) use(r *Reconciler) { m.collector.use(r) }

func (m *Metrics) failed(pod types.NamespacedName, f *failure) {
	m.errors.WithLabelValues(pod.Namespace, pod.Name, string(f.program), string(f.why)).Inc()
}

// forget ends the series of a pod that is gone.
func (m *Metrics) forget(pod types.NamespacedName) {
	m.errors.DeletePartialMatch(prometheus.Labels{"namespace": pod.Namespace, "pod_name": pod.Name})
}
