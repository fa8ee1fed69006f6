// SPDX-License-Identifier: Apache-2.0

package olm

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"

	operatorsv1alpha1 "github.com/operator-framework/api/pkg/operators/v1alpha1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/test/shipping/packaged"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/stage"
)

// tryCatalog looks how OLM comes by the bundle: it serves the catalog out of its
// image, and unpacks the bundle out of its own.
func (w *world) tryCatalog(t *testing.T) {
	stage.Await(t, "OLM reaches the catalog", func() error {
		source := &operatorsv1alpha1.CatalogSource{}
		if err := w.get(t, catalogs, "ours", source); err != nil {
			return err
		}
		if state := source.Status.GRPCConnectionState; state == nil || state.LastObservedState != "READY" {
			return fmt.Errorf("the connection is %+v, the message %q", state, source.Status.Message)
		}
		return nil
	})
	namespace := unique("catalog")
	w.namespace(t, namespace, nil)
	w.subscribe(t, "stable", namespace, namespace)
	w.installed(t, namespace, older)
	jobs := &batchv1.JobList{}
	stage.Must(t, w.client.List(t.Context(), jobs, client.InNamespace(catalogs)))
	if len(jobs.Items) != 1 || jobs.Items[0].Status.Succeeded != 1 {
		t.Fatalf("%d bundles were unpacked: %+v", len(jobs.Items), jobs.Items)
	}
	pulls := func(c corev1.Container) bool { return c.Image == packaged.BundleImage(older) }
	if pod := jobs.Items[0].Spec.Template.Spec; !slices.ContainsFunc(pod.InitContainers, pulls) {
		t.Errorf("what was unpacked was no %s: %+v", packaged.BundleImage(older), pod.InitContainers)
	}
	w.trySuggestions(t, namespace)
	w.uninstall(t, namespace, older)
	w.forget(t, namespace, namespace)
}

// trySuggestions makes what a console offers with the operator: the examples, and
// what to begin with.
func (w *world) trySuggestions(t *testing.T, namespace string) {
	csv := &operatorsv1alpha1.ClusterServiceVersion{}
	stage.Must(t, w.get(t, namespace, packageName+".v"+older, csv))
	var offered []map[string]any
	stage.Must(t, json.Unmarshal([]byte(csv.Annotations["alm-examples"]), &offered))
	var first, suggested map[string]any
	stage.Must(t, errors.Join(json.Unmarshal([]byte(csv.Annotations["operatorframework.io/initialization-resource"]), &first),
		json.Unmarshal([]byte(csv.Annotations["operatorframework.io/suggested-namespace-template"]), &suggested)))
	for _, object := range append(offered, first, suggested) {
		o := &unstructured.Unstructured{Object: object}
		if o.GetKind() != "Namespace" {
			o.SetNamespace(namespace)
		}
		if err := w.client.Create(t.Context(), o, client.DryRunAll); err != nil {
			t.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
		}
	}
	if len(offered) < 3 || suggested["metadata"].(map[string]any)["name"] != csv.Annotations["operatorframework.io/suggested-namespace"] {
		t.Errorf("%d examples; the suggested namespaces are %v and %s", len(offered), suggested, csv.Annotations["operatorframework.io/suggested-namespace"])
	}
}
