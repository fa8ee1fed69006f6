// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/podconfigmap/podconfigmap-controller/ebpf/l4firewall"
	"github.com/podconfigmap/podconfigmap-controller/internal/eventnote"
	"github.com/podconfigmap/podconfigmap-controller/internal/logging"
	"github.com/podconfigmap/podconfigmap-controller/internal/podcgroup"
)

const (
	// missingTime is how long a running pod may be without a cgroup before that is
	// a failure.
	missingTime = 10 * time.Second
	// vanishedLook is when to look again at a pod whose cgroup went while a program
	// was attached, should no event tell of it.
	vanishedLook = time.Second

	// eventReason is the reason of Events on pods.
	eventReason = "EBPFAttachFailed"
)

var errNoCgroup = errors.New("it runs, but has no cgroup below the agent's CGROUP_ROOT; is that the node's cgroup v2 tree?")

// job is the work on one pod.
type job struct {
	uid      types.UID
	rec      *record
	seen     observation
	do       plan
	failures map[Program]*failure // of this look
	vanished bool                 // its cgroup went meanwhile
}

func (j *job) failed(program Program, err error) {
	j.failures[program] = newFailure(program, err)
}

// serve takes a slot and attaches: the firewall first, because what it misses
// has passed.
func (r *Reconciler) serve(j *job) {
	if j.seen.filter() && j.do.detach && !r.detach(j) {
		return
	}
	if j.seen.count() && j.do.unwatch && !r.unwatch(j) {
		return
	}
	if j.do.take && !r.take(j) {
		return
	}
	if j.do.attach {
		r.attach(j)
	}
	if j.do.watch {
		r.watch(j)
	}
}

func (r *Reconciler) take(j *job) bool {
	slot, err := r.Slots.Take(j.uid)
	if err == nil {
		j.rec.held.slot, j.rec.held.taken = slot, true
		return true
	}
	err = fmt.Errorf("taking a slot: %w", err)
	if j.do.attach {
		j.failed(L4Firewall, err)
	}
	if j.do.watch {
		j.failed(SyscallCounter, err)
	}
	return false
}

func (r *Reconciler) attach(j *job) {
	own := j.seen.own()
	err := r.Firewall.Attach(l4firewall.Target{
		UID: j.uid, Slot: j.rec.held.slot, Cgroup: j.seen.at.path, Own: own,
		HostNetwork: j.seen.pod.HostNetwork, Policy: r.policies.get(&j.seen),
	})
	if err != nil {
		r.refused(j, L4Firewall, fmt.Errorf("attaching the firewall: %w", err))
		return
	}
	h := &j.rec.held
	h.firewall, h.policy, h.own, h.at = true, j.seen.policy(), own, j.seen.at
}

func (r *Reconciler) watch(j *job) {
	if err := r.Counter.Watch(j.rec.held.slot, j.seen.at.path, *j.seen.wanted.syscalls); err != nil {
		r.refused(j, SyscallCounter, fmt.Errorf("counting system calls: %w", err))
		return
	}
	h := &j.rec.held
	h.syscalls, h.settings, h.at = true, j.seen.wanted.syscalls, j.seen.at
}

// refused notes a failure, unless the cgroup has gone: then there is nothing to
// serve.
func (r *Reconciler) refused(j *job, program Program, err error) {
	if r.cgroups.place(j.seen.at.path) != j.seen.at {
		j.vanished = true
		return
	}
	j.failed(program, err)
}

// flip gives attached pods their new rules, all in one go: they cost the kernel
// one wait together.
func (r *Reconciler) flip(ctx context.Context, jobs []*job) {
	flips := map[types.UID]*l4firewall.Policy{}
	for _, j := range jobs {
		if j.do.flip {
			flips[j.uid] = r.policies.get(&j.seen)
		}
	}
	if len(flips) == 0 {
		return
	}
	if err := r.Firewall.SetPolicies(flips); err != nil {
		logging.Warning(klog.FromContext(ctx), "Not every pod has its new rules; trying one by one", "pods", len(flips), "err", err)
	}
	for _, j := range jobs {
		if j.do.flip {
			// Also where it worked: rules that now forbid connections need a hook that
			// others do not, and where it did not, to learn which pod it is.
			r.attach(j)
		}
	}
}

func (r *Reconciler) detach(j *job) bool {
	if err := r.Firewall.Detach(j.uid); err != nil {
		j.failed(L4Firewall, fmt.Errorf("detaching the firewall: %w", err))
		return false
	}
	h := &j.rec.held
	h.firewall, h.policy, h.own = false, "", nil
	return true
}

// unwatch ends the counting for pods, which costs the kernel one wait together.
func (r *Reconciler) unwatch(jobs ...*job) bool {
	var slots []uint32
	for _, j := range jobs {
		slots = append(slots, j.rec.held.slot)
	}
	if len(slots) == 0 {
		return true
	}
	err := r.Counter.Unwatch(slots...)
	for _, j := range jobs {
		if err != nil {
			j.failed(SyscallCounter, fmt.Errorf("ending the count of system calls: %w", err))
			continue
		}
		j.rec.held.syscalls, j.rec.held.settings = false, nil
	}
	return err == nil
}

// settle ends what is not wanted any more, and shows on the board how things
// stand. A slot is given back only when both programs have forgotten it, and
// while nobody reads counters.
func (r *Reconciler) settle(jobs []*job) {
	r.board.mu.Lock()
	defer r.board.mu.Unlock()
	var ended []*job
	for _, j := range jobs {
		r.show(j)
		if j.do.unwatch && !j.seen.count() {
			ended = append(ended, j)
		}
	}
	r.unwatch(ended...)
	freed := false
	for _, j := range jobs {
		if j.do.detach && !j.seen.filter() {
			r.detach(j)
		}
		freed = r.release(j) || freed
		if j.seen.pod == nil && !j.rec.held.taken {
			delete(r.pods, j.uid)
		}
	}
	if freed {
		r.lookAtWaiting()
	}
}

// release gives the pod's slot back where no program uses it any more.
func (r *Reconciler) release(j *job) bool {
	h := &j.rec.held
	if !j.do.release || h.firewall || h.syscalls {
		return false
	}
	if err := r.Slots.Release(j.uid); err != nil {
		j.failed(SyscallCounter, fmt.Errorf("giving back slot %d: %w", h.slot, err))
		return false
	}
	*h = held{}
	return true
}

// lookAtWaiting has those pods looked at that found no slot.
func (r *Reconciler) lookAtWaiting() {
	for uid, rec := range r.pods {
		for _, f := range rec.failures {
			if f.why == NoSlot {
				r.intake.look(uid)
			}
		}
	}
}

// show puts the pod's standing on the board; the board's lock is held.
func (r *Reconciler) show(j *job) {
	r.checkCgroup(j)
	w := &j.seen.wanted
	if !w.any() {
		delete(r.board.standings, j.uid)
		return
	}
	r.board.standings[j.uid] = &standing{
		pod: j.seen.pod, slot: j.rec.held.slot, sources: w.sources, export: w.export,
		perPID:   w.syscalls != nil && w.syscalls.PerPID,
		syscalls: j.syscallsOutcome(), firewall: j.firewallOutcome(),
		counted: j.rec.held.syscalls && j.seen.count(), filtered: j.rec.held.firewall && j.seen.filter(),
		failures: slices.SortedFunc(maps.Values(j.failures), func(a, b *failure) int { return strings.Compare(string(a.program), string(b.program)) }),
	}
}

// checkCgroup notes a failure for a pod that runs and whose cgroup cannot be
// found.
func (r *Reconciler) checkCgroup(j *job) {
	o := &j.seen
	filter, count := o.canFilter && len(o.wanted.rules) > 0, o.canCount && o.wanted.syscalls != nil
	if o.at.path != "" || !o.runs() || !filter && !count {
		j.rec.missing = time.Time{}
		return
	}
	if j.rec.missing.IsZero() {
		j.rec.missing = r.now()
	}
	if r.now().Sub(j.rec.missing) < missingTime {
		return
	}
	if filter {
		j.failed(L4Firewall, errNoCgroup)
	}
	if count {
		j.failed(SyscallCounter, errNoCgroup)
	}
}

func (j *job) firewallOutcome() outcome {
	switch h := &j.rec.held; {
	case len(j.seen.wanted.rules) == 0:
		return notWanted
	case !j.seen.canFilter:
		return unsupported
	case j.failures[L4Firewall] != nil:
		return failed
	case j.seen.filter() && h.firewall && h.policy == j.seen.policy():
		return atWork
	default:
		return pending
	}
}

func (j *job) syscallsOutcome() outcome {
	switch {
	case j.seen.wanted.syscalls == nil:
		return notWanted
	case !j.seen.canCount:
		return unsupported
	case j.failures[SyscallCounter] != nil:
		return failed
	case j.seen.count() && j.rec.held.syscalls && j.rec.held.settings != nil:
		return atWork
	default:
		return pending
	}
}

// tell reports what is new about a pod's failures, and has it looked at again
// where that is needed.
func (r *Reconciler) tell(ctx context.Context, j *job) {
	known := j.rec.failures
	j.rec.failures = j.failures
	wait, exhausted := r.nextLook(j)
	r.lookAgain(j, wait)
	if j.seen.pod == nil {
		r.Metrics.forget(j.rec.key)
	}
	logger := klog.FromContext(ctx)
	for program, f := range j.failures {
		if j.seen.pod != nil {
			r.Metrics.failed(j.rec.key, f)
		}
		if f.same(known[program]) {
			logger.V(logging.Debug).Info("Still fails", "pod", j.rec.key, "uid", j.uid, "program", program, "err", f.err, "retryIn", wait)
			continue
		}
		logging.Warning(logger, "A program does not serve a pod", "pod", j.rec.key, "uid", j.uid, "program", program,
			"type", f.why, "err", f.err, "retryIn", wait, "gaveUp", exhausted)
		if j.seen.pod != nil {
			r.warn(j.seen.pod, f)
		}
	}
	for program := range known {
		if j.failures[program] == nil {
			logger.Info("A program serves a pod again, or is not wanted any more", "pod", j.rec.key, "uid", j.uid, "program", program)
		}
	}
	r.tellDone(logger, j)
}

func (r *Reconciler) tellDone(logger klog.Logger, j *job) {
	if j.do == (plan{}) || !logger.V(logging.Debug).Enabled() {
		return
	}
	logger.V(logging.Debug).Info("Did", "pod", j.rec.key, "uid", j.uid, "slot", j.rec.held.slot, "plan", fmt.Sprintf("%+v", j.do))
}

// nextLook tells when to look again where nothing else may cause it; 0: no need.
func (r *Reconciler) nextLook(j *job) (wait time.Duration, exhausted bool) {
	switch {
	case len(j.failures) > 0:
		return r.retries.Refused(j.rec.key)
	case j.do.linger:
		return lingerLook, false
	case j.vanished:
		return vanishedLook, false
	case !j.rec.missing.IsZero():
		return missingTime - r.now().Sub(j.rec.missing), false
	}
	r.retries.Succeeded(j.rec.key)
	return 0, false
}

func (r *Reconciler) lookAgain(j *job, wait time.Duration) {
	if j.rec.again != nil {
		j.rec.again.Stop()
		j.rec.again = nil
	}
	if wait > 0 {
		uid := j.uid
		j.rec.again = time.AfterFunc(wait, func() { r.intake.look(uid) })
	}
}

// warn emits an Event on the pod.
func (r *Reconciler) warn(pod *Pod, f *failure) {
	object := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.ObjectUID},
	}
	note := fmt.Sprintf("%s: %v", f.program, f.err)
	// Events of one action are joined, and keep the first one's note.
	action := fmt.Sprintf("Attach:%s:%s", f.program, f.why)
	r.Events.Eventf(object, nil, corev1.EventTypeWarning, eventReason, action, "%s", eventnote.Shorten(note, eventnote.MaxBytes))
}

// cgroupProber looks at cgroup directories.
type cgroupProber interface {
	// place is zero where the directory is gone.
	place(path string) place
	// busy tells whether processes run in it or below it.
	busy(path string) bool
}

type kernelCgroups struct{}

func (kernelCgroups) place(path string) place {
	id, err := podcgroup.ID(path)
	if err != nil {
		return place{}
	}
	return place{path: path, id: id}
}

func (kernelCgroups) busy(path string) bool {
	text, err := os.ReadFile(filepath.Join(path, "cgroup.events"))
	return err == nil && bytes.Contains(text, []byte("populated 1"))
}
