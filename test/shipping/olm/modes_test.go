// SPDX-License-Identifier: Apache-2.0

package olm

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr"
	operatorsv1 "github.com/operator-framework/api/pkg/operators/v1"
	operatorsv1alpha1 "github.com/operator-framework/api/pkg/operators/v1alpha1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/stage"
)

func TestMain(m *testing.M) {
	ctrllog.SetLogger(logr.Discard())
	os.Exit(m.Run())
}

func TestOLM(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: this needs a control plane")
	}
	w := newWorld(t)
	t.Run("the catalog", w.tryCatalog)
	t.Run("own namespace", func(t *testing.T) {
		w.tryMode(t, func(n names) []string { return []string{n.operator} }, func(n names) []string { return []string{n.operator} })
	})
	t.Run("single namespace", func(t *testing.T) {
		w.tryMode(t, func(n names) []string { return []string{n.one} }, func(n names) []string { return []string{n.one} })
	})
	t.Run("several namespaces", func(t *testing.T) {
		w.tryMode(t, func(n names) []string { return []string{n.one, n.two} }, func(n names) []string { return []string{n.one, n.two} })
	})
	t.Run("all namespaces", func(t *testing.T) {
		w.tryMode(t, func(names) []string { return nil }, func(n names) []string { return n.all() })
	})
	t.Run("flag, upgrade, uninstall", w.tryLife)
}

// names are the namespaces of one test.
type names struct{ operator, one, two, outside string }

func (n names) all() []string { return []string{n.operator, n.one, n.two, n.outside} }

// tryMode installs the operator for some namespaces, and looks that it serves just
// these, and may do no more.
func (w *world) tryMode(t *testing.T, targets, served func(names) []string) {
	n := names{unique("operator"), unique("one"), unique("two"), unique("outside")}
	for _, name := range n.all() {
		w.namespace(t, name, nil)
	}
	w.subscribe(t, "stable", n.operator, targets(n)...)
	w.installed(t, n.operator, older)
	for _, name := range n.all() {
		w.sample(t, name)
	}
	for _, name := range served(n) {
		stage.Await(t, "namespace "+name+" is served", func() error { return w.ready(t, name) })
	}
	w.wait(t.Context(), 3*time.Second)
	for _, name := range n.all() {
		is := slices.Contains(served(n), name)
		if err := w.ready(t, name); (err == nil) != is {
			t.Errorf("namespace %s: %v, should be served: %v", name, err, is)
		}
		w.checkRights(t, n.operator, name, is)
	}
	w.healthy(t, n.operator)
	w.uninstall(t, n.operator, older)
	for _, name := range served(n) {
		if err := w.get(t, name, "pod-sample-from-sample-cfg", &corev1.ConfigMap{}); err != nil {
			t.Errorf("after the uninstall: %v", err)
		}
	}
	if err := w.get(t, "", "podconfigmapconfigs.podconfig.example.com", &apiextensionsv1.CustomResourceDefinition{}); err != nil {
		t.Errorf("after the uninstall: %v", err)
	}
	w.forget(t, n.operator, n.all()...)
}

// forget removes what is left of an installation that has gone, in all namespaces:
// the next one's OperatorGroup must not meet this one's.
func (w *world) forget(t *testing.T, operator string, all ...string) {
	t.Helper()
	stage.Must(t, w.client.Delete(t.Context(), &operatorsv1.OperatorGroup{ObjectMeta: metav1.ObjectMeta{Namespace: operator, Name: "group"}}))
	for _, name := range all {
		stage.Must(t, w.client.DeleteAllOf(t.Context(), &v1alpha1.PodConfigMapConfig{}, client.InNamespace(name)))
		stage.Await(t, "copies of the CSV are gone from "+name, func() error {
			list := &operatorsv1alpha1.ClusterServiceVersionList{}
			err := w.client.List(t.Context(), list, client.InNamespace(name))
			if err == nil && len(list.Items) > 0 {
				err = fmt.Errorf("there is %s", list.Items[0].Name)
			}
			return err
		})
	}
}

// sample makes a config and a pod of an image that no node has.
func (w *world) sample(t *testing.T, namespace string) {
	t.Helper()
	meta := metav1.ObjectMeta{Namespace: namespace, Name: "sample", Labels: map[string]string{"app": "sample"}}
	config := &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "sample"}}
	config.Spec.PodSelector = &v1alpha1.PodSelector{MatchLabels: map[string]string{"app": "sample"}}
	config.Spec.LabelsToInclude = []v1alpha1.MetadataKey{"app"}
	stage.Must(t, w.client.Create(t.Context(), config))
	stage.Await(t, "the sample's pod is there", func() error { // its ServiceAccount may come late
		err := w.client.Create(t.Context(), &corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "none"}}}})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
}

// ready tells whether the sample has its ConfigMap, and its status says so.
func (w *world) ready(t *testing.T, namespace string) error {
	cm, config := &corev1.ConfigMap{}, &v1alpha1.PodConfigMapConfig{}
	if err := w.get(t, namespace, "pod-sample-from-sample-cfg", cm); err != nil {
		return err
	}
	if cm.Data["label_app"] != "sample" || cm.Data["namespace"] != namespace {
		return fmt.Errorf("its data is %v", cm.Data)
	}
	if err := w.get(t, namespace, "sample", config); err != nil {
		return err
	}
	if config.Status.SyncedConfigMaps != 1 || config.Status.ObservedGeneration != config.Generation {
		return fmt.Errorf("the status is %+v", config.Status)
	}
	return nil
}

// checkRights asks the API server what the accounts may do in a namespace.
func (w *world) checkRights(t *testing.T, operator, namespace string, served bool) {
	t.Helper()
	own := namespace == operator // OLM gives the permissions there, too
	for _, may := range []struct {
		account, verb, group, resource string
		want                           bool
	}{
		{manager, "create", "", "configmaps", served || own},
		{manager, "list", "", "pods", served || own},
		{manager, "create", "apps", "daemonsets", own},
		{manager, "update", "coordination.k8s.io", "leases", own},
		{manager, "get", "", "secrets", false},
		{manager, "create", "rbac.authorization.k8s.io", "roles", false},
		{agent, "list", "podconfig.example.com", "podconfigmapconfigs", served || own},
		{agent, "patch", "podconfig.example.com", "ebpfnodes", own},
		{agent, "create", "", "configmaps", false},
	} {
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: "system:serviceaccount:" + operator + ":" + may.account,
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Namespace: namespace, Verb: may.verb, Group: may.group, Resource: may.resource,
			},
		}}
		stage.Must(t, w.client.Create(t.Context(), review))
		if review.Status.Allowed != may.want {
			t.Errorf("%s may %s %s in %s: %v, want %v", may.account, may.verb, may.resource, namespace, review.Status.Allowed, may.want)
		}
	}
}
