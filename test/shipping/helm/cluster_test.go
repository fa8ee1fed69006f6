// SPDX-License-Identifier: Apache-2.0

package helm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/processnode"
)

const (
	release  = "podconfigmap-controller"
	manager  = "podconfigmap-controller-controller-manager"
	agent    = "podconfigmap-controller-agent"
	crd      = "podconfigmapconfigs.podconfig.example.com"
	newField = "configMapDataTemplate"
	// lastVersion is that of the chart before this one.
	lastVersion = "0.0.1"
	// patience is many times what anything here takes on a quiet machine.
	patience = 3 * time.Minute
)

var (
	cluster *harness.Cluster
	node    *processnode.Node
	// still are the namespaces whose pods are not started.
	still sync.Map
)

func TestMain(m *testing.M) {
	code := 1
	programs, err := os.MkdirTemp("", "programs-")
	if err == nil {
		if code, err = runOn(m, programs); err != nil {
			code = 1
		}
		err = errors.Join(err, os.RemoveAll(programs))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// runOn runs the tests with a cluster whose node has the operator's image in both
// versions. Node agents are not started: they would change this machine's kernel.
func runOn(m *testing.M, programs string) (code int, err error) {
	operator, err := processnode.BuildProgram(programs, ".", version)
	if err != nil {
		return 1, err
	}
	if cluster, err = harness.StartBareCluster(context.Background(), controlplane.Options{ControllerManager: true, Progress: os.Stderr}); err != nil {
		return 1, err
	}
	images := map[string]processnode.Image{}
	for _, tag := range []string{version, lastVersion} {
		images["ghcr.io/podconfigmap/podconfigmap-controller:v"+tag] = processnode.Image{
			Program: operator, Path: "/podconfigmap-controller", Env: processnode.Addresses}
	}
	node, err = processnode.Start(context.Background(), cluster.Client, processnode.Options{
		Name: "node-1", Config: cluster.Config(), Images: images,
		Hold: func(p *corev1.Pod) bool {
			_, held := still.Load(p.Namespace)
			return held || p.Labels["app.kubernetes.io/component"] == "agent"
		},
	})
	if err == nil {
		code = m.Run()
		err = node.Stop()
	}
	return code, errors.Join(err, cluster.Stop())
}

// installation is a release in a namespace of its own.
type installation struct {
	*testing.T
	helm      *Helm
	chart     string
	namespace string
}

// installationOf begins without a release.
func installationOf(t *testing.T, name, namespace string) *installation {
	t.Helper()
	h, err := New(name, t.TempDir(), cluster.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	chart, err := Chart()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the pods' logs: %v", node.Logs(namespace))
		}
	})
	return &installation{T: t, helm: h, chart: chart, namespace: namespace}
}

// run runs Helm in the namespace; waiting commands get the patience of tests.
func (i *installation) run(args ...string) string {
	i.Helper()
	out, err := i.helm.Run(i.Context(), append(args, "--namespace", i.namespace)...)
	if err != nil {
		i.Fatal(err)
	}
	return out
}

// deploy is an install or upgrade that waits until the managers are ready.
func (i *installation) deploy(command, chart string, values ...string) {
	i.Helper()
	args := append([]string{command, release, chart, "--wait", "--timeout", patience.String()}, values...)
	if command == "install" {
		args = append(args, "--create-namespace")
	} else {
		args = append(args, "--reset-values")
	}
	i.run(args...)
}

func (i *installation) await(what string, yes func() bool) {
	i.Helper()
	for end := time.Now().Add(patience); !yes(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			i.Fatalf("waiting until %s: not within %s", what, patience)
		}
	}
}

// there tells whether an object is, and reads it.
func (i *installation) there(namespace, name string, o client.Object) bool {
	i.Helper()
	err := cluster.Client.Get(i.Context(), client.ObjectKey{Namespace: namespace, Name: name}, o)
	if err != nil && !apierrors.IsNotFound(err) {
		i.Fatal(err)
	}
	return err == nil
}

func (i *installation) create(objects ...client.Object) {
	i.Helper()
	for _, o := range objects {
		if err := cluster.Client.Create(i.Context(), o); err != nil {
			i.Fatal(err)
		}
	}
}

// previous is a copy of the chart as an older version of it: with another image,
// and a CRD without a field.
func previous(t *testing.T, chart string) string {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "podconfigmap-controller")
	if err := os.CopyFS(folder, os.DirFS(chart)); err != nil {
		t.Fatal(err)
	}
	edit := func(file string, change func(string) string) {
		path := filepath.Join(folder, file)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		changed := change(string(text))
		if changed == string(text) {
			t.Fatalf("%s is as it was", file)
		}
		if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	edit("Chart.yaml", func(s string) string { return strings.ReplaceAll(s, version, lastVersion) })
	edit("templates/customresourcedefinition-podconfigmapconfigs.yaml", withoutField)
	return folder
}

// withoutField takes a field, and all that is indented below it, out of a schema.
func withoutField(text string) string {
	var kept []string
	inside := 0
	for line := range strings.Lines(text) {
		indent := len(line) - len(strings.TrimLeft(line, " "))
		if inside > 0 && indent > inside {
			continue
		}
		inside = 0
		if strings.TrimSpace(line) == newField+":" {
			inside = indent
			continue
		}
		kept = append(kept, line)
	}
	return strings.Join(kept, "")
}

// fields are those of spec in the CRD that the cluster has.
func (i *installation) fields() []string {
	i.Helper()
	object := &apiextensionsv1.CustomResourceDefinition{}
	if !i.there("", crd, object) {
		i.Fatal("the CRD is not there")
	}
	var all []string
	for name := range object.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"].Properties {
		all = append(all, name)
	}
	return all
}

func (i *installation) hasField(want bool) {
	i.Helper()
	if got := slices.Contains(i.fields(), newField); got != want {
		i.Errorf("the CRD has %s: %t", newField, got)
	}
}

// image is that of the Deployment's pods.
func (i *installation) image(want string) {
	i.Helper()
	deployment := &appsv1.Deployment{}
	if !i.there(i.namespace, manager, deployment) {
		i.Fatal("the Deployment is not there")
	}
	if got := deployment.Spec.Template.Spec.Containers[0].Image; got != "ghcr.io/podconfigmap/podconfigmap-controller:v"+want {
		i.Errorf("the image is %s, not %s", got, want)
	}
}

// works has the managers do their work: a pod's label appears in its ConfigMap.
func (i *installation) works(namespace, pod, label string) *corev1.ConfigMap {
	i.Helper()
	patch := client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"metadata":{"labels":{"colour":%q}}}`, label))
	if err := cluster.Client.Patch(i.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: pod}}, patch); err != nil {
		i.Fatal(err)
	}
	configMap := &corev1.ConfigMap{}
	i.await("the ConfigMap of "+pod+" says "+label, func() bool {
		return i.there(namespace, "pod-"+pod+"-from-plants-cfg", configMap) && configMap.Data["label_colour"] == label
	})
	return configMap
}

// garden makes a namespace with a config and a pod.
func (i *installation) garden(name string) {
	i.Helper()
	meta := metav1.ObjectMeta{Namespace: name, Name: "rose"}
	i.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	i.await("the namespace has a ServiceAccount", func() bool { return i.there(name, "default", &corev1.ServiceAccount{}) })
	i.create(&corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}})
}

func (i *installation) config(namespace string) {
	i.Helper()
	config := &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "plants"}}
	config.Spec.LabelsToInclude = []v1alpha1.MetadataKey{"colour"}
	i.create(config)
}

// TestLife goes through all that a release goes through: installed by one Helm,
// and from its first upgrade on in the hands of the same, or of another.
func TestLife(t *testing.T) {
	for _, hands := range lives {
		t.Run(hands[0]+" then "+hands[1], func(t *testing.T) {
			life(installationOf(t, hands[0], "system-"+hands[0]+"-"+hands[1]), hands[1])
		})
	}
}

var lives = [][2]string{{"helm", "helm"}, {"helm3", "helm3"}, {"helm3", "helm"}}

func life(i *installation, next string) {
	garden := "garden-" + i.namespace
	older := previous(i.T, i.chart)
	i.garden(garden)

	i.Log("install")
	i.deploy("install", older)
	i.hasField(false)
	i.image(lastVersion)
	i.config(garden)
	before := i.works(garden, "rose", "red")

	i.Log("upgrade, with a change of the CRD")
	if i.helm.Name != next {
		h, err := New(next, i.TempDir(), cluster.Kubeconfig())
		if err != nil {
			i.Fatal(err)
		}
		i.helm = h
	}
	i.deploy("upgrade", i.chart)
	i.hasField(true)
	i.image(version)
	i.uses(garden)
	i.works(garden, "rose", "white")

	i.Log("the chart's test")
	if out := i.run("test", release, "--timeout", patience.String()); !strings.Contains(out, "Phase:") || !strings.Contains(out, "Succeeded") {
		i.Errorf("helm test: %s", out)
	}

	i.flag()

	i.Log("rollback to the first revision")
	i.run("rollback", release, "1", "--wait", "--timeout", patience.String())
	i.hasField(false)
	i.image(lastVersion)
	i.works(garden, "rose", "pink")

	i.Log("uninstall, with the flag on")
	i.deploy("upgrade", i.chart, "--set", "ebpf.enabled=true")
	i.await("the agents are deployed", func() bool { return i.there(i.namespace, agent, &appsv1.DaemonSet{}) })
	i.run("uninstall", release, "--wait", "--timeout", patience.String())
	i.gone()
	after := &corev1.ConfigMap{}
	if !i.there(garden, before.Name, after) || after.UID != before.UID {
		i.Error("the ConfigMap did not stay")
	}
	if !i.there(garden, "plants", &v1alpha1.PodConfigMapConfig{}) {
		i.Error("the config did not stay")
	}

	i.Log("install again")
	i.deploy("install", i.chart)
	i.hasField(true)
	if again := i.works(garden, "rose", "black"); again.UID != before.UID {
		i.Error("the ConfigMap was made anew")
	}
	i.leave(garden)
}

// uses writes the field that the upgrade brought; before, the cluster dropped it.
func (i *installation) uses(garden string) {
	i.Helper()
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"configMapDataTemplate":{"who":"{{ .podName }}"}}}`))
	if err := cluster.Client.Patch(i.Context(), &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: garden, Name: "plants"}}, patch); err != nil {
		i.Fatal(err)
	}
	configMap := &corev1.ConfigMap{}
	i.await("the new field has an effect", func() bool {
		return i.there(garden, "pod-rose-from-plants-cfg", configMap) && configMap.Data["who"] == "rose"
	})
}

// flag turns eBPF on and off.
func (i *installation) flag() {
	i.Helper()
	i.Log("ebpf.enabled")
	set := &appsv1.DaemonSet{}
	if i.there(i.namespace, agent, set) {
		i.Error("there are agents with the flag off")
	}
	i.deploy("upgrade", i.chart, "--set", "ebpf.enabled=true", "--set-json", `ebpf.agent={"nodeSelector":{"pool":"apps"},"tolerations":[]}`)
	i.await("the agents are deployed", func() bool { return i.there(i.namespace, agent, set) })
	if owners := set.OwnerReferences; len(owners) != 1 || owners[0].Kind != "Deployment" || owners[0].Name != manager {
		i.Errorf("the DaemonSet's owners are %+v", owners)
	}
	spec := &set.Spec.Template.Spec
	if spec.NodeSelector["pool"] != "apps" || len(spec.Tolerations) != 0 || spec.Containers[0].Image != "ghcr.io/podconfigmap/podconfigmap-controller:v"+version {
		i.Errorf("the agents are %+v", spec)
	}
	if !i.there(i.namespace, spec.ServiceAccountName, &corev1.ServiceAccount{}) {
		i.Errorf("the agents' ServiceAccount %q is not there", spec.ServiceAccountName)
	}
	i.deploy("upgrade", i.chart)
	i.await("the agents are gone", func() bool { return !i.there(i.namespace, agent, set) })
}

// gone fails unless nothing but what is documented is left of the release.
func (i *installation) gone() {
	i.Helper()
	i.await("the agents are gone", func() bool { return !i.there(i.namespace, agent, &appsv1.DaemonSet{}) })
	i.await("the managers are gone", func() bool {
		pods := &corev1.PodList{}
		if err := cluster.Client.List(i.Context(), pods, client.InNamespace(i.namespace)); err != nil {
			i.Fatal(err)
		}
		return len(pods.Items) == 0
	})
	for _, list := range []client.ObjectList{
		&appsv1.DeploymentList{}, &appsv1.DaemonSetList{}, &corev1.ServiceList{}, &corev1.ServiceAccountList{}, &corev1.SecretList{},
		&rbacv1.RoleList{}, &rbacv1.RoleBindingList{}, &rbacv1.ClusterRoleList{}, &rbacv1.ClusterRoleBindingList{},
	} {
		options := []client.ListOption{client.MatchingLabels{"app.kubernetes.io/name": "podconfigmap-controller"}}
		if err := cluster.Client.List(i.Context(), list, options...); err != nil {
			i.Fatal(err)
		}
		for _, o := range items(i.T, list) {
			i.Errorf("left over: %T %s/%s", o, o.GetNamespace(), o.GetName())
		}
	}
	for _, name := range []string{crd, "ebpfnodes.podconfig.example.com"} {
		if !i.there("", name, &apiextensionsv1.CustomResourceDefinition{}) {
			i.Errorf("the CRD %s did not stay", name)
		}
	}
}

func items(t *testing.T, list client.ObjectList) []client.Object {
	t.Helper()
	all, err := meta.ExtractList(list)
	if err != nil {
		t.Fatal(err)
	}
	var objects []client.Object
	for _, one := range all {
		objects = append(objects, one.(client.Object))
	}
	return objects
}

// leave removes everything, CRDs too, so that the next test finds none of it.
func (i *installation) leave(gardens ...string) {
	i.Helper()
	i.run("uninstall", release, "--wait", "--timeout", patience.String())
	i.gone()
	for _, garden := range gardens {
		if err := cluster.Client.Delete(i.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: garden}}); err != nil {
			i.Fatal(err)
		}
		i.await("namespace "+garden+" is gone", func() bool { return !i.there("", garden, &corev1.Namespace{}) })
	}
	for _, name := range []string{crd, "ebpfnodes.podconfig.example.com"} {
		object := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if err := cluster.Client.Delete(i.Context(), object); err != nil {
			i.Fatal(err)
		}
		i.await(name+" is gone", func() bool { return !i.there("", name, object) })
	}
}

// CRDs that somebody else has installed are taken over, where that is asked for.
func TestCRDsAreTakenOver(t *testing.T) {
	for _, name := range programs {
		t.Run(name, func(t *testing.T) {
			i := installationOf(t, name, "taken-"+name)
			if err := errors.Join(harness.InstallCRD(t.Context(), cluster.Client), harness.InstallNodeCRD(t.Context(), cluster.Client)); err != nil {
				t.Fatal(err)
			}
			args := []string{"install", release, i.chart, "--create-namespace", "--namespace", i.namespace}
			if _, err := i.helm.Run(t.Context(), args...); err == nil || !strings.Contains(err.Error(), "ownership") {
				t.Errorf("without being asked: %v", err)
			}
			i.run(append(args[:4], "--take-ownership")...)
			i.leave()
		})
	}
}

// Two installations, one by each Helm, with the rights on their own namespaces only.
func TestWatchedNamespaces(t *testing.T) {
	first, second := installationOf(t, "helm", "first"), installationOf(t, "helm3", "second")
	for _, garden := range []string{"front", "back", "wild"} {
		first.garden(garden)
	}
	first.deploy("install", first.chart, "--set", "watchNamespaces={front}")
	second.deploy("install", second.chart, "--set", "watchNamespaces={back},fullnameOverride=second,crds.enabled=false")
	for _, garden := range []string{"front", "back", "wild"} {
		first.config(garden)
	}
	first.works("front", "rose", "red")
	second.works("back", "rose", "red")
	if first.there("wild", "pod-rose-from-plants-cfg", &corev1.ConfigMap{}) {
		t.Error("a namespace that nobody watches is served")
	}
	for _, tc := range []struct {
		account, verb, resource, namespace string
		want                               bool
	}{
		{"first:" + manager, "list", "pods", "front", true},
		{"first:" + manager, "patch", "configmaps", "front", true},
		{"first:" + manager, "list", "pods", "back", false},
		{"first:" + manager, "list", "configmaps", "", false},
		{"second:second-controller-manager", "list", "pods", "back", true},
		{"second:second-controller-manager", "list", "pods", "front", false},
		{"first:" + agent, "list", "pods", "front", true},
		{"first:" + agent, "list", "pods", "", false},
		{"first:" + agent, "get", "nodes", "", true},
		{"second:" + agent, "watch", "pods", "back", true},
	} {
		if got := allowed(t, tc.account, tc.verb, tc.resource, tc.namespace); got != tc.want {
			t.Errorf("%s may %s %s in %q: %t", tc.account, tc.verb, tc.resource, tc.namespace, got)
		}
	}
	second.run("uninstall", release, "--wait", "--timeout", patience.String())
	first.leave("front", "back", "wild")
}

// allowed asks the API server.
func allowed(t *testing.T, account, verb, resource, namespace string) bool {
	t.Helper()
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:               "system:serviceaccount:" + account,
		ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: namespace, Verb: verb, Resource: resource},
	}}
	if err := cluster.Client.Create(t.Context(), review); err != nil {
		t.Fatal(err)
	}
	return review.Status.Allowed
}

// otherwise are the values that Helm 3, which works out patches itself, brings to the
// cluster in another way than Helm 4, which applies objects on the server: items that
// come into lists and go again, maps in maps, one field in another's place, objects of
// kinds that only a CRD knows, and objects that go. Any other value is one field of an
// object that is there, as some of these are, too.
var otherwise = []string{
	"affinity", "crds.enabled", "extraEnv", "fullnameOverride", "image.pullSecrets", "leaderElection.enabled", "networkPolicy.egress",
	"networkPolicy.metricsFrom", "podDisruptionBudget.minAvailable", "podLabels", "prometheusRule.labels", "resources",
	"serviceAccount.create", "serviceMonitor.interval", "serviceMonitor.labels", "tolerations", "watchNamespaces",
}

// Every value of the chart changes what it should in the cluster, and goes back.
func TestEveryValueInTheCluster(t *testing.T) {
	monitoring(t)
	for name, paths := range map[string][]string{"helm": slices.Sorted(maps.Keys(changes)), "helm3": otherwise} {
		t.Run(name, func(t *testing.T) {
			i := installationOf(t, name, "values-"+name)
			// These managers have nothing to do, and would only be started anew each time.
			still.Store(i.namespace, true)
			i.run("install", release, i.chart, "--create-namespace")
			before := i.specs()
			for _, path := range paths {
				t.Run(path, func(t *testing.T) {
					i := *i
					i.T = t
					i.shows(path, changes[path])
				})
			}
			i.monitors()
			i.run("upgrade", release, i.chart, "--reset-values")
			if after := i.specs(); !maps.Equal(before, after) {
				t.Errorf("without any value again\n%v\nand at first\n%v", after, before)
			}
			for _, name := range []string{monitor, rules, dashboard, budget, policy, priority} {
				if i.read(name) != nil {
					t.Errorf("%s is still there", name)
				}
			}
			i.leave()
		})
	}
}

// shows fails unless one value shows in the cluster as it should.
func (i *installation) shows(path string, c change) {
	i.Helper()
	if path == "priorityClass.value" {
		// The cluster lets it be another only for a PriorityClass that is made anew.
		i.run("upgrade", release, i.chart, "--reset-values")
	}
	i.run(append([]string{"upgrade", release, i.chart, "--reset-values"}, set(c.all(path, c.to))...)...)
	object := i.read(c.object)
	switch {
	case path == "crds.enabled":
		if object == nil {
			i.Error("the CRD did not stay")
		}
	case c.at == "":
		if object != nil {
			i.Errorf("%s is still there", c.object)
		}
	case object == nil:
		i.Errorf("there is no %s", c.object)
	default:
		if wrong := differs(object.Object, c.at, c.want); wrong != "" {
			i.Errorf("%s: %s", c.object, wrong)
		}
	}
}

// specs are what the objects of the chart without any value are in the cluster, as
// JSON: a Deployment's replicas, a role's rules and so on.
func (i *installation) specs() map[string]string {
	i.Helper()
	defaults, err := i.helm.Render(i.Context(), i.chart, "--no-hooks")
	if err != nil {
		i.Fatal(err)
	}
	specs := map[string]string{}
	for _, want := range defaults {
		object := i.read(id(want))
		if object == nil {
			i.Errorf("without any value there is no %s", id(want))
			continue
		}
		for _, of := range []string{"metadata", "status"} {
			delete(object.Object, of)
		}
		// A Service that went and came again has another address.
		for _, of := range []string{"clusterIP", "clusterIPs"} {
			unstructured.RemoveNestedField(object.Object, "spec", of)
		}
		text, err := object.MarshalJSON()
		if err != nil {
			i.Fatal(err)
		}
		specs[id(want)] = string(text)
	}
	return specs
}

// monitors fails unless the Prometheus operator's CRDs take its objects whole, and
// refuse what they do not know.
func (i *installation) monitors() {
	i.Helper()
	on := []string{"--set", "serviceMonitor.enabled=true,prometheusRule.enabled=true"}
	i.run(append([]string{"upgrade", release, i.chart, "--reset-values"}, on...)...)
	rendered, err := i.helm.Render(i.Context(), i.chart, append(on, "--no-hooks")...)
	if err != nil {
		i.Fatal(err)
	}
	compared := 0
	for _, want := range rendered {
		if kinds[want.GetKind()].Group != monitoringGroup {
			continue
		}
		compared++
		if got := i.read(id(want)); got == nil {
			i.Errorf("there is no %s", id(want))
		} else if lost := lacks(got.Object["spec"], want.Object["spec"], "spec"); lost != "" {
			i.Errorf("%s in the cluster is another at %s", id(want), lost)
		}
	}
	if compared != 3 {
		i.Errorf("%d objects were compared, want 3", compared)
	}
	_, err = i.helm.Run(i.Context(), append([]string{"upgrade", release, i.chart, "--namespace", i.namespace, "--reset-values",
		"--skip-schema-validation", "--set", "serviceMonitor.interval=soon"}, on...)...)
	if err == nil || !strings.Contains(err.Error(), "interval") {
		i.Errorf("a ServiceMonitor with a bad interval: %v", err)
	}
}

const monitoringGroup = "monitoring.coreos.com"

// lacks is the first path at which an object has not what is wanted; it may have more,
// as a CRD has defaults.
func lacks(got, want any, path string) string {
	switch want := want.(type) {
	case map[string]any:
		has, _ := got.(map[string]any)
		for key := range want {
			if lost := lacks(has[key], want[key], path+"."+key); lost != "" {
				return lost
			}
		}
		return ""
	case []any:
		has, _ := got.([]any)
		if len(has) != len(want) {
			return path
		}
		for i := range want {
			if lost := lacks(has[i], want[i], fmt.Sprintf("%s[%d]", path, i)); lost != "" {
				return lost
			}
		}
		return ""
	}
	if !reflect.DeepEqual(got, want) {
		return path
	}
	return ""
}

var kinds = map[string]schema.GroupVersion{
	"ServiceMonitor": {Group: monitoringGroup, Version: "v1"}, "PrometheusRule": {Group: monitoringGroup, Version: "v1"},
	"PodDisruptionBudget": {Group: "policy", Version: "v1"}, "NetworkPolicy": {Group: "networking.k8s.io", Version: "v1"},
	"PriorityClass": {Group: "scheduling.k8s.io", Version: "v1"}, "Deployment": {Group: "apps", Version: "v1"},
	"CustomResourceDefinition": {Group: "apiextensions.k8s.io", Version: "v1"},
	"ClusterRole":              {Group: rbacv1.GroupName, Version: "v1"}, "ClusterRoleBinding": {Group: rbacv1.GroupName, Version: "v1"},
	"Role": {Group: rbacv1.GroupName, Version: "v1"}, "RoleBinding": {Group: rbacv1.GroupName, Version: "v1"},
}

// read gets an object by its kind and name; nil where there is none.
func (i *installation) read(of string) *unstructured.Unstructured {
	i.Helper()
	kind, name, _ := strings.Cut(of, " ")
	version, known := kinds[kind]
	if !known {
		version = corev1.SchemeGroupVersion
	}
	o := &unstructured.Unstructured{}
	o.SetGroupVersionKind(version.WithKind(kind))
	namespace := i.namespace
	if regexp.MustCompile("^(Cluster|Custom|Priority)").MatchString(kind) {
		namespace = ""
	}
	if !i.there(namespace, name, o) {
		return nil
	}
	return o
}

// monitoring installs the CRDs of the Prometheus operator, as it ships them.
func monitoring(t *testing.T) {
	t.Helper()
	root, err := harness.Root()
	if err != nil {
		t.Fatal(err)
	}
	for _, plural := range []string{"servicemonitors", "prometheusrules"} {
		text, err := os.ReadFile(filepath.Join(root, "build/prometheus-operator", monitoringGroup+"_"+plural+".yaml"))
		if err != nil {
			t.Fatalf("%v; `make build/prometheus-operator` brings them", err)
		}
		object := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.UnmarshalStrict(text, object); err != nil {
			t.Fatal(err)
		}
		if err := cluster.Client.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
		end := time.Now().Add(patience)
		for served := false; !served; time.Sleep(100 * time.Millisecond) {
			if err := cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(object), object); err != nil || time.Now().After(end) {
				t.Fatalf("waiting until %s are served: %v", plural, err)
			}
			served = slices.ContainsFunc(object.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
				return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
			})
		}
	}
}

// The chart's test fails where nobody answers, and leaves its pod to be looked at.
func TestTheChartsTestFails(t *testing.T) {
	for _, name := range programs {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it asks for a minute
			i := installationOf(t, name, "mute-"+name)
			i.run("install", release, i.chart, "--create-namespace", "--set", "replicas=0,crds.enabled=false,fullnameOverride=mute-"+name)
			out, err := i.helm.Run(t.Context(), "test", release, "--namespace", i.namespace, "--logs", "--timeout", patience.String())
			if err == nil || !strings.Contains(out, "no pod that is ready stands behind port 8080 of mute-"+name+"-metrics") {
				t.Errorf("helm test: %v\n%s", err, out)
			}
			tested := &corev1.Pod{}
			if !i.there(i.namespace, "mute-"+name+"-test", tested) || tested.Status.Phase != corev1.PodFailed {
				t.Errorf("the test's pod is %q", tested.Status.Phase)
			}
			i.run("uninstall", release, "--wait", "--timeout", patience.String())
		})
	}
}
