// SPDX-License-Identifier: Apache-2.0

// Package scale tests the operator with many pods that come and go: on a real
// control plane whose nodes and pods kwok keeps, without kubelets.
package scale

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/cluster"
	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

var (
	pods       = flag.Int("scale.pods", 10_000, "number of pods")
	namespaces = flag.Int("scale.namespaces", 50, "number of namespaces, with a config each")
	nodes      = flag.Int("scale.nodes", 20, "number of nodes")
	rate       = flag.Int("scale.rate", 100, "pods that are replaced each second of the churn")
	churn      = flag.Duration("scale.churn", 2*time.Minute, "how long the churn lasts")
)

const (
	// patience is how long a convergence may take.
	patience = 20 * time.Minute
	writers  = 32
)

func TestScale(t *testing.T) {
	ctrllog.SetLogger(logr.Discard())
	w := newWorld(t)
	w.timed("nodes and pods that kwok runs", w.populate)
	m, err := w.StartManager(harness.PatientLease)
	w.must(err)
	w.keepLog(m)
	began := time.Now()
	w.timed("ConfigMaps of all pods", func() { w.converge(m) })
	w.figures(m, time.Since(began))

	before := w.writes(m)
	began = time.Now()
	used, err := watchUsage(m.PID())
	w.must(err)
	replaced := w.replace()
	took := time.Since(began)
	w.t.Logf("replaced %d pods in %s: %.1f per second", replaced, took.Round(time.Second), float64(replaced)/took.Seconds())
	w.must(used.tell(w.t.Logf, "the churn", replaced))
	w.timed("convergence after the churn", func() { w.converge(m) })
	w.must(used.tell(w.t.Logf, "the churn and the convergence", replaced))
	w.must(used.stop(w.t.Logf))
	w.t.Logf("the manager wrote %.0f ConfigMaps since the churn began, for %d new ones", w.writes(m)-before, replaced)
	w.figures(m, time.Since(began))
	w.must(m.Stop())
	if lines := harness.ErrorLines(m.Log()); len(lines) > 0 {
		t.Errorf("the manager's log holds errors:\n%s", strings.Join(lines, "\n"))
	}
}

// world is a control plane whose nodes are kwok's.
type world struct {
	*harness.Cluster
	t     *testing.T
	ctx   context.Context       // ends with the test, or when it is interrupted
	core  *kubernetes.Clientset // speaks protobuf, without a limit of its own
	names []string
	made  atomic.Int64
}

func newWorld(t *testing.T) *world {
	t.Helper()
	thrifty(t)
	ctx := harness.Until(t.Context(), interrupted)
	c, err := harness.StartCluster(ctx, controlplane.Options{
		ControllerManager: true, ControllerManagerFlags: []string{
			// What pods and ConfigMaps without any workload have to do with.
			"--controllers=garbage-collector-controller,namespace-controller,serviceaccount-controller,root-ca-certificate-publisher-controller",
			// ConfigMaps take two calls each to be collected.
			"--kube-api-qps=1000", "--kube-api-burst=2000",
		},
		Logs: logs, Progress: os.Stderr,
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Cluster: c, t: t, ctx: ctx}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	config := rest.CopyConfig(c.Config())
	config.QPS, config.ContentType = -1, "application/vnd.kubernetes.protobuf"
	w.core, err = kubernetes.NewForConfig(config)
	w.must(err)
	w.startKwok()
	return w
}

// thrifty has the programs that this one starts take memory rather than time: the
// collector of garbage had a quarter of the API server's. The manager gets an
// environment of its own: it is as shipped.
func thrifty(t *testing.T) {
	t.Helper()
	var machine unix.Sysinfo_t
	if err := unix.Sysinfo(&machine); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOGC", "400")
	t.Setenv("GOMEMLIMIT", strconv.FormatUint(machine.Totalram*uint64(machine.Unit)/4, 10))
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// timed does something and logs how long it took.
func (w *world) timed(what string, do func()) {
	w.t.Helper()
	began := time.Now()
	do()
	w.t.Logf("%s: %s", what, time.Since(began).Round(100*time.Millisecond))
}

// startKwok runs kwok until the test ends.
func (w *world) startKwok() {
	k, err := cluster.StartKwok(w.ctx, cluster.KwokOptions{
		Kubeconfig: w.Kubeconfig(), Log: filepath.Join(logs, "kwok.log"), PodStages: []string{"kwok.yaml"},
	})
	w.must(err)
	w.t.Cleanup(func() {
		if err := k.Stop(); err != nil {
			w.t.Error(err)
		}
	})
}

// populate makes the nodes, and the namespaces with a config and pods each, and waits
// until kwok runs all of them.
func (w *world) populate() {
	ctx := w.ctx
	for i := range *nodes {
		_, err := w.core.CoreV1().Nodes().Create(ctx, cluster.KwokNode(i), metav1.CreateOptions{})
		w.must(err)
	}
	for i := range *namespaces {
		name := fmt.Sprintf("team-%d", i)
		w.names = append(w.names, name)
		w.must(w.NewNamespace(ctx, name))
		w.must(w.Client.Create(ctx, newConfig(name)))
	}
	w.must(w.each(*pods, func(int) error { return w.newPod(ctx) }))
	w.awaitRunning()
}

func newConfig(namespace string) *v1alpha1.PodConfigMapConfig {
	return &v1alpha1.PodConfigMapConfig{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "metadata"},
		Spec: v1alpha1.PodConfigMapConfigSpec{
			LabelsToInclude:       []v1alpha1.MetadataKey{"app", "version"},
			ConfigMapDataTemplate: v1alpha1.DataTemplates{"where": "{{ .podName }} ({{ .podIP }}) on {{ .nodeName }}"},
		},
	}
}

// newPod creates the next pod, on the next node of the next namespace.
func (w *world) newPod(ctx context.Context) error {
	i := int(w.made.Add(1)) - 1
	namespace := w.names[i%len(w.names)]
	none, noToken := int64(0), false
	_, err := w.core.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: podName(i), Namespace: namespace, Labels: map[string]string{"app": fmt.Sprintf("app-%d", i%7), "version": "1"}},
		Spec: corev1.PodSpec{
			NodeName: cluster.KwokName(i / len(w.names) % *nodes), TerminationGracePeriodSeconds: &none, AutomountServiceAccountToken: &noToken,
			Containers: []corev1.Container{{Name: "app", Image: "images.example.com/app:1"}},
		},
	}, metav1.CreateOptions{})
	return err
}

func podName(i int) string { return fmt.Sprintf("pod-%d", i) }

// each calls do with 0 to n-1, some at a time.
func (w *world) each(n int, do func(int) error) error {
	var group errgroup.Group
	group.SetLimit(writers)
	for i := range n {
		group.Go(func() error { return do(i) })
	}
	return group.Wait()
}

// awaitRunning waits until no pod is without the address that kwok gives it.
func (w *world) awaitRunning() {
	ctx := w.ctx
	w.must(wait.PollUntilContextTimeout(ctx, time.Second, patience, true, func(ctx context.Context) (bool, error) {
		for _, name := range w.names {
			pending, err := w.core.CoreV1().Pods(name).List(ctx, metav1.ListOptions{FieldSelector: "status.phase!=Running", ResourceVersion: "0"})
			if err != nil || len(pending.Items) > 0 {
				return false, nil // a busy API server is asked again
			}
		}
		return true, nil
	}))
}

// converge waits until every pod is running and has just the ConfigMap that it should
// have, and every config's status says so.
func (w *world) converge(m *harness.Manager) {
	w.t.Helper()
	w.awaitRunning()
	if err := w.WaitServed(w.ctx, patience, w.names...); err != nil {
		w.t.Fatalf("%v\nthe manager's log:\n%s", err, m.LogTail(20))
	}
}

// replace deletes the oldest pods and makes as many new ones, at the given rate or, on
// a machine that is slower, as fast as it can, and at least until as many pods were
// deleted and made together as that rate is in that time; it returns how many were
// replaced.
func (w *world) replace() int {
	ctx := w.ctx
	none, began, replaced := int64(0), time.Now(), 0
	least := int(churn.Seconds()*float64(*rate)) / 2
	for took := time.Duration(0); took < *churn || replaced < least; took = time.Since(began) {
		// What one second was too short for, the next makes up.
		due := min(*rate, int(took.Seconds()*float64(*rate))-replaced)
		if due <= 0 {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		first := replaced
		w.must(w.each(due, func(i int) error {
			old := first + i
			err := w.core.CoreV1().Pods(w.names[old%len(w.names)]).Delete(ctx, podName(old), metav1.DeleteOptions{GracePeriodSeconds: &none})
			return errors.Join(err, w.newPod(ctx))
		}))
		replaced += due
	}
	return replaced
}

// writes is how many ConfigMaps the manager has written.
func (w *world) writes(m *harness.Manager) float64 {
	w.t.Helper()
	families, err := m.Scrape(w.ctx)
	w.must(err)
	total := 0.0
	for _, series := range families["podconfigmap_controller_configmap_operations_total"].GetMetric() {
		total += series.GetCounter().GetValue()
	}
	return total
}

// figures logs what the manager has used so far.
func (w *world) figures(m *harness.Manager, within time.Duration) {
	w.t.Helper()
	families, err := m.Scrape(w.ctx)
	w.must(err)
	calls := map[string]float64{}
	for _, series := range families["rest_client_requests_total"].GetMetric() {
		for _, label := range series.GetLabel() {
			if label.GetName() == "method" {
				calls[label.GetValue()] += series.GetCounter().GetValue()
			}
		}
	}
	memory := families["process_resident_memory_bytes"].GetMetric()[0].GetGauge().GetValue()
	cpu := families["process_cpu_seconds_total"].GetMetric()[0].GetCounter().GetValue()
	w.t.Logf("the manager: %.0f MiB resident, %.1f s of CPU; API calls by method: %v; since %s",
		memory/(1<<20), cpu, calls, within.Round(time.Second))
}
