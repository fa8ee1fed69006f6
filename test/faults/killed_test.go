// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

const (
	crowdSize    = 500
	killings     = 20
	shippedKills = 3 // of them, with the shipped lease settings
	spareRounds  = 5 // for kills that came too early or too late
)

// TestKilledInTheMiddle kills the manager in the middle of convergences of 500
// pods, again and again.
func TestKilledInTheMiddle(t *testing.T) {
	skipShort(t)
	t.Parallel()
	const namespace = "killed"
	populate(t, shared, namespace, crowdSize)
	k := &killer{t: t, namespace: namespace, random: newRandom(t), progress: newProgress(t, shared, namespace)}

	k.round, k.spare = 0, spareRounds
	environ := map[string]string{"POD_NAMESPACE": namespace, "WATCH_NAMESPACE": namespace}
	k.supervisor = supervise(t, shared, environ)
	k.kill(shippedKills)
	must(t, k.supervisor.Stop())
	// Without leader election the next manager need not wait for the Lease.
	environ["LEADER_ELECTION_ENABLED"] = "false"
	k.supervisor = supervise(t, shared, environ)
	k.kill(killings - shippedKills)

	waitServed(t, shared, namespace)
	figure(t, "killed %d times in the middle of %d pods, done at the kill: %s", len(k.done), crowdSize, strings.Join(k.done, " "))
}

type killer struct {
	t          *testing.T
	namespace  string
	random     *rand.Rand
	progress   *progress
	supervisor *harness.Supervisor
	round      int
	spare      int
	done       []string
}

// kill goes through n convergences with a kill in the middle.
func (k *killer) kill(n int) {
	k.t.Helper()
	for n > 0 {
		want := k.startWave()
		target := crowdSize/8 + k.random.IntN(crowdSize/2)
		k.progress.await(k.t, want, target)
		must(k.t, k.supervisor.Kill())
		switch done := k.countDone(want); {
		case done >= crowdSize/10 && done <= crowdSize*9/10:
			k.done = append(k.done, fmt.Sprintf("%d%%", 100*done/crowdSize))
			n--
		case k.spare == 0:
			k.t.Fatalf("once more, %d of %d pods were done at the kill; want 10%% to 90%%", done, crowdSize)
		default:
			k.spare--
		}
		waitExact(k.t, shared, k.namespace)
	}
}

// startWave changes what all ConfigMaps should be: it creates the config, edits
// it or deletes it. It returns the version that they will have, empty for none.
func (k *killer) startWave() string {
	k.t.Helper()
	const config = "c"
	k.round++
	version := strconv.Itoa(k.round)
	switch k.round % 4 {
	case 1:
		must(k.t, shared.Client.Create(k.t.Context(), newConfig(k.namespace, config, "", version)))
	case 2, 3:
		must(k.t, setVersion(k.t.Context(), shared, k.namespace, config, version))
	case 0:
		must(k.t, removeConfig(k.t.Context(), shared, k.namespace, config))
		version = ""
	}
	return version
}

// countDone looks at the API server how many ConfigMaps have the version; for
// none, how many are gone.
func (k *killer) countDone(version string) int {
	k.t.Helper()
	state, err := shared.ReadState(k.t.Context(), k.namespace)
	must(k.t, err)
	if version == "" {
		return crowdSize - len(state.ConfigMaps)
	}
	done := 0
	for i := range state.ConfigMaps {
		if state.ConfigMaps[i].Data["version"] == version {
			done++
		}
	}
	return done
}

// progress follows the versions of all ConfigMaps of a namespace by a watch.
type progress struct {
	mu       sync.Mutex
	versions map[string]string // by the ConfigMap's name
	counts   map[string]int    // of versions
	ended    bool
}

func newProgress(t *testing.T, c *harness.Cluster, namespace string) *progress {
	t.Helper()
	clients, err := kubernetes.NewForConfig(c.Config())
	must(t, err)
	changes, err := clients.CoreV1().ConfigMaps(namespace).Watch(t.Context(), metav1.ListOptions{LabelSelector: v1alpha1.LabelGeneratedBy})
	must(t, err)
	p := &progress{versions: map[string]string{}, counts: map[string]int{}}
	go func() {
		for event := range changes.ResultChan() {
			p.note(event)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.ended = true
	}()
	t.Cleanup(changes.Stop)
	return p
}

func (p *progress) note(event watch.Event) {
	cm, ok := event.Object.(*corev1.ConfigMap)
	if !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if old, known := p.versions[cm.Name]; known {
		p.counts[old]--
		delete(p.versions, cm.Name)
	}
	if event.Type != watch.Deleted {
		p.versions[cm.Name] = cm.Data["version"]
		p.counts[cm.Data["version"]]++
	}
}

// await waits until so many ConfigMaps have the version, or for an empty one,
// are gone.
func (p *progress) await(t *testing.T, version string, target int) {
	t.Helper()
	for began := time.Now(); time.Since(began) < patience; time.Sleep(time.Millisecond) {
		p.mu.Lock()
		done, ended := p.counts[version], p.ended
		if version == "" {
			done = crowdSize - len(p.versions)
		}
		p.mu.Unlock()
		if ended {
			t.Fatal("the watch of ConfigMaps ended")
		}
		if done >= target {
			return
		}
	}
	t.Fatalf("after %v, not %d ConfigMaps are of version %q", patience, target, version)
}
