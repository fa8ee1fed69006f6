// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"
	"time"

	operatorsv1 "github.com/operator-framework/api/pkg/operators/v1"
	operatorsv1alpha1 "github.com/operator-framework/api/pkg/operators/v1alpha1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/packaged"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/registry"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/scorecard"
)

const (
	packageName = "podconfigmap-controller"
	olmSystem   = "olm"
	ownKinds    = "podconfig.example.com"
	scored      = "scored"
)

// crdNames are the operator's CRDs.
var crdNames = []string{"podconfigmapconfigs." + ownKinds, "ebpfnodes." + ownKinds}

// lifecycle is what TestOLM keeps from step to step.
type lifecycle struct {
	version string // of the tree
	bundle  string
	ours    string // image of our scorecard tests
	store   *registry.Registry
	objects []*unstructured.Unstructured // OLM's own
	pods    []*corev1.Pod
	calls   map[string]float64 // that each of them has made
	ledger  *ledger            // of what they tried
	held    objects
}

// TestOLM installs the operator as docs/olm.md says, with the real OLM, whose own
// programs run on the nodes, too. All images but those of the workload are pulled
// from a registry.
func TestOLM(t *testing.T) {
	p := &point{T: t, world: shared}
	o := p.newLifecycle()
	p.step("images of both versions, and of OLM, in a registry", o.fill)
	p.step("no operator and none of its images is there", o.clear)
	p.step("OLM runs on the nodes", o.startOLM)
	p.step("OLM serves the catalog", o.startCatalog)
	p.step("Subscription with EBPF_ENABLED=true", o.subscribe)
	p.step("an agent on every node", func(p *point) { o.awaitAgents(p, o.version) })
	p.namespace(guarded)
	p.step("ConfigMaps, counts and a blocked port for a pod on every node", o.use)
	p.step("operator-sdk scorecard, its pods on these nodes", o.score)
	var b *bustle
	p.step("constant traffic between all nodes", func(p *point) { b = newBustle(p, "tcp", "udp") })
	b.watch = watchCounters(p.world, b.pods()...)
	p.Cleanup(b.watch.stop)
	p.fault(b, "upgrade", o.upgrade)
	p.step("counters are what was sent", b.exact)
	p.step("the traffic ends", func(p *point) { b.end(p, everything) })
	b.watch.stop()
	p.step("quiet logs at rest", (*point).quietLogs)
	p.step("uninstall with the flag on", o.uninstall)
	p.step("what stays is as documented, and goes as documented", o.tidy)
	p.step("OLM goes", o.stopOLM)
	p.noNamespace(guarded)
}

// newLifecycle starts the registry, and gives the client of the world OLM's kinds.
func (p *point) newLifecycle() *lifecycle {
	p.Helper()
	root, err := harness.Root()
	p.must(err)
	o := &lifecycle{bundle: filepath.Join(root, "bundle"), calls: map[string]float64{}, ledger: newLedger()}
	o.version, err = harness.Version()
	p.must(err)
	o.ours, err = scorecard.Ours(o.bundle)
	p.must(err)
	o.store, err = registry.Start(p.Context(), registry.Options{Folder: filepath.Join(p.scratch, "registry"), PlainHTTP: true})
	p.must(err)
	p.Cleanup(func() {
		if err := o.store.Stop(); err != nil {
			p.Error(err)
		}
	})
	end, err := p.Mirror(o.store.Host)
	p.must(err)
	p.Cleanup(func() {
		if err := end(); err != nil {
			p.Error(err)
		}
	})
	scheme := runtime.NewScheme()
	p.must(errors.Join(clientgoscheme.AddToScheme(scheme), apiextensionsv1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme),
		operatorsv1.AddToScheme(scheme), operatorsv1alpha1.AddToScheme(scheme)))
	w := *p.world
	w.client, err = client.New(p.Config(), client.Options{Scheme: scheme})
	p.must(err)
	p.world = &w
	return o
}

// fill makes the images by the targets of a release, and pushes them.
func (o *lifecycle) fill(p *point) {
	root, err := harness.Root()
	p.must(err)
	push := func(from string, images ...string) {
		for _, image := range images {
			p.must(o.store.Push(p.ctx, from, packaged.InRegistry(image)))
		}
	}
	for file, image := range map[string]string{"olm": packaged.UtilImage, "opm": packaged.OPMImage, "scorecard-test": scorecard.Standard} {
		push(filepath.Join(root, "build", "olm", file+".tar"), image)
	}
	push(filepath.Join(root, "build", "cluster", "images", packageName+".tar"), packaged.OperatorImage(o.version))
	one := []string{"IMAGE_PLATFORMS=linux/" + goruntime.GOARCH}
	images, err := packaged.Make(p.ctx, p.scratch, o.version, o.bundle, one, "bundle-image", "catalog-image", "scorecard-image")
	p.must(err)
	push(filepath.Join(images, packageName+"-bundle"), packaged.BundleImage(o.version))
	push(filepath.Join(images, packageName+"-catalog"), packaged.CatalogImage(o.version))
	push(filepath.Join(images, packageName+"-scorecard"), o.ours)
	newer, err := packaged.MakeBundle(p.ctx, p.scratch)
	p.must(err)
	images, err = packaged.Make(p.ctx, p.scratch, packaged.Newer, newer, one, "image", "bundle-image", "catalog-image")
	p.must(err)
	push(filepath.Join(images, packageName), packaged.OperatorImage(packaged.Newer))
	push(filepath.Join(images, packageName+"-bundle"), packaged.BundleImage(packaged.Newer))
	push(filepath.Join(images, packageName+"-catalog"), packaged.CatalogImage(packaged.Newer))
}

// clear removes what other tests have installed, and the operator's image from the
// nodes.
func (o *lifecycle) clear(p *point) {
	_, err := p.helm.Run(p.Context(), "uninstall", release, "--namespace", system, "--ignore-not-found", "--wait", "--timeout", patience.String())
	p.must(err)
	p.await("no agent is left", func() error { return p.gone(system, agents, &appsv1.DaemonSet{}) })
	o.removeKinds(p)
	for _, name := range []string{system, guarded} {
		if err := p.get("", name, &corev1.Namespace{}); err == nil {
			p.noNamespace(name)
		}
	}
	for _, n := range p.Nodes() {
		_, err := n.Run(p.Context(), controlplane.Ctr, "--namespace=k8s.io", "images", "rm", "--sync", packaged.OperatorImage(o.version))
		p.must(err)
	}
}

// removeKinds deletes the operator's CRDs, with all configs and reports.
func (o *lifecycle) removeKinds(p *point) {
	p.Helper()
	for _, name := range crdNames {
		crd := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: name}}
		p.must(client.IgnoreNotFound(p.client.Delete(p.Context(), crd)))
		p.await("CRD "+name+" is gone", func() error { return p.gone("", name, crd) })
	}
}

// startOLM applies OLM's own chart, of the version that its programs have. Left out are
// what serves lists of packages to consoles, and the catalog of the community.
func (o *lifecycle) startOLM(p *point) {
	chart, err := olmChart(p.ctx)
	p.must(err)
	all, err := p.helm.Render(p.Context(), chart, "--include-crds", "--set", "namespace="+olmSystem, "--set", "catalog_namespace="+olmSystem,
		"--set", "olm.image.ref="+packaged.UtilImage, "--set", "catalog.image.ref="+packaged.UtilImage, "--set", "catalog.opmImageArgs=--opmImage="+packaged.OPMImage)
	p.must(err)
	// What others need comes first.
	order := []string{"CustomResourceDefinition", "Namespace"}
	for _, first := range append(order, "") {
		for _, object := range all {
			kind := object.GetKind()
			if kind == "ClusterServiceVersion" || kind == "CatalogSource" || (first == "") == slices.Contains(order, kind) || first != "" && kind != first {
				continue
			}
			o.apply(p, object)
			o.objects = append(o.objects, object)
		}
	}
	for _, name := range []string{"olm-operator", "catalog-operator"} {
		p.await(name+" runs", func() error { return p.rolledOut(olmSystem, name) })
	}
	p.ranWith(olmSystem, packaged.UtilImage)
}

// apply waits until the object's kind is served.
func (o *lifecycle) apply(p *point, object *unstructured.Unstructured) {
	p.Helper()
	p.await(object.GetKind()+" "+object.GetName()+" is applied", func() error {
		return p.client.Apply(p.Context(), client.ApplyConfigurationFromUnstructured(object), client.FieldOwner("kubectl"))
	})
}

// olmChart is the folder of the chart in OLM's module.
func olmChart(ctx context.Context) (string, error) {
	root, err := harness.Root()
	if err != nil {
		return "", err
	}
	command := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/operator-framework/operator-lifecycle-manager")
	command.Dir = filepath.Join(root, "hack", "tools", "olm")
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("looking for OLM's module: %w", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "deploy", "chart"), nil
}

// ranWith fails unless a pod of a namespace has an image that its node has pulled.
func (p *point) ranWith(namespace, image string) {
	p.Helper()
	p.await(image+" was pulled", func() error {
		events := &corev1.EventList{}
		if err := p.client.List(p.Context(), events, client.InNamespace(namespace)); err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.Reason == "Pulled" && strings.HasPrefix(e.Message, fmt.Sprintf("Successfully pulled image %q", image)) {
				return nil
			}
		}
		return errors.New("no event says so")
	})
}

// yamlBlock is one of a page.
var yamlBlock = regexp.MustCompile("(?s)```yaml\n(.*?)```")

// documented are the objects of docs/olm.md for a version. One without a kind is a
// part of a Subscription.
func documented(p *point, version string) []*unstructured.Unstructured {
	p.Helper()
	root, err := harness.Root()
	p.must(err)
	page, err := os.ReadFile(filepath.Join(root, "docs", "olm.md"))
	p.must(err)
	var all []*unstructured.Unstructured
	for _, block := range yamlBlock.FindAllSubmatch(page, -1) {
		for text := range bytes.SplitSeq(block[1], []byte("\n---\n")) {
			object := &unstructured.Unstructured{}
			p.must(yaml.Unmarshal(bytes.ReplaceAll(text, []byte("vVERSION"), []byte("v"+version)), &object.Object))
			all = append(all, object)
		}
	}
	return all
}

func (o *lifecycle) startCatalog(p *point) {
	for _, object := range documented(p, o.version) {
		if object.GetKind() == "CatalogSource" {
			o.apply(p, object)
		}
	}
	p.await("the catalog is reached", func() error {
		source := &operatorsv1alpha1.CatalogSource{}
		if err := p.get(olmSystem, packageName, source); err != nil {
			return err
		}
		if state := source.Status.GRPCConnectionState; state == nil || state.LastObservedState != "READY" {
			return fmt.Errorf("the connection is %+v, the message %q", state, source.Status.Message)
		}
		return nil
	})
	p.ranWith(olmSystem, packaged.CatalogImage(o.version))
	p.ranWith(olmSystem, packaged.OPMImage)
}

// subscribe makes namespace, OperatorGroup and Subscription of the page, with the flag.
func (o *lifecycle) subscribe(p *point) {
	var subscription, flag *unstructured.Unstructured
	for _, object := range documented(p, o.version) {
		switch object.GetKind() {
		case "Namespace":
			object.SetLabels(map[string]string{"pod-security.kubernetes.io/enforce": "privileged"})
			o.apply(p, object)
		case "OperatorGroup":
			o.apply(p, object)
		case "Subscription":
			subscription = object
		case "":
			flag = object
		}
	}
	if subscription == nil || flag == nil {
		p.Fatal("docs/olm.md has no Subscription, or none with the flag")
	}
	config, ok, err := unstructured.NestedMap(flag.Object, "spec", "config")
	if err != nil || !ok {
		p.Fatalf("docs/olm.md has a block without a kind that is no part of a Subscription: %v (%v)", flag.Object, err)
	}
	p.must(unstructured.SetNestedMap(subscription.Object, config, "spec", "config"))
	o.apply(p, subscription)
	o.installed(p, o.version)
	o.unpacked(p, o.version)
	p.ranWith(system, packaged.OperatorImage(o.version))
	d := &appsv1.Deployment{}
	p.must(p.get(system, manager, d))
	if owners := d.OwnerReferences; d.Labels["olm.owner"] != csvName(o.version) || len(owners) != 1 || owners[0].Kind != "ClusterServiceVersion" {
		p.Errorf("the Deployment is not OLM's: %v, %+v", d.Labels, owners)
	}
}

func csvName(version string) string { return packageName + ".v" + version }

// installed waits until OLM says that a version is, and its managers run.
func (o *lifecycle) installed(p *point, version string) {
	p.Helper()
	p.await("version "+version+" is installed", func() error {
		csv := &operatorsv1alpha1.ClusterServiceVersion{}
		if err := p.get(system, csvName(version), csv); err != nil {
			return err
		}
		if csv.Status.Phase != operatorsv1alpha1.CSVPhaseSucceeded {
			return fmt.Errorf("the CSV is %s: %s: %s", csv.Status.Phase, csv.Status.Reason, csv.Status.Message)
		}
		return nil
	})
	p.await("the managers are rolled out", func() error { return p.rolledOut(system, manager) })
	for _, pod := range p.pods(system, client.MatchingLabels{"app.kubernetes.io/component": "manager"}) {
		if image := pod.Spec.Containers[0].Image; pod.DeletionTimestamp == nil && image != packaged.OperatorImage(version) {
			p.Errorf("pod %s has the image %s", pod.Name, image)
		}
	}
}

// unpacked fails unless a Job has unpacked a version's bundle out of its image.
func (o *lifecycle) unpacked(p *point, version string) {
	p.Helper()
	jobs := &batchv1.JobList{}
	p.must(p.client.List(p.Context(), jobs, client.InNamespace(olmSystem)))
	image := packaged.BundleImage(version)
	if !slices.ContainsFunc(jobs.Items, func(j batchv1.Job) bool {
		return j.Status.Succeeded == 1 && slices.ContainsFunc(j.Spec.Template.Spec.InitContainers, func(c corev1.Container) bool { return c.Image == image })
	}) {
		p.Errorf("no Job has unpacked %s: %+v", image, jobs.Items)
	}
	p.ranWith(olmSystem, image)
}

func (o *lifecycle) awaitAgents(p *point, version string) {
	p.Helper()
	p.await("the agents are of version "+version, func() error {
		set := &appsv1.DaemonSet{}
		if err := p.get(system, agents, set); err != nil {
			return err
		}
		if has := set.Spec.Template.Spec.Containers[0].Image; has != packaged.OperatorImage(version) {
			return fmt.Errorf("their image is %s", has)
		}
		return nil
	})
	p.awaitAgents()
}

// use has a pod on each node be counted and filtered.
func (o *lifecycle) use(p *point) {
	o.pods = p.occupy()
	p.await("each has its ConfigMap", func() error { return p.promised(guarded) })
	o.work(p)
}

// work has each pod make some calls, and try an open and a blocked port of another.
func (o *lifecycle) work(p *point) {
	p.Helper()
	const more = 777
	for i, pod := range o.pods {
		var made struct{ Count int }
		p.ask(pod, control, "/calls", callQuery(more), &made)
		o.calls[pod.Name] += more
		next := o.pods[(i+1)%len(o.pods)]
		ways := route{what: "from " + pod.Spec.NodeName, from: pod, to: next, by: pod, addresses: podIPs(next)}.ways(openPort, blockedPort)
		p.walk(ways)
		o.ledger.add(ways...)
	}
	p.awaitCalls(o.pods, o.calls)
	o.ledger.settle(p)
}

// score runs the command that users run, against the operator that OLM installed.
func (o *lifecycle) score(p *point) {
	p.namespace(scored)
	p.must(scorecard.Admit(p.Context(), p.client, scored, scored))
	list, err := scorecard.Run(p.ctx, p.Kubeconfig(), scored, scored, o.bundle, o.ours)
	p.must(err)
	fmt.Fprint(os.Stderr, scorecard.Table(list))
	p.must(scorecard.Complete(list))
	p.ranWith(scored, o.ours)
	p.ranWith(scored, scorecard.Standard)
	p.noNamespace(scored)
}

// upgrade names the newer catalog, and has OLM do the rest.
func (o *lifecycle) upgrade(p *point) {
	before, began := o.configMaps(p), time.Now()
	told := func(what string) { say("  %s after %s", what, time.Since(began).Round(100*time.Millisecond)) }
	p.patch(&operatorsv1alpha1.CatalogSource{ObjectMeta: metav1.ObjectMeta{Namespace: olmSystem, Name: packageName}},
		fmt.Sprintf(`{"spec":{"image":%q}}`, packaged.CatalogImage(packaged.Newer)))
	o.installed(p, packaged.Newer)
	told("the managers are the newer ones")
	p.ranWith(olmSystem, packaged.CatalogImage(packaged.Newer))
	o.unpacked(p, packaged.Newer)
	o.awaitAgents(p, packaged.Newer)
	told("the agents are the newer ones")
	p.await("the older version is gone", func() error {
		return p.gone(system, csvName(o.version), &operatorsv1alpha1.ClusterServiceVersion{})
	})
	crd := &apiextensionsv1.CustomResourceDefinition{}
	p.must(p.get("", crdNames[0], crd))
	if _, ok := crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"].Properties[packaged.LaterField]; !ok {
		p.Errorf("the CRD has no field %s", packaged.LaterField)
	}
	p.await("configs are ready, and ConfigMaps as promised", func() error { return p.promised(guarded) })
	if after := o.configMaps(p); !slices.Equal(after, before) {
		p.Errorf("the ConfigMaps were %v, and are %v", before, after)
	}
	// No count is lost.
	p.awaitCalls(o.pods, o.calls)
	o.work(p)
}

// configMaps are those of the pods that are used, each with its UID.
func (o *lifecycle) configMaps(p *point) []string {
	p.Helper()
	list := &corev1.ConfigMapList{}
	p.must(p.client.List(p.Context(), list, client.InNamespace(guarded), client.MatchingLabels{"podconfig.example.com/generated-by-pcmc": "held"}))
	var all []string
	for _, c := range list.Items {
		all = append(all, c.Name+" "+string(c.UID))
	}
	slices.Sort(all)
	if len(all) != len(o.pods) {
		p.Fatalf("%d ConfigMaps for %d pods: %v", len(all), len(o.pods), all)
	}
	return all
}

// uninstall deletes Subscription and CSV as docs/olm.md says, again while they come
// back, and looks into the kernel.
func (o *lifecycle) uninstall(p *point) {
	o.held = p.held()
	before := o.configMaps(p)
	p.await("no InstallPlan is under way", func() error {
		plans := &operatorsv1alpha1.InstallPlanList{}
		if err := p.client.List(p.Context(), plans, client.InNamespace(system)); err != nil {
			return err
		}
		for _, plan := range plans.Items {
			if plan.Status.Phase != operatorsv1alpha1.InstallPlanPhaseComplete {
				return fmt.Errorf("InstallPlan %s is %s", plan.Name, plan.Status.Phase)
			}
		}
		return nil
	})
	p.must(p.client.Delete(p.Context(), &operatorsv1alpha1.Subscription{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: packageName}}))
	p.await("nothing of the operator runs or has rights", func() error {
		csv := &operatorsv1alpha1.ClusterServiceVersion{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: csvName(packaged.Newer)}}
		if err := p.client.Delete(p.Context(), csv); client.IgnoreNotFound(err) != nil {
			return err
		}
		return o.noOperator(p)
	})
	p.await("nothing is left in the kernel", func() error { return p.nothingLeft(o.held) })
	for _, name := range crdNames {
		p.must(p.get("", name, &apiextensionsv1.CustomResourceDefinition{}))
	}
	p.must(p.get(guarded, "held", &v1alpha1.PodConfigMapConfig{}))
	if after := o.configMaps(p); !slices.Equal(after, before) {
		p.Errorf("the ConfigMaps were %v, and are %v", before, after)
	}
	// Ports that were blocked are open.
	var free []way
	for i, pod := range o.pods {
		free = append(free, route{what: "without the operator", from: pod, addresses: podIPs(o.pods[(i+1)%len(o.pods)])}.ways(openPort, blockedPort)...)
	}
	p.walk(allPass(free))
}

// noOperator is nil when nothing that could act is left in the operator's namespace,
// nor any right of it elsewhere.
func (o *lifecycle) noOperator(p *point) error {
	var left []string
	add := func(kind string, objects ...client.Object) {
		for _, object := range objects {
			if strings.HasPrefix(object.GetName(), packageName) {
				left = append(left, kind+" "+object.GetName())
			}
		}
	}
	in := client.InNamespace(system)
	csvs, deployments, sets := &operatorsv1alpha1.ClusterServiceVersionList{}, &appsv1.DeploymentList{}, &appsv1.DaemonSetList{}
	pods, accounts, bindings := &corev1.PodList{}, &corev1.ServiceAccountList{}, &rbacv1.ClusterRoleBindingList{}
	if err := errors.Join(p.client.List(p.Context(), csvs), p.client.List(p.Context(), deployments, in), p.client.List(p.Context(), sets, in),
		p.client.List(p.Context(), pods, in), p.client.List(p.Context(), accounts, in), p.client.List(p.Context(), bindings)); err != nil {
		return err
	}
	for i := range csvs.Items {
		add("CSV", &csvs.Items[i])
	}
	for i := range deployments.Items {
		add("Deployment", &deployments.Items[i])
	}
	for i := range sets.Items {
		add("DaemonSet", &sets.Items[i])
	}
	for i := range pods.Items {
		add("Pod", &pods.Items[i])
	}
	for i := range accounts.Items {
		add("ServiceAccount", &accounts.Items[i])
	}
	for i := range bindings.Items {
		add("ClusterRoleBinding", &bindings.Items[i])
	}
	if len(left) > 0 {
		return errors.New(strings.Join(left, ", "))
	}
	return nil
}

// tidy runs the commands of docs/olm.md for what stays.
func (o *lifecycle) tidy(p *point) {
	named := client.MatchingLabels{"app.kubernetes.io/name": packageName}
	for _, kind := range []client.Object{&rbacv1.Role{}, &rbacv1.RoleBinding{}} {
		p.must(p.client.DeleteAllOf(p.Context(), kind, client.InNamespace(system), named))
	}
	p.must(p.client.DeleteAllOf(p.Context(), &rbacv1.ClusterRole{}, named))
	p.must(p.client.DeleteAllOf(p.Context(), &corev1.ConfigMap{}, client.InNamespace(guarded), client.HasLabels{"podconfig.example.com/generated-by-pcmc"}))
	p.await("no ConfigMap comes back", func() error { return p.noneOf(&corev1.ConfigMapList{}, client.InNamespace(guarded)) })
	o.removeKinds(p)
	for _, list := range []client.ObjectList{&rbacv1.RoleList{}, &rbacv1.RoleBindingList{}, &rbacv1.ClusterRoleList{}, &rbacv1.ClusterRoleBindingList{}} {
		p.await("no right is left", func() error { return p.noneOf(list) })
	}
	p.noNamespace(system)
}

// noneOf is nil when a list has no object of the operator's name.
func (p *point) noneOf(list client.ObjectList, options ...client.ListOption) error {
	if err := p.client.List(p.Context(), list, options...); err != nil {
		return err
	}
	items, err := runtime.DefaultUnstructuredConverter.ToUnstructured(list)
	if err != nil {
		return err
	}
	all, _, err := unstructured.NestedSlice(items, "items")
	if err != nil {
		return err
	}
	for _, item := range all {
		name, _, _ := unstructured.NestedString(item.(map[string]any), "metadata", "name")
		if strings.HasPrefix(name, packageName) || strings.HasPrefix(name, "pod-") {
			return fmt.Errorf("%s is there", name)
		}
	}
	return nil
}

// stopOLM removes all that startOLM made, so that other tests have a cluster like any.
func (o *lifecycle) stopOLM(p *point) {
	source := &operatorsv1alpha1.CatalogSource{ObjectMeta: metav1.ObjectMeta{Namespace: olmSystem, Name: packageName}}
	p.must(p.client.Delete(p.Context(), source))
	p.await("the catalog is gone", func() error { return p.gone(olmSystem, packageName, source) })
	for _, object := range slices.Backward(o.objects) {
		p.must(client.IgnoreNotFound(p.client.Delete(p.Context(), object)))
	}
	for _, object := range o.objects {
		p.await(object.GetKind()+" "+object.GetName()+" is gone", func() error {
			return p.gone(object.GetNamespace(), object.GetName(), object.DeepCopy())
		})
	}
}
