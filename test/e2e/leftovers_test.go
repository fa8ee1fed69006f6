// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// optional has the chart make all kinds of objects that this cluster knows.
var optional = []string{
	"--set", "priorityClass.create=true", "--set", "podDisruptionBudget.enabled=true",
	"--set", "networkPolicy.enabled=true", "--set", "dashboard.enabled=true",
}

// releaseKinds are those of the objects that a release with these options has, and
// madeKinds those that others make of them.
var (
	releaseKinds = []schema.GroupVersionKind{
		{Version: "v1", Kind: "ServiceAccount"}, {Version: "v1", Kind: "Service"}, {Version: "v1", Kind: "ConfigMap"},
		{Group: "apps", Version: "v1", Kind: "Deployment"},
		{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "Role"}, {Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "RoleBinding"},
		{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRole"}, {Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding"},
		{Group: "scheduling.k8s.io", Version: "v1", Kind: "PriorityClass"},
		{Group: "policy", Version: "v1", Kind: "PodDisruptionBudget"},
		{Group: "networking.k8s.io", Version: "v1", Kind: "NetworkPolicy"},
	}
	madeKinds = []schema.GroupVersionKind{
		{Version: "v1", Kind: "Pod"}, {Group: "apps", Version: "v1", Kind: "DaemonSet"},
		{Group: "apps", Version: "v1", Kind: "ReplicaSet"}, {Group: "apps", Version: "v1", Kind: "ControllerRevision"},
		{Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice"},
	}
)

// named are the objects of some kinds whose names begin with the release's, in the
// namespace of the operator or in none.
func (p *point) named(kinds ...schema.GroupVersionKind) ([]*unstructured.Unstructured, error) {
	var all []*unstructured.Unstructured
	for _, kind := range kinds {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Kind + "List"))
		if err := p.client.List(p.Context(), list); err != nil {
			return nil, fmt.Errorf("listing each %s: %w", kind.Kind, err)
		}
		for i := range list.Items {
			o := &list.Items[i]
			if ns := o.GetNamespace(); strings.HasPrefix(o.GetName(), release) && (ns == "" || ns == system) {
				all = append(all, o)
			}
		}
	}
	return all, nil
}

func names(objects []*unstructured.Unstructured) []string {
	var all []string
	for _, o := range objects {
		all = append(all, o.GetKind()+" "+o.GetName())
	}
	slices.Sort(all)
	return all
}

// released are the objects of the release; there has to be one of each kind.
func (p *point) released() []*unstructured.Unstructured {
	p.Helper()
	objects, err := p.named(releaseKinds...)
	p.must(err)
	for _, kind := range releaseKinds {
		if !slices.ContainsFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetKind() == kind.Kind }) {
			p.Fatalf("the release has no %s: %v", kind.Kind, names(objects))
		}
	}
	return objects
}

// unreleased is nil when nothing is left of the release, nor of what others made of it.
func (p *point) unreleased() error {
	left, err := p.named(slices.Concat(releaseKinds, madeKinds)...)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("there are left: %s", strings.Join(names(left), ", "))
	}
	return err
}

// harmless fails where the rights that the agents' ServiceAccount keeps while there are no
// agents let it do more than read, and write Events and reports.
func (p *point) harmless(objects []*unstructured.Unstructured) {
	p.Helper()
	grants, err := harness.Grants(objects, system, agents)
	p.must(err)
	if len(grants) == 0 {
		p.Fatalf("the ServiceAccount %s has no rights", agents)
	}
	reads := []string{"get", "list", "watch"}
	writes := []string{"events.k8s.io/events", "podconfig.example.com/ebpfnodes", "podconfig.example.com/ebpfnodes/status"}
	for _, g := range grants {
		if g.Resource == "secrets" || !slices.Contains(reads, g.Verb) && !slices.Contains(writes, g.Group+"/"+g.Resource) {
			p.Errorf("the ServiceAccount %s may %s", agents, g)
		}
	}
	for _, pod := range p.pods(system, nil) {
		if pod.Spec.ServiceAccountName == agents {
			p.Errorf("pod %s is of the agents' ServiceAccount", pod.Name)
		}
	}
}

// users is what an uninstall leaves to users, as docs/helm.md says: CRDs, configs and
// ConfigMaps, and the agents' reports where eBPF was on to the end.
func (p *point) users() []string {
	p.Helper()
	var all []string
	add := func(o client.Object) { all = append(all, fmt.Sprintf("%T %s %s", o, o.GetName(), o.GetUID())) }
	for _, name := range []string{"podconfigmapconfigs." + v1alpha1.GroupVersion.Group, "ebpfnodes." + v1alpha1.GroupVersion.Group} {
		crd := &unstructured.Unstructured{}
		crd.SetGroupVersionKind(apiextensionsv1.SchemeGroupVersion.WithKind("CustomResourceDefinition"))
		p.must(p.get("", name, crd))
		add(crd)
	}
	configs, maps, reports := &v1alpha1.PodConfigMapConfigList{}, &corev1.ConfigMapList{}, &v1alpha1.EBPFNodeList{}
	p.must(p.client.List(p.Context(), configs, client.InNamespace(guarded)))
	p.must(p.client.List(p.Context(), maps, client.InNamespace(guarded), client.HasLabels{"podconfig.example.com/generated-by-pcmc"}))
	p.must(p.client.List(p.Context(), reports, client.InNamespace(system)))
	if len(configs.Items) == 0 || len(maps.Items) == 0 || len(reports.Items) != *nodes {
		p.Fatalf("%d configs, %d ConfigMaps, %d reports", len(configs.Items), len(maps.Items), len(reports.Items))
	}
	for i := range configs.Items {
		add(&configs.Items[i])
	}
	for i := range maps.Items {
		add(&maps.Items[i])
	}
	for i := range reports.Items {
		add(&reports.Items[i])
	}
	slices.Sort(all)
	return all
}
