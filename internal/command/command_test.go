// SPDX-License-Identifier: Apache-2.0

package command

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestClusterConfig(t *testing.T) {
	const text = `
apiVersion: v1
kind: Config
current-context: a
contexts: [{name: a, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "https://192.0.2.1:6443"}}]
`
	t.Run("a file", func(t *testing.T) {
		config, err := clusterConfig(write(t, "kubeconfig", text))
		if err != nil || config.Host != "https://192.0.2.1:6443" {
			t.Errorf("config %v, error %v", config, err)
		}
	})
	t.Run("several files", func(t *testing.T) {
		user := write(t, "user", "apiVersion: v1\nkind: Config\nusers: [{name: u, user: {token: secret}}]\n")
		config, err := clusterConfig(write(t, "kubeconfig", text) + string(filepath.ListSeparator) + user)
		if err != nil || config.BearerToken != "secret" {
			t.Errorf("config %v, error %v", config, err)
		}
	})
	for name, tc := range map[string]struct{ path, want string }{
		"absent":     {filepath.Join(t.TempDir(), "absent"), "invalid configuration: no configuration has been provided"},
		"unreadable": {write(t, "bad", "{"), "yaml: line 1: did not find expected node content"},
		"no context": {write(t, "none", strings.Replace(text, "current-context: a", "current-context: b", 1)), "context was not found for specified context: b"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := clusterConfig(tc.path)
			if err == nil || !strings.HasPrefix(err.Error(), `reading KUBECONFIG="`+tc.path+`": `) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q about the file", err, tc.want)
			}
		})
	}
	t.Run("nothing at hand", func(t *testing.T) {
		t.Setenv("KUBERNETES_SERVICE_HOST", "")
		_, err := clusterConfig("")
		if want := "no cluster to work on: set KUBECONFIG, or run in a pod"; err == nil || err.Error() != want {
			t.Errorf("error %v, want %q", err, want)
		}
	})
}

const (
	pod = `
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: u1, labels: {app: web}}
spec: {nodeName: node-1, containers: [{name: main, image: nginx}]}
status: {phase: Running}
`
	config = `
apiVersion: podconfig.example.com/v1alpha1
kind: PodConfigMapConfig
metadata: {name: meta, namespace: shop}
spec:
  labelsToInclude: [app]
  configMapDataTemplate: {where: "{{ .podName }} on {{ .nodeName }}"}
`
	rendered = `---
apiVersion: v1
data:
  ebpf_enabled: "false"
  label_app: web
  namespace: shop
  nodeName: node-1
  pcmcName: meta
  phase: Running
  podName: web
  where: web on node-1
kind: ConfigMap
metadata:
  labels:
    podconfig.example.com/generated-by-pcmc: meta
    podconfig.example.com/pod-uid: u1
  name: pod-web-from-meta-cfg
  namespace: shop
  ownerReferences:
  - apiVersion: v1
    controller: true
    kind: Pod
    name: web
    uid: u1
`
)

func run(stdin string, args ...string) (string, error) {
	out := &strings.Builder{}
	root := New()
	root.SetArgs(args)
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(out)
	root.SetErr(out)
	err := root.Execute()
	return out.String(), err
}

func TestRender(t *testing.T) {
	asJSON := `{"kind": "List", "items": [
		{"kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "labels": {"app": "web"}},
		 "spec": {"nodeName": "node-1", "containers": [{"name": "main", "image": "nginx"}]}, "status": {"phase": "Running"}},
		{"kind": "PodConfigMapConfigList", "items": [{"metadata": {"name": "meta", "namespace": "shop"}, "kind": "PodConfigMapConfig",
		 "spec": {"labelsToInclude": ["app"], "configMapDataTemplate": {"where": "{{ .podName }} on {{ .nodeName }}"}}}]}]}`
	for name, tc := range map[string]struct {
		stdin string
		files []string
		want  string
	}{
		"two files":          {"", []string{write(t, "pod.yaml", pod), write(t, "config.yaml", config)}, rendered},
		"standard input":     {pod + "---\n" + config, []string{"-"}, rendered},
		"a file and input":   {config, []string{write(t, "pod.yaml", pod), "-"}, rendered},
		"empty documents":    {"---\n---\n" + pod + "---\n# nothing\n---\n" + config, []string{"-"}, rendered},
		"lists, as JSON":     {asJSON, []string{"-"}, rendered},
		"others do not fit":  {pod + "---\n" + config + "---\n" + strings.Replace(pod, "namespace: shop", "namespace: other", 1), []string{"-"}, rendered},
		"two pods":           {pod + "---\n" + config + "---\n" + strings.ReplaceAll(pod, "web", "api"), []string{"-"}, rendered + strings.ReplaceAll(rendered, "web", "api")},
		"default namespace":  {strings.Replace(pod+"---\n"+config, ", namespace: shop", "", 2), []string{"-"}, strings.ReplaceAll(rendered, "namespace: shop", "namespace: default")},
		"selected by labels": {pod + "---\n" + config + "  podSelector: {matchLabels: {app: web}}\n", []string{"-"}, rendered},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"render"}
			for _, f := range tc.files {
				args = append(args, "-f", f)
			}
			got, err := run(tc.stdin, args...)
			if err != nil || got != tc.want {
				t.Errorf("error %v; printed\n%s, want\n%s", err, got, tc.want)
			}
		})
	}
}

func TestRenderFails(t *testing.T) {
	for name, tc := range map[string]struct{ stdin, printed, err string }{
		"nothing":                  {"", "", "no config selects a pod of its own namespace (read 0 pods, 0 configs)"},
		"no pod of that namespace": {strings.Replace(pod, "shop", "other", 1) + "---\n" + config, "", "no config selects a pod of its own namespace (read 1 pods, 1 configs)"},
		"no pod with that label":   {pod + "---\n" + config + "  podSelector: {matchLabels: {app: api}}\n", "", "no config selects a pod of its own namespace (read 1 pods, 1 configs)"},
		"a misspelt field": {pod + "---\n" + strings.Replace(config, "labelsToInclude", "labelToInclude", 1), "",
			`reading document 2 of standard input: PodConfigMapConfig: error unmarshaling JSON: while decoding JSON: json: unknown field "labelToInclude"`},
		"another kind": {"kind: Service\n", "", `reading document 1 of standard input: kind "Service" is neither a Pod nor a PodConfigMapConfig`},
		"another kind in a list": {"kind: List\nitems: [{kind: Pod}, {kind: Service}]\n", "",
			`reading document 1 of standard input: item 1: kind "Service" is neither a Pod nor a PodConfigMapConfig`},
		"no YAML": {"a: [", "", "reading document 1 of standard input: error converting YAML to JSON: yaml: line 1: did not find expected node content"},
		"a template that fails, beside one that does not": {
			pod + "---\n" + config + "---\n" + strings.ReplaceAll(strings.Replace(config, ".podName", ".labels.zone", 1), "name: meta", "name: bad"), rendered,
			`pod "web", config "bad": TemplateInvalid: spec.configMapDataTemplate: template "where", line 1: at <.labels.zone>: map has no entry for key "zone"; read keys that may be absent with get and default`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := run(tc.stdin, "render", "-f", "-")
			if err == nil || err.Error() != tc.err {
				t.Errorf("error\n%v, want\n%s", err, tc.err)
			}
			if got != tc.printed {
				t.Errorf("printed\n%s, want\n%s", got, tc.printed)
			}
		})
	}
	if _, err := run("", "render", "-f", filepath.Join(t.TempDir(), "absent")); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("an absent file: %v", err)
	}
	if _, err := run("", "render"); err == nil || err.Error() != `required flag(s) "filename" not set` {
		t.Errorf("no file: %v", err)
	}
	if _, err := run("", "render", "-f", "-", "extra"); err == nil {
		t.Error("an argument too many is accepted")
	}
}

func TestModes(t *testing.T) {
	out, err := run("", "--help")
	for _, mode := range []string{"manager", "render"} {
		if err != nil || !strings.Contains(out, "\n  "+mode) {
			t.Errorf("help lacks %s (%v):\n%s", mode, err, out)
		}
	}
	if _, err := run("", "nonsense"); err == nil {
		t.Error("an unknown mode is accepted")
	}
}
