// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

// TestRights has an agent that watches one namespace go through all that it asks
// of the API server, with its rights bound as OLM binds them for one namespace, so
// that each shows what it alone allows: it needs all of them, and no other.
func TestRights(t *testing.T) {
	skipShort(t)
	t.Parallel()
	audit, err := harness.NewAudit(t.TempDir(), operators, account)
	must(t, err)
	c, err := harness.StartCluster(t.Context(), controlplane.Options{APIServerFlags: audit.Flags()})
	must(t, err)
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	must(t, c.NewNamespace(t.Context(), operators))

	const served = 2 // a node for one pod has a slot more
	w := newWorld(t, c, 1)
	w.neverMind = true // it lacks a capability
	grants := w.rightsInOneNamespace()
	w.agentPod("agent-x")
	environ := map[string]string{"WATCH_NAMESPACE": w.name, "POD_NAME": "agent-x"}
	w.with("bpf", "net_admin")
	w.begin(environ)
	w.awaitEvent(operators, w.name, "FeatureUnsupported", "PERFMON")
	w.stop()
	w.with(shippedCapabilities...)
	w.config("c", v1alpha1.EBPFConfig{L4Firewall: blocking(9)})
	var pods []*pod
	for i := range served + 1 {
		pods = append(pods, w.pod(fmt.Sprintf("p%d", i), sandbox.PodOptions{NoNetwork: true}))
	}
	w.begin(environ)
	must(t, w.agent.WaitReady(t.Context()))
	w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: 1, Desired: served + 1, Attached: served, Failed: 1})
	w.failAgain(pods, served)

	var entries []harness.AuditEntry
	read := func() error {
		entries, err = audit.Entries()
		return err
	}
	w.stop()
	must(t, read())
	for end := time.Now().Add(patience); time.Now().Before(end) && len(harness.Unneeded(grants, harness.Used(entries))) > 0; time.Sleep(time.Second) {
		must(t, read())
	}
	for _, g := range harness.Unneeded(grants, harness.Used(entries)) {
		t.Errorf("granted, but never needed: %s", g)
	}
	if denied := harness.Denied(entries); len(denied) > 0 {
		t.Errorf("used, but not granted: %v", denied)
	}
}

// failAgain has the pod that found no slot need none for a while: its second
// failure is told by a patch of the first one's Event.
func (w *world) failAgain(pods []*pod, served int) {
	w.t.Helper()
	for _, p := range pods {
		if len(w.series("ebpf_attached_programs", map[string]string{"pod_name": p.object.Name})) > 0 {
			continue
		}
		w.awaitEvent(w.name, p.object.Name, "EBPFAttachFailed", "slots for pods are taken")
		w.label(p, "other")
		w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: 1, Desired: int32(served), Attached: int32(served)})
		w.label(p, "web")
		w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: 1, Desired: int32(len(pods)), Attached: int32(served), Failed: int32(len(pods) - served)})
	}
}

// label sets the label that configs select by.
func (w *world) label(p *pod, app string) {
	w.t.Helper()
	patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"labels":{"app":%q}}}`, app))
	must(w.t, w.cluster.Client.Patch(w.t.Context(), p.object, patch))
}

// agentPod makes the agents' DaemonSet and the pod in which the agent says it runs.
func (w *world) agentPod(name string) {
	w.t.Helper()
	set := w.daemonSet(account)
	owner := *metav1.NewControllerRef(set, set.GroupVersionKind())
	owner.APIVersion, owner.Kind, owner.BlockOwnerDeletion = "apps/v1", "DaemonSet", nil
	must(w.t, w.cluster.Client.Create(w.t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: operators, Name: name, OwnerReferences: []metav1.OwnerReference{owner}},
		Spec:       set.Spec.Template.Spec,
	}))
}

// rightsInOneNamespace binds the shipped roles: what is the whole cluster's (nodes)
// everywhere, the rest of the ClusterRole in the world's namespace.
func (w *world) rightsInOneNamespace() []harness.Grant {
	w.t.Helper()
	everywhere, local := &rbacv1.ClusterRole{}, &rbacv1.Role{}
	must(w.t, readRole("ClusterRole", everywhere))
	must(w.t, readRole("Role", local))
	local.Namespace = operators
	ofNodes := func(r rbacv1.PolicyRule) bool { return slices.Equal(r.Resources, []string{"nodes"}) }
	watched := everywhere.DeepCopy()
	watched.Name += "-watched"
	watched.Rules = slices.DeleteFunc(watched.Rules, ofNodes)
	everywhere.Rules = slices.DeleteFunc(everywhere.Rules, func(r rbacv1.PolicyRule) bool { return !ofNodes(r) })

	bind := func(namespace string, role client.Object, kind string) client.Object {
		meta := metav1.ObjectMeta{Name: role.GetName(), Namespace: namespace}
		ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: role.GetName()}
		if namespace == "" {
			return &rbacv1.ClusterRoleBinding{TypeMeta: metav1.TypeMeta{Kind: "ClusterRoleBinding"}, ObjectMeta: meta, Subjects: agents(), RoleRef: ref}
		}
		return &rbacv1.RoleBinding{TypeMeta: metav1.TypeMeta{Kind: "RoleBinding"}, ObjectMeta: meta, Subjects: agents(), RoleRef: ref}
	}
	var objects []*unstructured.Unstructured
	for _, o := range []client.Object{
		everywhere, watched, local,
		bind("", everywhere, "ClusterRole"), bind(w.name, watched, "ClusterRole"), bind(operators, local, "Role"),
	} {
		fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		must(w.t, err)
		objects = append(objects, &unstructured.Unstructured{Object: fields})
		must(w.t, w.cluster.Client.Create(w.t.Context(), o))
	}
	grants, err := harness.Grants(objects, operators, account)
	must(w.t, err)
	return grants
}
