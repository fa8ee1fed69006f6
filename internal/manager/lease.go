// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"os"

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
	options.LeaderElectionResourceLockInterface = lock
	options.LeaderElectionReleaseOnCancel = true
	options.LeaseDuration, options.RenewDeadline, options.RetryPeriod = &s.LeaseDuration, &s.RenewDeadline, &s.RetryPeriod
	return nil
}
