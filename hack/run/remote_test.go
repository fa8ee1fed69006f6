// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// remoteCluster is a cluster that somebody has already.
type remoteCluster struct {
	client  client.Client
	environ string
}

func TestRemote(t *testing.T) {
	skipShort(t)
	t.Parallel()
	plane, err := controlplane.Start(t.Context(), controlplane.Options{ControllerManager: true})
	if err != nil {
		t.Fatal(err)
	}
	defer plane.Stop()
	c := &remoteCluster{environ: "KUBECONFIG=" + plane.Kubeconfig()}
	if c.client, err = harness.NewClient(plane.Config()); err != nil {
		t.Fatal(err)
	}
	// One after another: each leaves the cluster as it found it.
	t.Run("without the sample", func(t *testing.T) {
		start(t, []string{c.environ, "ONCE=true"}).end(t, 0,
			"context podconfigmap-controlplane, server "+plane.Config().Host, "installed its CRD", "SAMPLE=true applies it")
		c.wantAsBefore(t)
	})
	t.Run("with the sample", func(t *testing.T) {
		start(t, []string{c.environ, "ONCE=true", "SAMPLE=true"}).end(t, 0,
			"Orders (backend) is pending on no node yet", "+ label_tier  canary", "was gone after", "shop-info  True   1        1       0")
		c.wantAsBefore(t)
	})
	t.Run("with a manager that ends", func(t *testing.T) {
		start(t, []string{c.environ}, "-manager=/bin/false").end(t, 1, "the manager ended (exit status 1)", "removing the CRD")
		c.wantAsBefore(t)
	})
	t.Run("interrupted in the middle of the sample", func(t *testing.T) {
		p := start(t, []string{c.environ, "SAMPLE=true"})
		p.awaitOutput(t, "A ConfigMap for each pod")
		p.interrupt(t)
		p.end(t, 130, "removing the sample")
		c.wantAsBefore(t)
	})
	t.Run("where another manager works", func(t *testing.T) { checkSecondManager(t, c) })
	t.Run("with the feature flag on", func(t *testing.T) { checkFlag(t, c) })
	t.Run("with things of others", func(t *testing.T) { checkOthers(t, c) })
	t.Run("where part of the sample is there", func(t *testing.T) { checkSampleThere(t, c) })
}

// wantAsBefore fails unless the cluster is empty again.
func (c *remoteCluster) wantAsBefore(t *testing.T) {
	t.Helper()
	for _, gone := range []client.Object{
		&apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: kindConfig.crd}},
		&apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: kindNode.crd}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "podconfigmap-demo"}},
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "podconfigmap-controller-lock", Namespace: "default"}},
	} {
		if err := c.client.Get(t.Context(), client.ObjectKeyFromObject(gone), gone); !apierrors.IsNotFound(err) {
			t.Errorf("%T %s is still there (%v)", gone, gone.GetName(), err)
		}
	}
	var left corev1.ConfigMapList
	if err := c.client.List(t.Context(), &left, client.HasLabels{v1alpha1.LabelGeneratedBy}); err != nil || len(left.Items) > 0 {
		t.Errorf("%d ConfigMaps are left (%v)", len(left.Items), err)
	}
}

func (c *remoteCluster) create(t *testing.T, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		if err := c.client.Create(t.Context(), object, client.FieldOwner(observed.FieldManager)); err != nil {
			t.Fatal(err)
		}
	}
}

func checkSecondManager(t *testing.T, c *remoteCluster) {
	holder, seconds := "another-manager", int32(3600)
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "podconfigmap-controller-lock", Namespace: "default"}}
	lease.Spec = coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, RenewTime: &metav1.MicroTime{Time: time.Now()}}
	c.create(t, lease)
	start(t, []string{c.environ}).end(t, 1, "another-manager holds the Lease default/podconfigmap-controller-lock")
	if err := c.client.Delete(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	c.wantAsBefore(t)
}

// checkFlag runs with EBPF_ENABLED=true: where the operator is not installed,
// where no image is known, and where the manager deploys agents.
func checkFlag(t *testing.T, c *remoteCluster) {
	start(t, []string{c.environ, "ONCE=true", "EBPF_ENABLED=true"}).end(t, 0,
		"installed its CRD ebpfnodes", "There is no ServiceAccount podconfigmap-controller-system/podconfigmap-controller-agent", "removed here: 0 DaemonSet(s)")
	c.wantAsBefore(t)
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "podconfigmap-controller-agent"}}
	c.create(t, account)
	installed := []string{c.environ, "EBPF_ENABLED=true", "POD_NAMESPACE=default"}
	start(t, append(installed, "ONCE=true")).end(t, 0, "RELATED_IMAGE_AGENT is not set", "removed here: 0 DaemonSet(s)")
	c.wantAsBefore(t)

	p := start(t, append(installed, "RELATED_IMAGE_AGENT=registry.invalid/agent:1"))
	p.awaitOutput(t, "Ctrl-C stops everything")
	set := &appsv1.DaemonSet{ObjectMeta: account.ObjectMeta}
	for end := time.Now().Add(patience); c.client.Get(t.Context(), client.ObjectKeyFromObject(account), set) != nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no DaemonSet %s:\n%s", account.Name, p.output())
		}
	}
	if image := set.Spec.Template.Spec.Containers[0].Image; image != "registry.invalid/agent:1" {
		t.Errorf("the agents' image is %q", image)
	}
	p.interrupt(t)
	p.end(t, 0, "as DaemonSet default/podconfigmap-controller-agent", "removed here: 1 DaemonSet(s)")
	if err := c.client.Get(t.Context(), client.ObjectKeyFromObject(account), set); !apierrors.IsNotFound(err) {
		t.Errorf("the DaemonSet is still there (%v)", err)
	}
	if err := c.client.Delete(t.Context(), account); err != nil {
		t.Errorf("the ServiceAccount did not stay: %v", err)
	}
	c.wantAsBefore(t)
}

// checkOthers has the CRD, a config, and a ConfigMap of an earlier manager there
// before, and a config made while the session runs.
func checkOthers(t *testing.T, c *remoteCluster) {
	if err := harness.InstallCRD(t.Context(), c.client); err != nil {
		t.Fatal(err)
	}
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name, Namespace: "default"} }
	config := &v1alpha1.PodConfigMapConfig{ObjectMeta: meta("theirs")}
	pod := func(name string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: meta(name), Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	}
	old, other := pod("old"), pod("new")
	c.create(t, config, old, other)
	earlier := &corev1.ConfigMap{ObjectMeta: meta("pod-old-from-theirs-cfg")}
	earlier.Labels = map[string]string{v1alpha1.LabelGeneratedBy: "theirs", v1alpha1.LabelPodUID: string(old.UID)}
	earlier.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: old.Name, UID: old.UID}}
	c.create(t, earlier)

	p := start(t, []string{c.environ})
	p.awaitOutput(t, "Ctrl-C stops everything")
	fresh := &corev1.ConfigMap{ObjectMeta: meta("pod-new-from-theirs-cfg")}
	for end := time.Now().Add(patience); c.client.Get(t.Context(), client.ObjectKeyFromObject(fresh), fresh) != nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no ConfigMap %s:\n%s", fresh.Name, p.output())
		}
	}
	p.interrupt(t)
	p.end(t, 0, "is there already", "removed here: 1; left, as they were there before: 1")
	for _, stays := range []client.Object{
		&apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: kindConfig.crd}}, config, old, other, earlier,
	} {
		if err := c.client.Get(t.Context(), client.ObjectKeyFromObject(stays), stays); err != nil {
			t.Errorf("%s does not stay: %v", stays.GetName(), err)
		}
	}
	if err := c.client.Get(t.Context(), client.ObjectKeyFromObject(fresh), fresh); !apierrors.IsNotFound(err) {
		t.Errorf("%s is still there (%v)", fresh.Name, err)
	}
}

// checkSampleThere has the sample's namespace there before, and then one of its
// pods, too. It follows checkOthers, which leaves the CRD.
func checkSampleThere(t *testing.T, c *remoteCluster) {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "podconfigmap-demo"}}
	c.create(t, namespace)
	sampled := []string{c.environ, "ONCE=true", "SAMPLE=true"}
	start(t, sampled).end(t, 0, "podconfigmap-demo, which was there already and stays", "was gone after")
	c.wantPods(t, namespace)

	theirs := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "orders", Namespace: namespace.Name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	c.create(t, theirs)
	start(t, sampled).end(t, 1, "Pod orders is there already, and this would change it", "removing the sample")
	c.wantPods(t, namespace, theirs.UID)
}

// wantPods fails unless the namespace is as it was, with just these pods.
func (c *remoteCluster) wantPods(t *testing.T, namespace *corev1.Namespace, want ...types.UID) {
	t.Helper()
	now, pods := &corev1.Namespace{}, &corev1.PodList{}
	if err := c.client.Get(t.Context(), client.ObjectKeyFromObject(namespace), now); err != nil || now.UID != namespace.UID || now.DeletionTimestamp != nil {
		t.Errorf("the namespace is %+v (%v)", now.ObjectMeta, err)
	}
	if err := c.client.List(t.Context(), pods, client.InNamespace(namespace.Name)); err != nil {
		t.Fatal(err)
	}
	var got []types.UID
	for _, pod := range pods.Items {
		got = append(got, pod.UID)
	}
	if !slices.Equal(got, want) {
		t.Errorf("there are the pods %v, want %v", got, want)
	}
}
