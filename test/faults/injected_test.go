// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"math/rand/v2"
	"net/http"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

const (
	// oneIn is how many calls there are to one that fails.
	oneIn = 10
	// wantedFaults is the least number of each kind for the test to show much.
	wantedFaults = 10
	// cutEvery is the time between resets of all connections.
	cutEvery = 2 * time.Second
)

// TestInjectedFaults has a tenth of the manager's calls fail in every way, half
// of them after the API server did what was asked for, while pods and configs
// change. The manager must end with the right ConfigMaps, under the same faults.
func TestInjectedFaults(t *testing.T) {
	skipShort(t)
	t.Parallel()
	const namespace, pods = "injected", 200
	random := newRandom(t)
	populate(t, shared, namespace, pods)
	p := startProxy(t, shared)
	p.set(faultsAtRandom(rand.New(rand.NewPCG(*seed, 1))))
	s := supervise(t, shared, map[string]string{
		"KUBECONFIG": p.kubeconfig(t, shared), "POD_NAMESPACE": namespace, "WATCH_NAMESPACE": namespace,
		"CONTROLLER_RECONCILIATION_TIMEOUT": "3s",
		// Only retries may help, not the resync; and no pod may run out of them.
		"CONTROLLER_RESYNC_PERIOD": "1h", "CONTROLLER_MAX_RETRIES": "20",
	})
	c := &churn{t: t, cluster: shared, namespace: namespace, pods: pods, random: random}
	for _, config := range []string{"all", "web", "db"} {
		c.createConfig(config)
	}
	cuts, lastCut := 0, time.Now()
	makeChanges := func(atLeast int) {
		for i := 0; i < atLeast || !enoughFaults(p); i++ {
			if i == 3000 {
				t.Fatalf("3000 changes, and still not %d faults of each kind: %s", wantedFaults, p.summary())
			}
			c.change()
			if time.Since(lastCut) > cutEvery {
				cuts, lastCut = cuts+p.conns.cut(), time.Now()
			}
		}
	}
	makeChanges(300)
	// A manager that lost its Lease and began anew would hide that one did not try
	// again: then there are more changes, for the next one.
	for try := 0; ; try++ {
		p.set(sparingLeases(faultsAtRandom(random)))
		began, starts := time.Now(), len(s.Managers())
		waitServed(t, shared, namespace)
		if len(s.Managers()) == starts {
			figure(t, "injected faults: %d changes of pods and configs; all was right %.1fs after the last; %d starts of the manager; %s, connections cut: %d",
				c.made, time.Since(began).Seconds(), starts, p.summary(), cuts)
			break
		}
		if try == 5 {
			t.Fatalf("%d times, no manager lived until all was right", try+1)
		}
		makeChanges(100)
	}
	if cuts == 0 {
		t.Error("no connection was cut")
	}
}

// sparingLeases does nothing to the calls that keep a manager the leader.
func sparingLeases(decide func(*http.Request) fault) func(*http.Request) fault {
	return func(r *http.Request) fault {
		if ofLease(r) {
			return fault{}
		}
		return decide(r)
	}
}

var kinds = []kind{conflict, throttled, broken, hang, reset}

func faultsAtRandom(random *rand.Rand) func(*http.Request) fault {
	return func(*http.Request) fault {
		if random.IntN(oneIn) > 0 {
			return fault{}
		}
		return fault{kind: kinds[random.IntN(len(kinds))], late: random.IntN(2) == 0}
	}
}

func enoughFaults(p *proxy) bool {
	for _, k := range kinds {
		if p.count(fault{k, false}.String()) < wantedFaults || p.count(fault{k, true}.String()) < wantedFaults {
			return false
		}
	}
	return true
}

// churn changes pods, configs and ConfigMaps at random, straight at the API
// server.
type churn struct {
	t         *testing.T
	cluster   *harness.Cluster
	namespace string
	pods      int
	random    *rand.Rand
	made      int
}

// change makes one change.
func (c *churn) change() {
	c.t.Helper()
	c.made++
	ctx, pod, version := c.t.Context(), podName(c.random.IntN(c.pods)), strconv.Itoa(c.made)
	config := []string{"all", "web", "db"}[c.random.IntN(3)]
	var err error
	switch n := c.random.IntN(100); {
	case n < 30:
		err = setLabel(ctx, c.cluster, c.namespace, pod, "tier", version)
	case n < 55:
		err = setLabel(ctx, c.cluster, c.namespace, pod, "app", []string{"web", "db"}[c.random.IntN(2)])
	case n < 70:
		err = recreatePod(ctx, c.cluster, c.namespace, pod)
	case n < 80:
		err = c.setPhase(ctx, pod)
	case n < 90:
		err = c.damage(ctx, harness.ConfigMap(c.namespace, pod, config))
	case n < 98:
		err = setVersion(ctx, c.cluster, c.namespace, config, version)
	default:
		err = removeConfig(ctx, c.cluster, c.namespace, config)
		c.createConfig(config)
	}
	must(c.t, err)
}

// createConfig makes the config that selects the app it is named after, or all
// pods. One that is being deleted goes first.
func (c *churn) createConfig(name string) {
	c.t.Helper()
	app := name
	if name == "all" {
		app = ""
	}
	err := wait.PollUntilContextTimeout(c.t.Context(), 20*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		err := c.cluster.Client.Create(ctx, newConfig(c.namespace, name, app, strconv.Itoa(c.made)))
		if apierrors.IsAlreadyExists(err) {
			return false, nil
		}
		return err == nil, err
	})
	must(c.t, err)
}

func (c *churn) setPhase(ctx context.Context, name string) error {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: name}}
	phase := []string{"Pending", "Running", "Failed"}[c.random.IntN(3)]
	return c.cluster.Client.Status().Patch(ctx, pod, client.RawPatch("application/merge-patch+json", []byte(`{"status":{"phase":"`+phase+`"}}`)))
}

// damage edits or deletes a ConfigMap by hand, if it is there.
func (c *churn) damage(ctx context.Context, key client.ObjectKey) error {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
	if c.random.IntN(2) == 0 {
		return client.IgnoreNotFound(c.cluster.Client.Delete(ctx, cm))
	}
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"data":{"podName":"damaged"}}`))
	return client.IgnoreNotFound(c.cluster.Client.Patch(ctx, cm, patch))
}
