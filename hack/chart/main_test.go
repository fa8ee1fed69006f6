// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

const icon = "../../config/manifests/icon.svg"

func version(t *testing.T) string {
	t.Helper()
	v, err := harness.Version()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// manifests is what the generator reads.
func manifests(t *testing.T) string {
	t.Helper()
	kustomize := exec.Command("go", "tool", "-modfile=hack/tools/go.mod", "kustomize", "build", "config/chart")
	kustomize.Dir = "../.."
	var failed bytes.Buffer
	kustomize.Stderr = &failed
	out, err := kustomize.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, failed.String())
	}
	return string(out)
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// What is committed is what config gives.
func TestChartIsUpToDate(t *testing.T) {
	folder := t.TempDir()
	if err := os.Mkdir(filepath.Join(folder, "templates"), 0o755); err != nil {
		t.Fatal(err)
	}
	in := manifests(t)
	for range 2 { // the second run finds what the first has written
		if err := run(strings.NewReader(in), folder, version(t), icon); err != nil {
			t.Fatal(err)
		}
	}
	made, err := filepath.Glob(filepath.Join(folder, "templates", "*"))
	if err != nil || len(made) < 25 {
		t.Fatalf("error %v, %d files", err, len(made))
	}
	const chart = "../../helm-charts/podconfigmap-controller/templates/"
	for _, file := range made {
		if read(t, file) != read(t, chart+filepath.Base(file)) {
			t.Errorf("%s is not what config gives: run make chart", filepath.Base(file))
		}
	}
	committed, err := filepath.Glob(chart + "*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range committed {
		if _, err := os.Stat(filepath.Join(folder, "templates", filepath.Base(file))); err != nil {
			t.Errorf("%s is made from nothing", file)
		}
	}
	if made, committed := read(t, filepath.Join(folder, "Chart.yaml")), read(t, chart+"../Chart.yaml"); made != committed {
		t.Errorf("Chart.yaml is\n%s\nand would be\n%s\nrun make chart", committed, made)
	}
}

// The Makefile's version is in all that is made of config.
func TestTheTreeIsOfOneVersion(t *testing.T) {
	v := version(t)
	for file, want := range map[string]string{
		"config/manager/kustomization.yaml":                                   "newTag: v" + v + "\n",
		"dist/install.yaml":                                                   "podconfigmap-controller:v" + v + "\n",
		"helm-charts/podconfigmap-controller/Chart.yaml":                      "\nversion: " + v + "\nappVersion: \"" + v + "\"\n",
		"helm-charts/podconfigmap-controller/README.md":                       "Version: " + v + "]",
		"bundle/manifests/podconfigmap-controller.clusterserviceversion.yaml": "\n  version: " + v + "\n",
		"bundle/tests/scorecard/config.yaml":                                  "-scorecard:v" + v + "\n",
	} {
		if !strings.Contains(read(t, "../../"+file), want) {
			t.Errorf("%s lacks %q: run make manifests", file, want)
		}
	}
}

func TestWithoutAnIcon(t *testing.T) {
	if err := run(strings.NewReader(manifests(t)), t.TempDir(), version(t), "none.svg"); err == nil || !strings.Contains(err.Error(), "reading the icon") {
		t.Errorf("error %v", err)
	}
}

// Every variable of the operator has a value, or a reason why it has none.
func TestEverySettingHasAPlace(t *testing.T) {
	text, known := settingsTemplate(), map[string]bool{}
	for _, v := range settings.Variables() {
		known[v.Name] = true
		if _, ok := fromValues[v.Name]; !ok || !strings.Contains(text, "\n"+v.Name+": ") {
			t.Errorf("%s has no place", v.Name)
		}
	}
	for name, from := range fromValues {
		if !known[name] {
			t.Errorf("the operator reads no %s", name)
		}
		if (from.value == "") == (from.not == "") {
			t.Errorf("%s: has the value %q, and none because %q", name, from.value, from.not)
		}
	}
}

// A change of config that the generator would not carry over is an error.
func TestChangesOfConfigAreNoticed(t *testing.T) {
	in := manifests(t)
	for name, tc := range map[string]struct{ old, new, want string }{
		"an unknown kind":                {"kind: NetworkPolicy", "kind: Gateway", "Gateway podconfigmap-controller-ingress: the chart has no place for this kind"},
		"a variable without a value":     {"name: EBPF_ENABLED", "name: EBPF_MODE", "config sets EBPF_MODE, which no value of the chart sets"},
		"a variable that has none":       {"- name: EBPF_ENABLED\n          value", "- name: DEBUG\n          value", "config sets DEBUG, which no value of the chart sets"},
		"another ConfigMap":              {"grafana_dashboard:", "some_dashboard:", "it is no dashboard of Grafana's"},
		"another account":                {"serviceAccountName: podconfigmap-controller-controller-manager", "serviceAccountName: default", "its pods run as default"},
		"a resource not seen before":     {"  - pods\n  verbs:\n  - list", "  - secrets\n  verbs:\n  - list", `whether "secrets" has namespaces is not known`},
		"resources of two kinds":         {"  - nodes\n", "  - nodes\n  - pods\n", "resources with and without namespaces"},
		"a field that has gone":          {"    spec:\n      affinity:", "    specs:\n      affinity:", "config has no [spec template spec] any more"},
		"another first rule":             {"- ports:\n    - port: metrics", "- ports:\n    - port: probes", "its first rule is not that of the metrics' port"},
		"two objects of one name":        {"name: podconfigmap-controller-agent-metrics\n", "name: podconfigmap-controller-metrics\n", "two objects would be in templates/"},
		"an annotation that it adds to":  {"kubectl.kubernetes.io/default-container: manager", "", "any more"},
		"nothing":                        {in, "", "there are no manifests"},
		"no YAML":                        {in, "a: [", "reading manifest 1"},
		"a role without a rule":          {"rules:\n- apiGroups:\n  - \"\"\n  resources:\n  - configmaps", "rule:\n- apiGroups:\n  - \"\"\n  resources:\n  - configmaps", "it has no rules"},
		"a CRD without its annotations":  {"controller-gen.kubebuilder.io/version", "x", ""},
		"a disruption budget of nothing": {"  unhealthyPodEvictionPolicy: AlwaysAllow\n", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			changed := strings.Replace(in, tc.old, tc.new, 1)
			if changed == in {
				t.Fatalf("config has no %q", tc.old)
			}
			folder := t.TempDir()
			if err := os.Mkdir(filepath.Join(folder, "templates"), 0o755); err != nil {
				t.Fatal(err)
			}
			err := run(strings.NewReader(changed), folder, version(t), icon)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestHandWrittenTemplatesStay(t *testing.T) {
	folder := t.TempDir()
	if err := os.Mkdir(filepath.Join(folder, "templates"), 0o755); err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(folder, "templates", "mine.yaml")
	if err := os.WriteFile(mine, []byte("kind: Secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := run(strings.NewReader(manifests(t)), folder, version(t), icon)
	if err == nil || !strings.Contains(err.Error(), "mine.yaml was not made by hack/chart") {
		t.Errorf("error %v", err)
	}
	if read(t, mine) != "kind: Secret\n" {
		t.Error("it was changed")
	}
}

func TestHoles(t *testing.T) {
	o := object{
		"kind":  "Thing",
		"text":  "a {{ b }} c",
		"lists": []any{"first"},
		"map":   map[string]any{"deep": map[string]any{}},
	}
	p := &page{}
	o["inline"] = "x-" + p.value(".a") + "-y"
	o["block"] = p.block(".b")
	o["scalar"] = p.scalar(".c")
	o["other"] = p.blockOr(".d", map[string]any{"e": "f"})
	o["lists"] = append(o["lists"].([]any), p.more("{{- if .g }}", "- second", "{{- end }}"))
	deep, err := o.in("map", "deep")
	if err != nil {
		t.Fatal(err)
	}
	p.merged(deep, `include "h" $`)
	p.mergedIf(deep, ".i")
	p.add(runtime.DeepCopyJSON(o))
	const want = `{{- with .b }}
block:
  {{- toYaml . | nindent 2 }}
{{- end }}
inline: x-{{ .a }}-y
kind: Thing
lists:
- first
{{- if .g }}
- second
{{- end }}
map:
  deep:
    {{- include "h" $ | nindent 4 }}
    {{- with .i }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- with .d }}
other:
  {{- toYaml . | nindent 2 }}
{{- else }}
other:
  e: f
{{- end }}
{{- with .c }}
scalar: {{ . | quote }}
{{- end }}
text: a {{ "{{" }} b {{ "}}" }} c
`
	if p.String() != want {
		t.Errorf("got\n%s\nwant\n%s", p.String(), want)
	}
}

func TestPathsThatAreGone(t *testing.T) {
	o := object{"list": []any{map[string]any{"a": "b"}}}
	for name, path := range map[string][]any{
		"no field": {"none"}, "past the end": {"list", 1}, "not a list": {"list", 0, "a", 0}, "not a map": {"list", "a"}, "a scalar": {"list", 0, "a"},
	} {
		if m, err := o.in(path...); err == nil || !strings.Contains(err.Error(), "any more") {
			t.Errorf("%s: %v, error %v", name, m, err)
		}
	}
	if m, err := o.in("list", 0); err != nil || m["a"] != "b" {
		t.Errorf("%v, error %v", m, err)
	}
}
