// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// The first tests are not parallel: what they do concerns the whole cluster.

// TestWithoutCRD: a manager says what is missing.
func TestWithoutCRD(t *testing.T) {
	skipShort(t)
	crd := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "podconfigmapconfigs.podconfig.example.com"}}
	s := &space{t: t, name: operators}
	s.must(cluster.Client.Delete(t.Context(), crd))
	s.eventually("the CRD goes", func() error {
		if err := cluster.Client.List(t.Context(), &v1alpha1.PodConfigMapConfigList{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("listing gives %w", err)
		}
		return nil
	})
	m := begin(t, nil)
	err := m.exit(t)
	s.must(harness.InstallCRD(t.Context(), cluster.Client))
	want := `podconfigmap-controller: the cluster has no PodConfigMapConfig kind: install config/crd first (kubectl apply -k config/crd): `
	if last := m.LogTail(1); err != 1 || !strings.HasPrefix(last, want) {
		t.Errorf("exit code %d, last line %q, want 1, %q", err, last, want)
	}
}

// exit waits until the manager has ended by itself, and returns its exit code.
func (m *manager) exit(t *testing.T) int {
	t.Helper()
	select {
	case <-m.Exited():
	case <-time.After(patience):
		t.Fatalf("the manager does not end:\n%s", m.LogTail(20))
	}
	if m.ExitError() == nil {
		return 0
	}
	var exit *exec.ExitError
	if !errors.As(m.ExitError(), &exit) {
		t.Fatal(m.ExitError())
	}
	return exit.ExitCode()
}

// TestWatchesAllNamespaces is WATCH_NAMESPACE unset; a namespace that is new is
// watched, too. The shared manager, which starts later, watches several.
func TestWatchesAllNamespaces(t *testing.T) {
	before := own(t)
	m := start(t, nil)
	after := own(t)
	for _, s := range []*space{before, after} {
		s.manager = m
		pod := s.pod("web", nil)
		s.config("m", spec{})
		s.expect("pod-web-from-m-cfg", pod, s.data(pod, "m", nil))
		s.expectServed("m", 1)
	}
	m.stop(t)
}

// TestWatchesOneNamespace: others are left alone.
func TestWatchesOneNamespace(t *testing.T) {
	t.Parallel()
	s, other := own(t), own(t)
	for _, in := range []*space{other, s} {
		in.pod("web", nil)
		in.config("m", spec{})
	}
	s.watched(nil)
	s.expectServed("m", 1)
	other.steadily("nothing happens there", time.Second, other.checkNames())
	for _, c := range s.calls(t, time.Time{}) {
		if c.ObjectRef.Namespace != s.name && c.ObjectRef.Namespace != operators {
			t.Errorf("a call outside of its namespace: %v", c)
		}
	}
}

func TestBadEnvironment(t *testing.T) {
	t.Parallel()
	skipShort(t)
	m := begin(t, map[string]string{
		"CONTROLLER_POD_WORKERS": "none", "LEADER_ELECTION_LEASE_DURATION": "1s", "LOG_LEVEL": "loud", "EBPF_ENABLED": "maybe", "WATCH_NAMESPACE": "a,B",
	})
	code := m.exit(t)
	want := `podconfigmap-controller: reading the environment: 5 bad variable(s):
  - LEADER_ELECTION_LEASE_DURATION="1s": use at least 1s and more than LEADER_ELECTION_RENEW_DEADLINE (40s)
  - CONTROLLER_POD_WORKERS="none": use a whole number
  - LOG_LEVEL="loud": use one of error, warning, info, debug
  - EBPF_ENABLED="maybe": use true or false
  - WATCH_NAMESPACE="a,B": namespace "B": `
	if code != 1 || !strings.HasPrefix(m.Log(), want) || strings.Count(m.Log(), "\n") != 6 {
		t.Errorf("exit code %d, output\n%s, want 1,\n%s", code, m.Log(), want)
	}
}

func TestNoCluster(t *testing.T) {
	t.Parallel()
	skipShort(t)
	m := begin(t, map[string]string{"KUBECONFIG": filepath.Join(t.TempDir(), "absent")})
	if code, log := m.exit(t), m.Log(); code != 1 || strings.Count(log, "\n") != 1 || !strings.HasPrefix(log, "podconfigmap-controller: reading KUBECONFIG=") {
		t.Errorf("exit code %d, output\n%s", code, log)
	}
}

// TestLeaderElection looks at the Lease: its name and namespace, its times, who
// holds it, and that a clean stop gives it back.
func TestLeaderElection(t *testing.T) {
	t.Parallel()
	s := own(t)
	s.must(allowLeases(t.Context(), s.name))
	environ := map[string]string{
		"WATCH_NAMESPACE": s.name, "POD_NAME": "operator-0", "LEADER_ELECTION_LOCK_NAME": "the-lock", "LEADER_ELECTION_LOCK_NAMESPACE": s.name,
		"LEADER_ELECTION_LEASE_DURATION": "37s", "LEADER_ELECTION_RENEW_DEADLINE": "30s", "LEADER_ELECTION_RETRY_PERIOD": "500ms",
	}
	lease := func() *coordinationv1.Lease {
		l := &coordinationv1.Lease{}
		s.must(cluster.Client.Get(t.Context(), s.key("the-lock"), l))
		return l
	}
	s.manager = start(t, environ)
	s.eventually("it holds the Lease", func() error {
		l := &coordinationv1.Lease{}
		if err := cluster.Client.Get(t.Context(), s.key("the-lock"), l); err != nil {
			return err
		}
		if l.Spec.HolderIdentity == nil || !regexp.MustCompile(`^operator-0_[-0-9a-f]{36}$`).MatchString(*l.Spec.HolderIdentity) || *l.Spec.LeaseDurationSeconds != 37 {
			return fmt.Errorf("the Lease is %+v", l.Spec)
		}
		return nil
	})
	renewed := lease().Spec.RenewTime
	s.eventually("it renews the Lease", func() error {
		if now := lease().Spec.RenewTime; !now.After(renewed.Time) {
			return fmt.Errorf("renewed at %v", now)
		}
		return nil
	})
	holder := *lease().Spec.HolderIdentity

	// A second one stands by, ready, and exposes no metrics of a leader.
	environ["POD_NAME"] = "operator-1"
	standby := start(t, environ)
	s.pod("web", nil)
	s.config("m", spec{})
	s.expectServed("m", 1)
	if now := *lease().Spec.HolderIdentity; now != holder {
		t.Errorf("the Lease moved to %s", now)
	}
	if got := standby.scrape(t); len(got) > 0 {
		t.Errorf("the standby has the metrics %v", got)
	}
	for _, c := range standby.calls(t, time.Time{}) {
		if !slices.Contains([]string{"list", "get"}, c.Verb) {
			t.Errorf("the standby did: %v", c)
		}
	}

	s.stop(t)
	s.expectNoErrors(t)
	s.eventually("the standby takes over", func() error {
		if now := *lease().Spec.HolderIdentity; !strings.HasPrefix(now, "operator-1_") {
			return fmt.Errorf("held by %q", now)
		}
		return nil
	})
	s.manager = standby
	s.label("web", "app", "web")
	s.respec("m", func(c *spec) { c.LabelsToInclude = []v1alpha1.MetadataKey{"app"} })
	s.expectServed("m", 1)
	standby.stop(t)
	standby.expectNoErrors(t)
	if now := *lease().Spec.HolderIdentity; now != "" {
		t.Errorf("after a clean stop the Lease is held by %q", now)
	}
}

// TestLockNamespace: without one of its own the Lease stands in POD_NAMESPACE.
func TestLockNamespace(t *testing.T) {
	t.Parallel()
	s := own(t)
	s.watched(map[string]string{"LEADER_ELECTION_LOCK_NAME": "named-" + s.name})
	s.eventually("the Lease", func() error {
		return cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: operators, Name: "named-" + s.name}, &coordinationv1.Lease{})
	})
}

func TestWithoutLeaderElection(t *testing.T) {
	t.Parallel()
	s := own(t)
	s.watched(map[string]string{"LEADER_ELECTION_ENABLED": "false", "LEADER_ELECTION_LOCK_NAME": "not-" + s.name})
	s.pod("web", nil)
	s.config("m", spec{})
	s.expectServed("m", 1)
	err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: operators, Name: "not-" + s.name}, &coordinationv1.Lease{})
	if !apierrors.IsNotFound(err) {
		t.Errorf("there is a Lease (%v)", err)
	}
	s.stop(t)
	s.expectNoErrors(t)
}

// TestLogs starts managers with each format and level.
func TestLogs(t *testing.T) {
	t.Parallel()
	levels := regexp.MustCompile(`(?m)^([EWI])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w.]+:\d+\] "`)
	text := func(t *testing.T, log string) map[string]int {
		t.Helper()
		found := map[string]int{}
		for line := range strings.Lines(log) {
			m := levels.FindStringSubmatch(line)
			if m == nil {
				t.Errorf("not in klog's format: %q", line)
				continue
			}
			found[map[string]string{"E": "error", "W": "warning", "I": "info"}[m[1]]]++
		}
		return found
	}
	asJSON := func(t *testing.T, log string) map[string]int {
		t.Helper()
		found := map[string]int{}
		for line := range strings.Lines(log) {
			var record struct{ Time, Level, Msg string }
			if err := json.Unmarshal([]byte(line), &record); err != nil || record.Time == "" || record.Msg == "" {
				t.Errorf("not in JSON: %q (%v)", line, err)
			}
			found[record.Level]++
		}
		return found
	}
	for name, tc := range map[string]struct {
		environ map[string]string
		read    func(*testing.T, string) map[string]int
		some    []string // levels that there have to be
		none    []string // and those that there must not be
		debug   bool
	}{
		"text":                      {nil, text, []string{"info", "warning"}, []string{"debug"}, false},
		"text, debug":               {map[string]string{"LOG_LEVEL": "debug"}, text, []string{"info"}, nil, true},
		"text, warning":             {map[string]string{"LOG_LEVEL": "warning"}, text, []string{"warning"}, []string{"info"}, false},
		"text, error":               {map[string]string{"LOG_LEVEL": "error"}, text, nil, []string{"info", "warning"}, false},
		"DEBUG beats LOG_LEVEL":     {map[string]string{"LOG_LEVEL": "error", "DEBUG": "true"}, text, []string{"info"}, nil, true},
		"JSON":                      {map[string]string{"LOG_FORMAT": "json"}, asJSON, []string{"info", "warning"}, []string{"debug"}, false},
		"JSON, debug":               {map[string]string{"LOG_JSON_FORMAT": "true", "DEBUG": "true"}, asJSON, []string{"info", "debug", "warning"}, nil, true},
		"LOG_JSON_FORMAT beats all": {map[string]string{"LOG_FORMAT": "text", "LOG_JSON_FORMAT": "true", "LOG_LEVEL": "warning"}, asJSON, []string{"warning"}, []string{"info"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := own(t)
			// Each call of the manager's for a ConfigMap takes longer than it may.
			proxy := newProxy(t, func(verb, path string) time.Duration {
				if verb == "POST" && strings.HasSuffix(path, "/configmaps") {
					return 3 * time.Second
				}
				return 0
			})
			environ := map[string]string{"KUBECONFIG": proxy.kubeconfig, "CONTROLLER_RECONCILIATION_TIMEOUT": "1s", "CONTROLLER_MAX_RETRIES": "50"}
			for k, v := range tc.environ {
				environ[k] = v
			}
			s.watched(environ)
			s.pod("web", nil)
			s.config("m", spec{})
			// What a time-out is told by: a metric whatever the level, and a warning.
			s.eventually("a time-out", func() error {
				if n := s.scrape(t)["reconciliation_errors_total{error_type=timeout,namespace="+s.name+",resource_type=pod}"]; n < 1 {
					return fmt.Errorf("%v time-outs", n)
				}
				return nil
			})
			s.stop(t)
			log := s.Log()
			found := tc.read(t, log)
			for _, level := range tc.some {
				if found[level] == 0 {
					t.Errorf("no %s among %v:\n%s", level, found, log)
				}
			}
			for _, level := range tc.none {
				if found[level] > 0 {
					t.Errorf("%s among %v:\n%s", level, found, log)
				}
			}
			if got := strings.Contains(log, "watching") && strings.Contains(log, "observed.Pod"); got != tc.debug {
				t.Errorf("debug messages: %t, want %t\n%s", got, tc.debug, log)
			}
		})
	}
}

// TestWorkers counts how many calls are under way at once.
func TestWorkers(t *testing.T) {
	t.Parallel()
	for _, workers := range []int{1, 3} {
		t.Run(fmt.Sprint(workers), func(t *testing.T) {
			t.Parallel()
			s := own(t)
			proxy := newProxy(t, func(verb, path string) time.Duration {
				if verb == "POST" && strings.HasSuffix(path, "/configmaps") || verb == "PATCH" && strings.HasSuffix(path, "/status") {
					return 200 * time.Millisecond
				}
				return 0
			})
			environ := map[string]string{"KUBECONFIG": proxy.kubeconfig, "CONTROLLER_POD_WORKERS": fmt.Sprint(workers), "CONTROLLER_PCMC_WORKERS": fmt.Sprint(workers)}
			for i := range 6 {
				s.pod(fmt.Sprintf("web-%d", i), nil)
				s.config(fmt.Sprintf("m-%d", i), spec{PodSelector: selecting("none", "none")})
			}
			s.config("all", spec{})
			s.watched(environ)
			s.expectServed("all", 6)
			for i := range 6 {
				s.expectServed(fmt.Sprintf("m-%d", i), 0)
			}
			for verb, of := range map[string]string{"POST": "ConfigMaps", "PATCH": "statuses"} {
				if got := proxy.atOnce(verb); got != workers {
					t.Errorf("%d writes of %s at once, want %d", got, of, workers)
				}
			}
		})
	}
}

// TestProbes asks a manager, and one whose metrics and probes are off.
func TestProbes(t *testing.T) {
	t.Parallel()
	s := own(t)
	s.watched(nil)
	for _, path := range []string{"/healthz", "/readyz"} {
		if body, err := s.Probe(t.Context(), path); err != nil || body != "ok" {
			t.Errorf("%s: %q, %v", path, body, err)
		}
	}
	off := begin(t, map[string]string{"WATCH_NAMESPACE": s.name, "METRICS_ADDR": "0", "HEALTH_PROBE_ADDR": "0"})
	s.eventually("it leads", func() error {
		if !strings.Contains(off.Log(), `"Starting workers"`) {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	for _, served := range []string{"Serving metrics server", "health probe"} {
		if strings.Contains(off.Log(), served) {
			t.Errorf("%q though it is off", served)
		}
	}
}

// TestNotReady: a manager that cannot list ConfigMaps lives, but is not ready.
func TestNotReady(t *testing.T) {
	t.Parallel()
	s := own(t)
	proxy := newProxy(t, func(verb, path string) time.Duration {
		if verb == "GET" && strings.HasSuffix(path, "/namespaces/"+s.name+"/configmaps") {
			return time.Hour
		}
		return 0
	})
	m := begin(t, map[string]string{"WATCH_NAMESPACE": s.name, "KUBECONFIG": proxy.kubeconfig})
	s.manager = m
	s.eventually("it is alive", func() error {
		_, err := m.Probe(t.Context(), "/healthz")
		return err
	})
	s.steadily("it is not ready", time.Second, func() error {
		if body, err := m.Probe(t.Context(), "/readyz"); err == nil {
			return fmt.Errorf("/readyz answers %q", body)
		}
		return nil
	})
}

// TestEBPFFlag: what the condition says, with the flag off and on.
func TestEBPFFlag(t *testing.T) {
	t.Parallel()
	asks := spec{EBPFConfig: &v1alpha1.EBPFConfig{SyscallMonitoring: &v1alpha1.SyscallMonitoring{Enabled: true}}}
	for flag, want := range map[string]string{
		"":      v1alpha1.ReasonFeatureDisabled,
		"false": v1alpha1.ReasonFeatureDisabled,
		"true":  v1alpha1.ReasonProgressing,
	} {
		t.Run("flag="+flag, func(t *testing.T) {
			t.Parallel()
			s := own(t)
			s.pod("web", nil, func(p *corev1.Pod) { p.Spec.NodeName = "flagged" })
			s.config("asks", asks)
			s.config("does-not", spec{})
			s.watched(map[string]string{"EBPF_ENABLED": flag})
			s.expectServed("does-not", 1)
			if _, c := s.status("does-not", v1alpha1.ConditionEBPFReady); c.Reason != v1alpha1.ReasonNotRequested || c.Status != metav1.ConditionFalse {
				t.Errorf("the config that does not ask: %+v", c)
			}
			s.eventually("the config that asks", func() error {
				_, ebpf := s.status("asks", v1alpha1.ConditionEBPFReady)
				c, ready := s.status("asks", v1alpha1.ConditionReady)
				if ebpf.Reason != want || ebpf.Status != metav1.ConditionFalse || ready.Reason != want || ready.Status != metav1.ConditionFalse || c.Status.SyncedConfigMaps != 1 {
					return fmt.Errorf("EBPFReady %+v, Ready %+v, status %+v", ebpf, ready, c.Status)
				}
				return nil
			})
			if got := s.get("pod-web-from-asks-cfg").Data["ebpf_enabled"]; got != "true" {
				t.Errorf("ebpf_enabled is %q; it is what the config asks for, whatever the flag", got)
			}
			if want == v1alpha1.ReasonFeatureDisabled {
				_, c := s.status("asks", v1alpha1.ConditionEBPFReady)
				s.expectEvent("Warning FeatureDisabled PodConfigMapConfig/asks: " + c.Message)
			}
		})
	}
}
