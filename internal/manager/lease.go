// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
)

// +kubebuilder:rbac:groups=coordination.k8s.io,resources=leases,verbs=get;create;update,namespace=system

// electLeader sets the options of leader election. A clean stop releases the
// Lease, so that another manager need not wait until it expires; that is safe
// because the process ends with Run.
func electLeader(options *ctrl.Options, config *rest.Config, s *settings.Settings) error {
	if !s.LeaderElection {
		return nil
	}
	name := s.PodName
	if name == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("naming this manager in the Lease: %w; set POD_NAME", err)
		}
		name = host
	}
	// The suffix tells a restarted container from the one before.
	identity := resourcelock.ResourceLockConfig{Identity: name + "_" + uuid.NewString()}
	lock, err := resourcelock.NewFromKubeconfig(resourcelock.LeasesResourceLock,
		s.EffectiveLockNamespace(), s.LockName, identity, config, s.RenewDeadline)
	if err != nil {
		return fmt.Errorf("making the Lease %s/%s: %w", s.EffectiveLockNamespace(), s.LockName, err)
	}
	options.LeaderElection = true
	options.LeaderElectionResourceLockInterface = &boundLock{
		Interface: lock, bound: (s.RenewDeadline + s.LeaseDuration) / 2, now: time.Now,
	}
	options.LeaderElectionReleaseOnCancel = true
	options.LeaseDuration, options.RenewDeadline, options.RetryPeriod = &s.LeaseDuration, &s.RenewDeadline, &s.RetryPeriod
	return nil
}

// boundLock ends the calls of a leader while its Lease is still valid. When a
// renewal fails, client-go tries to release the Lease before it says that the
// Lease is lost: an API server that does not answer would keep this manager at
// work after another one began. One goroutine uses it.
type boundLock struct {
	resourcelock.Interface
	bound   time.Duration // of calls, after the last renewal
	now     func() time.Time
	renewed time.Time // zero while this manager does not lead
}

// Get is part of resourcelock.Interface.
func (b *boundLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	ctx, cancel := b.limit(ctx)
	defer cancel()
	return b.Interface.Get(ctx)
}

// Create is part of resourcelock.Interface.
func (b *boundLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return b.write(ctx, record, b.Interface.Create)
}

// Update is part of resourcelock.Interface.
func (b *boundLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return b.write(ctx, record, b.Interface.Update)
}

func (b *boundLock) write(ctx context.Context, record resourcelock.LeaderElectionRecord, write func(context.Context, resourcelock.LeaderElectionRecord) error) error {
	began := b.now()
	ctx, cancel := b.limit(ctx)
	defer cancel()
	if err := write(ctx, record); err != nil {
		return err
	}
	b.renewed = time.Time{}
	if record.HolderIdentity == b.Identity() {
		b.renewed = began
	}
	return nil
}

func (b *boundLock) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if b.renewed.IsZero() {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, b.renewed.Add(b.bound))
}
