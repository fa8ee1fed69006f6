// SPDX-License-Identifier: Apache-2.0

package monitored

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// Dashboard is what is asked of the Grafana dashboard.
type Dashboard struct {
	Title      string
	Templating struct {
		List []struct {
			Name, Type string
			// Definition is a query such as label_values(metric, label).
			Definition string
		}
	}
	Panels []Panel
}

// Panel is one of the dashboard's panels; one of the type "row" has no targets
// and begins a row.
type Panel struct {
	ID          int
	Title, Type string
	Targets     []Target
}

// Target is a query of a panel.
type Target struct {
	Expr    string
	Instant bool
}

// ReadDashboard reads config/prometheus/dashboard.yaml; text is Grafana's JSON.
func ReadDashboard() (d *Dashboard, text []byte, err error) {
	var object struct{ Data map[string]string }
	if err := readManifest("dashboard.yaml", &object); err != nil {
		return nil, nil, err
	}
	for name, value := range object.Data {
		d, text = &Dashboard{}, []byte(value)
		if err := json.Unmarshal(text, d); err != nil {
			return nil, nil, fmt.Errorf("decoding %s: %w", name, err)
		}
	}
	if d == nil {
		return nil, nil, fmt.Errorf("dashboard.yaml holds no dashboard")
	}
	return d, text, nil
}

// Substitute puts values in the place of a query's variables, as Grafana does. A
// variable without a value is an error.
func Substitute(expr string, values map[string]string) (string, error) {
	for name, value := range values {
		expr = strings.ReplaceAll(expr, "$"+name, value)
	}
	if strings.Contains(expr, "$") {
		return "", fmt.Errorf("a variable in %s has no value", expr)
	}
	return expr, nil
}

// Rule is an alert.
type Rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// RuleGroup is a group of alerts.
type RuleGroup struct {
	Name  string `json:"name"`
	Rules []Rule `json:"rules"`
}

// ReadRules reads the groups of config/prometheus/prometheusrule.yaml.
func ReadRules() ([]RuleGroup, error) {
	var object struct {
		Spec struct {
			Groups []RuleGroup `json:"groups"`
		} `json:"spec"`
	}
	if err := readManifest("prometheusrule.yaml", &object); err != nil {
		return nil, err
	}
	if len(object.Spec.Groups) == 0 {
		return nil, fmt.Errorf("prometheusrule.yaml holds no groups")
	}
	return object.Spec.Groups, nil
}

// WriteRules writes groups as a file of rules for Prometheus and promtool.
func WriteRules(path string, groups []RuleGroup) error {
	return writeYAML(path, map[string]any{"groups": groups})
}

// monitor is what is asked of a ServiceMonitor.
type monitor struct {
	Spec struct {
		Endpoints []struct {
			Path        string
			HonorLabels bool
			Relabelings []struct {
				SourceLabels []string
				TargetLabel  string
			}
		}
	}
}

func writeYAML(path string, value any) error {
	text, err := yaml.Marshal(value)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

func readManifest(file string, into any) error {
	root, err := harness.Root()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(root, "config/prometheus", file))
	if err != nil {
		return fmt.Errorf("reading a manifest: %w", err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		return fmt.Errorf("decoding %s: %w", file, err)
	}
	return nil
}
