// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

const (
	crowdSize    = 500
	killings     = 20
	shippedKills = 3 // of them, with the shipped lease settings
)

// TestKilledInTheMiddle kills the manager in the middle of convergences of 500
// pods, again and again. The middle is where a proxy stops answering: some of the
// calls under way then have been carried out, some never arrive.
func TestKilledInTheMiddle(t *testing.T) {
	skipShort(t)
	t.Parallel()
	const namespace = "killed"
	populate(t, shared, namespace, crowdSize)
	k := &killer{t: t, namespace: namespace, random: newRandom(t), proxy: startProxy(t, shared)}
	environ := map[string]string{"KUBECONFIG": k.proxy.kubeconfig(t, shared), "POD_NAMESPACE": namespace, "WATCH_NAMESPACE": namespace}
	k.supervisor = supervise(t, shared, environ)
	k.kill(shippedKills)
	// Without leader election the next manager need not wait for the Lease.
	k.stop()
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
	proxy      *proxy
	supervisor *harness.Supervisor
	round      int
	done       []string
}

// kill goes through n convergences with a kill in the middle.
func (k *killer) kill(n int) {
	k.t.Helper()
	for range n {
		reached := k.stallAfter(crowdSize/5 + k.random.IntN(crowdSize/3))
		want := k.startWave()
		select {
		case <-reached:
		case <-time.After(patience):
			k.t.Fatalf("after %v, the manager has not come to the middle: %s", patience, k.proxy.summary())
		}
		must(k.t, k.supervisor.Kill())
		done := k.countDone(want)
		if done < crowdSize/10 || done > crowdSize*9/10 {
			k.t.Fatalf("%d of %d pods were done at the kill; want 10%% to 90%%", done, crowdSize)
		}
		k.done = append(k.done, fmt.Sprintf("%d%%", 100*done/crowdSize))
		waitExact(k.t, shared, k.namespace)
	}
}

// stop ends the supervisor's manager cleanly, once it leads: one that still waits
// for the Lease of the last has no more to show.
func (k *killer) stop() {
	k.t.Helper()
	must(k.t, k.supervisor.Current().WaitReady(k.t.Context()))
	must(k.t, k.supervisor.Stop())
}

// stallAfter lets so many writes of ConfigMaps pass, and answers none of those
// that follow; half of them are carried out all the same. The channel is closed
// at the first of them.
func (k *killer) stallAfter(writes int) <-chan struct{} {
	reached := make(chan struct{})
	k.proxy.set(func(r *http.Request) fault {
		if !writesConfigMap(r) {
			return fault{}
		}
		switch writes--; {
		case writes >= 0:
			return fault{}
		case writes == -1:
			close(reached)
		}
		return fault{kind: hang, late: writes%2 == 0}
	})
	return reached
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
// none, how many are gone. Meanwhile the next manager gets nothing done.
func (k *killer) countDone(version string) int {
	k.t.Helper()
	k.proxy.set(func(r *http.Request) fault {
		if writesConfigMap(r) {
			return fault{kind: hang}
		}
		return fault{}
	})
	defer func() {
		k.proxy.set(func(*http.Request) fault { return fault{} })
		k.proxy.conns.cut() // what hangs ends
	}()
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
