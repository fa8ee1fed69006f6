// SPDX-License-Identifier: Apache-2.0

// Package prometheus tests the alerts and the dashboard against the metrics that
// manager and agents have. That the queries work, test/shipping/observability
// shows.
package prometheus

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/internal/agent"
	"github.com/podconfigmap/podconfigmap-controller/internal/manager"
	"github.com/podconfigmap/podconfigmap-controller/internal/telemetry"
)

var (
	// ours is one of our metrics in a query, with its matchers.
	ours = regexp.MustCompile(telemetry.Prefix + `([a-z0-9_]+)(?:\{([^}]*)\})?`)
	// matcher is one label's in them.
	matcher = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)\s*"`)
	// grouping names the labels by which a query groups or joins.
	grouping = regexp.MustCompile(`\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)`)
	// values is Grafana's query for the values of a label.
	values = regexp.MustCompile(`^label_values\((.*),\s*(\w+)\)$`)
	// legend and annotation use a label of a query's result.
	legend     = regexp.MustCompile(`\{\{\s*(\w+)\s*\}\}`)
	annotation = regexp.MustCompile(`\$labels\.(\w+)`)
	// section is what a runbook hint names.
	section = regexp.MustCompile(`^docs/troubleshooting\.md, section "([^"]+)"$`)
)

type rule struct {
	Alert, Expr, For    string
	Labels, Annotations map[string]string
}

type dashboard struct {
	Title      string
	Templating struct {
		List []struct {
			Name, Type string
			Query      any
		}
	}
	Panels []panel
}

type panel struct {
	ID          int
	Title, Type string
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct{ Expr, LegendFormat string }
}

// monitor is a ServiceMonitor.
type monitor struct {
	Spec struct {
		Selector  struct{ MatchLabels map[string]string }
		Endpoints []struct {
			Port, Path  string
			HonorLabels bool
			Relabelings []struct{ TargetLabel string }
		}
	}
}

// unitTests are promtool's.
type unitTests struct {
	Tests []struct {
		Name          string
		AlertRuleTest []struct {
			Alertname string
			ExpAlerts []any `json:"exp_alerts"`
		} `json:"alert_rule_test"`
	}
}

// rules reads all alerts.
func rules(t *testing.T) (all []rule) {
	t.Helper()
	var object struct {
		APIVersion, Kind string
		Spec             struct{ Groups []struct{ Rules []rule } }
	}
	decode(t, "prometheusrule.yaml", &object)
	if object.APIVersion != "monitoring.coreos.com/v1" || object.Kind != "PrometheusRule" {
		t.Fatalf("not the rules: %+v", object)
	}
	for _, g := range object.Spec.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) == 0 {
		t.Fatal("no alerts")
	}
	return all
}

func TestAlerts(t *testing.T) {
	page := read(t, "../../docs/troubleshooting.md")
	seen := map[string]bool{}
	for _, r := range rules(t) {
		if seen[r.Alert] {
			t.Errorf("two alerts are named %q", r.Alert)
		}
		seen[r.Alert] = true
		t.Run(r.Alert, func(t *testing.T) { checkAlert(t, r, page) })
	}
}

// TestEveryAlertHasItsUnitTests wants of promtool's tests, for each alert, one in
// which it fires, one in which it does not yet, and that it is silent where all is
// well. That they pass, test/shipping/observability shows.
func TestEveryAlertHasItsUnitTests(t *testing.T) {
	var tests unitTests
	decode(t, "alerts.test.yaml", &tests)
	fires, waits, silent := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, group := range tests.Tests {
		for _, one := range group.AlertRuleTest {
			switch {
			case len(one.ExpAlerts) > 0:
				fires[one.Alertname] = true
			case group.Name == "all is well":
				silent[one.Alertname] = true
			default:
				waits[one.Alertname] = true
			}
		}
	}
	all := rules(t)
	for _, r := range all {
		if !fires[r.Alert] || !waits[r.Alert] || !silent[r.Alert] {
			t.Errorf("%s: fires in a unit test: %t, waits in one: %t, is silent where all is well: %t",
				r.Alert, fires[r.Alert], waits[r.Alert], silent[r.Alert])
		}
	}
	if len(fires) != len(all) {
		t.Errorf("%d alerts are tested, there are %d", len(fires), len(all))
	}
}

func checkAlert(t *testing.T, r rule, page string) {
	for what, text := range map[string]string{
		"name": r.Alert, "expr": r.Expr, "for": r.For, "severity": r.Labels["severity"],
		"summary": r.Annotations["summary"], "description": r.Annotations["description"],
	} {
		if text == "" {
			t.Errorf("no %s", what)
		}
	}
	if hint := section.FindStringSubmatch(r.Annotations["runbook"]); hint == nil || !strings.Contains(page, "\n## "+hint[1]+"\n") {
		t.Errorf("the runbook %q names no section", r.Annotations["runbook"])
	}
	if !strings.Contains(page, "| `"+r.Alert+"` |") {
		t.Error("docs/troubleshooting.md does not tell what to do")
	}
	for _, fault := range faults(r.Expr) {
		t.Error(fault)
	}
	for _, text := range r.Annotations {
		for _, use := range annotation.FindAllStringSubmatch(text, -1) {
			if !slices.Contains(grouped(r.Expr), use[1]) {
				t.Errorf("%q: the query does not keep the label %s", text, use[1])
			}
		}
	}
}

func TestDashboard(t *testing.T) {
	var object struct {
		Kind     string
		Metadata struct{ Labels map[string]string }
		Data     map[string]string
	}
	decode(t, "dashboard.yaml", &object)
	if object.Kind != "ConfigMap" || object.Metadata.Labels["grafana_dashboard"] != "1" || len(object.Data) != 1 {
		t.Fatalf("not a dashboard's ConfigMap: kind %q, labels %v", object.Kind, object.Metadata.Labels)
	}
	var d dashboard
	for key, text := range object.Data {
		if err := json.Unmarshal([]byte(text), &d); err != nil {
			t.Fatalf("%s: %v", key, err)
		}
	}
	if d.Title == "" || len(d.Panels) == 0 {
		t.Error("the dashboard has no title or no panels")
	}
	checkVariables(t, d)
	checkPlaces(t, d)
	for _, p := range d.Panels {
		if p.Type != "row" {
			t.Run(p.Title, func(t *testing.T) { checkPanel(t, p) })
		}
	}
}

// checkPlaces checks that no panel lies on another, or out of the grid's 24
// columns, and that each has an id of its own.
func checkPlaces(t *testing.T, d dashboard) {
	ids, taken := map[int]string{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if other, twice := ids[p.ID]; twice || p.ID == 0 {
			t.Errorf("%q and %q have the id %d", p.Title, other, p.ID)
		}
		ids[p.ID] = p.Title
		at := p.GridPos
		if at.W < 1 || at.H < 1 || at.X < 0 || at.X+at.W > 24 {
			t.Errorf("%q lies at %+v", p.Title, at)
		}
		for x := at.X; x < at.X+at.W; x++ {
			for y := at.Y; y < at.Y+at.H; y++ {
				if other, twice := taken[[2]int{x, y}]; twice {
					t.Fatalf("%q lies on %q", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
}

func checkPanel(t *testing.T, p panel) {
	if len(p.Targets) == 0 {
		t.Error("no query")
	}
	for _, target := range p.Targets {
		if target.Expr == "" {
			t.Error("an empty query")
		}
		for _, fault := range faults(target.Expr) {
			t.Error(fault)
		}
		for _, use := range legend.FindAllStringSubmatch(target.LegendFormat, -1) {
			if !slices.Contains(grouped(target.Expr), use[1]) {
				t.Errorf("the query does not keep the legend's label %s", use[1])
			}
		}
	}
}

func checkVariables(t *testing.T, d dashboard) {
	kinds := map[string]string{}
	for _, v := range d.Templating.List {
		kinds[v.Name] = v.Type
		query, isQuery := v.Query.(map[string]any)
		if !isQuery {
			continue
		}
		text, _ := query["query"].(string)
		parts := values.FindStringSubmatch(text)
		if parts == nil {
			t.Errorf("variable %s: unknown query %q", v.Name, text)
			continue
		}
		for _, fault := range faults("max by (" + parts[2] + ") (" + parts[1] + ")") {
			t.Errorf("variable %s: %s", v.Name, fault)
		}
	}
	if kinds["datasource"] != "datasource" || kinds["namespace"] != "query" || kinds["node"] != "query" {
		t.Errorf("the variables are %v", kinds)
	}
}

func TestKustomizationHasAll(t *testing.T) {
	var k struct{ Resources []string }
	decode(t, "kustomization.yaml", &k)
	for _, file := range []string{"monitor.yaml", "agent_monitor.yaml", "prometheusrule.yaml", "dashboard.yaml"} {
		if !slices.Contains(k.Resources, file) {
			t.Errorf("it lacks %s", file)
		}
	}
}

// TestMonitorsFindTheirServices compares each ServiceMonitor with the Service that
// it is for.
func TestMonitorsFindTheirServices(t *testing.T) {
	for file, service := range map[string]string{"monitor.yaml": "metrics_service.yaml", "agent_monitor.yaml": "agent_metrics_service.yaml"} {
		m := readMonitor(t, file)
		var s struct {
			Metadata struct {
				Name   string
				Labels map[string]string
			}
			Spec struct{ Ports []struct{ Name string } }
		}
		decode(t, "../manager/"+service, &s)
		if len(m.Spec.Selector.MatchLabels) == 0 || !maps.Equal(m.Spec.Selector.MatchLabels, s.Metadata.Labels) {
			t.Errorf("%s selects %v, the Service has %v", file, m.Spec.Selector.MatchLabels, s.Metadata.Labels)
		}
		e := m.Spec.Endpoints
		if len(e) != 1 || e[0].Port != s.Spec.Ports[0].Name || e[0].Path != "/metrics" || !e[0].HonorLabels {
			t.Errorf("%s has the endpoints %+v", file, e)
		}
		// As config/default names it; the scrape job has the Service's name.
		job := `{job="podconfigmap-controller-` + s.Metadata.Name + `"}`
		if text := read(t, "prometheusrule.yaml"); !strings.Contains(text, job) {
			t.Errorf("no alert looks at %s", job)
		}
	}
}

func readMonitor(t *testing.T, file string) (m monitor) {
	t.Helper()
	decode(t, file, &m)
	return m
}

func TestFaultsAreFound(t *testing.T) {
	for _, query := range []string{
		`podconfigmap_controller_nothing`,
		`podconfigmap_controller_pcmc_status{pod_name="a"}`,
		`sum by (node) (podconfigmap_controller_pcmc_status)`,
		`podconfigmap_controller_ebpf_slots{feature="a"}`,
		`sum by (pcmc_name) (podconfigmap_controller_pcmc_status)`,
		`podconfigmap_controller_queue_depth_bucket`,
		`podconfigmap_controller_reconciliation_duration_seconds`,
		`sum by (le) (podconfigmap_controller_reconciliation_duration_seconds_count)`,
		`sum(podconfigmap_controller_queue_depth`,
	} {
		if len(faults(query)) == 0 {
			t.Errorf("%s passes", query)
		}
	}
}

// faults says what is wrong with a query's use of our metrics. The labels by
// which it groups must be labels of all of our metrics in it: their own, or those
// that every scrape adds.
func faults(query string) (found []string) {
	for _, pair := range []string{"()", "{}", "[]"} {
		if strings.Count(query, pair[:1]) != strings.Count(query, pair[1:]) {
			found = append(found, "unbalanced "+pair+" in "+query)
		}
	}
	for _, use := range ours.FindAllStringSubmatch(query, -1) {
		name := telemetry.Prefix + use[1]
		labels, known := series()[name]
		if !known {
			found = append(found, "neither manager nor agent has "+name)
			continue
		}
		used := grouped(query)
		for _, m := range matcher.FindAllStringSubmatch(use[2], -1) {
			used = append(used, m[1])
		}
		for _, label := range used {
			if !slices.Contains(labels, label) {
				found = append(found, name+" has no label "+label)
			}
		}
	}
	return found
}

// grouped lists the labels by which a query groups.
func grouped(query string) (labels []string) {
	for _, clause := range grouping.FindAllStringSubmatch(query, -1) {
		for label := range strings.SplitSeq(clause[2], ",") {
			if label = strings.TrimSpace(label); label != "" {
				labels = append(labels, label)
			}
		}
	}
	return labels
}

// scraped are labels that the Prometheus operator adds to what it scrapes by a
// ServiceMonitor.
var scraped = []string{"job", "instance", "namespace", "service", "pod", "container", "endpoint"}

// series maps the names that scrapes have to their labels.
func series() map[string][]string {
	labels := map[string][]string{}
	add := func(definitions []telemetry.Definition, added ...string) {
		for _, d := range definitions {
			own := slices.Concat(d.Labels, scraped, added)
			if d.Type != "histogram" {
				labels[d.Name] = own
				continue
			}
			labels[d.Name+"_sum"], labels[d.Name+"_count"] = own, own
			labels[d.Name+"_bucket"] = append(slices.Clone(own), "le")
		}
	}
	add(manager.Metrics())
	add(agent.Metrics(), "node") // by agent_monitor.yaml
	return labels
}

func TestAgentsMonitorNamesTheNode(t *testing.T) {
	r := readMonitor(t, "agent_monitor.yaml").Spec.Endpoints[0].Relabelings
	if len(r) != 1 || r[0].TargetLabel != "node" {
		t.Errorf("its relabelings are %+v", r)
	}
}

func decode(t *testing.T, file string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(read(t, file)), into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestBesideTheOperator: the objects that config/monitoring adds have the names and the
// namespace that config/default gives its own.
func TestBesideTheOperator(t *testing.T) {
	kustomize := exec.Command("go", "tool", "-modfile=hack/tools/go.mod", "kustomize", "build", "config/monitoring")
	kustomize.Dir = "../.."
	text, err := kustomize.Output()
	if err != nil {
		t.Fatalf("kustomize build config/monitoring: %v", err)
	}
	var found []string
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		var object struct {
			Kind     string
			Metadata struct{ Name, Namespace string }
		}
		if err := yaml.Unmarshal([]byte(document), &object); err != nil {
			t.Fatal(err)
		}
		found = append(found, object.Kind+" "+object.Metadata.Namespace+"/"+object.Metadata.Name)
	}
	slices.Sort(found)
	const namespace = " podconfigmap-controller-system/podconfigmap-controller-"
	want := []string{"ConfigMap" + namespace + "dashboard", "PrometheusRule" + namespace + "alerts",
		"ServiceMonitor" + namespace + "agent-metrics", "ServiceMonitor" + namespace + "metrics"}
	if !slices.Equal(found, want) {
		t.Errorf("it makes %q, want %q", found, want)
	}
}
