// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"

	"github.com/podconfigmap/podconfigmap-controller/ebpf/l4firewall"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/syscallcount"
	"github.com/podconfigmap/podconfigmap-controller/internal/logging"
	"github.com/podconfigmap/podconfigmap-controller/internal/podcgroup"
	"github.com/podconfigmap/podconfigmap-controller/internal/retry"
)

// +kubebuilder:rbac:groups="",resources=pods,verbs=list;watch
// +kubebuilder:rbac:groups=podconfig.example.com,resources=podconfigmapconfigs,verbs=list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// recheckInterval is how often the agent looks whether the kernel left cgroups
// out.
const recheckInterval = time.Minute

// slowWork is how long a batch may take before that is worth a line in the log:
// new pods are not served meanwhile.
const slowWork = time.Second

// Slots gives every pod that a program serves its slot.
type Slots interface {
	Take(uid types.UID) (uint32, error)
	Release(uid types.UID) error
	All() map[types.UID]uint32
	// Len is how many there are.
	Len() uint32
}

// Counter counts the system calls of pods.
type Counter interface {
	Watch(slot uint32, cgroup string, s syscallcount.Settings) error
	Unwatch(slots ...uint32) error
	// Dropped counts cgroups that could not be registered for lack of space.
	Dropped() (uint64, error)
	// Missed counts the node's system calls that the kernel kept from the program.
	Missed() (uint64, error)
	Watched() map[uint32]bool
	Read(each func(slot uint32, counts *[syscallcount.Numbers]uint64)) error
	ReadPIDs(each func(slot, pid uint32, number uint16, count uint64)) error
}

// Firewall filters the traffic of pods.
type Firewall interface {
	Attach(t l4firewall.Target) error
	SetPolicies(policies map[types.UID]*l4firewall.Policy) error
	Detach(uid types.UID) error
	Attached() []l4firewall.Attachment
	Read(each func(slot uint32, c l4firewall.Counters)) error
	FlowEvictions() (uint64, error)
}

// Cgroups tells where the pods' cgroups are.
type Cgroups interface {
	// Path is a pod's cgroup directory; false while it has none.
	Path(uid types.UID) (string, bool)
}

// Options are what a Reconciler needs.
type Options struct {
	// Slots, Counter, Firewall and Cgroups are nil where the node lacks what they
	// need; without Slots or Cgroups no pod is served.
	Slots    Slots
	Counter  Counter
	Firewall Firewall
	Cgroups  Cgroups
	Events   events.EventRecorder
	Metrics  *Metrics
	// MaxRetries is how many failures in a row a pod may have before it is
	// retried at the ResyncPeriod only.
	MaxRetries   int
	ResyncPeriod time.Duration
	// Changed is called when the report may have changed.
	Changed func()
}

// Reconciler brings each pod of the node what its configs want. What it is told
// by watches may come from any goroutine; one goroutine, Run, does the work.
type Reconciler struct {
	Options
	intake    *intake
	board     *board
	numbering numbering
	policies  policies
	retries   *retry.Backoff
	pods      map[types.UID]*record
	caughtUp  atomic.Bool
	cgroups   cgroupProber
	dropped   uint64 // cgroups, as far as it was told
	now       func() time.Time
}

// record is what Run remembers of one pod.
type record struct {
	held held
	// key names the pod for its retries, also when it is gone.
	key types.NamespacedName
	// since is when the pod was first seen gone or over; missing when it was first
	// seen running without a cgroup. Zero: it was not.
	since, missing time.Time
	failures       map[Program]*failure
	again          *time.Timer // of the next look that nothing else may cause
}

// NewReconciler returns a Reconciler. What an earlier agent left in the kernel
// is taken over.
func NewReconciler(o Options) *Reconciler {
	r := &Reconciler{
		Options:   o,
		intake:    newIntake(),
		board:     &board{standings: map[types.UID]*standing{}},
		numbering: newNumbering(runtime.GOARCH),
		retries:   retry.New(o.MaxRetries, o.ResyncPeriod),
		pods:      map[types.UID]*record{},
		cgroups:   kernelCgroups{},
		now:       time.Now,
	}
	o.Metrics.use(r)
	return r
}

// CaughtUp tells whether every pod that was there at the start has been looked
// at: what they are to have is attached, or its failure is known.
func (r *Reconciler) CaughtUp() bool { return r.caughtUp.Load() }

// CgroupChanged is to be called when a pod's cgroup came or went.
func (r *Reconciler) CgroupChanged(e podcgroup.Event) { r.intake.look(e.UID) }

// Run works until the context ends. It begins when first returns: when the first
// lists of pods and configs and the first scan of cgroups are complete. Before
// that nothing may be concluded from what is absent.
func (r *Reconciler) Run(ctx context.Context, first func(context.Context) error) error {
	if err := first(ctx); err != nil {
		return nil // the context has ended
	}
	if err := r.adopt(); err != nil {
		return err
	}
	recheck := time.NewTicker(recheckInterval)
	defer recheck.Stop()
	for {
		r.work(ctx, r.intake.take())
		if !r.caughtUp.Swap(true) {
			klog.FromContext(ctx).Info("Every pod of the node has been looked at", "pods", r.intake.known(), "attached", attachedPods(r.board.all()))
			r.Changed()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.intake.wake:
		case <-recheck.C:
			r.recheck(ctx)
		}
	}
}

// recheck has every pod watched again where cgroups were left out meanwhile for
// lack of space: there may be some by now.
func (r *Reconciler) recheck(ctx context.Context) {
	if r.Counter == nil {
		return
	}
	dropped, err := r.Counter.Dropped()
	if err != nil {
		logging.Warning(klog.FromContext(ctx), "Whether cgroups were left out cannot be read", "err", err)
		return
	}
	if dropped <= r.dropped {
		return
	}
	logging.Warning(klog.FromContext(ctx), "System calls of some cgroups are not counted: their table was full", "cgroups", dropped-r.dropped)
	r.dropped = dropped
	for uid, rec := range r.pods {
		if rec.held.syscalls {
			rec.held.settings = nil
			r.intake.look(uid)
		}
	}
}

// adopt takes over what an earlier agent left in the kernel. What it cannot be
// told from the pods that exist is detached by the first look.
func (r *Reconciler) adopt() error {
	if r.Slots == nil {
		return nil
	}
	owners := map[uint32]types.UID{}
	for uid, slot := range r.Slots.All() {
		owners[slot] = uid
		r.pods[uid] = &record{held: held{slot: slot, taken: true}, key: types.NamespacedName{Name: string(uid)}}
	}
	if err := r.adoptFirewall(); err != nil {
		return err
	}
	if r.Counter != nil {
		for slot := range r.Counter.Watched() {
			if uid, owned := owners[slot]; owned {
				r.pods[uid].held.syscalls = true
			} else if err := r.Counter.Unwatch(slot); err != nil {
				return fmt.Errorf("clearing slot %d, which is no pod's: %w", slot, err)
			}
		}
	}
	for uid := range r.pods {
		r.intake.look(uid)
	}
	return nil
}

func (r *Reconciler) adoptFirewall() error {
	if r.Firewall == nil {
		return nil
	}
	for _, a := range r.Firewall.Attached() {
		if pod := r.pods[a.UID]; pod != nil && pod.held.slot == a.Slot {
			pod.held.firewall = true
			continue
		}
		// Its slot may be another pod's by now.
		if err := r.Firewall.Detach(a.UID); err != nil {
			return fmt.Errorf("detaching the firewall of pod %s, which has lost its slot: %w", a.UID, err)
		}
	}
	return nil
}

// work brings a batch of pods to their plans: births before changes of rules,
// which go in one, and deaths last.
func (r *Reconciler) work(ctx context.Context, batch []sighted) {
	began := r.now()
	jobs := make([]*job, 0, len(batch))
	for _, s := range batch {
		if j := r.observe(s); j != nil {
			j.do = makePlan(&j.seen)
			jobs = append(jobs, j)
		}
	}
	for _, j := range jobs {
		r.serve(j)
	}
	r.flip(ctx, jobs)
	r.settle(jobs)
	for _, j := range jobs {
		r.tell(ctx, j)
	}
	if len(jobs) == 0 {
		return
	}
	r.Changed()
	if took := r.now().Sub(began); took > slowWork {
		logging.Warning(klog.FromContext(ctx), "The kernel was slow; pods waited for their programs", "took", took, "pods", len(jobs))
	}
}

// observe reads what planning needs; nil where there is nothing to plan.
func (r *Reconciler) observe(s sighted) *job {
	known := r.pods[s.uid]
	if known == nil {
		if s.pod == nil {
			return nil // a cgroup whose pod has not been seen, or is gone
		}
		known = &record{}
		r.pods[s.uid] = known
	}
	if s.pod != nil {
		known.key = s.pod.Key()
	}
	serving := r.Slots != nil && r.Cgroups != nil
	j := &job{uid: s.uid, rec: known, failures: map[Program]*failure{}, seen: observation{
		pod: s.pod, held: known.held, wanted: r.numbering.resolve(s.pod, s.configs),
		canFilter: serving && r.Firewall != nil, canCount: serving && r.Counter != nil,
	}}
	if r.Cgroups != nil {
		if path, ok := r.Cgroups.Path(s.uid); ok && path != "" {
			j.seen.at = r.cgroups.place(path)
			j.vanished = j.seen.at.path == "" // an event will tell of its end, if it is one
		}
	}
	r.observeEnd(j)
	return j
}

// observeEnd notes for how long the pod has been gone or over.
func (r *Reconciler) observeEnd(j *job) {
	if j.seen.pod != nil && !j.seen.pod.Over {
		j.rec.since = time.Time{}
		return
	}
	if j.rec.since.IsZero() {
		j.rec.since = r.now()
	}
	j.seen.overFor = r.now().Sub(j.rec.since)
	j.seen.busy = j.rec.held.taken && j.seen.at.path != "" && r.cgroups.busy(j.seen.at.path)
}
