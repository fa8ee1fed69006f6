// SPDX-License-Identifier: Apache-2.0

package olm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	operatorsv1alpha1 "github.com/operator-framework/api/pkg/operators/v1alpha1"
	operatorsv2 "github.com/operator-framework/api/pkg/operators/v2"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/packaged"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/stage"
)

const flag = "EBPF_ENABLED"

// tryLife turns the flag on and off, upgrades while agents change, and uninstalls
// with the flag on.
func (w *world) tryLife(t *testing.T) {
	namespace := unique("life")
	w.namespace(t, namespace, map[string]string{"pod-security.kubernetes.io/enforce": "privileged"})
	w.subscribe(t, "candidate", namespace, namespace)
	w.installed(t, namespace, older)
	w.sample(t, namespace)
	stage.Await(t, "the sample is served", func() error { return w.ready(t, namespace) })
	if err := w.get(t, namespace, agent, &appsv1.DaemonSet{}); !apierrors.IsNotFound(err) {
		t.Errorf("with the flag off there are agents: %v", err)
	}

	w.setFlag(t, namespace, "true")
	stage.Await(t, "the agent runs", func() error { return w.agentRuns(t, namespace, older) })
	w.setFlag(t, namespace, "")
	stage.Await(t, "the agents are gone", func() error { return w.noAgents(t, namespace) })
	stage.Await(t, "OLM may upgrade", func() error { return w.upgradeable(t, namespace, older, "True") })

	// Agents that do not become ready hold the upgrade.
	w.held.Store(true)
	w.setFlag(t, namespace, "true")
	stage.Await(t, "OLM may not upgrade", func() error { return w.upgradeable(t, namespace, older, "False") })
	cm := &corev1.ConfigMap{}
	stage.Must(t, w.get(t, namespace, "pod-sample-from-sample-cfg", cm))
	w.release(t, newer)
	stage.Await(t, "the upgrade waits", func() error { return w.waits(t, namespace) })
	if image := w.managerImage(t, namespace); !strings.HasSuffix(image, ":v"+older) {
		t.Errorf("the operator's image is %s before it may be upgraded", image)
	}

	w.held.Store(false)
	w.installed(t, namespace, newer)
	if image := w.managerImage(t, namespace); !strings.HasSuffix(image, ":v"+newer) {
		t.Errorf("after the upgrade the operator's image is %s", image)
	}
	w.checkUpgrade(t, namespace, cm)
	stage.Await(t, "the agent is the newer one", func() error { return w.agentRuns(t, namespace, newer) })
	stage.Await(t, "the older version is gone", func() error {
		err := w.get(t, namespace, packageName+".v"+older, &operatorsv1alpha1.ClusterServiceVersion{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is there (%w)", err)
	})

	w.healthy(t, namespace)
	w.uninstall(t, namespace, newer)
	after := &corev1.ConfigMap{}
	if err := w.get(t, namespace, cm.Name, after); err != nil || after.UID != cm.UID {
		t.Errorf("after the uninstall the ConfigMap is %s, was %s (%v)", after.UID, cm.UID, err)
	}
	pins := filepath.Join(w.kernel.BPFFS(), "podconfigmap", namespace)
	stage.Await(t, "the agent took its pins along", func() error {
		if left, err := os.ReadDir(pins); err == nil && len(left) > 0 {
			return fmt.Errorf("there are %v", left)
		}
		return nil
	})
}

// release has the catalog's image become that of another version, which lists this
// version only: it replaces all before it.
func (w *world) release(t *testing.T, version string) {
	t.Helper()
	stage.Await(t, "the catalog is changed", func() error {
		source := &operatorsv1alpha1.CatalogSource{}
		if err := w.get(t, catalogs, "ours", source); err != nil {
			return err
		}
		source.Spec.Image = packaged.CatalogImage(version)
		return w.client.Update(t.Context(), source)
	})
}

// setFlag sets the variable in the Subscription; with an empty value it goes.
func (w *world) setFlag(t *testing.T, namespace, value string) {
	t.Helper()
	w.change(t, namespace, func(s *operatorsv1alpha1.SubscriptionSpec) {
		s.Config = &operatorsv1alpha1.SubscriptionConfig{}
		if value != "" {
			s.Config.Env = []corev1.EnvVar{{Name: flag, Value: value}}
		}
	})
	if value == "" {
		value = "false" // the CSV's
	}
	stage.Await(t, "the Deployment has the flag "+value, func() error {
		d := &appsv1.Deployment{}
		if err := w.get(t, namespace, manager, d); err != nil {
			return err
		}
		for _, v := range d.Spec.Template.Spec.Containers[0].Env {
			if v.Name == flag && v.Value == value {
				return nil
			}
		}
		return fmt.Errorf("its variables are %v", d.Spec.Template.Spec.Containers[0].Env)
	})
}

// agentRuns tells whether the node's agent reports, and is of a version.
func (w *world) agentRuns(t *testing.T, namespace, version string) error {
	set, node := &appsv1.DaemonSet{}, &v1alpha1.EBPFNode{}
	if err := errors.Join(w.get(t, namespace, agent, set), w.get(t, namespace, "node-1", node)); err != nil {
		return err
	}
	if has := set.Spec.Template.Spec.Containers[0].Image; has != packaged.OperatorImage(version) {
		return fmt.Errorf("the agents' image is %s", has)
	}
	if s := set.Status; s.NumberAvailable != 1 || s.UpdatedNumberScheduled != 1 || s.ObservedGeneration != set.Generation {
		return fmt.Errorf("the DaemonSet's status is %+v", s)
	}
	if !meta.IsStatusConditionTrue(node.Status.Conditions, "Ready") {
		return fmt.Errorf("the EBPFNode's status is %+v", node.Status)
	}
	return nil
}

func (w *world) noAgents(t *testing.T, namespace string) error {
	nodes := &v1alpha1.EBPFNodeList{}
	if err := w.client.List(t.Context(), nodes, client.InNamespace(namespace)); err != nil {
		return err
	}
	err := w.get(t, namespace, agent, &appsv1.DaemonSet{})
	if apierrors.IsNotFound(err) && len(nodes.Items) == 0 {
		return nil
	}
	return fmt.Errorf("the DaemonSet: %w; %d EBPFNodes", err, len(nodes.Items))
}

// upgradeable tells whether the operator said so of itself to OLM.
func (w *world) upgradeable(t *testing.T, namespace, version, status string) error {
	condition := &operatorsv2.OperatorCondition{}
	if err := w.get(t, namespace, packageName+".v"+version, condition); err != nil {
		return err
	}
	is := meta.FindStatusCondition(condition.Spec.Conditions, operatorsv2.Upgradeable)
	if is == nil || string(is.Status) != status {
		return fmt.Errorf("the condition is %+v", is)
	}
	return nil
}

// waits tells whether OLM holds the newer version because of the condition.
func (w *world) waits(t *testing.T, namespace string) error {
	csv := &operatorsv1alpha1.ClusterServiceVersion{}
	if err := w.get(t, namespace, packageName+".v"+newer, csv); err != nil {
		return fmt.Errorf("%w; %s", err, w.subscriptionState(t, namespace))
	}
	if csv.Status.Phase != operatorsv1alpha1.CSVPhasePending || csv.Status.Reason != operatorsv1alpha1.CSVReasonOperatorConditionNotUpgradeable {
		return fmt.Errorf("the CSV is %s: %s: %s", csv.Status.Phase, csv.Status.Reason, csv.Status.Message)
	}
	return nil
}

func (w *world) managerImage(t *testing.T, namespace string) string {
	t.Helper()
	d := &appsv1.Deployment{}
	stage.Must(t, w.get(t, namespace, manager, d))
	return d.Spec.Template.Spec.Containers[0].Image
}

// checkUpgrade: the CRD has the new field, and what users made is as it was.
func (w *world) checkUpgrade(t *testing.T, namespace string, before *corev1.ConfigMap) {
	t.Helper()
	crd := &apiextensionsv1.CustomResourceDefinition{}
	stage.Must(t, w.get(t, "", "podconfigmapconfigs.podconfig.example.com", crd))
	if _, ok := crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"].Properties[packaged.LaterField]; !ok {
		t.Error("the CRD lacks the new field")
	}
	stage.Await(t, "the sample is served by the newer version", func() error { return w.ready(t, namespace) })
	cm := &corev1.ConfigMap{}
	stage.Must(t, w.get(t, namespace, before.Name, cm))
	if cm.UID != before.UID || cm.ResourceVersion != before.ResourceVersion {
		t.Errorf("the upgrade touched the ConfigMap: %s/%s, was %s/%s", cm.UID, cm.ResourceVersion, before.UID, before.ResourceVersion)
	}
}
