// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	operatorsv1alpha1 "github.com/operator-framework/api/pkg/operators/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
)

// committed is the bundle of this repository.
func committed(t *testing.T) *bundle {
	t.Helper()
	b, err := readBundle("../../bundle")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bundle) manager() *corev1.Container {
	return &b.csv.Spec.InstallStrategy.StrategySpec.DeploymentSpecs[0].Spec.Template.Spec.Containers[0]
}

func (b *bundle) strategy() *operatorsv1alpha1.StrategyDetailsDeployment {
	return &b.csv.Spec.InstallStrategy.StrategySpec
}

func setEnv(b *bundle, v corev1.EnvVar) {
	for i := range b.manager().Env {
		if b.manager().Env[i].Name == v.Name {
			b.manager().Env[i] = v
			return
		}
	}
	b.manager().Env = append(b.manager().Env, v)
}

func TestCommittedBundle(t *testing.T) {
	for name, test := range tests {
		if name == "sample" {
			continue // needs a cluster
		}
		if problems := test(committed(t)); len(problems) > 0 {
			t.Errorf("%s: %q", name, problems)
		}
	}
}

// Each test finds what it is there for.
func TestProblems(t *testing.T) {
	yes := true
	for name, tc := range map[string]struct {
		test   string
		change func(*bundle)
		want   string
	}{
		"watched namespaces":  {"env-wiring", func(b *bundle) { setEnv(b, corev1.EnvVar{Name: "WATCH_NAMESPACE"}) }, "WATCH_NAMESPACE does not come from"},
		"the flag on":         {"env-wiring", func(b *bundle) { setEnv(b, corev1.EnvVar{Name: flag, Value: "true"}) }, `EBPF_ENABLED is not "false"`},
		"the flag's source":   {"env-wiring", func(b *bundle) { setEnv(b, corev1.EnvVar{Name: flag, ValueFrom: &corev1.EnvVarSource{}}) }, `EBPF_ENABLED is not "false"`},
		"no agent's image":    {"env-wiring", func(b *bundle) { setEnv(b, corev1.EnvVar{Name: "RELATED_IMAGE_AGENT"}) }, "does not name the agent's image"},
		"OLM's own variable":  {"env-wiring", func(b *bundle) { setEnv(b, corev1.EnvVar{Name: "OPERATOR_CONDITION_NAME"}) }, "OLM's to do"},
		"no manager":          {"env-wiring", func(b *bundle) { b.manager().Name = "other" }, "no container is named"},
		"an image not listed": {"related-images", func(b *bundle) { b.manager().Image = "other:v1" }, `image "other:v1" is missing in relatedImages`},
		"an agent not listed": {"related-images", func(b *bundle) { setEnv(b, corev1.EnvVar{Name: "RELATED_IMAGE_AGENT", Value: "a:v1"}) }, `image "a:v1" is missing`},
		"an image not used":   {"related-images", func(b *bundle) { b.csv.Spec.RelatedImages[0].Image = "other:v1" }, `"other:v1" is not used`},
		"a name missing":      {"related-images", func(b *bundle) { b.csv.Spec.RelatedImages[1].Name = "" }, `no related image is named "agent"`},
		"another annotation":  {"related-images", func(b *bundle) { b.csv.Annotations["containerImage"] = "other:v1" }, "the annotation containerImage"},
		"a right too many": {"rights", func(b *bundle) {
			b.strategy().Permissions[0].Rules[0].Verbs = append(b.strategy().Permissions[0].Rules[0].Verbs, "delete")
		}, "everywhere may delete"},
		"a right too few":    {"rights", func(b *bundle) { b.strategy().ClusterPermissions = nil }, "agent everywhere may not get nodes."},
		"a right of its own": {"rights", func(b *bundle) { b.roles = nil }, "in its own namespace may not"},
		"another's rights":   {"rights", func(b *bundle) { b.strategy().Permissions[0].ServiceAccountName = "other" }, "ServiceAccount other gets rights"},
		"a URL": {"rights", func(b *bundle) {
			b.strategy().Permissions[0].Rules[0] = rbacv1.PolicyRule{Verbs: []string{"get"}, NonResourceURLs: []string{"/x"}}
		}, "may [get] /x"},
		"a DaemonSet":          {"unprivileged", func(b *bundle) { b.kinds = append(b.kinds, "DaemonSet") }, "the bundle has a DaemonSet"},
		"a monitor":            {"unprivileged", func(b *bundle) { b.kinds = append(b.kinds, "ServiceMonitor") }, "the bundle has a ServiceMonitor"},
		"a privileged manager": {"unprivileged", func(b *bundle) { b.manager().SecurityContext.Privileged = &yes }, "restricted security context"},
		"no security context":  {"unprivileged", func(b *bundle) { b.manager().SecurityContext = nil }, "restricted security context"},
		"the host's network":   {"unprivileged", func(b *bundle) { b.strategy().DeploymentSpecs[0].Spec.Template.Spec.HostNetwork = true }, "namespaces of the host"},
		"root":                 {"unprivileged", func(b *bundle) { b.strategy().DeploymentSpecs[0].Spec.Template.Spec.SecurityContext = nil }, "may run as root"},
		"no such field":        {"descriptors", func(b *bundle) { b.csv.Spec.CustomResourceDefinitions.Owned[1].SpecDescriptors[0].Path = "none" }, "the descriptor none is about no field"},
		"a field forgotten":    {"descriptors", func(b *bundle) { b.csv.Spec.CustomResourceDefinitions.Owned[0].StatusDescriptors = nil }, "EBPFNode status: the field btf has no descriptor"},
		"a CRD missing":        {"descriptors", func(b *bundle) { b.crds = nil }, "has no schema in the bundle"},
	} {
		t.Run(name, func(t *testing.T) {
			b := committed(t)
			tc.change(b)
			if problems := strings.Join(tests[tc.test](b), "\n"); !strings.Contains(problems, tc.want) {
				t.Errorf("%s: %q, want %q", tc.test, problems, tc.want)
			}
		})
	}
}

func TestOutput(t *testing.T) {
	var out bytes.Buffer
	if err := run([]string{"related-images"}, "../../bundle", &out); err != nil || !strings.Contains(out.String(), `"state": "pass"`) {
		t.Errorf("run: %v\n%s", err, out.String())
	}
	out.Reset()
	if err := report("x", []string{"wrong"}, &out); err != nil || !strings.Contains(out.String(), `"state": "fail"`) || !strings.Contains(out.String(), `"wrong"`) {
		t.Errorf("report: %v\n%s", err, out.String())
	}
	for _, args := range [][]string{nil, {"none"}, {"rights", "more"}} {
		if err := run(args, "../../bundle", &out); err == nil || !strings.Contains(err.Error(), "env-wiring") {
			t.Errorf("run(%q) = %v", args, err)
		}
	}
	if err := run([]string{"rights"}, t.TempDir(), &out); err == nil || !strings.Contains(err.Error(), "there are none") {
		t.Errorf("run without a bundle = %v", err)
	}
}

// The sample asks for all that the example includes.
func TestSample(t *testing.T) {
	config, err := sampleConfig(committed(t).csv.Annotations["alm-examples"])
	if err != nil {
		t.Fatal(err)
	}
	s := &sample{config: config, pod: podFor(config)}
	want := s.wanted()
	for key, value := range map[string]string{
		"podName": config.Name, "label_app.kubernetes.io_name": "scorecard", "annotation_shop.example.com_owner": "scorecard",
	} {
		if want[key] != value {
			t.Errorf("wanted: %s is %q, not %q", key, want[key], value)
		}
	}
	if s.pod.Labels["app.kubernetes.io/part-of"] != "shop" {
		t.Errorf("the pod is not selected: %v", s.pod.Labels)
	}
	cm := &corev1.ConfigMap{Data: want}
	if err := s.right(cm); err == nil || !strings.Contains(err.Error(), "of a template, is missing") {
		t.Errorf("without templates: %v", err)
	}
	for key := range config.Spec.ConfigMapDataTemplate {
		cm.Data[key] = "something"
	}
	if err := s.right(cm); err == nil || !strings.Contains(err.Error(), "owner") {
		t.Errorf("without an owner: %v", err)
	}
	if _, err := sampleConfig(`[{"kind": "EBPFNode"}]`); err == nil {
		t.Error("no example is accepted")
	}
	if _, err := newSample(config, ""); err == nil || !strings.Contains(err.Error(), namespaceVariable) {
		t.Errorf("without a namespace: %v", err)
	}
}

func TestTar(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "bundle.tar.gz"), t.TempDir()
	if out, err := exec.Command("tar", "czf", from, "checks.go").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := run([]string{"tar", "xvzf", from, "-C", to}, "", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(to, "checks.go")); err != nil {
		t.Error(err)
	}
	for name, args := range map[string][]string{"other arguments": {"cf", "x"}, "no file": {"xvzf", from + "x", "-C", to}} {
		if err := run(append([]string{"tar"}, args...), "", nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
