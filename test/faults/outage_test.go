// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"errors"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

const outage = 30 * time.Second

// TestControlPlaneFaults takes away what the operator stands on: the CRD, and
// the whole API server. The cluster is this test's own.
func TestControlPlaneFaults(t *testing.T) {
	skipShort(t)
	t.Parallel()
	c, err := harness.StartBareCluster(t.Context(), controlplane.Options{ControllerManager: true, Progress: os.Stderr})
	must(t, err)
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	// One after another: each starts from what the one before left.
	t.Run("the CRD is not there yet", func(t *testing.T) { withoutCRD(t, c) })
	t.Run("the CRD is deleted and comes back", func(t *testing.T) { deletedCRD(t, c) })
	t.Run("the API server is killed for 30 s", func(t *testing.T) { killedAPIServer(t, c) })
}

func withoutCRD(t *testing.T, c *harness.Cluster) {
	m := startManager(t, c, nil)
	select {
	case <-m.Exited():
	case <-time.After(patience):
		t.Fatal("a manager without the CRD goes on")
	}
	checkExit(t, m)
	want := "podconfigmap-controller: the cluster has no PodConfigMapConfig kind: install config/crd first (kubectl apply -k config/crd)"
	if last := m.LogTail(1); !strings.HasPrefix(last, want) {
		t.Errorf("the log ends with %q, want %q", last, want)
	}
	must(t, harness.InstallCRD(t.Context(), c.Client))
}

func deletedCRD(t *testing.T, c *harness.Cluster) {
	const namespace, pods = "crd", 50
	populate(t, c, namespace, pods)
	must(t, c.Client.Create(t.Context(), newConfig(namespace, "c", "", "1")))
	foreign := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "foreign"}}
	must(t, c.Client.Create(t.Context(), foreign))
	m := startReady(t, c, map[string]string{"POD_NAMESPACE": namespace})
	waitServed(t, c, namespace)

	must(t, c.Client.Delete(t.Context(), crd()))
	awaitNoCRD(t, c)
	// The configs are gone with it, and so are their ConfigMaps.
	err := wait.PollUntilContextTimeout(t.Context(), 100*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		left := &corev1.ConfigMapList{}
		err := c.Client.List(ctx, left, client.InNamespace(namespace), client.HasLabels{"podconfig.example.com/generated-by-pcmc"})
		return len(left.Items) == 0, err
	})
	must(t, err)
	must(t, c.Client.Get(t.Context(), client.ObjectKeyFromObject(foreign), foreign))
	before := strings.Count(m.Log(), "\n")
	time.Sleep(5 * time.Second)
	if lines := strings.Count(m.Log(), "\n") - before; lines > 30 {
		t.Errorf("%d lines in the log in 5 s without the CRD", lines)
	}
	if why := "podconfigmapconfigs.podconfig.example.com"; !strings.Contains(m.Log(), "could not find the requested resource") || !strings.Contains(m.Log(), why) {
		t.Errorf("the log does not say that %s could not be found", why)
	}

	must(t, recreatePod(t.Context(), c, namespace, podName(0)))
	must(t, harness.InstallCRD(t.Context(), c.Client))
	back := time.Now()
	must(t, c.Client.Create(t.Context(), newConfig(namespace, "c", "", "2")))
	waitServed(t, c, namespace)
	figure(t, "after the CRD was deleted for 5 s and more: all was right %.1fs after it was back", time.Since(back).Seconds())
	select {
	case <-m.Exited():
		t.Errorf("the manager ended: %v", m.ExitError())
	default:
	}
}

func crd() *apiextensionsv1.CustomResourceDefinition {
	return &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "podconfigmapconfigs.podconfig.example.com"}}
}

func awaitNoCRD(t *testing.T, c *harness.Cluster) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		err := c.Client.Get(ctx, client.ObjectKeyFromObject(crd()), crd())
		return apierrors.IsNotFound(err), client.IgnoreNotFound(err)
	})
	must(t, err)
}

// killedAPIServer has one manager that elects a leader: it loses its Lease,
// exits, and is started again; and one that does not: it lives through all.
func killedAPIServer(t *testing.T, c *harness.Cluster) {
	const elected, alone = "outage-elected", "outage-alone"
	o := &outageTest{t: t, c: c, managers: map[string]*harness.Supervisor{}}
	o.start(elected, nil)
	o.start(alone, map[string]string{"LEADER_ELECTION_ENABLED": "false"})
	waitServed(t, c, elected, alone)

	o.changeAll(0, "2")
	must(t, c.KillAPIServer()) // in the middle of the work on that
	time.Sleep(outage)
	must(t, c.StartAPIServer(t.Context()))
	back := time.Now()
	o.changeAll(50, "3")
	var group errgroup.Group
	for namespace := range o.managers {
		group.Go(func() error { return o.awaitWork(namespace, back) })
	}
	must(t, group.Wait())
	waitServed(t, c, elected, alone)

	if n := len(o.managers[alone].Managers()); n != 1 {
		t.Errorf("without leader election the manager was started %d times", n)
	}
	first := o.managers[elected].Managers()[0]
	if len(o.managers[elected].Managers()) < 2 || !strings.Contains(first.Log(), "leader election lost") {
		t.Errorf("the leader lived through the loss of its Lease: its log ends with\n%s", first.LogTail(10))
	}
}

type outageTest struct {
	t        *testing.T
	c        *harness.Cluster
	managers map[string]*harness.Supervisor // by the namespace that they serve
}

func (o *outageTest) start(namespace string, extra map[string]string) {
	o.t.Helper()
	populate(o.t, o.c, namespace, 150)
	must(o.t, o.c.Client.Create(o.t.Context(), newConfig(namespace, "all", "", "1")))
	must(o.t, o.c.Client.Create(o.t.Context(), newConfig(namespace, "web", "web", "1")))
	environ := map[string]string{"POD_NAMESPACE": namespace, "WATCH_NAMESPACE": namespace}
	maps.Copy(environ, extra)
	o.managers[namespace] = supervise(o.t, o.c, environ)
}

// awaitWork waits until a manager works again, and then until all is right.
func (o *outageTest) awaitWork(namespace string, back time.Time) error {
	ctx := o.t.Context()
	if err := awaitData(ctx, o.c, harness.ConfigMap(namespace, podName(51), "all"), "label_tier", "3"); err != nil {
		return err
	}
	took := time.Since(back)
	err := o.c.WaitServed(ctx, patience, namespace)
	figure(o.t, "after %v without the API server, the manager of %q works after %.1fs, and all is right after %.1fs",
		outage, namespace, took.Seconds(), time.Since(back).Seconds())
	return err
}

func (o *outageTest) changeAll(from int, version string) {
	o.t.Helper()
	for namespace := range o.managers {
		changeAll(o.t, o.c, namespace, from, version)
	}
}

// changeAll makes changes of every sort around the pods from a number on.
func changeAll(t *testing.T, c *harness.Cluster, namespace string, from int, version string) {
	t.Helper()
	ctx := t.Context()
	must(t, errors.Join(
		setVersion(ctx, c, namespace, "all", version),
		removeConfig(ctx, c, namespace, "web"),
		c.Client.Create(ctx, newConfig(namespace, "db"+version, "db", version)),
	))
	for i := from; i < from+40; i += 4 {
		must(t, errors.Join(
			recreatePod(ctx, c, namespace, podName(i)),
			setLabel(ctx, c, namespace, podName(i+1), "tier", version),
			setLabel(ctx, c, namespace, podName(i+2), "app", "db"),
			removePod(ctx, c, namespace, podName(i+3)),
		))
	}
}
