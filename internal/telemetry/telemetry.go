// SPDX-License-Identifier: Apache-2.0

// Package telemetry makes the operator's Prometheus metrics, and holds those
// that all of its controllers move.
package telemetry

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Prefix begins the name of every metric of the operator.
const Prefix = "podconfigmap_controller_"

// Values of the label resource_type, and of queue_name.
const (
	Pod  = "pod"
	PCMC = "pcmc"
)

// Definition describes one metric; docs/metrics.md is made of them.
type Definition struct {
	Name, Type, Help string
	Labels           []string
}

// Factory makes metrics, registers them, and remembers their definitions.
type Factory struct {
	Definitions []Definition
	registerer  prometheus.Registerer
}

// NewFactory returns a factory that registers with the registerer. Making a
// metric panics where one of its name is registered already.
func NewFactory(registerer prometheus.Registerer) *Factory { return &Factory{registerer: registerer} }

func (f *Factory) register(c prometheus.Collector, kind, name, help string, labels []string) {
	f.registerer.MustRegister(c)
	f.Definitions = append(f.Definitions, Definition{Name: Prefix + name, Type: kind, Help: help, Labels: labels})
}

// Counter makes a counter; its name begins with Prefix.
func (f *Factory) Counter(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: Prefix + name, Help: help}, labels)
	f.register(v, "counter", name, help, labels)
	return v
}

// Gauge makes a gauge; its name begins with Prefix.
func (f *Factory) Gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: Prefix + name, Help: help}, labels)
	f.register(v, "gauge", name, help, labels)
	return v
}

// Histogram makes a histogram; its name begins with Prefix.
func (f *Factory) Histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: Prefix + name, Help: help, Buckets: buckets}, labels)
	f.register(v, "histogram", name, help, labels)
	return v
}

// Collector registers a collector that makes its metrics itself; the names of
// the definitions lack the Prefix.
func (f *Factory) Collector(c prometheus.Collector, definitions ...Definition) {
	f.registerer.MustRegister(c)
	for _, d := range definitions {
		d.Name = Prefix + d.Name
		f.Definitions = append(f.Definitions, d)
	}
}

// Reconciliation are the metrics that every controller moves.
type Reconciliation struct {
	durations *prometheus.HistogramVec
	errors    *prometheus.CounterVec
	queues    *queues
}

// NewReconciliation makes them.
func NewReconciliation(f *Factory) *Reconciliation {
	r := &Reconciliation{
		durations: f.Histogram("reconciliation_duration_seconds",
			"How long reconciliations took. resource_type is pod or pcmc.",
			prometheus.ExponentialBuckets(0.00001, 4, 12), "resource_type", "namespace"),
		errors: f.Counter("reconciliation_errors_total",
			"What went wrong in reconciliations, by error_type.", "resource_type", "namespace", "error_type"),
		queues: &queues{lengths: map[string]func() int{}},
	}
	f.register(r.queues, "gauge", queueDepthName, queueDepthHelp, []string{"queue_name"})
	return r
}

// Took notes how long a reconciliation took.
func (r *Reconciliation) Took(resourceType, namespace string, d time.Duration) {
	r.durations.WithLabelValues(resourceType, namespace).Observe(d.Seconds())
}

// Failed counts an error.
func (r *Reconciliation) Failed(resourceType, namespace, errorType string) {
	r.errors.WithLabelValues(resourceType, namespace, errorType).Inc()
}

// Queue exposes a work queue's length from now on.
func (r *Reconciliation) Queue(name string, length func() int) { r.queues.set(name, length) }

// QueueLength is how many items wait in a work queue; 0 where it is not known.
func (r *Reconciliation) QueueLength(name string) int { return r.queues.length(name) }

// ForgetNamespace ends the series of a namespace in which nothing of the
// resource type is left to reconcile.
func (r *Reconciliation) ForgetNamespace(resourceType, namespace string) {
	ended := prometheus.Labels{"resource_type": resourceType, "namespace": namespace}
	r.durations.DeletePartialMatch(ended)
	r.errors.DeletePartialMatch(ended)
}

const (
	queueDepthName = "queue_depth"
	queueDepthHelp = "Items that wait in a work queue. queue_name is pod or pcmc."
)

var queueDepth = prometheus.NewDesc(Prefix+queueDepthName, queueDepthHelp, []string{"queue_name"}, nil)

// queues reads the lengths of work queues at each scrape.
type queues struct {
	mu      sync.Mutex
	lengths map[string]func() int
}

func (q *queues) set(name string, length func() int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lengths[name] = length
}

func (q *queues) length(name string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if length, known := q.lengths[name]; known {
		return length()
	}
	return 0
}

func (q *queues) Describe(out chan<- *prometheus.Desc) { out <- queueDepth }

func (q *queues) Collect(out chan<- prometheus.Metric) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for name, length := range q.lengths {
		out <- prometheus.MustNewConstMetric(queueDepth, prometheus.GaugeValue, float64(length()), name)
	}
}
