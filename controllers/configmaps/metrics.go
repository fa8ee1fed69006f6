// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/podconfigmap/podconfigmap-controller/internal/apifailure"
	"github.com/podconfigmap/podconfigmap-controller/internal/telemetry"
)

// Metrics are those that this controller moves.
type Metrics struct {
	*telemetry.Reconciliation
	operations *prometheus.CounterVec
}

// NewMetrics makes them.
func NewMetrics(f *telemetry.Factory, shared *telemetry.Reconciliation) *Metrics {
	return &Metrics{
		Reconciliation: shared,
		operations: f.Counter("configmap_operations_total",
			"Writes of ConfigMaps. operation is create, update or delete; result is success, error or conflict (the object had changed; a fresh look follows).",
			"operation", "namespace", "result"),
	}
}

func (m *Metrics) operation(operation, namespace string, err error) {
	result := "success"
	switch {
	case apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err):
		result = "conflict"
	case err != nil:
		result = "error"
	}
	m.operations.WithLabelValues(operation, namespace, result).Inc()
}

func (m *Metrics) failed(namespace string, why apifailure.Type) {
	m.Failed(telemetry.Pod, namespace, string(why))
}

func (m *Metrics) forgetNamespace(namespace string) {
	m.ForgetNamespace(telemetry.Pod, namespace)
	m.operations.DeletePartialMatch(prometheus.Labels{"namespace": namespace})
}
