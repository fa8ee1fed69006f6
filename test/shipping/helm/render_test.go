// SPDX-License-Identifier: Apache-2.0

package helm

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// programs are the Helms that the chart is tested with.
var programs = []string{"helm", "helm3"}

// withEach runs a test with each Helm.
func withEach(t *testing.T, test func(t *testing.T, h *Helm, chart string)) {
	chart, err := Chart()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range programs {
		t.Run(name, func(t *testing.T) {
			h, err := New(name, t.TempDir(), "")
			if err != nil {
				t.Fatal(err)
			}
			test(t, h, chart)
		})
	}
}

func id(o *unstructured.Unstructured) string { return o.GetKind() + " " + o.GetName() }

func render(t *testing.T, h *Helm, chart string, values ...string) map[string]*unstructured.Unstructured {
	t.Helper()
	objects, err := h.Render(t.Context(), chart, values...)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*unstructured.Unstructured{}
	for _, o := range objects {
		key := id(o)
		if strings.HasPrefix(o.GetKind(), "Role") && o.GetNamespace() != "podconfigmap-controller-system" {
			key += " in " + o.GetNamespace()
		}
		if all[key] != nil {
			t.Errorf("two objects are %s", key)
		}
		all[key] = o
	}
	return all
}

func names(objects map[string]*unstructured.Unstructured) []string {
	var all []string
	for key := range objects {
		all = append(all, key)
	}
	slices.Sort(all)
	return all
}

func TestLint(t *testing.T) {
	withEach(t, func(t *testing.T, h *Helm, chart string) {
		out, err := h.Run(t.Context(), "lint", "--strict", "--kube-version", "1.36.0", chart)
		if err != nil {
			t.Fatal(err, out)
		}
		if !strings.Contains(out, "1 chart(s) linted, 0 chart(s) failed") || strings.Contains(out, "[WARNING]") {
			t.Error(out)
		}
	})
}

// Without any value, and whatever the release is called.
func TestDefaultObjects(t *testing.T) {
	want := []string{
		"ClusterRole podconfigmap-controller-agent-role",
		"ClusterRole podconfigmap-controller-ebpfnode-viewer-role",
		"ClusterRole podconfigmap-controller-manager-role",
		"ClusterRole podconfigmap-controller-podconfigmapconfig-admin-role",
		"ClusterRole podconfigmap-controller-podconfigmapconfig-editor-role",
		"ClusterRole podconfigmap-controller-podconfigmapconfig-viewer-role",
		"ClusterRoleBinding podconfigmap-controller-agent-rolebinding",
		"ClusterRoleBinding podconfigmap-controller-manager-rolebinding",
		"CustomResourceDefinition ebpfnodes.podconfig.example.com",
		"CustomResourceDefinition podconfigmapconfigs.podconfig.example.com",
		"Deployment podconfigmap-controller-controller-manager",
		"Pod podconfigmap-controller-test",
		"Role podconfigmap-controller-agent-role",
		"Role podconfigmap-controller-leader-election-role",
		"Role podconfigmap-controller-manager-role",
		"RoleBinding podconfigmap-controller-agent-rolebinding",
		"RoleBinding podconfigmap-controller-leader-election-rolebinding",
		"RoleBinding podconfigmap-controller-manager-rolebinding",
		"Service podconfigmap-controller-agent-metrics",
		"Service podconfigmap-controller-metrics",
		"ServiceAccount podconfigmap-controller-agent",
		"ServiceAccount podconfigmap-controller-controller-manager",
	}
	withEach(t, func(t *testing.T, h *Helm, chart string) {
		objects := render(t, h, chart)
		if got := names(objects); !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		for key, o := range objects {
			if o.GetLabels()["app.kubernetes.io/instance"] != "some-release" || o.GetLabels()["app.kubernetes.io/managed-by"] != "Helm" || o.GetLabels()["app.kubernetes.io/name"] != "podconfigmap-controller" {
				t.Errorf("%s has the labels %v", key, o.GetLabels())
			}
			kept := o.GetAnnotations()["helm.sh/resource-policy"] == "keep"
			if isCRD := o.GetKind() == "CustomResourceDefinition"; kept != isCRD {
				t.Errorf("%s: stays after an uninstall: %t", key, kept)
			}
		}
		for _, service := range []string{"Service podconfigmap-controller-metrics", "Service podconfigmap-controller-agent-metrics"} {
			if wrong := differs(objects[service].Object, "spec/ports/0/port", `8080`); wrong != "" {
				t.Errorf("%s: %s", service, wrong)
			}
		}
	})
}

// Every value shows where it should, and did not before.
func TestValuesRender(t *testing.T) {
	withEach(t, func(t *testing.T, h *Helm, chart string) {
		for path, c := range changes {
			t.Run(path, func(t *testing.T) {
				t.Parallel()
				before := render(t, h, chart, set(c.with)...)
				after := render(t, h, chart, set(c.all(path, c.to))...)
				if c.at == "" {
					if path == "serviceAccount.create" {
						before = render(t, h, chart)
					}
					if before[c.object] == nil || after[c.object] != nil {
						t.Errorf("%s: before %v, after %v", c.object, before[c.object] != nil, after[c.object] != nil)
					}
					return
				}
				if after[c.object] == nil {
					t.Fatalf("there is no %s", c.object)
				}
				if wrong := differs(after[c.object].Object, c.at, c.want); wrong != "" {
					t.Errorf("%s: %s", c.object, wrong)
				}
				if before[c.object] != nil && differs(before[c.object].Object, c.at, c.want) == "" {
					t.Errorf("%s has %s without it, too", c.object, c.want)
				}
			})
		}
	})
}

// Every bad value is refused by its name.
func TestBadValuesAreRefused(t *testing.T) {
	withEach(t, func(t *testing.T, h *Helm, chart string) {
		for path, c := range changes {
			t.Run(path, func(t *testing.T) {
				t.Parallel()
				for _, bad := range c.bad {
					values := map[string]string{path: bad}
					if path != "serviceAccount.create" {
						values = c.all(path, bad)
					}
					refused(t, h, chart, path, set(values)...)
				}
			})
		}
	})
}

// refused fails unless the complaint names the value, as /a/b of the schema or as
// a.b of the templates.
func refused(t *testing.T, h *Helm, chart, path string, values ...string) {
	t.Helper()
	_, err := h.Render(t.Context(), chart, values...)
	if err == nil {
		t.Errorf("%q is accepted", values)
		return
	}
	// Before it are the arguments, which name the value, too.
	_, text, _ := strings.Cut(err.Error(), ": exit status")
	if !strings.Contains(text, "/"+strings.ReplaceAll(path, ".", "/")) && !strings.Contains(text, path) {
		t.Errorf("%q: the complaint does not name %s: %s", values, path, text)
	}
}

func TestUnknownAndContradictingValuesAreRefused(t *testing.T) {
	withEach(t, func(t *testing.T, h *Helm, chart string) {
		for name, values := range map[string]string{
			"replica": "replica=3", "repo": "image.repo=a", "enable": "ebpf.enable=true", "toleration": "ebpf.agent.toleration=a",
			"replicas": "leaderElection.enabled=false", "serviceAccount.name": "serviceAccount.create=false",
		} {
			refused(t, h, chart, name, "--set", values)
		}
		render(t, h, chart, "--set", "global.anything=goes")
		if objects := render(t, h, chart, "--set", "leaderElection.enabled=false,replicas=1"); differs(objects[deployment].Object, "spec/strategy/rollingUpdate/maxSurge", `0`) != "" {
			t.Error("without an election a manager would start beside another")
		}
	})
}

func TestWatchedNamespacesOnly(t *testing.T) {
	withEach(t, func(t *testing.T, h *Helm, chart string) {
		objects := render(t, h, chart, "--set-json", `watchNamespaces=["a","podconfigmap-controller-system"]`)
		for key, o := range objects {
			if o.GetKind() == "ClusterRoleBinding" && key != "ClusterRoleBinding podconfigmap-controller-agent-rolebinding" {
				t.Errorf("there is a %s", key)
			}
		}
		if wrong := differs(objects["ClusterRole podconfigmap-controller-agent-role"].Object, "rules", `[{"apiGroups":[""],"resources":["nodes"],"verbs":["get"]}]`); wrong != "" {
			t.Errorf("agents may more in the whole cluster: %s", wrong)
		}
		everywhere := render(t, h, chart)
		for role, whole := range map[string]string{"manager": "ClusterRole podconfigmap-controller-manager-role", "agent": "ClusterRole podconfigmap-controller-agent-role"} {
			want := withoutNodes(t, everywhere[whole])
			for _, in := range []string{" in a", ""} {
				got := objects["Role podconfigmap-controller-"+role+"-watched-role"+in]
				binding := objects["RoleBinding podconfigmap-controller-"+role+"-watched-rolebinding"+in]
				if got == nil || binding == nil {
					t.Fatalf("%s has no role%s, or it is not bound", role, in)
				}
				if wrong := differs(got.Object, "rules", want); wrong != "" {
					t.Errorf("%s: %s", role, wrong)
				}
				if wrong := differs(binding.Object, "roleRef/name", `"podconfigmap-controller-`+role+`-watched-role"`); wrong != "" {
					t.Error(wrong)
				}
				if wrong := differs(binding.Object, "subjects/0/namespace", `"podconfigmap-controller-system"`); wrong != "" {
					t.Error(wrong)
				}
			}
		}
	})
}

// withoutNodes are the rules of a role, as JSON, but for those on nodes.
func withoutNodes(t *testing.T, role *unstructured.Unstructured) string {
	t.Helper()
	rules, _, err := unstructured.NestedSlice(role.Object, "rules")
	if err != nil {
		t.Fatal(err)
	}
	rules = slices.DeleteFunc(rules, func(rule any) bool { return fmt.Sprint(found(rule, "resources/0")) == "nodes" })
	text, err := json.Marshal(rules)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A second installation shares no name with the first but the agents', which are
// in a namespace; and what Prometheus is told follows the names.
func TestAnotherName(t *testing.T) {
	withEach(t, func(t *testing.T, h *Helm, chart string) {
		all := []string{"--set", "fullnameOverride=other,crds.enabled=false,serviceMonitor.enabled=true,prometheusRule.enabled=true,dashboard.enabled=true," +
			"podDisruptionBudget.enabled=true,networkPolicy.enabled=true,priorityClass.create=true,ebpf.enabled=true"}
		objects := render(t, h, chart, all...)
		job := regexp.MustCompile(`podconfigmap-controller-(agent-)?metrics`)
		for key, o := range objects {
			if !strings.HasPrefix(o.GetName(), "other-") && key != "ServiceAccount podconfigmap-controller-agent" {
				t.Errorf("%s is not named after the override", key)
			}
			text, err := o.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			if stale := job.FindString(string(text)); stale != "" {
				t.Errorf("%s names %s", key, stale)
			}
		}
		if wrong := differs(objects["Deployment other-controller-manager"].Object, env+"AGENT_PRIORITY_CLASS/value", `"other-priority"`); wrong != "" {
			t.Error(wrong)
		}
	})
}

// Alerts and dashboard have braces of their own.
func TestAlertsAndDashboardAreConfigs(t *testing.T) {
	withEach(t, func(t *testing.T, h *Helm, chart string) {
		objects := render(t, h, chart, "--set", "prometheusRule.enabled=true,dashboard.enabled=true,serviceMonitor.enabled=true")
		originals, err := Kustomize(t.Context(), "config/chart")
		if err != nil {
			t.Fatal(err)
		}
		compared := 0
		for _, original := range originals {
			field, is := map[string]string{"PrometheusRule": "spec", "ConfigMap": "data", "ServiceMonitor": "spec"}[original.GetKind()]
			if !is {
				continue
			}
			compared++
			want, err := json.Marshal(original.Object[field])
			if err != nil {
				t.Fatal(err)
			}
			if objects[id(original)] == nil {
				t.Errorf("the chart has no %s", id(original))
			} else if wrong := differs(objects[id(original)].Object, field, string(want)); wrong != "" {
				t.Errorf("%s: %s", id(original), wrong)
			}
		}
		if compared < 4 {
			t.Errorf("only %d objects were compared", compared)
		}
	})
}

// Whoever may read the metrics, the chart's own test may.
func TestNetworkPolicyLetsTheTestIn(t *testing.T) {
	withEach(t, func(t *testing.T, h *Helm, chart string) {
		objects := render(t, h, chart, "--set-json", `networkPolicy={"enabled":true,"metricsFrom":[{"ipBlock":{"cidr":"10.0.0.0/8"}}]}`)
		selected, err := json.Marshal(found(objects[policy].Object, "spec/ingress/0/from/1/podSelector/matchLabels"))
		if err != nil {
			t.Fatal(err)
		}
		var labels map[string]string
		if err := json.Unmarshal(selected, &labels); err != nil || len(labels) == 0 {
			t.Fatal(err, string(selected))
		}
		for key, value := range labels {
			if objects["Pod podconfigmap-controller-test"].GetLabels()[key] != value {
				t.Errorf("the test's pod has no label %s=%s", key, value)
			}
		}
	})
}

// The chart's test asks the managers, and the agents where there are any.
func TestWhatTheTestAsks(t *testing.T) {
	withEach(t, func(t *testing.T, h *Helm, chart string) {
		for value, services := range map[string][]string{"false": {"metrics"}, "true": {"metrics", "agent-metrics"}} {
			want := []string{"check"}
			objects := render(t, h, chart, "--set", "ebpf.enabled="+value)
			for _, service := range services {
				want = append(want, "http://podconfigmap-controller-"+service+".podconfigmap-controller-system.svc:8080/metrics")
				if objects["Service podconfigmap-controller-"+service] == nil {
					t.Errorf("ebpf.enabled=%s: the chart makes no Service %s", value, service)
				}
			}
			if got := fmt.Sprint(found(objects["Pod podconfigmap-controller-test"].Object, "spec/containers/0/args")); got != fmt.Sprint(want) {
				t.Errorf("ebpf.enabled=%s: the test's arguments are %s, want %s", value, got, want)
			}
		}
	})
}

// The notes say what was installed.
func TestNotes(t *testing.T) {
	withEach(t, func(t *testing.T, h *Helm, chart string) {
		for values, want := range map[string]string{
			"replicas=2":          "watches all namespaces",
			"watchNamespaces={a}": "watches the namespaces a.",
			"ebpf.enabled=true":   "pod-security.kubernetes.io/enforce=privileged",
			"ebpf.enabled=false":  "eBPF is off",
			"crds.enabled=false":  "The CRDs are not this release's",
		} {
			h := *h
			h.kubeconfig = cluster.Kubeconfig()
			out, err := h.Run(t.Context(), "install", "r", chart, "--dry-run=client", "--namespace", "n", "--set", values)
			if err != nil || !strings.Contains(out, want) {
				t.Errorf("%s: error %v, want %q in:\n%s", values, err, want, out[max(0, len(out)-1200):])
			}
		}
	})
}

// What YAML takes for something else stays a text.
func TestNamesAreTexts(t *testing.T) {
	withEach(t, func(t *testing.T, h *Helm, chart string) {
		out, err := h.Run(t.Context(), "template", "on", chart, "--namespace", "n", "--kube-version", "1.36.0",
			"--set-json", `watchNamespaces=["y"]`, "--set-string", "serviceAccount.name=on,priorityClassName=off,image.tag=1")
		if err != nil {
			t.Fatal(err)
		}
		objects, err := Decode(strings.NewReader(out))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			metadata := o.Object["metadata"].(map[string]any)
			if _, is := metadata["namespace"].(string); metadata["namespace"] != nil && !is {
				t.Errorf("%s is in the namespace %v", id(o), metadata["namespace"])
			}
			if o.GetKind() != "Deployment" {
				continue
			}
			for path, want := range map[string]string{"serviceAccountName": `"on"`, "priorityClassName": `"off"`, "containers/manager/env/WATCH_NAMESPACE/value": `"y"`} {
				if wrong := differs(o.Object, pod+path, want); wrong != "" {
					t.Error(wrong)
				}
			}
		}
	})
}
