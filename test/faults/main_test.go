// SPDX-License-Identifier: Apache-2.0

// Package faults tests what becomes of the ConfigMaps when the API server or
// the operator fails: on a real control plane, with managers as processes of
// their own.
package faults

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// patience is how long anything may take that has no limit of its own.
const patience = 2 * time.Minute

var seed = flag.Uint64("faults.seed", 1, "of the random choices of faults and moments")

// shared is the cluster of the tests that leave the API server alive.
var shared *harness.Cluster

func TestMain(m *testing.M) {
	flag.Parse()
	ctrllog.SetLogger(logr.Discard())
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if testing.Short() {
		return m.Run(), nil
	}
	shared, err = harness.StartCluster(context.Background(), controlplane.Options{ControllerManager: true, Progress: os.Stderr})
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, shared.Stop()) }()
	return m.Run(), nil
}

func skipShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: this needs a control plane, and time")
	}
}

// newRandom returns the test's random choices, the same for the same seed.
func newRandom(t *testing.T) *rand.Rand {
	t.Logf("seed %d; another one: -faults.seed=N", *seed)
	return rand.New(rand.NewPCG(*seed, 0))
}

// figures are what the tests measured, for people.
var figures struct {
	sync.Mutex
	written bool
}

// figure prints what was measured, and leaves it in build/faults.txt.
func figure(t *testing.T, format string, args ...any) {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	t.Log(line)
	fmt.Println(line)
	figures.Lock()
	defer figures.Unlock()
	mode := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if !figures.written {
		mode |= os.O_TRUNC
	}
	if err := appendLine(mode, line); err != nil {
		t.Errorf("keeping a figure: %v", err)
	}
	figures.written = true
}

func appendLine(mode int, line string) error {
	root, err := harness.Root()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(root, "build"), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(root, "build", "faults.txt"), mode, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(file, line)
	return errors.Join(err, file.Close())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// startManager starts a manager that ends with the test, and whose log is
// looked through then.
func startManager(t *testing.T, c *harness.Cluster, extra map[string]string) *harness.Manager {
	t.Helper()
	m, err := c.StartManager(extra)
	must(t, err)
	t.Cleanup(func() {
		must(t, m.Kill())
		checkLogs(t, m)
	})
	return m
}

func startReady(t *testing.T, c *harness.Cluster, extra map[string]string) *harness.Manager {
	t.Helper()
	m := startManager(t, c, extra)
	must(t, m.WaitReady(t.Context()))
	return m
}

// supervise does the same for a supervisor. A clean stop must be clean.
func supervise(t *testing.T, c *harness.Cluster, extra map[string]string) *harness.Supervisor {
	t.Helper()
	s, err := c.Supervise(extra)
	must(t, err)
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Errorf("stopping: %v\n%s", err, s.Current().LogTail(15))
		}
		checkLogs(t, s.Managers()...)
	})
	return s
}

// checkLogs looks through logs for what is always wrong. After a failure it
// shows the last ones.
func checkLogs(t *testing.T, managers ...*harness.Manager) {
	t.Helper()
	for _, m := range managers {
		for _, bad := range []string{"panic", "DATA RACE"} {
			if log := m.Log(); strings.Contains(log, bad) {
				t.Errorf("the log of manager %d has %q:\n%s", m.PID(), bad, log)
			}
		}
	}
	if t.Failed() {
		for _, m := range managers[max(0, len(managers)-2):] {
			t.Logf("the log of manager %d ends with:\n%s", m.PID(), m.LogTail(25))
		}
	}
}

// checkExit checks that a manager ended as one does that cannot go on.
func checkExit(t *testing.T, m *harness.Manager) {
	t.Helper()
	var exit *exec.ExitError
	if err := m.ExitError(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("manager %d ended with %v, want code 1", m.PID(), err)
	}
}

func waitExact(t *testing.T, c *harness.Cluster, namespaces ...string) {
	t.Helper()
	must(t, c.WaitExact(t.Context(), patience, namespaces...))
}

// waitServed also checks that all stays as it is.
func waitServed(t *testing.T, c *harness.Cluster, namespaces ...string) {
	t.Helper()
	must(t, c.WaitServed(t.Context(), patience, namespaces...))
	time.Sleep(time.Second)
	must(t, c.CheckServed(t.Context(), namespaces...))
}

// newPod is a pod with the labels that the configs of these tests read.
func newPod(namespace, name string) *corev1.Pod {
	automount := false
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name,
			Labels:      map[string]string{"app": "web", "tier": "0"},
			Annotations: map[string]string{"example.com/owner": "faults"},
		},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: &automount,
			Containers:                   []corev1.Container{{Name: "c", Image: "registry.invalid/app:1"}},
		},
	}
}

// newConfig selects the pods of an app (all, if empty) and carries a version in
// the data of each ConfigMap.
func newConfig(namespace, name, app, version string) *v1alpha1.PodConfigMapConfig {
	pcmc := &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	pcmc.Spec.LabelsToInclude = []v1alpha1.MetadataKey{"app", "tier"}
	pcmc.Spec.ConfigMapDataTemplate = map[string]string{"version": version, "who": "{{ .podName }} of {{ .uid }}"}
	if app != "" {
		pcmc.Spec.PodSelector = &v1alpha1.PodSelector{MatchLabels: map[string]string{"app": app}}
	}
	return pcmc
}

// populate makes a namespace with pods named p0, p1, ….
func populate(t *testing.T, c *harness.Cluster, namespace string, pods int) {
	t.Helper()
	must(t, c.NewNamespace(t.Context(), namespace))
	// The controller manager makes the ServiceAccount that pods need.
	err := wait.PollUntilContextTimeout(t.Context(), 20*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		err := c.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: "default"}, &corev1.ServiceAccount{})
		return err == nil, client.IgnoreNotFound(err)
	})
	must(t, err)
	var group errgroup.Group
	group.SetLimit(8)
	for i := range pods {
		group.Go(func() error { return c.Client.Create(t.Context(), newPod(namespace, podName(i))) })
	}
	must(t, group.Wait())
}

func podName(i int) string { return fmt.Sprintf("p%d", i) }

// setLabel sets one label of a pod. A pod that is gone is fine.
func setLabel(ctx context.Context, c *harness.Cluster, namespace, pod, label, value string) error {
	o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: pod}}
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, label, value)
	return client.IgnoreNotFound(c.Client.Patch(ctx, o, client.RawPatch("application/merge-patch+json", []byte(patch))))
}

// removePod deletes a pod at once.
func removePod(ctx context.Context, c *harness.Cluster, namespace, pod string) error {
	o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: pod}}
	return client.IgnoreNotFound(c.Client.Delete(ctx, o, client.GracePeriodSeconds(0)))
}

// recreatePod replaces a pod by one of the same name.
func recreatePod(ctx context.Context, c *harness.Cluster, namespace, pod string) error {
	if err := removePod(ctx, c, namespace, pod); err != nil {
		return err
	}
	return c.Client.Create(ctx, newPod(namespace, pod))
}

// setVersion edits a config so that all of its ConfigMaps change. One that is
// gone is fine.
func setVersion(ctx context.Context, c *harness.Cluster, namespace, config, version string) error {
	pcmc := &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: config}}
	patch := fmt.Sprintf(`{"spec":{"configMapDataTemplate":{"version":%q}}}`, version)
	return client.IgnoreNotFound(c.Client.Patch(ctx, pcmc, client.RawPatch("application/merge-patch+json", []byte(patch))))
}

func removeConfig(ctx context.Context, c *harness.Cluster, namespace, config string) error {
	pcmc := &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: config}}
	return client.IgnoreNotFound(c.Client.Delete(ctx, pcmc))
}

// awaitData waits until a ConfigMap's key has the value.
func awaitData(ctx context.Context, c *harness.Cluster, cm client.ObjectKey, key, value string) error {
	err := wait.PollUntilContextTimeout(ctx, 20*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		found := &corev1.ConfigMap{}
		if err := c.Client.Get(ctx, cm, found); err != nil {
			return false, client.IgnoreNotFound(err)
		}
		return found.Data[key] == value, nil
	})
	if err != nil {
		return fmt.Errorf("waiting until %s of ConfigMap %s is %q: %w", key, cm, value, err)
	}
	return nil
}

func isGone(err error) bool { return apierrors.IsNotFound(err) || apierrors.IsConflict(err) }
