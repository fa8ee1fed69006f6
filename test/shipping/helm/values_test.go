// SPDX-License-Identifier: Apache-2.0

package helm

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

const (
	deployment = "Deployment podconfigmap-controller-controller-manager"
	monitor    = "ServiceMonitor podconfigmap-controller-metrics"
	agents     = "ServiceMonitor podconfigmap-controller-agent-metrics"
	rules      = "PrometheusRule podconfigmap-controller-alerts"
	dashboard  = "ConfigMap podconfigmap-controller-dashboard"
	budget     = "PodDisruptionBudget podconfigmap-controller-controller-manager"
	policy     = "NetworkPolicy podconfigmap-controller-ingress"
	priority   = "PriorityClass podconfigmap-controller-priority"
	account    = "ServiceAccount podconfigmap-controller-controller-manager"

	pod       = "spec/template/spec/"
	container = pod + "containers/manager/"
	env       = container + "env/"
	digest    = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

// version is the chart's.
var version = func() string {
	v, err := harness.Version()
	if err != nil {
		panic(err)
	}
	return v
}()

// change is what becomes of one value.
type change struct {
	// to is the value, as JSON.
	to string
	// with are other values, as JSON, that it needs to show.
	with map[string]string
	// object is where it shows, at the path at, by what is there then, as JSON;
	// empty where the object, or what is at the path, is gone.
	object, at, want string
	// bad are values that the chart refuses, as JSON. Without an other value, the
	// complaint has to name the value.
	bad []string
}

var (
	on      = map[string]string{"ebpf.enabled": "true"}
	scraped = map[string]string{"serviceMonitor.enabled": "true"}
	alerts  = map[string]string{"prometheusRule.enabled": "true"}
	shown   = map[string]string{"dashboard.enabled": "true"}
	guarded = map[string]string{"networkPolicy.enabled": "true"}
	drained = map[string]string{"podDisruptionBudget.enabled": "true"}
	ranked  = map[string]string{"priorityClass.create": "true"}
)

// changes has every value of values.yaml.
var changes = map[string]change{
	"fullnameOverride":       {to: `"other"`, object: "Service other-metrics", at: "spec/ports/0/port", want: `8080`, bad: []string{`"Upper"`, `1`, `"a-name-that-is-by-far-too-long-for-all-it-begins"`}},
	"replicas":               {to: `3`, object: deployment, at: "spec/replicas", want: `3`, bad: []string{`-1`, `"two"`, `1.5`}},
	"image.repository":       {to: `"example.com:5000/a/b"`, object: deployment, at: container + "image", want: `"example.com:5000/a/b:v` + version + `"`, bad: []string{`""`, `"A B"`}},
	"image.tag":              {to: `"v9"`, object: deployment, at: container + "image", want: `"ghcr.io/podconfigmap/podconfigmap-controller:v9"`, bad: []string{`"a b"`, `1`}},
	"image.digest":           {to: `"` + digest + `"`, object: deployment, at: container + "image", want: `"ghcr.io/podconfigmap/podconfigmap-controller@` + digest + `"`, bad: []string{`"sha256:1"`}},
	"image.pullPolicy":       {to: `"Always"`, object: deployment, at: container + "imagePullPolicy", want: `"Always"`, bad: []string{`"Sometimes"`}},
	"image.pullSecrets":      {to: `[{"name":"s"}]`, object: deployment, at: pod + "imagePullSecrets", want: `[{"name":"s"}]`, bad: []string{`["s"]`, `[{"secret":"s"}]`}},
	"crds.enabled":           {to: `false`, object: "CustomResourceDefinition podconfigmapconfigs.podconfig.example.com", bad: []string{`"yes"`}},
	"watchNamespaces":        {to: `["default","kube-system"]`, object: deployment, at: env + "WATCH_NAMESPACE/value", want: `"default,kube-system"`, bad: []string{`"default"`, `["A"]`, `["a","a"]`}},
	"leaderElection.enabled": {to: `false`, with: map[string]string{"replicas": "1"}, object: deployment, at: env + "LEADER_ELECTION_ENABLED/value", want: `"false"`, bad: []string{`"no"`}},

	"leaderElection.leaseDuration":     {to: `"7s"`, object: deployment, at: env + "LEADER_ELECTION_LEASE_DURATION/value", want: `"7s"`, bad: []string{`"7"`, `7`, `""`}},
	"leaderElection.renewDeadline":     {to: `"4s"`, object: deployment, at: env + "LEADER_ELECTION_RENEW_DEADLINE/value", want: `"4s"`, bad: []string{`"soon"`}},
	"leaderElection.retryPeriod":       {to: `"1s"`, object: deployment, at: env + "LEADER_ELECTION_RETRY_PERIOD/value", want: `"1s"`, bad: []string{`"-1s"`}},
	"leaderElection.lockName":          {to: `"l"`, object: deployment, at: env + "LEADER_ELECTION_LOCK_NAME/value", want: `"l"`, bad: []string{`"L"`}},
	"controller.podWorkers":            {to: `5`, object: deployment, at: env + "CONTROLLER_POD_WORKERS/value", want: `"5"`, bad: []string{`0`, `1025`, `"5"`}},
	"controller.pcmcWorkers":           {to: `5`, object: deployment, at: env + "CONTROLLER_PCMC_WORKERS/value", want: `"5"`, bad: []string{`0`, `1025`}},
	"controller.resyncPeriod":          {to: `"1m"`, object: deployment, at: env + "CONTROLLER_RESYNC_PERIOD/value", want: `"1m"`, bad: []string{`60`}},
	"controller.maxRetries":            {to: `7`, object: deployment, at: env + "CONTROLLER_MAX_RETRIES/value", want: `"7"`, bad: []string{`0`, `101`, `"7"`}},
	"controller.reconciliationTimeout": {to: `"9s"`, object: deployment, at: env + "CONTROLLER_RECONCILIATION_TIMEOUT/value", want: `"9s"`, bad: []string{`"9"`}},
	"logging.level":                    {to: `"debug"`, object: deployment, at: env + "LOG_LEVEL/value", want: `"debug"`, bad: []string{`"loud"`}},
	"logging.format":                   {to: `"json"`, object: deployment, at: env + "LOG_FORMAT/value", want: `"json"`, bad: []string{`"xml"`}},

	"ebpf.enabled":                 {to: `true`, object: deployment, at: env + "EBPF_ENABLED/value", want: `"true"`, bad: []string{`"true"`, `1`}},
	"ebpf.agent.image.repository":  {to: `"example.com/a"`, with: on, object: deployment, at: env + "RELATED_IMAGE_AGENT/value", want: `"example.com/a:v` + version + `"`, bad: []string{`"A"`}},
	"ebpf.agent.image.tag":         {to: `"v9"`, with: on, object: deployment, at: env + "RELATED_IMAGE_AGENT/value", want: `"ghcr.io/podconfigmap/podconfigmap-controller:v9"`, bad: []string{`"a b"`}},
	"ebpf.agent.image.digest":      {to: `"` + digest + `"`, with: on, object: deployment, at: env + "RELATED_IMAGE_AGENT/value", want: `"ghcr.io/podconfigmap/podconfigmap-controller@` + digest + `"`, bad: []string{`"md5:1"`}},
	"ebpf.agent.tolerations":       {to: `[{"key":"a","operator":"Exists"}]`, with: on, object: deployment, at: env + "AGENT_TOLERATIONS/value", want: `"[{\"key\":\"a\",\"operator\":\"Exists\"}]"`, bad: []string{`[{"keys":"a"}]`, `{}`, `[{"operator":"In"}]`}},
	"ebpf.agent.nodeSelector":      {to: `{"b":"2","a":"1"}`, with: on, object: deployment, at: env + "AGENT_NODE_SELECTOR/value", want: `"a=1,b=2"`, bad: []string{`"a=1"`, `{"a":1}`, `{"a b":"1"}`}},
	"ebpf.agent.resources":         {to: `{"requests":{"cpu":"1","memory":"128Mi"}}`, with: on, object: deployment, at: env + "AGENT_RESOURCES/value", want: `"{\"requests\":{\"cpu\":\"1\",\"memory\":\"128Mi\"}}"`, bad: []string{`{"request":{}}`, `{"limits":{"cpu":"much"}}`}},
	"ebpf.agent.priorityClassName": {to: `"system-node-critical"`, with: on, object: deployment, at: env + "AGENT_PRIORITY_CLASS/value", want: `"system-node-critical"`, bad: []string{`"A"`}},
	"ebpf.agent.seccompProfile":    {to: `"RuntimeDefault"`, with: on, object: deployment, at: env + "AGENT_SECCOMP_PROFILE/value", want: `"RuntimeDefault"`, bad: []string{`"Localhost"`}},
	"ebpf.agent.legacyKernels":     {to: `true`, with: on, object: deployment, at: env + "AGENT_LEGACY_KERNELS/value", want: `"true"`, bad: []string{`"5.4"`}},

	"resources":         {to: `{"limits":{"memory":"1Gi"}}`, object: deployment, at: container + "resources/limits/memory", want: `"1Gi"`, bad: []string{`{"limit":{}}`, `{"limits":{"memory":"1 Gi"}}`, `{"claims":[]}`}},
	"priorityClassName": {to: `"system-cluster-critical"`, object: deployment, at: pod + "priorityClassName", want: `"system-cluster-critical"`, bad: []string{`"A"`}},
	"nodeSelector":      {to: `{"a":"1"}`, object: deployment, at: pod + "nodeSelector", want: `{"a":"1"}`, bad: []string{`{"a":true}`}},
	"tolerations":       {to: `[{"key":"a","operator":"Exists"}]`, object: deployment, at: pod + "tolerations", want: `[{"key":"a","operator":"Exists"}]`, bad: []string{`[{"effect":"No"}]`}},
	"affinity":          {to: `{"nodeAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[{"weight":7,"preference":{"matchExpressions":[{"key":"a","operator":"Exists"}]}}]}}`, object: deployment, at: pod + "affinity/nodeAffinity/preferredDuringSchedulingIgnoredDuringExecution/0/weight", want: `7`, bad: []string{`{"podAntiAfinity":{}}`}},
	"podAnnotations":    {to: `{"a":"1"}`, object: deployment, at: "spec/template/metadata/annotations/a", want: `"1"`, bad: []string{`{"a":1}`, `{"kubectl.kubernetes.io/default-container":"a"}`}},
	"podLabels":         {to: `{"a":"1"}`, object: deployment, at: "spec/template/metadata/labels/a", want: `"1"`, bad: []string{`{"a":1}`, `{"app.kubernetes.io/name":"a"}`, `{"app.kubernetes.io/component":"a"}`}},
	"extraEnv":          {to: `[{"name":"GOMEMLIMIT","value":"460MiB"}]`, object: deployment, at: env + "GOMEMLIMIT/value", want: `"460MiB"`, bad: []string{`{"A":"b"}`, `[{"value":"a"}]`, `[{"name":"EBPF_ENABLED","value":"true"}]`, `[{"name":"POD_NAME","value":"a"}]`, `[{"name":"A","value":"1"},{"name":"A","value":"2"}]`, `[{"name":"A","value":"1","valueFrom":{}}]`}},

	"serviceAccount.create":      {to: `false`, with: map[string]string{"serviceAccount.name": `"mine"`}, object: account, bad: []string{`false`, `"no"`}},
	"serviceAccount.name":        {to: `"mine"`, object: deployment, at: pod + "serviceAccountName", want: `"mine"`, bad: []string{`"M"`}},
	"serviceAccount.annotations": {to: `{"role":"r"}`, object: account, at: "metadata/annotations/role", want: `"r"`, bad: []string{`{"a":1}`}},

	"serviceMonitor.enabled":       {to: `true`, object: agents, at: "spec/endpoints/0/path", want: `"/metrics"`, bad: []string{`"on"`}},
	"serviceMonitor.labels":        {to: `{"release":"p"}`, with: scraped, object: monitor, at: "metadata/labels/release", want: `"p"`, bad: []string{`{"a":1}`}},
	"serviceMonitor.interval":      {to: `"20s"`, with: scraped, object: monitor, at: "spec/endpoints/0/interval", want: `"20s"`, bad: []string{`20`, `"20"`}},
	"serviceMonitor.scrapeTimeout": {to: `"5s"`, with: scraped, object: monitor, at: "spec/endpoints/0/scrapeTimeout", want: `"5s"`, bad: []string{`"5"`}},
	"prometheusRule.enabled":       {to: `true`, object: rules, at: "spec/groups/0/name", want: `"podconfigmap-controller"`, bad: []string{`"on"`}},
	"prometheusRule.labels":        {to: `{"release":"p"}`, with: alerts, object: rules, at: "metadata/labels/release", want: `"p"`, bad: []string{`["a"]`}},
	"dashboard.enabled":            {to: `true`, object: dashboard, at: "metadata/labels/grafana_dashboard", want: `"1"`, bad: []string{`"on"`}},
	"dashboard.labels":             {to: `{"a":"1"}`, with: shown, object: dashboard, at: "metadata/labels/a", want: `"1"`, bad: []string{`"a"`}},
	"dashboard.annotations":        {to: `{"grafana_folder":"Apps"}`, with: shown, object: dashboard, at: "metadata/annotations/grafana_folder", want: `"Apps"`, bad: []string{`{"a":true}`}},

	"podDisruptionBudget.enabled":        {to: `true`, object: budget, at: "spec/maxUnavailable", want: `1`, bad: []string{`"on"`}},
	"podDisruptionBudget.maxUnavailable": {to: `"50%"`, with: drained, object: budget, at: "spec/maxUnavailable", want: `"50%"`, bad: []string{`-1`, `"half"`, `"101%"`}},
	"podDisruptionBudget.minAvailable":   {to: `1`, with: drained, object: budget, at: "spec/minAvailable", want: `1`, bad: []string{`"some"`}},
	"networkPolicy.enabled":              {to: `true`, object: policy, at: "spec/ingress/0/ports/0/port", want: `"metrics"`, bad: []string{`"on"`}},
	"networkPolicy.metricsFrom":          {to: `[{"namespaceSelector":{}}]`, with: guarded, object: policy, at: "spec/ingress/0/from/0", want: `{"namespaceSelector":{}}`, bad: []string{`[{"namespace":"a"}]`}},
	"networkPolicy.egress":               {to: `[{"ports":[{"port":443}]}]`, with: guarded, object: policy, at: "spec/policyTypes", want: `["Ingress","Egress"]`, bad: []string{`[{"port":443}]`}},
	"priorityClass.create":               {to: `true`, object: deployment, at: pod + "priorityClassName", want: `"podconfigmap-controller-priority"`, bad: []string{`"a"`}},
	"priorityClass.value":                {to: `2000000`, with: ranked, object: priority, at: "value", want: `2000000`, bad: []string{`2000000000`, `"high"`}},
}

// composite are values that users set as a whole though they have defaults inside.
var composite = []string{"resources", "ebpf.agent.resources", "ebpf.agent.tolerations"}

func readValues(t *testing.T) map[string]any {
	t.Helper()
	values := map[string]any{}
	if err := yaml.UnmarshalStrict([]byte(readChart(t, "values.yaml")), &values); err != nil {
		t.Fatal(err)
	}
	return values
}

func readChart(t *testing.T, file string) string {
	t.Helper()
	chart, err := Chart()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(chart, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// leaves lists the paths of the values that users set.
func leaves(values map[string]any, above string) []string {
	var all []string
	for key, value := range values {
		path := strings.TrimPrefix(above+"."+key, ".")
		inner, isMap := value.(map[string]any)
		if isMap && len(inner) > 0 && !slices.Contains(composite, path) {
			all = append(all, leaves(inner, path)...)
		} else {
			all = append(all, path)
		}
	}
	slices.Sort(all)
	return all
}

func TestEveryValueIsTested(t *testing.T) {
	got, want := slices.Sorted(maps.Keys(changes)), leaves(readValues(t), "")
	for _, path := range want {
		if !slices.Contains(got, path) {
			t.Errorf("no change of %s is tested", path)
		}
	}
	for _, path := range got {
		if !slices.Contains(want, path) {
			t.Errorf("values.yaml has no %s", path)
		}
		if len(changes[path].bad) == 0 {
			t.Errorf("no bad value of %s is tested", path)
		}
	}
}

func TestEveryValueIsDocumented(t *testing.T) {
	readme := readChart(t, "README.md")
	text := readChart(t, "values.yaml")
	for _, path := range leaves(readValues(t), "") {
		row := regexp.MustCompile(`(?m)^\| ` + regexp.QuoteMeta(path) + ` \| \w+ \| .+ \| .+ \|$`)
		if !row.MatchString(readme) {
			t.Errorf("README.md does not tell of %s", path)
		}
	}
	if got, want := strings.Count(text, "# -- "), len(changes); got != want {
		t.Errorf("%d comments for %d values", got, want)
	}
}

// The schema knows the values of values.yaml, and no others but Helm's own.
func TestSchemaHasEveryValue(t *testing.T) {
	var schema map[string]any
	if err := json.Unmarshal([]byte(readChart(t, "values.schema.json")), &schema); err != nil {
		t.Fatal(err)
	}
	var compare func(path string, values, schema map[string]any)
	compare = func(path string, values, schema map[string]any) {
		properties, _ := schema["properties"].(map[string]any)
		if schema["additionalProperties"] != false {
			t.Errorf("%q may have values that are unknown", path)
		}
		for key, value := range values {
			is, _ := properties[key].(map[string]any)
			if is == nil {
				t.Errorf("the schema does not know %s.%s", path, key)
				continue
			}
			inner, isMap := value.(map[string]any)
			if isMap && len(inner) > 0 && !slices.Contains(composite, strings.TrimPrefix(path+"."+key, ".")) {
				compare(path+"."+key, inner, is)
			}
		}
		for key := range properties {
			if _, has := values[key]; !has && key != "global" {
				t.Errorf("values.yaml has no %s.%s", path, key)
			}
		}
	}
	compare("", readValues(t), schema)
}

// set are the arguments that set values, as JSON by their paths.
func set(values map[string]string) []string {
	var all []string
	for _, path := range slices.Sorted(maps.Keys(values)) {
		all = append(all, "--set-json", path+"="+values[path])
	}
	return all
}

// all are the values of a change.
func (c change) all(path, to string) map[string]string {
	values := map[string]string{path: to}
	maps.Copy(values, c.with)
	return values
}

// found is what is at a path of an object: a field's name, an index of a list, or
// the name of one of its items.
func found(object any, path string) any {
	at := object
	for step := range strings.SplitSeq(path, "/") {
		switch node := at.(type) {
		case map[string]any:
			at = node[step]
		case []any:
			at = item(node, step)
		default:
			return nil
		}
	}
	return at
}

func item(list []any, step string) any {
	for i, one := range list {
		named, _ := one.(map[string]any)
		if named["name"] == step || fmt.Sprint(i) == step {
			return one
		}
	}
	return nil
}

// differs says how what an object has at a path is another than the JSON given.
func differs(object any, path, want string) string {
	var wanted any
	if err := json.Unmarshal([]byte(want), &wanted); err != nil {
		return err.Error()
	}
	got, err := json.Marshal(found(object, path))
	if err != nil {
		return err.Error()
	}
	normal, err := json.Marshal(wanted)
	if err != nil {
		return err.Error()
	}
	if string(got) != string(normal) {
		return fmt.Sprintf("at %s is %s, want %s", path, got, normal)
	}
	return ""
}
