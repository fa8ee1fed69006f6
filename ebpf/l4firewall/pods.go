// SPDX-License-Identifier: Apache-2.0

package l4firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// Flags of the C struct pod.
const (
	askListeners = 1 << iota
	hostNetwork
)

// attachment is a pod's links.
type attachment struct {
	uid      types.UID
	slot     uint32
	cgroup   uint64 // id, 0: gone
	path     string // of the cgroup, "" until this agent has attached it
	host     bool   // on the host's network, as far as this agent knows
	links    [hooks]link.Link
	policies [hooks]uint32 // index in the storage of each link, 0: none
}

func (a *attachment) close() error {
	var errs []error
	for h, l := range a.links {
		if l != nil {
			errs = append(errs, l.Close())
			a.links[h] = nil
		}
	}
	return errors.Join(errs...)
}

func (f *Firewall) linkPath(a *attachment, h hook) string {
	return filepath.Join(f.dir, podsFolder, linkPin{a.uid, a.slot, h}.String())
}

func storageKey(h hook, cgroup uint64) l4firewallBpfCgroupStorageKey {
	return l4firewallBpfCgroupStorageKey{CgroupInodeId: cgroup, AttachType: uint32(hookTypes[h])}
}

// adoptLinks opens the links that an earlier agent pinned.
func (f *Firewall) adoptLinks() error {
	dir := filepath.Join(f.dir, podsFolder)
	list, err := names(dir)
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	for _, name := range list {
		pin, ok := parseLinkPin(name)
		if !ok {
			continue
		}
		if pin.hook >= sendmsg4 && !slices.Contains(list, linkPin{pin.uid, pin.slot, ingress}.String()) {
			if err := f.removeStray(pin); err != nil {
				return err
			}
			continue
		}
		l, err := link.LoadPinnedLink(filepath.Join(dir, name), nil)
		if err != nil {
			return fmt.Errorf("opening link %s: %w", name, err)
		}
		a := f.attached[pin.uid]
		if a == nil {
			a = &attachment{uid: pin.uid, slot: pin.slot}
			f.attached[pin.uid] = a
		}
		a.links[pin.hook] = l
		if err := f.adopt(a, pin.hook); err != nil {
			return fmt.Errorf("adopting link %s: %w", name, err)
		}
	}
	return f.dropDetached()
}

// removeStray removes a link of sendmsg whose pod has none for what comes in: it is left
// by a build that did not know the hook and let go of the pod, or by an agent that was
// killed while it did.
func (f *Firewall) removeStray(pin linkPin) error {
	path := filepath.Join(f.dir, podsFolder, pin.String())
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return fmt.Errorf("opening link %s: %w", pin, err)
	}
	info, err := l.Info()
	if err = errors.Join(err, l.Close()); err != nil {
		return fmt.Errorf("asking link %s for its cgroup: %w", pin, err)
	}
	if err := f.clear(pin.hook, info.Cgroup().CgroupId); err != nil {
		return err
	}
	return removeLink(path)
}

// clear makes a program pass everything in a cgroup that is still there. Storages outlive
// links, and must not hold for the next attachment.
func (f *Firewall) clear(h hook, cgroup uint64) error {
	err := f.storages[h].Put(storageKey(h, cgroup), l4firewallAttachment{})
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("clearing %s: %w", hookNames[h], err)
	}
	return nil
}

// dropDetached lets go of single links that an agent detached before it was
// killed. Where all of them are, the pod's detaching has to be finished, or its
// cgroup has gone just now.
func (f *Firewall) dropDetached() error {
	for _, a := range f.attached {
		if a.cgroup == 0 {
			continue
		}
		detached, all, err := a.detached()
		if err != nil {
			return fmt.Errorf("adopting the links of pod %q: %w", a.uid, err)
		}
		if all {
			a.cgroup, a.policies = 0, [hooks]uint32{}
			continue
		}
		for _, h := range detached {
			a.policies[h] = 0 // Not referred to: the table of policies is not open yet.
			if err := f.drop(a, h); err != nil {
				return fmt.Errorf("adopting the links of pod %q: %w", a.uid, err)
			}
		}
	}
	return nil
}

// detached returns the links that are attached to nothing, and whether all are.
func (a *attachment) detached() (list []hook, all bool, err error) {
	all = true
	for h, l := range a.links {
		if l == nil {
			continue
		}
		info, err := l.Info()
		if err != nil {
			return nil, false, err
		}
		if info.Cgroup().CgroupId == 0 {
			list = append(list, hook(h))
		} else {
			all = false
		}
	}
	return list, all, nil
}

// adopt learns where a link is attached, and which policy it has.
func (f *Firewall) adopt(a *attachment, h hook) error {
	info, err := a.links[h].Info()
	if err != nil {
		return err
	}
	id := info.Cgroup().CgroupId
	if id == 0 {
		return nil // The cgroup is gone, or an agent was killed while it detached.
	}
	a.cgroup = id
	var storage l4firewallAttachment
	err = f.storages[h].Lookup(storageKey(h, id), &storage)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil // The cgroup has gone just now.
	}
	if err != nil {
		return fmt.Errorf("reading the storage of cgroup %d: %w", id, err)
	}
	if storage.Slot != 0 {
		a.policies[h] = storage.Policy
	}
	return nil
}

// takeOver lets all links run the own programs.
func (f *Firewall) takeOver() error {
	for _, a := range f.attached {
		for h, l := range a.links {
			if l == nil || a.cgroup == 0 {
				continue
			}
			if f.programs[h] == nil { // This build or kernel cannot serve the hook.
				if err := f.drop(a, hook(h)); err != nil {
					return err
				}
				continue
			}
			// ENOLINK: the cgroup has gone just now.
			if err := l.Update(f.programs[h]); err != nil && !errors.Is(err, unix.ENOLINK) {
				return fmt.Errorf("taking over %s of pod %q: %w", hookNames[h], a.uid, err)
			}
		}
	}
	return nil
}

// Attach makes a policy hold for a pod. A pod that has another one, or other
// addresses, changes to these without a gap; flows, connections and counts live on.
func (f *Firewall) Attach(t Target) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.attach(t); err != nil {
		return fmt.Errorf("attaching the firewall to pod %q: %w", t.UID, err)
	}
	return nil
}

func (f *Firewall) attach(t Target) error {
	if err := f.checkTarget(t); err != nil {
		return err
	}
	defer f.collectLater()
	if err := f.policies.place(t.Policy); err != nil {
		return err
	}
	dir, err := os.Open(t.Cgroup)
	if err != nil {
		return err
	}
	defer dir.Close()
	id, err := cgroupID(dir)
	if err != nil {
		return err
	}
	// Not t.Cgroup: another cgroup may have taken its place.
	path := fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
	a := f.attached[t.UID]
	if a == nil {
		return f.attachNew(t, id, path)
	}
	if a.cgroup != id || a.slot != t.Slot {
		if err := f.detach(a); err != nil {
			return err
		}
		return f.attachNew(t, id, path)
	}
	if err := f.setPod(t, false); err != nil {
		return err
	}
	a.path, a.host = t.Cgroup, t.HostNetwork
	return f.flip(a, t.Policy, path)
}

func (f *Firewall) checkTarget(t Target) error {
	switch {
	case t.Policy == nil:
		return errors.New("without a policy")
	case t.Slot >= f.slots:
		return fmt.Errorf("slot %d is beyond the last of %d", t.Slot, f.slots)
	}
	return checkUID(t.UID)
}

// attachNew attaches to the cgroup that has the id and, for now, the path.
func (f *Firewall) attachNew(t Target, id uint64, path string) error {
	if err := f.setPod(t, true); err != nil {
		return err
	}
	if err := f.counters.zero(t.Slot); err != nil {
		return err
	}
	a := &attachment{uid: t.UID, slot: t.Slot, cgroup: id, path: t.Cgroup, host: t.HostNetwork}
	if err := f.flip(a, t.Policy, path); err != nil {
		return errors.Join(err, f.detach(a))
	}
	f.attached[t.UID] = a
	return nil
}

// cgroupID returns the kernel's 64-bit id of a cgroup, given its directory.
func cgroupID(dir *os.File) (uint64, error) {
	handle, _, err := unix.NameToHandleAt(int(dir.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return 0, fmt.Errorf("reading the id of cgroup %s: %w", dir.Name(), err)
	}
	if handle.Size() != 8 {
		return 0, fmt.Errorf("%s is no cgroup", dir.Name())
	}
	return binary.NativeEndian.Uint64(handle.Bytes()), nil
}

// setPod writes what the programs know of a pod beside its policy.
func (f *Firewall) setPod(t Target, fresh bool) error {
	pod := podOf(t)
	var err error
	if pod.Since, err = f.since(t.Slot, fresh); err != nil {
		return err
	}
	row, err := binary.Append(make([]byte, 0, f.pods.ValueSize()), binary.NativeEndian, &pod)
	if err == nil {
		err = f.pods.Put(t.Slot, row[:f.pods.ValueSize()])
	}
	if err != nil {
		return fmt.Errorf("writing the settings of slot %d: %w", t.Slot, err)
	}
	return nil
}

// since returns when a slot's pod was attached, in the programs' time.
func (f *Firewall) since(slot uint32, now bool) (uint64, error) {
	if !now {
		row, err := f.pods.LookupBytes(slot)
		if err != nil || len(row) < 8 {
			return 0, fmt.Errorf("reading the settings of slot %d: %w", slot, err)
		}
		return binary.NativeEndian.Uint64(row), nil
	}
	var clock unix.Timespec
	// Coarse as the programs' clock is: never ahead of it.
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &clock); err != nil {
		return 0, fmt.Errorf("reading the clock: %w", err)
	}
	return uint64(clock.Nano()), nil
}

// podOf returns a target's addresses as the programs want them.
func podOf(t Target) (pod l4firewallPod) {
	own := t.Own
	if t.HostNetwork {
		pod.Flags |= hostNetwork
	}
	if t.HostNetwork || len(own) == 0 || len(own) > len(pod.Own) {
		pod.Flags |= askListeners
	}
	for i, address := range own[:min(len(own), len(pod.Own))] {
		bytes := address.As16()
		for word := range pod.Own[i] {
			pod.Own[i][word] = binary.NativeEndian.Uint32(bytes[4*word:])
		}
		pod.Addresses++
	}
	return pod
}

// flip changes a pod's links to a policy that was placed. Those that are missing
// are made in the cgroup, where one is given by its path, and those of sendmsg go when
// they are not wanted any more. A link is pinned last: a pin tells that its policy was
// set once.
func (f *Firewall) flip(a *attachment, p *Policy, cgroup string) (err error) {
	made, err := f.addLinks(a, p, cgroup)
	defer func() {
		if err != nil { // What has no pin would not outlive the agent.
			err = errors.Join(err, f.drop(a, made...))
		}
	}()
	if err != nil {
		return err
	}
	index := f.policies.index(p)
	for h, l := range a.links {
		if l == nil || a.policies[h] == index {
			continue
		}
		storage := l4firewallAttachment{Slot: a.slot + 1, Policy: index}
		if err := f.storages[h].Put(storageKey(hook(h), a.cgroup), storage); err != nil {
			return fmt.Errorf("setting the policy of %s: %w", hookNames[h], err)
		}
		f.policies.refer(a.policies[h], index)
		a.policies[h] = index
	}
	for _, h := range made {
		if err := a.links[h].Pin(f.linkPath(a, h)); err != nil {
			return fmt.Errorf("pinning %s: %w", hookNames[h], err)
		}
	}
	if cgroup == "" {
		return nil // It is not known yet what the pod needs.
	}
	return f.dropUnwanted(a, p)
}

// dropUnwanted lets go of the links that would remember flows for nothing.
func (f *Firewall) dropUnwanted(a *attachment, p *Policy) error {
	for _, h := range []hook{sendmsg4, sendmsg6} {
		if a.links[h] == nil || a.wants(h, p) {
			continue
		}
		if err := f.clear(h, a.cgroup); err != nil {
			return err
		}
		if err := f.drop(a, h); err != nil {
			return err
		}
	}
	return nil
}

// wants tells whether a pod with a policy needs a hook: one that blocks no connection
// needs none of connect; one that lets all of UDP come in, or whose addresses nobody
// translates, none of sendmsg.
func (a *attachment) wants(h hook, p *Policy) bool {
	switch h {
	case connect4, connect6:
		return p.blocksConnections()
	case sendmsg4, sendmsg6:
		return a.host && p.judgesReplies()
	default:
		return true
	}
}

// addLinks attaches what a policy needs and a pod lacks.
func (f *Firewall) addLinks(a *attachment, p *Policy, cgroup string) (made []hook, err error) {
	for h := range hooks {
		if a.links[h] != nil || !a.wants(h, p) || f.programs[h] == nil || cgroup == "" {
			continue
		}
		l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Program: f.programs[h], Attach: hookTypes[h]})
		if err != nil {
			return made, fmt.Errorf("attaching %s: %w", hookNames[h], err)
		}
		a.links[h] = l
		made = append(made, h)
	}
	return made, nil
}

// SetPolicies changes many attached pods to other policies at once: each new
// policy costs one wait for running programs (from Linux 6.1 on all together
// one), and each pod some microseconds. The errors of single pods are joined; all
// others are changed. A pod that only an earlier agent attached gets no links that
// it lacks, and keeps those that it has: where its new policy denies connections, the
// egress program drops them until the pod is attached again.
func (f *Firewall) SetPolicies(policies map[types.UID]*Policy) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.collectLater()
	list := make([]*Policy, 0, len(policies))
	for _, p := range policies {
		list = append(list, p)
	}
	if err := f.policies.place(list...); err != nil {
		return fmt.Errorf("setting policies: %w", err)
	}
	var errs []error
	for uid, p := range policies {
		a := f.attached[uid]
		err := errors.New("the firewall is not attached")
		if a != nil {
			err = f.flip(a, p, a.path)
		}
		if err != nil && a != nil && a.gone() {
			continue // There is nobody left whom the policy could be for.
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("setting the policy of pod %q: %w", uid, err))
		}
	}
	return errors.Join(errs...)
}

// Attached lists the pods that the firewall is attached to, those of earlier
// agents included.
func (f *Firewall) Attached() []Attachment {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]Attachment, 0, len(f.attached))
	for _, a := range f.attached {
		list = append(list, Attachment{UID: a.uid, Slot: a.slot, CgroupGone: a.gone()})
	}
	return list
}

// gone asks the kernel whether the cgroup still exists.
func (a *attachment) gone() bool {
	for _, l := range a.links {
		if l == nil {
			continue
		}
		if info, err := l.Info(); err == nil && info.Cgroup().CgroupId != 0 {
			return false
		}
	}
	return true
}

// Detach lets go of a pod and forgets its counts; of one that is not attached
// there is nothing to do. It works the same when the pod's cgroup is gone.
func (f *Firewall) Detach(uid types.UID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.collectLater()
	a := f.attached[uid]
	if a == nil {
		return nil
	}
	if err := f.detach(a); err != nil {
		return fmt.Errorf("detaching the firewall from pod %q: %w", uid, err)
	}
	return nil
}

// detach can be done again whenever it was interrupted: the pins go last.
func (f *Firewall) detach(a *attachment) error {
	for h, l := range a.links {
		if l == nil {
			continue
		}
		if err := f.clear(hook(h), a.cgroup); err != nil {
			return err
		}
		f.policies.refer(a.policies[h], 0)
		a.policies[h] = 0
		if err := l.Detach(); err != nil && !errors.Is(err, link.ErrNotSupported) {
			return fmt.Errorf("detaching %s: %w", hookNames[h], err)
		}
	}
	if err := f.counters.zero(a.slot); err != nil {
		return err
	}
	for h, l := range a.links {
		if l == nil {
			continue
		}
		if err := f.drop(a, hook(h)); err != nil {
			return err
		}
	}
	delete(f.attached, a.uid)
	return nil
}

// drop removes links and their pins.
func (f *Firewall) drop(a *attachment, which ...hook) error {
	for _, h := range which {
		if err := os.Remove(f.linkPath(a, h)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing the pin of %s: %w", hookNames[h], err)
		}
		if a.policies[h] != 0 {
			f.policies.refer(a.policies[h], 0)
			a.policies[h] = 0
		}
		if err := a.links[h].Close(); err != nil {
			return fmt.Errorf("closing the link of %s: %w", hookNames[h], err)
		}
		a.links[h] = nil
	}
	return nil
}

// removeLink detaches the link that is pinned at path, and removes the pin.
func removeLink(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return fmt.Errorf("opening link %s: %w", path, err)
	}
	defer l.Close()
	if err := l.Detach(); err != nil && !errors.Is(err, link.ErrNotSupported) {
		return fmt.Errorf("detaching link %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing link %s: %w", path, err)
	}
	return nil
}
