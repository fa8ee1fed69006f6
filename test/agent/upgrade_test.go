// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	dto "github.com/prometheus/client_model/go"

	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

const (
	upgrades = 20
	// nextLayout is the build tag of an agent with larger structs in its maps.
	nextLayout = "nextlayout"
)

// TestUpgraded exchanges the agent for another build again and again under
// traffic: for one with other layouts of the maps, and back. Mostly the agent is
// stopped as in a roll-out, now and then it is killed.
func TestUpgraded(t *testing.T) {
	skipShort(t)
	t.Parallel()
	w := newWorld(t, shared, 20)
	w.with(shippedCapabilities...)
	t.Cleanup(func() { restore(t) })
	w.daemonSet(account) // what an agent that is stopped looks for: it stays
	w.config("c", everything())
	p := w.pod("p", sandbox.PodOptions{})
	w.start()
	w.attached(p, "l4_firewall", "syscall_counter")
	was := w.layouts()
	f := w.startTraffic(p)
	seen, changes := counts{}, 0
	for i := range upgrades {
		f.call(100)
		if i%5 == 4 {
			w.kill()
		} else {
			w.stop()
		}
		f.call(10)
		w.tags = map[bool]string{true: nextLayout}[i%2 == 0]
		w.begin(nil)
		f.call(1)
		must(t, w.agent.WaitReady(t.Context()))
		w.attached(p, "l4_firewall", "syscall_counter")
		seen.follow(w, p)
		is := w.layouts()
		for _, one := range []string{"l4firewall/pods", "l4firewall/policy", "syscallcount/slot_settings", "syscallcount/syscall_rows"} {
			if is[one] == was[one] {
				t.Errorf("upgrade %d: map %s still has values of %d bytes", i, one, is[one])
			}
		}
		if !maps.Equal(is, was) {
			changes++
		}
		was = is
	}
	line := f.end()
	seen.follow(w, p)
	figure(t, "upgrades of the agent to another build, %d under traffic, %d of which changed the layouts of maps: %s", upgrades, changes, line)
	w.nothingOfOtherBuilds(p)
}

// nothingOfOtherBuilds lets the pod go, and has the next agent find nothing that
// it does not use.
func (w *world) nothingOfOtherBuilds(p *pod) {
	w.t.Helper()
	p.Remove()
	w.delete(p)
	w.eventually("the slot is free", func() error {
		if used, _ := w.value("ebpf_slots_used", nil); used != 0 {
			return fmt.Errorf("%v are used", used)
		}
		return nil
	})
	w.stop()
	w.begin(nil)
	must(w.t, w.agent.WaitReady(w.t.Context()))
	versions := map[string][]string{}
	for _, name := range w.pinNames() {
		if parts := strings.Split(filepath.Base(name), "_"); strings.HasPrefix(name, "l4firewall/") && parts[0] != "storage" {
			versions[parts[0]] = append(versions[parts[0]], parts[1])
		}
	}
	for kind, all := range versions {
		if slices.Sort(all); len(slices.Compact(all)) != 1 {
			w.t.Errorf("maps %s of several builds are left: versions %v", kind, all)
		}
	}
	if len(versions) == 0 {
		w.t.Error("there are no maps of the firewall")
	}
}

// counts are the counters of a pod at the latest scrape, by metric and label.
type counts map[string]float64

// follow reads the pod's counters; none may have fallen, or have gone.
func (c counts) follow(w *world, p *pod) {
	w.t.Helper()
	now := counts{}
	for metric, label := range map[string]string{"ebpf_l4_firewall_total": "stat_type", "ebpf_syscall_count_total": "syscall"} {
		for _, m := range w.series(metric, map[string]string{"pod_name": p.object.Name}) {
			now[metric+" "+labelOf(m, label)] = m.GetCounter().GetValue()
		}
	}
	for name, before := range c {
		if is, found := now[name]; !found || is < before {
			w.t.Errorf("%s fell from %v to %v", name, before, is)
		}
	}
	if len(now) == 0 {
		w.t.Error("the pod has no counters")
	}
	maps.Copy(c, now)
}

func labelOf(m *dto.Metric, name string) string {
	for _, l := range m.Label {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// pinNames are those of all that is pinned, below the agent's directory.
func (w *world) pinNames() []string {
	w.t.Helper()
	var all []string
	must(w.t, filepath.WalkDir(w.pins(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(w.pins(), path)
		all = append(all, name)
		return err
	}))
	return all
}

// layouts are the sizes of the values of the pinned maps, in bytes, by folder and
// kind. Of the firewall's counters, which stay while pods from before an upgrade
// do, it is the largest.
func (w *world) layouts() map[string]uint32 {
	w.t.Helper()
	sizes, errs := map[string]uint32{}, []error(nil)
	for _, pin := range w.pinNames() {
		m, err := ebpf.LoadPinnedMap(filepath.Join(w.pins(), pin), nil)
		if err != nil {
			continue // a link
		}
		folder, _, _ := strings.Cut(pin, "/")
		kind := filepath.Base(pin)
		if folder == "l4firewall" {
			kind, _, _ = strings.Cut(kind, "_")
		}
		sizes[folder+"/"+kind] = max(sizes[folder+"/"+kind], m.ValueSize())
		errs = append(errs, m.Close())
	}
	must(w.t, errors.Join(errs...))
	return sizes
}
