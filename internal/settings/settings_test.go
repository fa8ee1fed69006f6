// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestDefaults(t *testing.T) {
	got, err := Parse(map[string]string{})
	if err != nil {
		t.Fatal(err)
	}
	want := &Settings{
		LeaderElection: true, LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
		LockName: "podconfigmap-controller-lock", ResyncPeriod: 10 * time.Minute, PodWorkers: 1, PCMCWorkers: 1,
		MaxRetries: 5, ReconciliationTimeout: 30 * time.Second, LogLevel: "info", LogFormat: "text",
		MetricsAddr: ":8080", HealthProbeAddr: ":8081",
		AgentSeccompProfile: "Unconfined",
		AgentTolerations:    Tolerations{{Operator: corev1.TolerationOpExists}},
		AgentResources: Resources{corev1.ResourceRequirements{Requests: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("25m"), corev1.ResourceMemory: resource.MustParse("128Mi"),
		}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("defaults:\n got %+v\nwant %+v", got, want)
	}
	if got.EffectiveLockNamespace() != "default" || got.EffectiveLogLevel() != "info" || got.LogsJSON() {
		t.Errorf("derived defaults: %q %q %v", got.EffectiveLockNamespace(), got.EffectiveLogLevel(), got.LogsJSON())
	}
}

// good holds, for every variable, a value that is not its default and the
// field's value it must give; TestEveryVariableIsRead fails for one left out.
var good = map[string]struct {
	text string
	want any
}{
	"LEADER_ELECTION_ENABLED":           {"false", false},
	"LEADER_ELECTION_LEASE_DURATION":    {"60s", time.Minute},
	"LEADER_ELECTION_RENEW_DEADLINE":    {"12s", 12 * time.Second},
	"LEADER_ELECTION_RETRY_PERIOD":      {"3s", 3 * time.Second},
	"LEADER_ELECTION_LOCK_NAME":         {"my-lock", "my-lock"},
	"LEADER_ELECTION_LOCK_NAMESPACE":    {"locks", "locks"},
	"CONTROLLER_RESYNC_PERIOD":          {"1h", time.Hour},
	"CONTROLLER_POD_WORKERS":            {"32", 32},
	"CONTROLLER_PCMC_WORKERS":           {"4", 4},
	"CONTROLLER_MAX_RETRIES":            {"9", 9},
	"CONTROLLER_RECONCILIATION_TIMEOUT": {"5s", 5 * time.Second},
	"LOG_LEVEL":                         {"warning", "warning"},
	"LOG_FORMAT":                        {"json", "json"},
	"LOG_JSON_FORMAT":                   {"true", true},
	"DEBUG":                             {"true", true},
	"METRICS_ADDR":                      {"127.0.0.1:9090", "127.0.0.1:9090"},
	"HEALTH_PROBE_ADDR":                 {"0", "0"},
	"EBPF_ENABLED":                      {"true", true},
	"AGENT_LEGACY_KERNELS":              {"true", true},
	"AGENT_TOLERATIONS":                 {`[{"key":"gpu","effect":"NoSchedule"}]`, Tolerations{{Key: "gpu", Effect: corev1.TaintEffectNoSchedule}}},
	"AGENT_NODE_SELECTOR":               {"pool=apps, example.com/disk=", NodeSelector{"pool": "apps", "example.com/disk": ""}},
	"AGENT_RESOURCES": {`{"limits":{"memory":"1Gi"}}`, Resources{corev1.ResourceRequirements{
		Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}}}},
	"AGENT_SECCOMP_PROFILE":   {"RuntimeDefault", "RuntimeDefault"},
	"AGENT_PRIORITY_CLASS":    {"system-node-critical", "system-node-critical"},
	"WATCH_NAMESPACE":         {"a, b", []string{"a", "b"}},
	"POD_NAME":                {"manager-0", "manager-0"},
	"POD_NAMESPACE":           {"operators", "operators"},
	"KUBECONFIG":              {"some/kubeconfig", "some/kubeconfig"},
	"OPERATOR_CONDITION_NAME": {"operator.v1", "operator.v1"},
	"RELATED_IMAGE_AGENT":     {"registry.example.com/agent:v1", "registry.example.com/agent:v1"},
	"NODE_NAME":               {"node-1", "node-1"},
	"CGROUP_ROOT":             {"/cgroup", "/cgroup"},
	"BPFFS_ROOT":              {"/bpf", "/bpf"},
}

func TestEveryVariableIsRead(t *testing.T) {
	environ := map[string]string{}
	for name, g := range good {
		environ[name] = g.text
	}
	s, err := Parse(environ)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range Variables() {
		want, ok := good[v.Name]
		if !ok {
			t.Errorf("%s has no test value", v.Name)
			continue
		}
		if got := reflect.ValueOf(*s).FieldByName(v.field).Interface(); !reflect.DeepEqual(got, want.want) {
			t.Errorf("%s=%q gives %v, want %v", v.Name, want.text, got, want.want)
		}
		if v.Doc == "" {
			t.Errorf("%s has no documentation", v.Name)
		}
	}
	if len(Variables()) != len(good) {
		t.Errorf("%d variables, %d test values", len(Variables()), len(good))
	}
}

func TestBadValuesAreNamedWithTheirRemedy(t *testing.T) {
	for name, tc := range map[string]struct {
		environ map[string]string
		want    string
	}{
		"no duration":      {one("CONTROLLER_RESYNC_PERIOD", "soon"), `CONTROLLER_RESYNC_PERIOD="soon": use a duration such as "30s" or "10m"`},
		"no bool":          {one("DEBUG", "maybe"), `DEBUG="maybe": use true or false`},
		"no number":        {one("CONTROLLER_POD_WORKERS", "many"), `CONTROLLER_POD_WORKERS="many": use a whole number`},
		"no worker":        {one("CONTROLLER_PCMC_WORKERS", "0"), `CONTROLLER_PCMC_WORKERS="0": use a whole number from 1 to 1024`},
		"too many workers": {one("CONTROLLER_POD_WORKERS", "5000"), `CONTROLLER_POD_WORKERS="5000": use a whole number from 1 to 1024`},
		"no retries":       {one("CONTROLLER_MAX_RETRIES", "-1"), `CONTROLLER_MAX_RETRIES="-1": use a whole number from 1 to 100`},
		"short timeout":    {one("CONTROLLER_RECONCILIATION_TIMEOUT", "1ms"), `CONTROLLER_RECONCILIATION_TIMEOUT="1ms": use at least 1s`},
		"short resync":     {one("CONTROLLER_RESYNC_PERIOD", "1ms"), `CONTROLLER_RESYNC_PERIOD="1ms": use at least 1s`},
		"lease too short":  {one("LEADER_ELECTION_LEASE_DURATION", "10s"), `LEADER_ELECTION_LEASE_DURATION="10s": use at least 1s and more than LEADER_ELECTION_RENEW_DEADLINE (10s)`},
		"renew too short":  {one("LEADER_ELECTION_RENEW_DEADLINE", "2s"), `LEADER_ELECTION_RENEW_DEADLINE="2s": use more than 1.2 times LEADER_ELECTION_RETRY_PERIOD (2s)`},
		"retry negative":   {one("LEADER_ELECTION_RETRY_PERIOD", "-1s"), `LEADER_ELECTION_RETRY_PERIOD="-1s": use a duration greater than 0`},
		"lock name":        {one("LEADER_ELECTION_LOCK_NAME", "A!"), `LEADER_ELECTION_LOCK_NAME="A!": a lowercase RFC 1123 subdomain`},
		"lock namespace":   {one("LEADER_ELECTION_LOCK_NAMESPACE", "A!"), `LEADER_ELECTION_LOCK_NAMESPACE="A!": a lowercase RFC 1123 label`},
		"level":            {one("LOG_LEVEL", "trace"), `LOG_LEVEL="trace": use one of error, warning, info, debug`},
		"format":           {one("LOG_FORMAT", "xml"), `LOG_FORMAT="xml": use one of text, json`},
		"metrics address":  {one("METRICS_ADDR", "8080"), `METRICS_ADDR="8080": use host:port such as ":8080", or 0 to turn it off`},
		"probe port":       {one("HEALTH_PROBE_ADDR", ":99999"), `HEALTH_PROBE_ADDR=":99999": use host:port such as ":8080", or 0 to turn it off`},
		"namespace":        {one("WATCH_NAMESPACE", "good,Bad"), `WATCH_NAMESPACE="good,Bad": namespace "Bad": a lowercase RFC 1123 label`},
		"condition alone":  {one("OPERATOR_CONDITION_NAME", "op.v1"), `OPERATOR_CONDITION_NAME="op.v1": needs POD_NAMESPACE, the namespace of the OperatorCondition, too`},
		"image":            {one("RELATED_IMAGE_AGENT", "a b"), `RELATED_IMAGE_AGENT="a b": use an image reference without spaces`},
		"cgroup root":      {one("CGROUP_ROOT", "cgroup"), `CGROUP_ROOT="cgroup": use an absolute path`},
		"bpffs root":       {one("BPFFS_ROOT", "bpf"), `BPFFS_ROOT="bpf": use an absolute path`},
		"node name":        {one("NODE_NAME", "N!"), `NODE_NAME="N!": a lowercase RFC 1123 subdomain`},
		"pod name":         {one("POD_NAME", "N!"), `POD_NAME="N!": a lowercase RFC 1123 subdomain`},
		"flag alone":       {one("EBPF_ENABLED", "true"), `EBPF_ENABLED="true": needs POD_NAMESPACE, the namespace of the node agents, too`},
		"tolerations":      {one("AGENT_TOLERATIONS", "all"), `AGENT_TOLERATIONS="all": use a JSON list such as [{"key":`},
		"toleration field": {one("AGENT_TOLERATIONS", `[{"keys":"a"}]`), `AGENT_TOLERATIONS="[{\"keys\":\"a\"}]": use a JSON list such as [{"key":`},
		"operator":         {one("AGENT_TOLERATIONS", `[{"key":"a","operator":"In"}]`), `AGENT_TOLERATIONS="[{\"key\":\"a\",\"operator\":\"In\"}]": toleration 1: operator: use Exists or Equal`},
		"toleration key":   {one("AGENT_TOLERATIONS", `[{"operator":"Exists"},{"key":"a b"}]`), `AGENT_TOLERATIONS="[{\"operator\":\"Exists\"},{\"key\":\"a b\"}]": toleration 2: key: name part`},
		"no key":           {one("AGENT_TOLERATIONS", `[{"value":"a"}]`), `AGENT_TOLERATIONS="[{\"value\":\"a\"}]": toleration 1: without a key the operator is Exists`},
		"value too much":   {one("AGENT_TOLERATIONS", `[{"operator":"Exists","value":"a"}]`), `AGENT_TOLERATIONS="[{\"operator\":\"Exists\",\"value\":\"a\"}]": toleration 1: the operator Exists takes no value`},
		"effect":           {one("AGENT_TOLERATIONS", `[{"key":"a","effect":"No"}]`), `AGENT_TOLERATIONS="[{\"key\":\"a\",\"effect\":\"No\"}]": toleration 1: effect: use NoSchedule`},
		"seconds":          {one("AGENT_TOLERATIONS", `[{"key":"a","tolerationSeconds":3}]`), `AGENT_TOLERATIONS="[{\"key\":\"a\",\"tolerationSeconds\":3}]": toleration 1: tolerationSeconds goes with`},
		"selector":         {one("AGENT_NODE_SELECTOR", "a"), `AGENT_NODE_SELECTOR="a": use labels with their values, each once, such as pool=apps,disk=fast`},
		"selector twice":   {one("AGENT_NODE_SELECTOR", "a=b,a=c"), `AGENT_NODE_SELECTOR="a=b,a=c": use labels with their values`},
		"selector's key":   {one("AGENT_NODE_SELECTOR", "a b=c"), `AGENT_NODE_SELECTOR="a b=c": label a b=c: name part`},
		"selector's value": {one("AGENT_NODE_SELECTOR", "a=-"), `AGENT_NODE_SELECTOR="a=-": label a=-: a valid label`},
		"resources":        {one("AGENT_RESOURCES", "1Gi"), `AGENT_RESOURCES="1Gi": use a JSON object such as {"requests":`},
		"a quantity":       {one("AGENT_RESOURCES", `{"limits":{"cpu":"much"}}`), `AGENT_RESOURCES="{\"limits\":{\"cpu\":\"much\"}}": use a JSON object such as {"requests":`},
		"less than none":   {one("AGENT_RESOURCES", `{"limits":{"cpu":"-1"}}`), `AGENT_RESOURCES="{\"limits\":{\"cpu\":\"-1\"}}": cpu: use 0 or more`},
		"above the limit":  {one("AGENT_RESOURCES", `{"requests":{"cpu":2},"limits":{"cpu":"1"}}`), `AGENT_RESOURCES="{\"requests\":{\"cpu\":2},\"limits\":{\"cpu\":\"1\"}}": cpu: the request is above the limit`},
		"claims":           {one("AGENT_RESOURCES", `{"claims":[{"name":"gpu"}]}`), `AGENT_RESOURCES="{\"claims\":[{\"name\":\"gpu\"}]}": the agent uses no claims`},
		"seccomp":          {one("AGENT_SECCOMP_PROFILE", "none"), `AGENT_SECCOMP_PROFILE="none": use one of Unconfined, RuntimeDefault`},
		"priority class":   {one("AGENT_PRIORITY_CLASS", "A!"), `AGENT_PRIORITY_CLASS="A!": a lowercase RFC 1123 subdomain`},
		"pod namespace":    {one("POD_NAMESPACE", "N!"), `POD_NAMESPACE="N!": a lowercase RFC 1123 label`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(tc.environ)
			var bad *Error
			if !errors.As(err, &bad) {
				t.Fatalf("Parse() = %v, want an *Error", err)
			}
			if len(bad.Problems) != 1 || !strings.HasPrefix(bad.Problems[0], tc.want) {
				t.Errorf("problems:\n got %q\nwant %q", bad.Problems, tc.want)
			}
		})
	}
}

func TestOneMessageNamesAllBadVariables(t *testing.T) {
	environ := map[string]string{
		"LOG_LEVEL": "x", "DEBUG": "x", "CONTROLLER_POD_WORKERS": "x", "METRICS_ADDR": "x", "WATCH_NAMESPACE": "X",
	}
	_, err := Parse(environ)
	if err == nil {
		t.Fatal("five bad variables were accepted")
	}
	for _, name := range slices.Sorted(maps.Keys(environ)) {
		if !strings.Contains(err.Error(), name+"=") {
			t.Errorf("the message does not name %s:\n%v", name, err)
		}
	}
}

func TestPrecedence(t *testing.T) {
	s, err := Parse(map[string]string{
		"LOG_FORMAT": "text", "LOG_JSON_FORMAT": "true", "LOG_LEVEL": "error", "DEBUG": "true", "POD_NAMESPACE": "own",
	})
	if err != nil {
		t.Fatal(err)
	}
	if !s.LogsJSON() || s.EffectiveLogLevel() != "debug" || s.EffectiveLockNamespace() != "own" {
		t.Errorf("json %v, level %q, lock namespace %q", s.LogsJSON(), s.EffectiveLogLevel(), s.EffectiveLockNamespace())
	}
	if s.LockNamespace = "explicit"; s.EffectiveLockNamespace() != "explicit" {
		t.Error("the explicit lock namespace does not win")
	}
}

func TestEmptyMeansUnset(t *testing.T) {
	s, err := Parse(map[string]string{"CONTROLLER_RESYNC_PERIOD": "", "WATCH_NAMESPACE": " "})
	if err != nil || s.ResyncPeriod != 10*time.Minute || len(s.WatchNamespaces) != 0 {
		t.Errorf("got %+v, %v", s, err)
	}
}

func one(name, value string) map[string]string { return map[string]string{name: value} }
