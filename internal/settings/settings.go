// SPDX-License-Identifier: Apache-2.0

// Package settings reads the operator's environment. It is the only place that
// does, so that every variable is validated, and documented, once.
package settings

import (
	"encoding"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

// Settings are the operator's, as the environment gives them. The tag `doc`
// is the text of docs/settings.md.
type Settings struct {
	LeaderElection        bool          `env:"LEADER_ELECTION_ENABLED" envDefault:"true" doc:"Whether managers elect a leader by a Lease. Turn it off only where there is exactly one manager."`
	LeaseDuration         time.Duration `env:"LEADER_ELECTION_LEASE_DURATION" envDefault:"15s" doc:"How long a Lease that is not renewed stays valid; longer than the renew deadline. It bounds the fail-over time after a crash."`
	RenewDeadline         time.Duration `env:"LEADER_ELECTION_RENEW_DEADLINE" envDefault:"10s" doc:"How long a leader tries to renew its Lease before it gives up and exits; longer than 1.2 retry periods."`
	RetryPeriod           time.Duration `env:"LEADER_ELECTION_RETRY_PERIOD" envDefault:"2s" doc:"How long to wait between two tries to get or renew the Lease."`
	LockName              string        `env:"LEADER_ELECTION_LOCK_NAME" envDefault:"podconfigmap-controller-lock" doc:"Name of the Lease."`
	LockNamespace         string        `env:"LEADER_ELECTION_LOCK_NAMESPACE" shown:"POD_NAMESPACE, else default" doc:"Namespace of the Lease."`
	ResyncPeriod          time.Duration `env:"CONTROLLER_RESYNC_PERIOD" envDefault:"10m" doc:"How often every pod is looked at again (from caches: no API call where nothing changed), and how often a pod is retried whose retries are exhausted. At least 1s."`
	PodWorkers            int           `env:"CONTROLLER_POD_WORKERS" envDefault:"1" doc:"Pods worked on at the same time (1 to 1024). The shipped manifests set 32."`
	PCMCWorkers           int           `env:"CONTROLLER_PCMC_WORKERS" envDefault:"1" doc:"Configs whose status is computed at the same time (1 to 1024). The shipped manifests set 2."`
	MaxRetries            int           `env:"CONTROLLER_MAX_RETRIES" envDefault:"5" doc:"Failures in a row after which a pod gets a Warning Event and its configs a condition (1 to 100). From then on it is retried every resync period."`
	ReconciliationTimeout time.Duration `env:"CONTROLLER_RECONCILIATION_TIMEOUT" envDefault:"30s" doc:"How long one reconciliation may take before its API calls are cancelled. At least 1s."`
	LogLevel              string        `env:"LOG_LEVEL" envDefault:"info" doc:"error, warning, info or debug."`
	LogFormat             string        `env:"LOG_FORMAT" envDefault:"text" doc:"text (klog's) or json."`
	LogJSONFormat         bool          `env:"LOG_JSON_FORMAT" envDefault:"false" doc:"true means JSON logs, whatever LOG_FORMAT says."`
	Debug                 bool          `env:"DEBUG" envDefault:"false" doc:"true means level debug, whatever LOG_LEVEL says."`
	MetricsAddr           string        `env:"METRICS_ADDR" envDefault:":8080" doc:"Address of /metrics, as host:port; 0 turns it off."`
	HealthProbeAddr       string        `env:"HEALTH_PROBE_ADDR" envDefault:":8081" doc:"Address of /healthz and /readyz, as host:port; 0 turns them off."`
	EBPFEnabled           bool          `env:"EBPF_ENABLED" envDefault:"false" doc:"The feature flag of the eBPF subsystem. While it is off, no privileged workload exists, and a config that asks for eBPF says so in its EBPFReady condition. On, the leader keeps the node agents' DaemonSet in POD_NAMESPACE, which it needs then."`
	AgentLegacyKernels    bool          `env:"AGENT_LEGACY_KERNELS" envDefault:"false" doc:"Whether nodes that are labelled podconfig.example.com/legacy-kernel=true are served by a second agent DaemonSet, with the capabilities SYS_ADMIN and SYS_RESOURCE that kernels before 5.11 need."`
	AgentTolerations      Tolerations   `env:"AGENT_TOLERATIONS" envDefault:"[{\"operator\":\"Exists\"}]" doc:"Tolerations of the agents' pods, as a JSON list. The default lets them run on every node."`
	AgentNodeSelector     NodeSelector  `env:"AGENT_NODE_SELECTOR" shown:"every Linux node" doc:"Labels of the nodes that get an agent, as key=value,key=value. Pods on other nodes are not served."`
	AgentResources        Resources     `env:"AGENT_RESOURCES" envDefault:"{\"requests\":{\"cpu\":\"25m\",\"memory\":\"128Mi\"}}" doc:"Resources of the agents' container, as a JSON object with requests and limits. A limit on memory has to leave room for the programs' maps: 4 MiB a CPU of the node, and 64 MiB."`
	AgentPriorityClass    string        `env:"AGENT_PRIORITY_CLASS" shown:"the cluster's default" doc:"PriorityClass of the agents' pods, such as system-node-critical."`
	AgentSeccompProfile   string        `env:"AGENT_SECCOMP_PROFILE" envDefault:"Unconfined" doc:"Seccomp profile of the agents' container: Unconfined, or RuntimeDefault where the nodes' runtime lets the capability BPF use the bpf call (containerd from 1.7 on does; CRI-O's own profile wants SYS_ADMIN for it)."`
	WatchNamespaces       []string      `env:"WATCH_NAMESPACE" shown:"all namespaces" doc:"Namespaces to watch, separated by commas; empty means all."`
	PodName               string        `env:"POD_NAME" doc:"The operator's own pod; names it in the Lease. Set it by the downward API."`
	PodNamespace          string        `env:"POD_NAMESPACE" doc:"The operator's own namespace. Set it by the downward API."`
	Kubeconfig            string        `env:"KUBECONFIG" shown:"the pod's service account" doc:"Kubeconfig file(s) of the cluster to work on."`
	OperatorConditionName string        `env:"OPERATOR_CONDITION_NAME" doc:"The OperatorCondition in the operator's namespace in which it reports Upgradeable. OLM sets it."`
	RelatedImageAgent     string        `env:"RELATED_IMAGE_AGENT" shown:"the manager's own image" doc:"Image of the node agent."`
	NodeName              string        `env:"NODE_NAME" doc:"Agent only: the node it serves. Set it by the downward API."`
	CgroupRoot            string        `env:"CGROUP_ROOT" shown:"the node's cgroup v2 mount" doc:"Agent only: root of the cgroup v2 tree, as an absolute path."`
	BPFFSRoot             string        `env:"BPFFS_ROOT" shown:"/sys/fs/bpf/podconfigmap/POD_NAMESPACE" doc:"Agent only: the bpffs directory that holds its pins, as an absolute path. The DaemonSet sets it to where it mounts the node's /sys/fs/bpf."`
}

// Error lists every variable that was refused, so that one start shows them all.
type Error struct {
	// Problems holds one sentence a variable, in the order of Settings.
	Problems []string
}

func (e *Error) Error() string {
	return fmt.Sprintf("reading the environment: %d bad variable(s):\n  - %s",
		len(e.Problems), strings.Join(e.Problems, "\n  - "))
}

// Load reads the process's environment.
func Load() (*Settings, error) { return Parse(env.ToMap(os.Environ())) }

// Parse reads the given environment. A variable that is set to the empty string
// counts as not set. The error is an *Error that names all bad variables.
func Parse(environ map[string]string) (*Settings, error) {
	present := make(map[string]string, len(environ))
	for name, value := range environ {
		if value = strings.TrimSpace(value); value != "" {
			present[name] = value
		}
	}
	s := &Settings{}
	problems := map[string]string{}
	if err := env.ParseWithOptions(s, env.Options{Environment: present}); err != nil {
		if problems = parseProblems(err, present); len(problems) == 0 {
			return nil, fmt.Errorf("reading the environment: %w", err)
		}
	}
	for i, namespace := range s.WatchNamespaces {
		s.WatchNamespaces[i] = strings.TrimSpace(namespace)
	}
	for _, c := range s.checks() {
		if _, unparsed := problems[c.variable]; !unparsed && c.problem != "" {
			problems[c.variable] = fmt.Sprintf("%s=%q: %s", c.variable, present[c.variable], c.problem)
		}
	}
	if len(problems) > 0 {
		return nil, inOrder(problems)
	}
	return s, nil
}

// parseProblems turns the library's errors, which name struct fields, into
// sentences that name variables.
func parseProblems(err error, environ map[string]string) map[string]string {
	problems := map[string]string{}
	var all env.AggregateError
	if !errors.As(err, &all) {
		return problems
	}
	variables := Variables()
	for _, one := range all.Errors {
		var parse env.ParseError
		if !errors.As(one, &parse) {
			continue
		}
		at := slices.IndexFunc(variables, func(v Variable) bool { return v.field == parse.Name })
		if at < 0 {
			continue
		}
		name := variables[at].Name
		problems[name] = fmt.Sprintf("%s=%q: use %s", name, environ[name], wanted(parse))
	}
	return problems
}

// wanted says what would be right; the types of this package say so themselves.
func wanted(parse env.ParseError) string {
	if reflect.PointerTo(parse.Type).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return parse.Err.Error()
	}
	switch parse.Type.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	default:
		return `a duration such as "30s" or "10m"`
	}
}

func inOrder(problems map[string]string) *Error {
	e := &Error{}
	for _, v := range Variables() {
		if p, ok := problems[v.Name]; ok {
			e.Problems = append(e.Problems, p)
		}
	}
	return e
}

// Variable describes one environment variable.
type Variable struct {
	Name, Default, Doc string
	field              string
}

// Variables lists every environment variable the operator reads.
func Variables() []Variable {
	var all []Variable
	for f := range reflect.TypeFor[Settings]().Fields() {
		name := f.Tag.Get("env")
		if name == "" {
			continue
		}
		shown := f.Tag.Get("envDefault")
		if shown == "" {
			shown = f.Tag.Get("shown")
		}
		all = append(all, Variable{Name: name, Default: shown, Doc: f.Tag.Get("doc"), field: f.Name})
	}
	return all
}

// EffectiveLockNamespace is where the Lease lives: the explicit namespace, the
// operator's own, or "default".
func (s *Settings) EffectiveLockNamespace() string {
	for _, namespace := range []string{s.LockNamespace, s.PodNamespace} {
		if namespace != "" {
			return namespace
		}
	}
	return "default"
}

// EffectiveLogLevel is LOG_LEVEL, unless DEBUG asks for more.
func (s *Settings) EffectiveLogLevel() string {
	if s.Debug {
		return "debug"
	}
	return s.LogLevel
}

// LogsJSON tells whether logs are JSON; LOG_JSON_FORMAT beats LOG_FORMAT.
func (s *Settings) LogsJSON() bool { return s.LogJSONFormat || s.LogFormat == "json" }
