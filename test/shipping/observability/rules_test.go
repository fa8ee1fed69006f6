// SPDX-License-Identifier: Apache-2.0

package observability

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/monitored"
)

// TestRules checks the alerts with promtool, and runs their unit tests.
func TestRules(t *testing.T) {
	groups := readRules(t)
	whole := filepath.Join(t.TempDir(), "rules.yaml")
	if err := monitored.WriteRules(whole, groups); err != nil {
		t.Fatal(err)
	}
	if out, err := promtool(t, "check", "rules", "--lint=all", "--lint-fatal", whole); err != nil {
		t.Errorf("promtool check rules: %v\n%s", err, out)
	}
	if out, err := runUnitTests(t, groups); err != nil {
		t.Errorf("promtool test rules: %v\n%s", err, out)
	}
}

// TestUnitTestsNoticeMutations breaks one alert at a time: a unit test has to fail
// where it never fires, where it always does, and where it does so at once.
func TestUnitTestsNoticeMutations(t *testing.T) {
	for g, group := range readRules(t) {
		for r, rule := range group.Rules {
			for name, mutate := range map[string]func(*monitored.Rule){
				"never":   func(r *monitored.Rule) { r.Expr = "(" + r.Expr + ") and on() vector(1) > 1" },
				"always":  func(r *monitored.Rule) { r.Expr = "vector(1)" },
				"at once": func(r *monitored.Rule) { r.For = "" },
			} {
				t.Run(rule.Alert+" "+name, func(t *testing.T) {
					t.Parallel()
					groups := readRules(t)
					mutate(&groups[g].Rules[r])
					out, err := runUnitTests(t, groups, rule.Alert)
					if err == nil {
						t.Error("no unit test fails")
					}
					if !strings.Contains(out, rule.Alert) {
						t.Errorf("promtool does not name it: %v\n%s", err, out)
					}
				})
			}
		}
	}
}

func readRules(t *testing.T) []monitored.RuleGroup {
	t.Helper()
	groups, err := monitored.ReadRules()
	if err != nil {
		t.Fatal(err)
	}
	return groups
}

// unitTests are the parts of promtool's file that runUnitTests chooses from.
type unitTests struct {
	RuleFiles          []string   `json:"rule_files"`
	EvaluationInterval string     `json:"evaluation_interval"`
	Tests              []unitTest `json:"tests"`
}

type unitTest struct {
	Name          string           `json:"name"`
	Interval      string           `json:"interval"`
	InputSeries   []any            `json:"input_series"`
	AlertRuleTest []map[string]any `json:"alert_rule_test"`
}

// of keeps the tests of some alerts.
func (u *unitTests) of(alerts []string) {
	for i := range u.Tests {
		u.Tests[i].AlertRuleTest = slices.DeleteFunc(u.Tests[i].AlertRuleTest, func(one map[string]any) bool {
			name, _ := one["alertname"].(string)
			return !slices.Contains(alerts, name)
		})
	}
	u.Tests = slices.DeleteFunc(u.Tests, func(one unitTest) bool { return len(one.AlertRuleTest) == 0 })
}

// runUnitTests runs the unit tests against rules: all, or those of some alerts.
// promtool compares annotations as a whole: those that have nothing to fill in,
// the summary aside, are left out, so that the tests need not repeat them.
func runUnitTests(t *testing.T, groups []monitored.RuleGroup, alerts ...string) (string, error) {
	t.Helper()
	for _, g := range groups {
		for _, r := range g.Rules {
			for name, text := range r.Annotations {
				if name != "summary" && !strings.Contains(text, "{{") {
					delete(r.Annotations, name)
				}
			}
		}
	}
	dir := t.TempDir()
	root, err := harness.Root()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "config/prometheus/alerts.test.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var tests unitTests
	if err := yaml.UnmarshalStrict(text, &tests); err != nil {
		t.Fatal(err)
	}
	if len(alerts) > 0 {
		tests.of(alerts)
	}
	if text, err = yaml.Marshal(tests); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "alerts.test.yaml"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := monitored.WriteRules(filepath.Join(dir, "rules.yaml"), groups); err != nil {
		t.Fatal(err)
	}
	return promtool(t, "test", "rules", filepath.Join(dir, "alerts.test.yaml"))
}

func promtool(t *testing.T, args ...string) (string, error) {
	t.Helper()
	program, err := monitored.Tool("promtool")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	return string(out), err
}
