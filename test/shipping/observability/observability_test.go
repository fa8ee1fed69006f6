// SPDX-License-Identifier: Apache-2.0

// Package observability tests the alerts and the dashboard with the real
// Prometheus and promtool (Debian's package prometheus): alone, and beside managers
// and agents that run. It needs root and cgroup v2, as the agents do.
package observability

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/podconfigmap/podconfigmap-controller/test/shipping/monitored"
)

// values are those of the dashboard's variables, and of Grafana's own at a scrape
// each second.
var values = map[string]string{"namespace": ".*", "node": ".*", "__rate_interval": "10s"}

// quiet are panels that show nothing but 0 here.
var quiet = []string{"Not ready, by config", "Queue depth", "UDP flows forgotten", "Failed readings", "System calls missed"}

// expected are the alerts whose conditions this cluster meets. They are pending:
// none has met them for long enough to fire.
var expected = []string{
	"PodConfigMapAttachFailing", "PodConfigMapConfigNotReady", "PodConfigMapFeatureUnsupported", "PodConfigMapSlotsFull",
}

// depends are alerts that a busy machine may give cause for.
var depends = []string{"PodConfigMapQueueNotDraining", "PodConfigMapReconciliationErrors", "PodConfigMapReconciliationsSlow"}

// TestBesideManagersAndAgents has a real Prometheus scrape managers and agents at
// work, and asks it all that dashboard and alerts ask.
func TestBesideManagersAndAgents(t *testing.T) {
	w := monitored.Start(t, time.Second)
	eventually(t, "every target is up", func() error {
		down, err := w.Prometheus.Down(t.Context())
		if err == nil && len(down) > 0 {
			err = fmt.Errorf("%q", down)
		}
		return err
	})
	t.Run("dashboard", func(t *testing.T) { checkDashboard(t, w.Prometheus) })
	t.Run("faults", func(t *testing.T) { checkFaults(t, w.Prometheus) })
	t.Run("values", func(t *testing.T) { checkValues(t, w.Prometheus) })
	t.Run("alerts", func(t *testing.T) { checkAlerts(t, w.Prometheus) })
}

func eventually(t *testing.T, what string, holds func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(monitored.Patience); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = holds(); err == nil {
			return
		}
	}
	t.Errorf("%s: not within %v: %v", what, monitored.Patience, err)
}

// checkDashboard asks every query of the dashboard; each has to return data.
func checkDashboard(t *testing.T, p *monitored.Prometheus) {
	d, _, err := monitored.ReadDashboard()
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	for _, panel := range d.Panels {
		for i, target := range panel.Targets {
			asked++
			t.Run(fmt.Sprintf("%s %d", panel.Title, i+1), func(t *testing.T) {
				eventually(t, "it returns data", func() error { return ask(t, p, target, slices.Contains(quiet, panel.Title)) })
			})
		}
	}
	if asked < 30 {
		t.Errorf("only %d queries were found", asked)
	}
	checkVariables(t, p, d)
}

// ask returns an error unless a query returns data; quiet ones may be all 0.
func ask(t *testing.T, p *monitored.Prometheus, target monitored.Target, quiet bool) error {
	expr, err := monitored.Substitute(target.Expr, values)
	if err != nil {
		t.Fatal(err)
	}
	series, err := p.QueryRange(t.Context(), expr, time.Minute, 5*time.Second)
	if target.Instant {
		series, err = p.Query(t.Context(), expr)
	}
	if err != nil {
		return err
	}
	for _, s := range series {
		for _, v := range s.Values {
			if v > 0 || quiet && !math.IsNaN(v) {
				return nil
			}
		}
	}
	return fmt.Errorf("%s has no data: %v", expr, series)
}

// checkFaults checks that queries which return nothing, or nothing but 0, or cannot
// be evaluated, are noticed.
func checkFaults(t *testing.T, p *monitored.Prometheus) {
	for _, expr := range []string{
		`podconfigmap_controller_pcmc_status{namespace="$namespace",name="none"}`, `vector(0)`, `vector(0) / 0`, `sum(`, `up{`,
	} {
		for _, instant := range []bool{true, false} {
			if err := ask(t, p, monitored.Target{Expr: expr, Instant: instant}, false); err == nil {
				t.Errorf("%s passes, instant %t", expr, instant)
			}
		}
	}
	if err := ask(t, p, monitored.Target{Expr: `vector(0) / 0`}, true); err == nil {
		t.Error("a panel that may be 0 may be no number, too")
	}
}

func TestSubstitute(t *testing.T) {
	got, err := monitored.Substitute(`a{n=~"$namespace"}[$__rate_interval]`, values)
	if want := `a{n=~".*"}[10s]`; got != want || err != nil {
		t.Errorf("%q (%v), want %q", got, err, want)
	}
	if got, err := monitored.Substitute(`a[$__range]`, values); err == nil {
		t.Errorf("a variable without a value: %q", got)
	}
}

var labelValues = regexp.MustCompile(`^label_values\((.*), (\w+)\)$`)

// checkVariables asks for the values that the dashboard's variables offer.
func checkVariables(t *testing.T, p *monitored.Prometheus, d *monitored.Dashboard) {
	want := map[string][]string{
		"namespace": {"bank", "batch", "edge", "shop"},
		"node":      {monitored.Healthy, monitored.Poor, monitored.Full},
	}
	for _, v := range d.Templating.List {
		parts := labelValues.FindStringSubmatch(v.Definition)
		if parts == nil {
			continue
		}
		got, err := p.LabelValues(t.Context(), parts[1], parts[2])
		if err != nil || !slices.Equal(got, want[v.Name]) {
			t.Errorf("variable %s offers %v (%v), want %v", v.Name, got, err, want[v.Name])
		}
		delete(want, v.Name)
	}
	for name := range want {
		t.Errorf("there is no variable %s", name)
	}
}

// checkValues checks what some queries return, so that data are not just any.
func checkValues(t *testing.T, p *monitored.Prometheus) {
	const prefix = "podconfigmap_controller_"
	for expr, want := range map[string]float64{
		`sum(up{job="podconfigmap-controller-metrics"})`:                                                              2,
		`sum(leader_election_master_status{job="podconfigmap-controller-metrics"})`:                                   1,
		`sum(up{job="podconfigmap-controller-agent-metrics"})`:                                                        3,
		`max(` + prefix + `ebpf_feature_supported{node="node-1"} == 0) or vector(-1)`:                                 -1,
		`max(` + prefix + `ebpf_feature_supported{node="node-2",feature="L4Firewall"})`:                               0,
		`max(` + prefix + `ebpf_feature_supported{node="node-2",feature="SyscallCounter"})`:                           1,
		`max(` + prefix + `ebpf_slots_used{node="node-3"} / ` + prefix + `ebpf_slots{node="node-3"})`:                 1,
		`count(` + prefix + `ebpf_attached_programs{namespace="batch",node="node-3"})`:                                3,
		`count(` + prefix + `ebpf_attached_programs{namespace="shop",pod_name="web-1",node="node-1"})`:                2,
		`count(sum by (pod_name) (` + prefix + `ebpf_l4_firewall_total{stat_type="blocked",namespace="shop"} > 0))`:   2,
		`count(sum by (pod_name) (` + prefix + `ebpf_l4_firewall_total{stat_type="would_block",namespace="shop"}>0))`: 1,
		`count(` + prefix + `pcmc_status{namespace=~"bank|batch|edge|shop"})`:                                         7,
		`sum(` + prefix + `pcmc_status{namespace="bank",name="ledger"})`:                                              0,
		`sum(` + prefix + `pcmc_status{namespace="shop"})`:                                                            2,
		// A ServiceMonitor without honorLabels would have this.
		`count({exported_namespace=~".+"}) or vector(0)`: 0,
	} {
		eventually(t, expr, func() error {
			series, err := p.Query(t.Context(), expr)
			if err != nil {
				return err
			}
			if len(series) != 1 || series[0].Values[0] != want {
				return fmt.Errorf("it is %v, want %v", series, want)
			}
			return nil
		})
	}
}

// checkAlerts wants every alert to be evaluated without an error, and just those
// pending whose conditions are met.
func checkAlerts(t *testing.T, p *monitored.Prometheus) {
	groups, err := monitored.ReadRules()
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, g := range groups {
		for _, r := range g.Rules {
			total++
			if _, err := p.Query(t.Context(), r.Expr); err != nil {
				t.Errorf("%s: %v", r.Alert, err)
			}
		}
	}
	eventually(t, "the alerts are as they should be", func() error {
		states, err := p.Rules(t.Context())
		if err != nil {
			return err
		}
		if len(states) != total {
			return fmt.Errorf("Prometheus has %d alerts, there are %d", len(states), total)
		}
		for _, s := range states {
			want := "inactive"
			if slices.Contains(expected, s.Name) {
				want = "pending"
			}
			if slices.Contains(depends, s.Name) {
				want = s.State
			}
			if s.Health != "ok" || s.State != want {
				return fmt.Errorf("%s is %s and %s (%s), want %s", s.Name, s.Health, s.State, s.LastError, want)
			}
		}
		return nil
	})
}
