// SPDX-License-Identifier: Apache-2.0

// Package rbac tests config/default on a real API server: that it takes the
// manifests, and that the manager can do its work with just the rights that they
// give it, and uses all of them.
package rbac

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

const (
	system    = "podconfigmap-controller-system"
	account   = "podconfigmap-controller-controller-manager"
	agent     = "podconfigmap-controller-agent"
	condition = "podconfigmap-controller.v0.0.0"
	replica   = "replica-1"
	watched   = "garden"

	// patience is more than the 30 s for which the manager leaves to the garbage
	// collector, which does not run here, what pods leave behind.
	patience = 3 * time.Minute
)

// TestShippedRights runs the manager with what config/default binds to its
// ServiceAccount: first for one namespace, where the ClusterRole is bound as OLM
// binds it for one, so that each rule shows what it alone allows; then as shipped,
// for all namespaces.
func TestShippedRights(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: this needs a control plane")
	}
	audit, err := harness.NewAudit(t.TempDir(), system, account)
	must(t, err)
	plane, err := controlplane.Start(t.Context(), controlplane.Options{APIServerFlags: audit.Flags()})
	must(t, err)
	c := &harness.Cluster{ControlPlane: plane}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	c.Client, err = harness.NewClient(plane.Config())
	must(t, err)
	objects := build(t, "config/default")
	apply(t, c.Client, objects)
	t.Run("the Deployment's pods are admitted", func(t *testing.T) { checkPods(t, c.Client) })
	t.Run("the metrics Service selects them", func(t *testing.T) { checkService(t, c.Client) })
	t.Run("the agents have their own account", func(t *testing.T) { checkAgents(t, c.Client, objects) })
	apply(t, c.Client, olm())
	runs(t, c.Client)

	t.Run("one namespace", func(t *testing.T) {
		local := forOneNamespace(t, c.Client, objects)
		m := startManager(t, c, map[string]string{"EBPF_ENABLED": "true", "WATCH_NAMESPACE": watched})
		exercise(t, c.Client, watched)
		deployAgents(t, c.Client)
		stop(t, m)
		m = startManager(t, c, map[string]string{"WATCH_NAMESPACE": watched})
		removeAgents(t, c.Client)
		checkRights(t, audit, local)
		stop(t, m)
	})
	t.Run("all namespaces", func(t *testing.T) {
		apply(t, c.Client, objects)
		m := startManager(t, c, nil)
		exercise(t, c.Client, "orchard")
		if denied := harness.Denied(entries(t, audit)); len(denied) > 0 {
			t.Errorf("used, but not granted: %v", denied)
		}
		stop(t, m)
	})
}

// forOneNamespace binds the manager's ClusterRole in the watched namespace alone,
// and gives the objects as they are then.
func forOneNamespace(t *testing.T, c client.Client, objects []*unstructured.Unstructured) (local []*unstructured.Unstructured) {
	t.Helper()
	must(t, c.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: watched}}))
	for _, object := range objects {
		if object.GetKind() == "ClusterRoleBinding" && strings.HasSuffix(object.GetName(), "manager-rolebinding") {
			must(t, c.Delete(t.Context(), object.DeepCopy()))
			object = object.DeepCopy()
			object.SetKind("RoleBinding")
			object.SetNamespace(watched)
			apply(t, c, []*unstructured.Unstructured{object})
		}
		local = append(local, object)
	}
	return local
}

// checkRights: what the manager did needs each rule, and nothing else. That the
// removal of a rule is noticed follows: a request needed it alone.
func checkRights(t *testing.T, audit *harness.Audit, objects []*unstructured.Unstructured) {
	t.Helper()
	grants, err := harness.Grants(objects, system, account)
	must(t, err)
	if len(grants) == 0 {
		t.Fatal("no rights are granted")
	}
	unneeded := func() []harness.Grant { return harness.Unneeded(grants, harness.Used(entries(t, audit))) }
	_ = wait.PollUntilContextTimeout(t.Context(), time.Second, 30*time.Second, true, func(context.Context) (bool, error) {
		return len(unneeded()) == 0, nil
	})
	for _, g := range unneeded() {
		t.Errorf("granted, but never needed: %s", g)
	}
	if denied := harness.Denied(entries(t, audit)); len(denied) > 0 {
		t.Errorf("used, but not granted: %v", denied)
	}
}

func entries(t *testing.T, audit *harness.Audit) []harness.AuditEntry {
	t.Helper()
	all, err := audit.Entries()
	must(t, err)
	return all
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func stop(t *testing.T, m *harness.Manager) {
	t.Helper()
	if err := m.Stop(); err != nil {
		t.Error(err)
	}
	if strings.Contains(m.Log(), "forbidden") {
		t.Errorf("the manager complains:\n%s", m.Log())
	}
}

// build runs kustomize.
func build(t *testing.T, folder string) []*unstructured.Unstructured {
	t.Helper()
	root, err := harness.Root()
	if err != nil {
		t.Fatal(err)
	}
	kustomize := exec.Command("go", "tool", "-modfile=hack/tools/go.mod", "kustomize", "build", folder)
	kustomize.Dir = root
	var stderr bytes.Buffer
	kustomize.Stderr = &stderr
	text, err := kustomize.Output()
	if err != nil {
		t.Fatalf("kustomize build %s: %v\n%s", folder, err, stderr.String())
	}
	return decode(t, text)
}

func decode(t *testing.T, text []byte) []*unstructured.Unstructured {
	t.Helper()
	var objects []*unstructured.Unstructured
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		object := &unstructured.Unstructured{}
		if err := documents.Decode(object); err != nil {
			return objects
		}
		objects = append(objects, object)
	}
}

// apply applies objects as kubectl apply --server-side does, with strict
// validation; kinds that are new may take a moment.
func apply(t *testing.T, c client.Client, objects []*unstructured.Unstructured) {
	t.Helper()
	for _, object := range objects {
		var last error
		err := wait.PollUntilContextTimeout(t.Context(), 100*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
			last = client.WithFieldValidation(c, metav1.FieldValidationStrict).
				Apply(ctx, client.ApplyConfigurationFromUnstructured(object.DeepCopy()), client.FieldOwner("kubectl"))
			return last == nil, nil
		})
		if err != nil {
			t.Fatalf("applying %s %s: %v (%v)", object.GetKind(), object.GetName(), err, last)
		}
	}
}

// checkPods creates a pod from the template, as kube-controller-manager would:
// every Pod Security level lets it in, and the namespace's lets agents in, too.
func checkPods(t *testing.T, c client.Client) {
	deployment := &appsv1.Deployment{}
	key := client.ObjectKey{Namespace: system, Name: account}
	if err := c.Get(t.Context(), key, deployment); err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: deployment.Spec.Template.ObjectMeta, Spec: deployment.Spec.Template.Spec}
	pod.Namespace, pod.Name = system, "replica"
	if err := c.Create(t.Context(), pod, client.DryRunAll); err != nil {
		t.Error(err)
	}
	strict := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "strict", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}}
	if err := c.Create(t.Context(), strict); err != nil {
		t.Fatal(err)
	}
	there := pod.DeepCopy()
	there.Namespace, there.ResourceVersion = strict.Name, ""
	if err := c.Create(t.Context(), there, client.DryRunAll); err != nil {
		t.Error(err)
	}
	agents := pod.DeepCopy()
	agents.ResourceVersion = ""
	agents.Spec.SecurityContext = nil
	agents.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/sys/fs/bpf"}}}}
	if err := c.Create(t.Context(), agents.DeepCopy(), client.DryRunAll); err != nil {
		t.Error(err)
	}
	agents.Namespace = strict.Name
	if err := c.Create(t.Context(), agents, client.DryRunAll); err == nil {
		t.Error("the strict namespace lets agents in")
	}
	if pod.Spec.ServiceAccountName != account {
		t.Errorf("pods run as %q, not %q", pod.Spec.ServiceAccountName, account)
	}
	if err := c.Get(t.Context(), key, &corev1.ServiceAccount{}); err != nil {
		t.Error(err)
	}
}

func checkService(t *testing.T, c client.Client) {
	service, deployment := &corev1.Service{}, &appsv1.Deployment{}
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: system, Name: "podconfigmap-controller-metrics"}, service); err != nil {
		t.Fatal(err)
	}
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: system, Name: account}, deployment); err != nil {
		t.Fatal(err)
	}
	if port := service.Spec.Ports[0]; port.Port != 8080 || port.TargetPort.StrVal != deployment.Spec.Template.Spec.Containers[0].Ports[0].Name {
		t.Errorf("its port is %+v", port)
	}
	for key, value := range service.Spec.Selector {
		if deployment.Spec.Template.Labels[key] != value {
			t.Errorf("it selects %s=%s, which pods do not have", key, value)
		}
	}
}

// checkAgents: the agents' account, its rights, and the Service of their metrics.
func checkAgents(t *testing.T, c client.Client, objects []*unstructured.Unstructured) {
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: system, Name: agent}, &corev1.ServiceAccount{}); err != nil {
		t.Error(err)
	}
	grants, err := harness.Grants(objects, system, agent)
	must(t, err)
	if len(grants) == 0 {
		t.Error("agents have no rights")
	}
	for _, g := range grants {
		// An agent reads; what it writes is its own report, and Events.
		reads := g.Verb == "get" || g.Verb == "list" || g.Verb == "watch"
		if !reads && !strings.HasPrefix(g.Resource, "ebpfnodes") && g.Resource != "events" || g.Resource == "secrets" {
			t.Errorf("agents may %s", g)
		}
	}
	for _, object := range objects {
		subjects, _, err := unstructured.NestedSlice(object.Object, "subjects")
		must(t, err)
		for _, subject := range subjects {
			if s := subject.(map[string]any); s["name"] != agent && s["name"] != account || s["namespace"] != system {
				t.Errorf("%s %s is for %v", object.GetKind(), object.GetName(), s)
			}
		}
	}
	service := &corev1.Service{}
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: system, Name: agent + "-metrics"}, service); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"app.kubernetes.io/name": "podconfigmap-controller", "app.kubernetes.io/component": "agent"}
	if port := service.Spec.Ports[0]; !maps.Equal(service.Spec.Selector, want) || port.Port != 8080 || port.TargetPort.StrVal != "metrics" {
		t.Errorf("the agents' metrics Service: %+v", service.Spec)
	}
}

// runs makes the ReplicaSet and the pod of the Deployment, as
// kube-controller-manager would.
func runs(t *testing.T, c client.Client) {
	t.Helper()
	deployment := &appsv1.Deployment{}
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: system, Name: account}, deployment); err != nil {
		t.Fatal(err)
	}
	meta := metav1.ObjectMeta{Namespace: system, Name: "replicas", Labels: deployment.Spec.Template.Labels,
		OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(deployment, appsv1.SchemeGroupVersion.WithKind("Deployment"))}}
	set := &appsv1.ReplicaSet{ObjectMeta: meta, Spec: appsv1.ReplicaSetSpec{Selector: deployment.Spec.Selector, Template: deployment.Spec.Template}}
	if err := c.Create(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	meta.Name, meta.OwnerReferences = replica, []metav1.OwnerReference{*metav1.NewControllerRef(set, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))}
	if err := c.Create(t.Context(), &corev1.Pod{ObjectMeta: meta, Spec: deployment.Spec.Template.Spec}); err != nil {
		t.Fatal(err)
	}
}

// deployAgents waits for the agents' DaemonSet, as kubelets would have it, and
// edits it.
func deployAgents(t *testing.T, c client.Client) {
	t.Helper()
	set := &appsv1.DaemonSet{}
	read := func() bool { return c.Get(t.Context(), client.ObjectKey{Namespace: system, Name: agent}, set) == nil }
	await(t, "the agents are deployed", read)
	if owners := set.OwnerReferences; len(owners) != 1 || owners[0].Name != account || owners[0].Kind != "Deployment" {
		t.Errorf("the DaemonSet's owners are %+v", owners)
	}
	pod := &corev1.Pod{ObjectMeta: set.Spec.Template.ObjectMeta, Spec: set.Spec.Template.Spec}
	pod.Namespace, pod.Name = system, "an-agent"
	if err := c.Create(t.Context(), pod, client.DryRunAll); err != nil {
		t.Errorf("an agent is not admitted: %v", err)
	}
	set.Spec.Template.Spec.HostPID = true
	must(t, c.Update(t.Context(), set))
	await(t, "the edit is undone", func() bool { return read() && !set.Spec.Template.Spec.HostPID })
	await(t, "OLM is told of the roll-out, which nobody carries out here", func() bool {
		return upgradeable(t, c) == `False AgentsChanging: DaemonSet "podconfigmap-controller-agent" is being rolled out`
	})
	node := &v1alpha1.EBPFNode{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "node-1"}}
	if err := c.Create(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	node.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionDetached, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonCleanedUp, LastTransitionTime: metav1.Now()}}
	if err := c.Status().Update(t.Context(), node); err != nil {
		t.Fatal(err)
	}
}

func removeAgents(t *testing.T, c client.Client) {
	t.Helper()
	await(t, "the agents and their report are removed", func() bool {
		return c.Get(t.Context(), client.ObjectKey{Namespace: system, Name: agent}, &appsv1.DaemonSet{}) != nil &&
			c.Get(t.Context(), client.ObjectKey{Namespace: system, Name: "node-1"}, &v1alpha1.EBPFNode{}) != nil
	})
	await(t, "OLM may upgrade", func() bool {
		return upgradeable(t, c) == "True Ready: nothing is under way that an upgrade would disturb"
	})
}

// upgradeable is what the manager told OLM.
func upgradeable(t *testing.T, c client.Client) string {
	t.Helper()
	operator := olm()[1]
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(operator), operator); err != nil {
		t.Fatal(err)
	}
	conditions, _, err := unstructured.NestedSlice(operator.Object, "spec", "conditions")
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range conditions {
		if is := one.(map[string]any); is["type"] == "Upgradeable" {
			return fmt.Sprintf("%v %v: %v", is["status"], is["reason"], is["message"])
		}
	}
	return ""
}

// olm is what the Operator Lifecycle Manager would have made.
func olm() []*unstructured.Unstructured {
	anything := map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}
	crd := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": "operatorconditions.operators.coreos.com"},
		"spec": map[string]any{
			"group": "operators.coreos.com", "scope": "Namespaced",
			"names": map[string]any{"plural": "operatorconditions", "singular": "operatorcondition", "kind": "OperatorCondition", "listKind": "OperatorConditionList"},
			"versions": []any{map[string]any{
				"name": "v2", "served": true, "storage": true,
				"schema": map[string]any{"openAPIV3Schema": anything},
			}},
		},
	}}
	operator := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "operators.coreos.com/v2", "kind": "OperatorCondition",
		"metadata": map[string]any{"name": condition, "namespace": system},
	}}
	return []*unstructured.Unstructured{crd, operator}
}

// startManager starts a manager as the Deployment's ServiceAccount.
func startManager(t *testing.T, c *harness.Cluster, more map[string]string) *harness.Manager {
	t.Helper()
	config, err := c.ServiceAccountConfig(t.Context(), system, account)
	if err != nil {
		t.Fatal(err)
	}
	environ := map[string]string{
		"KUBECONFIG": writeKubeconfig(t, config), "POD_NAMESPACE": system, "POD_NAME": replica,
		"OPERATOR_CONDITION_NAME": condition, "LOG_LEVEL": "debug",
	}
	maps.Copy(environ, more)
	m, err := c.StartManager(environ)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Kill() })
	if err := m.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

func writeKubeconfig(t *testing.T, config *rest.Config) string {
	t.Helper()
	const name = "operator"
	file := clientcmdapi.NewConfig()
	file.Clusters[name] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	file.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: config.BearerToken}
	file.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	file.CurrentContext = name
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*file, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// exercise has the manager do all that it does: create, change and delete
// ConfigMaps, meet a foreign one, announce the same thing twice, and sweep what
// a pod left behind.
func exercise(t *testing.T, c client.Client, namespace string) {
	t.Helper()
	must := func(err error) { t.Helper(); must(t, err) }
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name, Namespace: namespace} }
	pod := func(name string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: meta(name), Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	}
	configMap := func(pod string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: meta("pod-" + pod + "-from-plants-cfg")}
	}
	config := &v1alpha1.PodConfigMapConfig{ObjectMeta: meta("plants")}
	config.Spec.LabelsToInclude = []v1alpha1.MetadataKey{"colour"}
	synced := func(status metav1.ConditionStatus) {
		t.Helper()
		await(t, fmt.Sprintf("ConfigMapsSynced is %s", status), func() bool {
			err := c.Get(t.Context(), client.ObjectKeyFromObject(config), config)
			return err == nil && slices.ContainsFunc(config.Status.Conditions, func(c metav1.Condition) bool {
				return c.Type == v1alpha1.ConditionConfigMapsSynced && c.Status == status
			})
		})
	}

	must(client.IgnoreAlreadyExists(c.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})))
	rose, leaver := pod("rose"), pod("leaver")
	for _, object := range []client.Object{config, rose, leaver} {
		must(c.Create(t.Context(), object))
	}
	synced(metav1.ConditionTrue)
	foreign := configMap("tulip")
	must(c.Create(t.Context(), foreign))
	tulip := pod("tulip")
	must(c.Create(t.Context(), tulip))
	synced(metav1.ConditionFalse)
	must(c.Delete(t.Context(), tulip))
	synced(metav1.ConditionTrue)

	// The second Event of the same failure is a patch of the first.
	for range 2 {
		must(c.Patch(t.Context(), config, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"configMapDataTemplate":{"bad":"{{ .labels.none }}"}}}`))))
		synced(metav1.ConditionFalse)
		must(c.Patch(t.Context(), config, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"configMapDataTemplate":null}}`))))
		synced(metav1.ConditionTrue)
	}

	must(c.Patch(t.Context(), rose, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"colour":"red"}}}`))))
	got := configMap("rose")
	await(t, "the label's value is there", func() bool {
		return c.Get(t.Context(), client.ObjectKeyFromObject(got), got) == nil && got.Data["label_colour"] == "red"
	})
	// What others have hung something on is patched.
	must(c.Patch(t.Context(), got, client.RawPatch("application/merge-patch+json", []byte(`{"data":{"label_colour":"blue"},"metadata":{"annotations":{"theirs":"x"}}}`))))
	await(t, "the label's value is there again", func() bool {
		return c.Get(t.Context(), client.ObjectKeyFromObject(got), got) == nil && got.Data["label_colour"] == "red" && got.Annotations["theirs"] == "x"
	})
	must(c.Delete(t.Context(), leaver))
	await(t, "what a pod left is swept", func() bool {
		got := configMap("leaver")
		return c.Get(t.Context(), client.ObjectKeyFromObject(got), got) != nil
	})
}

func await(t *testing.T, what string, yes func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !yes(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waiting until %s: not within %s", what, patience)
		}
	}
}
