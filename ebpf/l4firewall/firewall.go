// SPDX-License-Identifier: Apache-2.0

package l4firewall

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/internal/bpffs"
)

// Options say where the firewall keeps its state, and how much there is room for.
type Options struct {
	// Dir is a directory in a bpffs; it exists.
	Dir string
	// Slots is one more than the highest slot, by default 1,024. Slots that an
	// earlier agent had stay.
	Slots uint32
	// Flows is how many UDP flows the table is made for, by default 65,536. As long
	// as pods are attached the table of an earlier agent keeps its size: what was
	// copied to another would lack the flows that began meanwhile.
	Flows uint32
}

const (
	defaultSlots = 1024
	defaultFlows = 65536
	// Sizes of the tables of SYNs and of blocked flows: what they forget may
	// count twice.
	rememberedSYNs    = 16384
	rememberedBlocked = 16384
)

// Target is a pod and what holds for it.
type Target struct {
	UID  types.UID
	Slot uint32
	// Cgroup is the directory of the pod's cgroup.
	Cgroup string
	// Own are the pod's own addresses, as far as they are known; connections to
	// them stay in the pod and are not judged.
	Own []netip.Addr
	// HostNetwork tells that all addresses of the node are the pod's.
	HostNetwork bool
	Policy      *Policy
}

// Attachment is a pod that the firewall is attached to.
type Attachment struct {
	UID  types.UID
	Slot uint32
	// CgroupGone tells that the pod's cgroup was removed: there is nothing left
	// to do but Detach.
	CgroupGone bool
}

// Firewall is the loaded programs, their maps and the attachments to pods. Its
// methods are safe for concurrent use.
type Firewall struct {
	mu       sync.Mutex
	dir      string
	slots    uint32
	programs [hooks]*ebpf.Program // of connect and sendmsg nil where the kernel has no such hook
	storages [hooks]*ebpf.Map
	pods     *ebpf.Map
	others   map[string]*ebpf.Map // those that only the programs use
	policies *policyTable
	counters *counterTable
	flows    *flowTable
	attached map[types.UID]*attachment
	collect  *time.Timer // runs while some policy is unused
	closed   bool
	lock     *os.File // of dir: one Firewall at a time
}

// Open loads the programs and lets them take over from those of an earlier agent
// whose pins it finds, without a gap: each link changes from one program to the
// other at once. It repairs whatever an agent that was killed left half done. One
// process at a time has the firewall: the others get bpffs.ErrLocked. A Dir in no
// BPF file system is bpffs.ErrNotBPFFS.
func Open(o Options) (*Firewall, error) { return open(o, current) }

func open(o Options, b build) (*Firewall, error) {
	f := &Firewall{dir: filepath.Join(o.Dir, folder), attached: map[types.UID]*attachment{}, others: map[string]*ebpf.Map{}}
	err := f.lockDir(o.Dir)
	if err == nil {
		err = f.begin(o, b)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the firewall: %w", err), f.Close())
	}
	return f, nil
}

// lockDir makes the own folder in a directory and takes it.
func (f *Firewall) lockDir(dir string) (err error) {
	if err := bpffs.Check(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(f.dir, podsFolder), 0o700); err != nil {
		return err
	}
	f.lock, err = bpffs.Lock(f.dir)
	return err
}

// begin adopts what is pinned and takes over. Killed anywhere in it, it can be
// done again, by any build.
func (f *Firewall) begin(o Options, b build) error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("lifting the limit of locked memory: %w", err)
	}
	spec, err := b.load()
	if err != nil {
		return fmt.Errorf("reading the programs: %w", err)
	}
	for _, step := range []func() error{
		func() error { return f.openStorages(spec) },
		f.adoptLinks,
		func() error { return f.size(spec, o, b) },
		func() error { return f.openMaps(spec, b) },
		func() error { return f.load(spec) },
		f.takeOver,
		func() error { return f.sweep(b) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// size sets the sizes of the maps.
func (f *Firewall) size(spec *ebpf.CollectionSpec, o Options, b build) error {
	f.slots = cmp.Or(o.Slots, defaultSlots)
	buckets := bucketsFor(cmp.Or(o.Flows, defaultFlows))
	list, err := names(f.dir)
	if err != nil {
		return err
	}
	for _, name := range list {
		if entries, ok := entriesOf(name, "pods"); ok {
			f.slots = max(f.slots, entries)
		}
		if entries, ok := entriesOf(name, "flows"); ok && len(f.attached) > 0 && name == mapPin("flows", b.flows, entries) {
			buckets = entries
		}
	}
	for name, entries := range map[string]uint32{
		"pods": f.slots, "counters": f.slots, "policies": policyEntries(f.slots), "flows": buckets,
		"syns": rememberedSYNs, "blocked": rememberedBlocked, "events": 1,
	} {
		spec.Maps[name].MaxEntries = entries
	}
	return nil
}

func (f *Firewall) openStorages(spec *ebpf.CollectionSpec) (err error) {
	for h, name := range hookNames {
		name = "storage_" + name
		if f.storages[h], err = adoptMap(filepath.Join(f.dir, name), spec.Maps[name], nil); err != nil {
			return err
		}
	}
	return nil
}

func (f *Firewall) openMaps(spec *ebpf.CollectionSpec, b build) (err error) {
	used := map[uint32]int{}
	for _, a := range f.attached {
		for _, index := range a.policies {
			if index != 0 {
				used[index]++
			}
		}
	}
	if f.policies, err = openPolicies(f.dir, b.policies, spec.Maps["policies"], used); err != nil {
		return err
	}
	pods := spec.Maps["pods"]
	f.pods, err = adoptMap(filepath.Join(f.dir, mapPin("pods", b.pods, pods.MaxEntries)), pods, f.copyPods)
	if err != nil {
		return err
	}
	if f.counters, err = openCounters(f.dir, b.counters, spec.Maps["counters"]); err != nil {
		return err
	}
	if f.flows, err = openFlows(f.dir, b.flows, spec.Maps["flows"], spec.Maps["events"]); err != nil {
		return err
	}
	for name, version := range map[string]int{"syns": b.syns, "blocked": b.flows} {
		m, err := adoptMap(filepath.Join(f.dir, mapPin(name, version, spec.Maps[name].MaxEntries)), spec.Maps[name], nil)
		if err != nil {
			return err
		}
		f.others[name] = m
	}
	return setHash(spec, f.flows.keys)
}

// setHash tells the programs how they find a flow.
func setHash(spec *ebpf.CollectionSpec, keys flowKeys) error {
	return errors.Join(spec.Variables["flow_keys"].Set(keys), spec.Variables["bucket_mask"].Set(spec.Maps["flows"].MaxEntries-1))
}

// copyPods fills a map of pods' settings from one of another size or layout.
func (f *Firewall) copyPods(to *ebpf.Map) error {
	list, err := names(f.dir)
	if err != nil {
		return err
	}
	for _, name := range list {
		if _, ok := entriesOf(name, "pods"); !ok {
			continue
		}
		from, err := ebpf.LoadPinnedMap(filepath.Join(f.dir, name), nil)
		if err != nil {
			return err
		}
		defer from.Close()
		for _, a := range f.attached {
			row, err := from.LookupBytes(a.slot)
			if err != nil || row == nil {
				return fmt.Errorf("reading slot %d: %w", a.slot, err)
			}
			row = append(row, make([]byte, to.ValueSize())...)[:to.ValueSize()]
			if err := to.Put(a.slot, row); err != nil {
				return err
			}
		}
	}
	return nil
}

// load loads the programs; those of connect and sendmsg only where the kernel can.
func (f *Firewall) load(spec *ebpf.CollectionSpec) error {
	maps := map[string]*ebpf.Map{
		"policies": f.policies.outer, "pods": f.pods, "counters": f.counters.own(),
		"flows": f.flows.flows, "events": f.flows.events,
	}
	for h, name := range hookNames {
		maps["storage_"+name] = f.storages[h]
	}
	for name, m := range f.others {
		maps[name] = m
	}
	loaded, err := loadPrograms(spec, maps, ingress, egress)
	if err != nil {
		return err
	}
	f.programs = loaded
	for _, family := range [][]hook{{connect4, connect6}, {sendmsg4, sendmsg6}} {
		loaded, err := loadPrograms(spec, maps, family...)
		if err != nil {
			continue // All came with the same kernels: ProbeConnectDenied tells why.
		}
		for _, h := range family {
			f.programs[h] = loaded[h]
		}
	}
	return nil
}

// loadPrograms loads some of the programs, on the maps of these names, or on new
// ones where there are none.
func loadPrograms(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map, which ...hook) (programs [hooks]*ebpf.Program, err error) {
	spec = spec.Copy()
	all := spec.Programs
	spec.Programs = map[string]*ebpf.ProgramSpec{}
	for _, h := range which {
		spec.Programs[hookNames[h]] = all[hookNames[h]]
		useCoarseClock(all[hookNames[h]])
	}
	loaded, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: maps})
	if err != nil {
		return programs, fmt.Errorf("loading programs: %w", err)
	}
	defer loaded.Close()
	for _, h := range which {
		programs[h] = loaded.DetachProgram(hookNames[h])
	}
	return programs, nil
}

// useCoarseClock lets a program read the clock of the last tick, which costs next
// to nothing: where a virtual machine's clock is slow, the exact one would cost
// more than all else (Linux 5.11).
func useCoarseClock(p *ebpf.ProgramSpec) {
	if features.HaveProgramHelper(p.Type, asm.FnKtimeGetCoarseNs) != nil {
		return
	}
	for i := range p.Instructions {
		if call := &p.Instructions[i]; call.IsBuiltinCall() && call.Constant == int64(asm.FnKtimeGetNs) {
			call.Constant = int64(asm.FnKtimeGetCoarseNs)
		}
	}
}

// sweep removes what earlier builds left and none of the programs uses now.
func (f *Firewall) sweep(b build) error {
	if err := f.policies.sweep(); err != nil {
		return fmt.Errorf("removing earlier policies: %w", err)
	}
	// No program of an earlier build may count any more in what is found empty. To
	// make a spare takes the same wait.
	ready := f.policies.waitForPrograms
	if f.policies.spare == nil {
		ready = f.policies.makeSpare
	}
	if err := ready(); err != nil {
		return err
	}
	if err := f.counters.sweep(); err != nil {
		return err
	}
	list, err := names(f.dir)
	if err != nil {
		return err
	}
	current := map[string]string{
		"pods":    mapPin("pods", b.pods, f.pods.MaxEntries()),
		"flows":   mapPin("flows", b.flows, f.flows.flows.MaxEntries()),
		"events":  mapPin("events", b.flows, 1),
		"syns":    mapPin("syns", b.syns, rememberedSYNs),
		"blocked": mapPin("blocked", b.flows, rememberedBlocked),
		"seed":    mapPin("seed", b.flows, 1),
	}
	for _, name := range list {
		for kind, keep := range current {
			if _, ok := entriesOf(name, kind); ok && name != keep {
				if err := os.Remove(filepath.Join(f.dir, name)); err != nil {
					return fmt.Errorf("removing an earlier map: %w", err)
				}
			}
		}
	}
	f.collectLater()
	return nil
}

// collectLater removes policies that stay unused, and makes a spare for the next new
// one.
func (f *Firewall) collectLater() {
	if f.collect != nil || f.closed || f.policies.unused() == 0 && f.policies.spare != nil {
		return
	}
	f.collect = time.AfterFunc(grace, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.closed {
			return
		}
		f.collect = nil
		// What cannot be done now is tried again after the next change.
		if errors.Join(f.policies.collect(time.Now().Add(-grace)), f.policies.makeSpare()) == nil {
			f.collectLater()
		}
	})
}

// Read calls do with the counters of each attached pod.
func (f *Firewall) Read(do func(slot uint32, c Counters)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.attached {
		c, err := f.counters.read(a.slot)
		if err != nil {
			return err
		}
		do(a.slot, c)
	}
	return nil
}

// FlowEvictions returns how many UDP flows that lived were forgotten to make room
// for others; replies to those are judged as new flows.
func (f *Firewall) FlowEvictions() (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.flows.countEvictions()
}

// Close lets go of all, but detaches nothing: the pins stay, and with them what
// they enforce and count.
func (f *Firewall) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if f.collect != nil {
		f.collect.Stop()
	}
	var errs []error
	for _, a := range f.attached {
		errs = append(errs, a.close())
	}
	for h := range hooks {
		errs = append(errs, f.programs[h].Close(), f.storages[h].Close())
	}
	for _, m := range f.others {
		errs = append(errs, m.Close())
	}
	errs = append(errs, f.pods.Close())
	if f.policies != nil {
		errs = append(errs, f.policies.close())
	}
	if f.counters != nil {
		errs = append(errs, f.counters.close())
	}
	if f.flows != nil {
		errs = append(errs, f.flows.close())
	}
	if f.lock != nil {
		errs = append(errs, f.lock.Close())
	}
	return errors.Join(errs...)
}

// Remove detaches every pod, and removes every pin of any build below dir, the
// Options.Dir of the agents before. A directory without any is no error; while a
// Firewall holds it the error is bpffs.ErrLocked.
func Remove(dir string) error {
	dir = filepath.Join(dir, folder)
	lock, err := bpffs.Lock(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing the firewall: %w", err)
	}
	defer lock.Close()
	pods := filepath.Join(dir, podsFolder)
	list, err := names(pods)
	if err != nil {
		return fmt.Errorf("listing the firewall's links: %w", err)
	}
	var errs []error
	for _, name := range list {
		errs = append(errs, removeLink(filepath.Join(pods, name)))
	}
	// Maps go last: as long as one is missing nothing may be attached.
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the firewall's maps: %w", err)
	}
	return nil
}
