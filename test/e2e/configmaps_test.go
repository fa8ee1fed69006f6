// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

const shop = "shop"

// TestConfigMaps installs the chart with its defaults, and has the ConfigMaps follow
// all that happens to pods in a cluster.
func TestConfigMaps(t *testing.T) {
	p := &point{T: t, world: shared}
	p.step("install by Helm", func(p *point) { p.deploy() })
	p.step("helm test", (*point).helmTest)
	p.step("workloads of all kinds", (*point).openShop)
	p.step("scaling", (*point).scale)
	p.step("rolling update", (*point).roll)
	p.step("restart of a container", (*point).restartContainer)
	p.step("rolling restart", (*point).restartAll)
	p.step("drain of a node", (*point).drain)
	p.step("eviction", (*point).evict)
	p.step("re-creation under the same name", (*point).recreate)
	p.step("garbage collection, and a config deleted while no manager runs", (*point).collect)
	p.step("deletion of a pod and of a config", (*point).remove)
	p.step("quiet logs at rest", (*point).quietLogs)
	p.step("deletion of the namespace", (*point).closeShop)
	p.step("quiet logs after it", (*point).quietLogs)
}

// helmTest asks for the metrics by the Service's name.
func (p *point) helmTest() {
	_, err := p.helm.Run(p.Context(), "test", release, "--namespace", system, "--timeout", patience.String())
	p.must(err)
}

func selector(app string) (map[string]string, *metav1.LabelSelector) {
	labels := map[string]string{"app": app}
	return labels, &metav1.LabelSelector{MatchLabels: labels}
}

func template(app string) corev1.PodTemplateSpec {
	labels, _ := selector(app)
	labels["version"] = "1"
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: map[string]string{"example.com/owner": "team-" + app}},
		Spec:       podSpec(container("c", "sleep")),
	}
}

// openShop makes workloads of all kinds, and two configs.
func (p *point) openShop() {
	p.namespace(shop)
	three, two := int32(3), int32(2)
	_, web := selector("web")
	_, api := selector("api")
	_, db := selector("db")
	_, log := selector("log")
	once := template("once")
	once.Spec.RestartPolicy = corev1.RestartPolicyNever
	once.Spec.Containers = []corev1.Container{container("c", "exit", "0")}
	all := &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: shop, Name: "all"}}
	all.Spec.LabelsToInclude = []v1alpha1.MetadataKey{"app", "version"}
	some := &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: shop, Name: "web"}}
	some.Spec.PodSelector = &v1alpha1.PodSelector{MatchLabels: map[string]string{"app": "web"}}
	some.Spec.AnnotationsToInclude = []v1alpha1.MetadataKey{"example.com/owner"}
	some.Spec.ConfigMapDataTemplate = map[string]string{"where": "{{ .podName }} on {{ .nodeName }}"}
	named := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: shop, Name: name} }
	p.create(all, some,
		&appsv1.Deployment{ObjectMeta: named("web"), Spec: appsv1.DeploymentSpec{Replicas: &three, Selector: web, Template: template("web")}},
		&appsv1.Deployment{ObjectMeta: named("api"), Spec: appsv1.DeploymentSpec{Replicas: &two, Selector: api, Template: template("api")}},
		&appsv1.StatefulSet{ObjectMeta: named("db"), Spec: appsv1.StatefulSetSpec{Replicas: &two, Selector: db, ServiceName: "db", Template: template("db")}},
		&appsv1.DaemonSet{ObjectMeta: named("log"), Spec: appsv1.DaemonSetSpec{Selector: log, Template: template("log")}},
		&batchv1.Job{ObjectMeta: named("once"), Spec: batchv1.JobSpec{Template: once}},
	)
	p.converge(map[string]int{"web": 3, "api": 2, "db": 2, "log": *nodes, "once": 1})
}

// converge waits until there are so many pods of each app, all of them up or done, and
// just the ConfigMaps that they are promised.
func (p *point) converge(want map[string]int) {
	p.Helper()
	p.await("pods and ConfigMaps are as they should be", func() error {
		for app, n := range want {
			if err := p.settled(app, n); err != nil {
				return err
			}
		}
		return p.promised(shop)
	})
}

func (p *point) settled(app string, n int) error {
	pods := p.pods(shop, client.MatchingLabels{"app": app})
	if len(pods) != n {
		return fmt.Errorf("%d pods of %s, want %d", len(pods), app, n)
	}
	for i := range pods {
		if pods[i].Status.Phase == corev1.PodSucceeded {
			continue
		}
		if err := ready(&pods[i]); err != nil {
			return err
		}
	}
	return nil
}

// promised is nil when the namespace has just the ConfigMaps of docs/podconfigmapconfig.md:
// one of each pod and config that match, with the pod's own data; and the configs say so.
func (p *point) promised(namespace string) error {
	configs := &v1alpha1.PodConfigMapConfigList{}
	held := &corev1.ConfigMapList{}
	if err := errors.Join(p.client.List(p.Context(), configs, client.InNamespace(namespace)),
		p.client.List(p.Context(), held, client.InNamespace(namespace), client.HasLabels{"podconfig.example.com/generated-by-pcmc"})); err != nil {
		return err
	}
	left := map[string]*corev1.ConfigMap{}
	for i := range held.Items {
		left[held.Items[i].Name] = &held.Items[i]
	}
	pods := p.pods(namespace, nil)
	for i := range configs.Items {
		config, matched := &configs.Items[i], 0
		for j := range pods {
			pod := &pods[j]
			if !matches(config, pod) {
				continue
			}
			matched++
			name := "pod-" + pod.Name + "-from-" + config.Name + "-cfg"
			if err := keeps(left[name], pod, config); err != nil {
				return fmt.Errorf("ConfigMap %s: %w", name, err)
			}
			delete(left, name)
		}
		if err := configReady(config); err != nil {
			return err
		}
		if s := config.Status; int(s.MatchedPods) != matched || int(s.SyncedConfigMaps) != matched || s.FailedConfigMaps != 0 {
			return fmt.Errorf("config %s: %d pods match; its status is %d matched, %d synced, %d failed", config.Name, matched, s.MatchedPods, s.SyncedConfigMaps, s.FailedConfigMaps)
		}
	}
	for name := range left {
		return fmt.Errorf("ConfigMap %s belongs to no pod and config", name)
	}
	return p.exactly(namespace)
}

// exactly is nil when the ConfigMaps of a namespace have just the data, labels and owners
// that the operator's own code says, and the status of its configs tells so.
func (p *point) exactly(namespace string) error {
	state, err := (&harness.Cluster{Client: p.client}).ReadState(p.Context(), namespace)
	if err != nil {
		return err
	}
	if found := append(state.Differences(), state.StatusDifferences()...); len(found) > 0 {
		return fmt.Errorf("%d differences: %s", len(found), strings.Join(found[:min(len(found), 3)], "; "))
	}
	return nil
}

func matches(config *v1alpha1.PodConfigMapConfig, pod *corev1.Pod) bool {
	if config.Spec.PodSelector == nil {
		return true
	}
	for key, value := range config.Spec.PodSelector.MatchLabels {
		if pod.Labels[key] != value {
			return false
		}
	}
	return true
}

// keeps is nil when a ConfigMap is the pod's, and up to date.
func keeps(c *corev1.ConfigMap, pod *corev1.Pod, config *v1alpha1.PodConfigMapConfig) error {
	if c == nil {
		return errors.New("it is not there")
	}
	if owners := c.OwnerReferences; len(owners) != 1 || owners[0].UID != pod.UID || c.Labels["podconfig.example.com/pod-uid"] != string(pod.UID) {
		return fmt.Errorf("owners %+v, labels %v; the pod is %s", owners, c.Labels, pod.UID)
	}
	want := map[string]string{"podName": pod.Name, "namespace": pod.Namespace, "nodeName": pod.Spec.NodeName, "phase": string(pod.Status.Phase), "pcmcName": config.Name}
	for _, key := range config.Spec.LabelsToInclude {
		want["label_"+string(key)] = pod.Labels[string(key)]
	}
	for _, key := range config.Spec.AnnotationsToInclude {
		want["annotation_"+strings.ReplaceAll(string(key), "/", "_")] = pod.Annotations[string(key)]
	}
	if len(config.Spec.ConfigMapDataTemplate) > 0 {
		want["where"] = pod.Name + " on " + pod.Spec.NodeName
	}
	for key, value := range want {
		if c.Data[key] != value {
			return fmt.Errorf("%s is %q, want %q", key, c.Data[key], value)
		}
	}
	return nil
}

func (p *point) deployment() *appsv1.Deployment {
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: shop, Name: "web"}}
}

func (p *point) scale() {
	for _, n := range []int{6, 2} {
		p.patch(p.deployment(), fmt.Sprintf(`{"spec":{"replicas":%d}}`, n))
		p.converge(map[string]int{"web": n})
	}
}

func (p *point) roll() {
	p.patch(p.deployment(), `{"spec":{"template":{"metadata":{"labels":{"version":"2"},"annotations":{"example.com/owner":"team-two"}}}}}`)
	p.await("the Deployment is rolled out", func() error { return p.rolledOut(shop, "web") })
	p.converge(map[string]int{"web": 2})
	for _, pod := range p.pods(shop, client.MatchingLabels{"app": "web"}) {
		c := &corev1.ConfigMap{}
		p.must(p.get(shop, "pod-"+pod.Name+"-from-all-cfg", c))
		if c.Data["label_version"] != "2" {
			p.Errorf("ConfigMap %s has version %q", c.Name, c.Data["label_version"])
		}
	}
}

// restartContainer kills the process of a container, which the kubelet starts again.
func (p *point) restartContainer() {
	pod := p.pods(shop, client.MatchingLabels{"app": "web"})[0]
	before := &corev1.ConfigMap{}
	p.must(p.get(shop, "pod-"+pod.Name+"-from-web-cfg", before))
	p.must(p.Node(pod.Spec.NodeName).KillPod(string(pod.UID)))
	p.await("the container runs again", func() error {
		if err := p.get(shop, pod.Name, &pod); err != nil {
			return err
		}
		if pod.Status.ContainerStatuses[0].RestartCount == 0 {
			return errors.New("it was not restarted yet")
		}
		return ready(&pod)
	})
	p.converge(nil)
	after := &corev1.ConfigMap{}
	p.must(p.get(shop, before.Name, after))
	if after.UID != before.UID {
		p.Error("the ConfigMap was made anew")
	}
}

func (p *point) restartAll() {
	p.patch(p.deployment(), fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":%q}}}}}`, time.Now().Format(time.RFC3339)))
	p.await("the Deployment is rolled out", func() error { return p.rolledOut(shop, "web") })
	p.converge(map[string]int{"web": 2})
}

// drain empties a node as `kubectl drain` does, the operator's pods, too.
func (p *point) drain() {
	name := p.pods(shop, client.MatchingLabels{"app": "db"})[0].Spec.NodeName
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	p.patch(node, `{"spec":{"unschedulable":true}}`)
	p.await("the node is empty", func() error {
		left, all := 0, p.pods("", nil)
		for i := range all {
			pod := &all[i]
			finished := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
			if pod.Spec.NodeName == name && !ownedByDaemonSet(pod) && !finished {
				left++
				p.must(p.evictPod(pod))
			}
		}
		if left > 0 {
			return fmt.Errorf("%d pods are left on %s", left, name)
		}
		return nil
	})
	p.converge(map[string]int{"web": 2, "api": 2, "db": 2, "log": *nodes})
	p.await("the managers are back", func() error { return p.rolledOut(system, manager) })
	p.patch(node, `{"spec":{"unschedulable":null}}`)
}

func ownedByDaemonSet(pod *corev1.Pod) bool {
	owner := metav1.GetControllerOf(pod)
	return owner != nil && owner.Kind == "DaemonSet"
}

// evictPod asks for an eviction; a pod that is gone, or is going, is none of its concern.
func (p *point) evictPod(pod *corev1.Pod) error {
	if pod.DeletionTimestamp != nil {
		return nil
	}
	err := p.client.SubResource("eviction").Create(p.Context(), pod, &policyv1.Eviction{})
	if apierrors.IsNotFound(err) || apierrors.IsTooManyRequests(err) {
		return nil // it is tried again
	}
	return err
}

func (p *point) evict() {
	pod := p.pods(shop, client.MatchingLabels{"app": "web"})[0]
	p.await("the pod is gone", func() error {
		p.must(p.evictPod(&pod))
		return p.gone(shop, pod.Name, &corev1.Pod{})
	})
	p.converge(map[string]int{"web": 2})
}

// recreate has a StatefulSet make a pod again: the name stays, the pod is another one.
func (p *point) recreate() {
	before := &corev1.Pod{}
	p.must(p.get(shop, "db-0", before))
	p.must(p.client.Delete(p.Context(), before))
	p.await("there is another db-0", func() error {
		after := &corev1.Pod{}
		if err := p.get(shop, "db-0", after); err != nil {
			return err
		}
		if after.UID == before.UID {
			return errors.New("it is the same one")
		}
		return nil
	})
	p.converge(map[string]int{"db": 2})
}

// collect leaves the cluster without a manager: the garbage collector takes the
// ConfigMap of a pod that goes, and a manager that comes back what it has missed.
func (p *point) collect() {
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: manager}}
	p.patch(deployment, `{"spec":{"replicas":0}}`)
	p.await("no manager runs", func() error {
		if n := len(p.pods(system, nil)); n > 0 {
			return fmt.Errorf("%d pods are left", n)
		}
		return nil
	})
	pod := p.pods(shop, client.MatchingLabels{"app": "web"})[0]
	name := "pod-" + pod.Name + "-from-all-cfg"
	p.must(p.get(shop, name, &corev1.ConfigMap{}))
	p.must(p.client.Delete(p.Context(), &pod))
	p.await("the garbage collector has taken its ConfigMap", func() error { return p.gone(shop, name, &corev1.ConfigMap{}) })
	p.must(p.client.Delete(p.Context(), &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: shop, Name: "web"}}))
	p.patch(deployment, `{"spec":{"replicas":2}}`)
	p.await("the managers are back", func() error { return p.rolledOut(system, manager) })
	p.converge(map[string]int{"web": 2})
}

func (p *point) remove() {
	meta := metav1.ObjectMeta{Namespace: shop, Name: "single", Labels: map[string]string{"app": "single"}}
	pod := &corev1.Pod{ObjectMeta: meta, Spec: podSpec(container("c", "sleep"))}
	second := &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: shop, Name: "second"}}
	p.create(pod, second)
	p.converge(map[string]int{"single": 1})
	p.must(p.client.Delete(p.Context(), pod))
	p.converge(map[string]int{"single": 0})
	p.must(p.client.Delete(p.Context(), second))
	p.converge(map[string]int{"web": 2, "api": 2, "db": 2, "log": *nodes, "once": 1})
}

func (p *point) closeShop() { p.noNamespace(shop) }
