// SPDX-License-Identifier: Apache-2.0

// Package prometheus tests the alerts and the dashboard against the metrics that
// the manager has.
package prometheus

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

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
	Title   string
	Targets []struct{ Expr, LegendFormat string }
}

func TestAlerts(t *testing.T) {
	var object struct {
		APIVersion, Kind string
		Spec             struct{ Groups []struct{ Rules []rule } }
	}
	decode(t, "prometheusrule.yaml", &object)
	if object.APIVersion != "monitoring.coreos.com/v1" || object.Kind != "PrometheusRule" || len(object.Spec.Groups) == 0 {
		t.Fatalf("not the rules: %+v", object)
	}
	page := read(t, "../../docs/troubleshooting.md")
	seen := map[string]bool{}
	for _, g := range object.Spec.Groups {
		for _, r := range g.Rules {
			if seen[r.Alert] {
				t.Errorf("two alerts are named %q", r.Alert)
			}
			seen[r.Alert] = true
			t.Run(r.Alert, func(t *testing.T) { checkAlert(t, r, page) })
		}
	}
	if len(seen) == 0 {
		t.Error("no alerts")
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
	for _, p := range d.Panels {
		t.Run(p.Title, func(t *testing.T) { checkPanel(t, p) })
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
	if kinds["datasource"] != "datasource" || kinds["namespace"] != "query" {
		t.Errorf("the variables are %v", kinds)
	}
}

func TestKustomizationHasAll(t *testing.T) {
	var k struct{ Resources []string }
	decode(t, "kustomization.yaml", &k)
	for _, file := range []string{"monitor.yaml", "prometheusrule.yaml", "dashboard.yaml"} {
		if !slices.Contains(k.Resources, file) {
			t.Errorf("it lacks %s", file)
		}
	}
}

func TestFaultsAreFound(t *testing.T) {
	for _, query := range []string{
		`podconfigmap_controller_nothing`,
		`podconfigmap_controller_pcmc_status{pod="a"}`,
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
// which it groups must be labels of all of our metrics in it.
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
			found = append(found, "the manager has no "+name)
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

// series maps the names that a scrape has to their labels.
func series() map[string][]string {
	labels := map[string][]string{}
	for _, d := range manager.Metrics() {
		if d.Type != "histogram" {
			labels[d.Name] = d.Labels
			continue
		}
		labels[d.Name+"_sum"], labels[d.Name+"_count"] = d.Labels, d.Labels
		labels[d.Name+"_bucket"] = append(slices.Clone(d.Labels), "le")
	}
	return labels
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
