// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// remote runs the operator against the user's cluster, in which it leaves
// nothing behind.
func (s *session) remote(ctx context.Context) error {
	if err := s.connect(ctx); err != nil {
		return err
	}
	if err := s.refuseSecondManager(ctx); err != nil {
		return err
	}
	if err := s.prepare(ctx); err != nil {
		return err
	}
	if !s.sample {
		s.step("Your turn")
		s.say("The sample is not applied; SAMPLE=true applies it, and removes it on exit.")
		s.say("Or apply a config of your own: docs/podconfigmapconfig.md")
		return nil
	}
	sample, err := readSample(s.samples)
	if err != nil {
		return err
	}
	s.later("removing the sample", func(ctx context.Context) error { return s.remove(ctx, sample) })
	if err := s.apply(ctx, sample); err != nil {
		return err
	}
	if err := s.tour(ctx, sample, exists); err != nil {
		return err
	}
	s.explore(sample)
	return nil
}

// connect reads the kubeconfig and asks the server for its version.
func (s *session) connect(ctx context.Context) error {
	s.step("The cluster of KUBECONFIG=%s", s.kubeconfig)
	name, config, err := readKubeconfig(s.kubeconfig)
	if err != nil {
		return err
	}
	s.say("context %s, server %s", name, config.Host)
	if s.client, err = harness.NewClient(config); err != nil {
		return fmt.Errorf("talking to %s: %w", config.Host, err)
	}
	clients, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return err
	}
	version, err := clients.ServerVersionWithContext(ctx)
	if err != nil {
		return fmt.Errorf("talking to %s: %w", config.Host, err)
	}
	s.say("Kubernetes %s", version.GitVersion)
	return nil
}

func readKubeconfig(kubeconfig string) (name string, config *rest.Config, err error) {
	files := filepath.SplitList(kubeconfig)
	if !slices.ContainsFunc(files, isFile) {
		return "", nil, fmt.Errorf("reading KUBECONFIG=%q: there is no such file; unset it for a control plane of its own", kubeconfig)
	}
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{Precedence: files}, &clientcmd.ConfigOverrides{Timeout: "30s"})
	raw, err := loader.RawConfig()
	if err == nil {
		config, err = loader.ClientConfig()
	}
	if err != nil {
		return "", nil, fmt.Errorf("reading KUBECONFIG=%q: %w", kubeconfig, err)
	}
	return raw.CurrentContext, config, nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.IsDir()
}

// refuseSecondManager looks for a manager that works on the cluster already: it
// and this one would do everything twice, and cleaning up would take its
// ConfigMaps away.
func (s *session) refuseSecondManager(ctx context.Context) error {
	leases := &coordinationv1.LeaseList{}
	if err := s.client.List(ctx, leases, client.MatchingFields{"metadata.name": s.settings.LockName}); err != nil {
		s.say("cannot tell whether another manager works here: %v", err)
		return nil
	}
	for _, lease := range leases.Items {
		if !isHeld(&lease, time.Now()) {
			continue
		}
		return fmt.Errorf("a manager works on this cluster already: %s holds the Lease %s/%s; stop it first, such as by\n"+
			"  kubectl scale deployment -n %s -l app.kubernetes.io/name=podconfigmap-controller --replicas=0",
			*lease.Spec.HolderIdentity, lease.Namespace, lease.Name, lease.Namespace)
	}
	return nil
}

func isHeld(lease *coordinationv1.Lease, now time.Time) bool {
	l := lease.Spec
	if l.HolderIdentity == nil || *l.HolderIdentity == "" || l.RenewTime == nil || l.LeaseDurationSeconds == nil {
		return false
	}
	return now.Before(l.RenewTime.Add(time.Duration(*l.LeaseDurationSeconds) * time.Second))
}

// prepare installs the CRDs where they lack and starts the manager, and notes how
// to take away what they leave.
func (s *session) prepare(ctx context.Context) error {
	created, err := s.installCRDs(ctx)
	if len(created) > 0 {
		s.later("removing the CRDs that were not there before: "+names(created), func(ctx context.Context) error { return s.deleteAll(ctx, created) })
	}
	if err != nil {
		return err
	}
	before, err := s.ourConfigMaps(ctx)
	if err != nil {
		return err
	}
	s.later("removing the ConfigMaps that this manager made", func(ctx context.Context) error { return s.removeConfigMaps(ctx, before) })
	// Without leader election it leaves no Lease.
	settings := map[string]string{"LEADER_ELECTION_ENABLED": "false"}
	if s.settings.EBPFEnabled {
		settings["POD_NAMESPACE"] = s.settings.PodNamespace
		if err := s.tellOfAgents(ctx); err != nil {
			return err
		}
	}
	if err := s.startManager(ctx, settings); err != nil {
		return err
	}
	if slices.ContainsFunc(created, func(crd client.Object) bool { return crd.GetName() == kindConfig.crd }) {
		s.later("removing PodConfigMapConfigs, whose kind goes, too", s.removeConfigs)
	}
	return nil
}

func names(objects []client.Object) string {
	var all []string
	for _, object := range objects {
		all = append(all, object.GetName())
	}
	return strings.Join(all, ", ")
}

// ourConfigMaps returns the ConfigMaps that a manager wrote, by UID.
func (s *session) ourConfigMaps(ctx context.Context) (map[types.UID]client.Object, error) {
	ours := map[types.UID]client.Object{}
	namespaces := s.settings.WatchNamespaces
	if len(namespaces) == 0 {
		namespaces = []string{metav1.NamespaceAll}
	}
	for _, namespace := range namespaces {
		list := &metav1.PartialObjectMetadataList{}
		list.APIVersion, list.Kind = "v1", "ConfigMapList"
		if err := s.client.List(ctx, list, client.InNamespace(namespace), client.HasLabels{v1alpha1.LabelGeneratedBy}); err != nil {
			return nil, fmt.Errorf("listing ConfigMaps: %w", err)
		}
		for _, cm := range list.Items {
			wrote := func(f metav1.ManagedFieldsEntry) bool { return f.Manager == observed.FieldManager }
			if slices.ContainsFunc(cm.ManagedFields, wrote) {
				ours[cm.UID] = &cm
			}
		}
	}
	return ours, nil
}

// removeConfigMaps removes the manager's ConfigMaps but for those that were
// there before.
func (s *session) removeConfigMaps(ctx context.Context, before map[types.UID]client.Object) error {
	now, err := s.ourConfigMaps(ctx)
	if err != nil {
		return err
	}
	removed := 0
	for uid, cm := range now {
		if _, old := before[uid]; old {
			continue
		}
		if err := s.delete(ctx, cm); err != nil {
			return err
		}
		removed++
	}
	s.say("  removed here: %d; left, as they were there before: %d", removed, len(now)-removed)
	return nil
}
