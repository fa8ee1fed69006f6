// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestReconciliation(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	r := NewReconciliation(NewFactory(registry))
	expect := func(when, want string) {
		t.Helper()
		if err := testutil.GatherAndCompare(registry, strings.NewReader(want),
			Prefix+"reconciliation_errors_total", Prefix+"queue_depth", Prefix+"reconciliation_duration_seconds"); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	expect("at first", "")

	length := 3
	r.Queue(Pod, func() int { return length })
	r.Queue(PCMC, func() int { return 0 })
	depths := func(pod int) string {
		return fmt.Sprintf(`
# HELP podconfigmap_controller_queue_depth Items that wait in a work queue. queue_name is pod or pcmc.
# TYPE podconfigmap_controller_queue_depth gauge
podconfigmap_controller_queue_depth{queue_name="pcmc"} 0
podconfigmap_controller_queue_depth{queue_name="pod"} %d
`, pod)
	}
	expect("queues", depths(3))
	length = 4
	expect("a longer queue", depths(4))

	r.Failed(Pod, "shop", "server")
	r.Failed(Pod, "shop", "server")
	r.Failed(PCMC, "shop", "server")
	r.Failed(Pod, "other", "timeout")
	const head = `
# HELP podconfigmap_controller_reconciliation_errors_total What went wrong in reconciliations, by error_type.
# TYPE podconfigmap_controller_reconciliation_errors_total counter
`
	expect("errors", depths(4)+head+`podconfigmap_controller_reconciliation_errors_total{error_type="server",namespace="shop",resource_type="pcmc"} 1
podconfigmap_controller_reconciliation_errors_total{error_type="server",namespace="shop",resource_type="pod"} 2
podconfigmap_controller_reconciliation_errors_total{error_type="timeout",namespace="other",resource_type="pod"} 1
`)
	r.ForgetNamespace(Pod, "shop")
	expect("pods forgotten", depths(4)+head+`podconfigmap_controller_reconciliation_errors_total{error_type="server",namespace="shop",resource_type="pcmc"} 1
podconfigmap_controller_reconciliation_errors_total{error_type="timeout",namespace="other",resource_type="pod"} 1
`)
}

func TestDurations(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	r := NewReconciliation(NewFactory(registry))
	r.Took(Pod, "shop", 30*time.Microsecond)
	r.Took(Pod, "shop", 2*time.Second)
	r.Took(PCMC, "other", time.Millisecond)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, family := range families {
		for _, m := range family.GetMetric() {
			h := m.GetHistogram()
			line := family.GetName()
			for _, l := range m.GetLabel() {
				line += " " + l.GetName() + "=" + l.GetValue()
			}
			buckets := h.GetBucket()
			got = append(got, fmt.Sprintf("%s: %d, %.5f s, %d of %d buckets up to %.5f..%.3f", line, h.GetSampleCount(), h.GetSampleSum(),
				len(buckets), 12, buckets[0].GetUpperBound(), buckets[len(buckets)-1].GetUpperBound()))
		}
	}
	want := "podconfigmap_controller_reconciliation_duration_seconds namespace=other resource_type=pcmc: 1, 0.00100 s, 12 of 12 buckets up to 0.00001..41.943\n" +
		"podconfigmap_controller_reconciliation_duration_seconds namespace=shop resource_type=pod: 2, 2.00003 s, 12 of 12 buckets up to 0.00001..41.943"
	if strings.Join(got, "\n") != want {
		t.Errorf("durations\n%s, want\n%s", strings.Join(got, "\n"), want)
	}
	r.ForgetNamespace(Pod, "shop")
	r.ForgetNamespace(Pod, "other")
	if n, err := testutil.GatherAndCount(registry); err != nil || n != 1 {
		t.Errorf("%d series are left (%v), want 1", n, err)
	}
}

func TestFactory(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	f := NewFactory(registry)
	f.Counter("things_total", "Things.", "namespace").WithLabelValues("shop").Inc()
	f.Gauge("level", "The level.").WithLabelValues().Set(2)
	f.Histogram("took_seconds", "How long it took.", []float64{1}, "kind").WithLabelValues("a").Observe(3)
	if got, want := fmt.Sprint(f.Definitions), "[{podconfigmap_controller_things_total counter Things. [namespace]} "+
		"{podconfigmap_controller_level gauge The level. []} {podconfigmap_controller_took_seconds histogram How long it took. [kind]}]"; got != want {
		t.Errorf("definitions\n%s, want\n%s", got, want)
	}
	want := `
# HELP podconfigmap_controller_level The level.
# TYPE podconfigmap_controller_level gauge
podconfigmap_controller_level 2
# HELP podconfigmap_controller_things_total Things.
# TYPE podconfigmap_controller_things_total counter
podconfigmap_controller_things_total{namespace="shop"} 1
# HELP podconfigmap_controller_took_seconds How long it took.
# TYPE podconfigmap_controller_took_seconds histogram
podconfigmap_controller_took_seconds_bucket{kind="a",le="1"} 0
podconfigmap_controller_took_seconds_bucket{kind="a",le="+Inf"} 1
podconfigmap_controller_took_seconds_sum{kind="a"} 3
podconfigmap_controller_took_seconds_count{kind="a"} 1
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a second metric of the same name does not panic")
		}
	}()
	f.Gauge("level", "Another level.")
}
