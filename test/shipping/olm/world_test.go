// SPDX-License-Identifier: Apache-2.0

// Package olm installs the bundle with the real Operator Lifecycle Manager: its two
// programs and a catalog served by opm run as processes against a real control
// plane, and a node of processes runs the operator's pods, as OLM made them.
package olm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/operator-framework/api/crds"
	operatorsv1 "github.com/operator-framework/api/pkg/operators/v1"
	operatorsv1alpha1 "github.com/operator-framework/api/pkg/operators/v1alpha1"
	operatorsv2 "github.com/operator-framework/api/pkg/operators/v2"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/processnode"
)

const (
	packageName = "podconfigmap-controller"
	manager     = packageName + "-controller-manager"
	agent       = packageName + "-agent"
	catalogs    = "olm"
	image       = "ghcr.io/podconfigmap/podconfigmap-controller"
	older       = "0.1.0"
	newer       = "0.2.0"

	// patience is for what takes seconds on a quiet machine.
	patience = 5 * time.Minute
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func got[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		must(t, err)
		return value
	}
}

// world is a cluster with OLM, a catalog of two versions, and a node.
type world struct {
	client client.Client
	plane  *controlplane.ControlPlane
	node   *processnode.Node
	kernel *sandbox.Node
	logs   string
	// held keeps agents from being started, as a node that pulls an image slowly.
	held atomic.Bool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{logs: t.TempDir(), kernel: sandbox.New(t)}
	programs := t.TempDir()
	images := map[string]processnode.Image{}
	for _, version := range []string{older, newer} {
		images[image+":v"+version] = processnode.Image{
			Program: got(processnode.BuildProgram(programs, ".", version))(t), Path: "/podconfigmap-controller", Env: w.environ,
		}
	}
	catalog := makeCatalog(t)
	w.plane = got(controlplane.Start(t.Context(), controlplane.Options{ControllerManager: true, Progress: os.Stderr}))(t)
	t.Cleanup(func() {
		if err := w.plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	scheme := runtime.NewScheme()
	must(t, errors.Join(clientgoscheme.AddToScheme(scheme), apiextensionsv1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme),
		operatorsv1.AddToScheme(scheme), operatorsv1alpha1.AddToScheme(scheme), operatorsv2.AddToScheme(scheme)))
	w.client = got(client.New(w.plane.Config(), client.Options{Scheme: scheme}))(t)
	w.node = got(processnode.Start(t.Context(), w.client, processnode.Options{
		Name: "node-1", Config: w.plane.Config(), Images: images,
		Hold: func(p *corev1.Pod) bool { return w.held.Load() && p.Labels["app.kubernetes.io/component"] == "agent" },
	}))(t)
	t.Cleanup(func() { w.end(t) })
	w.startOLM(t, catalog)
	return w
}

func (w *world) end(t *testing.T) {
	if err := w.node.Stop(); err != nil {
		t.Errorf("the node: %v", err)
	}
	if !t.Failed() {
		return
	}
	for _, name := range []string{"olm", "olm-catalog", "opm"} {
		text, err := os.ReadFile(filepath.Join(w.logs, name+".log"))
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		t.Logf("%s (%v):\n%s", name, err, strings.Join(lines[max(0, len(lines)-25):], "\n"))
	}
}

// environ is what differs from a real node: the addresses, and for agents where the
// node's cgroups and BPF file system are.
func (w *world) environ(p *corev1.Pod, ip string) map[string]string {
	env := processnode.Addresses(p, ip)
	if p.Labels["app.kubernetes.io/component"] == "agent" {
		env["CGROUP_ROOT"], env["BPFFS_ROOT"] = w.kernel.Root(), filepath.Join(w.kernel.BPFFS(), "podconfigmap", p.Namespace)
	}
	return env
}

// makeCatalog writes a file-based catalog: the channel stable has the older version,
// candidate has both. The newer one has a CRD with a field more.
func makeCatalog(t *testing.T) string {
	t.Helper()
	root := got(harness.Root())(t)
	opm := got(processnode.Tool("opm"))(t)
	bundles := map[string]string{older: filepath.Join(root, "bundle"), newer: newerBundle(t, root)}
	text := `---
schema: olm.package
name: podconfigmap-controller
defaultChannel: stable
---
schema: olm.channel
package: podconfigmap-controller
name: stable
entries:
- name: podconfigmap-controller.v0.1.0
---
schema: olm.channel
package: podconfigmap-controller
name: candidate
entries:
- name: podconfigmap-controller.v0.1.0
- name: podconfigmap-controller.v0.2.0
  replaces: podconfigmap-controller.v0.1.0
`
	for _, version := range []string{older, newer} {
		rendered, err := exec.Command(opm, "render", bundles[version], "--output=yaml").Output()
		if err != nil {
			t.Fatalf("opm render: %v: %s", err, stderr(err))
		}
		text += "---\n" + string(rendered)
	}
	catalog := t.TempDir()
	must(t, os.Mkdir(filepath.Join(catalog, packageName), 0o755))
	must(t, os.WriteFile(filepath.Join(catalog, packageName, "catalog.yaml"), []byte(text), 0o644))
	if said, err := exec.Command(opm, "validate", catalog).CombinedOutput(); err != nil {
		t.Fatalf("opm validate: %v\n%s", err, said)
	}
	return catalog
}

func stderr(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(exit.Stderr)
	}
	return ""
}

// newerBundle is made as a release is, with another version.
func newerBundle(t *testing.T, root string) string {
	t.Helper()
	kustomize := exec.Command("go", "tool", "-modfile=hack/tools/go.mod", "kustomize", "build", "config/manifests")
	kustomize.Dir = root
	stream, err := kustomize.Output()
	if err != nil {
		t.Fatalf("kustomize build: %v: %s", err, stderr(err))
	}
	out := t.TempDir()
	make := exec.Command("go", "run", "./hack/bundle", "-version", newer, "-replaces", older, "-image", image+":v"+newer,
		"-scorecard-image", image+"-scorecard:v"+newer, "-out", out)
	make.Dir, make.Stdin = root, strings.NewReader(string(stream))
	if said, err := make.CombinedOutput(); err != nil {
		t.Fatalf("making the newer bundle: %v\n%s", err, said)
	}
	file := filepath.Join(out, "bundle/manifests/podconfig.example.com_podconfigmapconfigs.yaml")
	crd := &apiextensionsv1.CustomResourceDefinition{}
	must(t, yaml.Unmarshal(got(os.ReadFile(file))(t), crd))
	crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"].Properties["addedLater"] = apiextensionsv1.JSONSchemaProps{Type: "string"}
	must(t, os.WriteFile(file, got(yaml.Marshal(crd))(t), 0o644))
	return filepath.Join(out, "bundle")
}

// startOLM installs OLM's kinds, and starts its programs and the catalog.
func (w *world) startOLM(t *testing.T, catalog string) {
	t.Helper()
	for _, crd := range []*apiextensionsv1.CustomResourceDefinition{
		crds.CatalogSource(), crds.ClusterServiceVersion(), crds.InstallPlan(), crds.OLMConfig(), crds.OperatorCondition(), crds.OperatorGroup(), crds.Operator(), crds.Subscription(),
	} {
		must(t, w.client.Create(t.Context(), crd))
	}
	w.await(t, "OLM's kinds are served", func() error {
		in := client.InNamespace(catalogs)
		return errors.Join(w.client.List(t.Context(), &operatorsv1alpha1.SubscriptionList{}, in), w.client.List(t.Context(), &operatorsv1alpha1.CatalogSourceList{}, in),
			w.client.List(t.Context(), &operatorsv2.OperatorConditionList{}, in), w.client.List(t.Context(), &operatorsv1.OperatorGroupList{}, in),
			w.client.List(t.Context(), &operatorsv1.OLMConfigList{}), w.client.List(t.Context(), &operatorsv1alpha1.InstallPlanList{}, in))
	})
	w.namespace(t, catalogs, nil)
	address := freeAddress(t)
	_, port, err := net.SplitHostPort(address)
	must(t, err)
	w.run(t, "opm", "serve", catalog, "--port="+port, "--cache-dir="+filepath.Join(w.logs, "cache"), "--cache-enforce-integrity=false", "--termination-log="+filepath.Join(w.logs, "end"), "--pprof-addr=")
	// With TLS they leave the port 8080 alone. The one that comes second cannot have
	// 8443; it says so, and goes on.
	credentials := filepath.Join(filepath.Dir(w.plane.Kubeconfig()), "credentials")
	tls := []string{"--tls-cert=" + filepath.Join(credentials, "apiserver.crt"), "--tls-key=" + filepath.Join(credentials, "apiserver.key")}
	w.run(t, "olm", append(tls, "--namespace="+catalogs, "--writeStatusName=", "--writePackageServerStatusName=")...)
	w.run(t, "olm-catalog", append(tls, "--namespace="+catalogs, "--writeStatusName=", "--kubeconfig="+w.plane.Kubeconfig())...)
	must(t, w.client.Create(t.Context(), &operatorsv1alpha1.CatalogSource{
		ObjectMeta: metav1.ObjectMeta{Namespace: catalogs, Name: "ours"},
		Spec:       operatorsv1alpha1.CatalogSourceSpec{SourceType: operatorsv1alpha1.SourceTypeGrpc, Address: address, DisplayName: "ours"},
	}))
}

// run starts one of the tools, which ends with the test.
func (w *world) run(t *testing.T, tool string, args ...string) {
	t.Helper()
	log := got(os.Create(filepath.Join(w.logs, tool+".log")))(t)
	defer log.Close()
	command := exec.Command(got(processnode.Tool(tool))(t), args...)
	command.Env = append(os.Environ(), "KUBECONFIG="+w.plane.Kubeconfig())
	command.Dir, command.Stdout, command.Stderr = t.TempDir(), log, log
	must(t, controlplane.StartChild(command))
	t.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGKILL)
		_ = command.Wait() // killed
	})
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener := got(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer listener.Close()
	return listener.Addr().String()
}

// await waits until nothing is wrong any more.
func (w *world) await(t *testing.T, what string, wrong func() error) {
	t.Helper()
	err := errors.New("not looked yet")
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = wrong(); err == nil {
			return
		}
	}
	t.Fatalf("waiting until %s: %v", what, err)
}

func (w *world) get(t *testing.T, namespace, name string, into client.Object) error {
	return w.client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, into)
}

func (w *world) namespace(t *testing.T, name string, labels map[string]string) {
	t.Helper()
	must(t, w.client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}))
}

// subscribe makes the OperatorGroup and the Subscription. No targets mean all
// namespaces.
func (w *world) subscribe(t *testing.T, namespace string, targets ...string) {
	t.Helper()
	must(t, w.client.Create(t.Context(), &operatorsv1.OperatorGroup{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "group"}, Spec: operatorsv1.OperatorGroupSpec{TargetNamespaces: targets},
	}))
	must(t, w.client.Create(t.Context(), &operatorsv1alpha1.Subscription{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: packageName},
		Spec: &operatorsv1alpha1.SubscriptionSpec{
			CatalogSource: "ours", CatalogSourceNamespace: catalogs, Package: packageName, Channel: "stable",
			InstallPlanApproval: operatorsv1alpha1.ApprovalAutomatic,
		},
	}))
}

// change edits the Subscription.
func (w *world) change(t *testing.T, namespace string, edit func(*operatorsv1alpha1.SubscriptionSpec)) {
	t.Helper()
	w.await(t, "the Subscription is changed", func() error {
		s := &operatorsv1alpha1.Subscription{}
		if err := w.get(t, namespace, packageName, s); err != nil {
			return err
		}
		edit(s.Spec)
		return w.client.Update(t.Context(), s)
	})
}

// installed waits until a version is installed, and the operator is ready.
func (w *world) installed(t *testing.T, namespace, version string) {
	t.Helper()
	w.await(t, "version "+version+" is installed", func() error {
		csv := &operatorsv1alpha1.ClusterServiceVersion{}
		if err := w.get(t, namespace, packageName+".v"+version, csv); err != nil {
			return fmt.Errorf("%w; %s", err, w.subscriptionState(t, namespace))
		}
		if csv.Status.Phase != operatorsv1alpha1.CSVPhaseSucceeded {
			return fmt.Errorf("the CSV is %s: %s: %s", csv.Status.Phase, csv.Status.Reason, csv.Status.Message)
		}
		return nil
	})
	w.await(t, "the operator is ready", func() error {
		d := &appsv1.Deployment{}
		if err := w.get(t, namespace, manager, d); err != nil {
			return err
		}
		if s := d.Status; s.ObservedGeneration != d.Generation || s.UpdatedReplicas != 2 || s.ReadyReplicas != 2 || s.Replicas != 2 {
			return fmt.Errorf("its status is %+v", s)
		}
		return nil
	})
}

func (w *world) subscriptionState(t *testing.T, namespace string) string {
	s := &operatorsv1alpha1.Subscription{}
	if err := w.get(t, namespace, packageName, s); err != nil {
		return err.Error()
	}
	text, err := json.Marshal(s.Status)
	return fmt.Sprintf("the Subscription's status is %s %v", text, err)
}

// uninstall removes the operator as docs/olm.md says, and waits until nothing of it
// runs.
func (w *world) uninstall(t *testing.T, namespace, version string) {
	t.Helper()
	// A plan that is under way would make the CSV anew.
	w.await(t, "no InstallPlan is under way", func() error {
		plans := &operatorsv1alpha1.InstallPlanList{}
		if err := w.client.List(t.Context(), plans, client.InNamespace(namespace)); err != nil {
			return err
		}
		for _, plan := range plans.Items {
			if plan.Status.Phase != operatorsv1alpha1.InstallPlanPhaseComplete {
				return fmt.Errorf("InstallPlan %s is %s", plan.Name, plan.Status.Phase)
			}
		}
		return nil
	})
	must(t, w.client.Delete(t.Context(), &operatorsv1alpha1.Subscription{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: packageName}}))
	w.await(t, "nothing of the operator is left in its namespace", func() error {
		// Again and again: OLM's catalog operator, where it is behind the times, carries
		// out a finished plan once more, and makes them anew.
		csv := &operatorsv1alpha1.ClusterServiceVersion{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: packageName + ".v" + version}}
		if err := w.client.Delete(t.Context(), csv); client.IgnoreNotFound(err) != nil {
			return err
		}
		for _, kind := range []client.Object{&rbacv1.Role{}, &rbacv1.RoleBinding{}} {
			if err := w.client.DeleteAllOf(t.Context(), kind, client.InNamespace(namespace), client.MatchingLabels{"app.kubernetes.io/name": packageName}); err != nil {
				return err
			}
		}
		var left []string
		for kind, list := range ownKinds() {
			if err := w.client.List(t.Context(), list, client.InNamespace(namespace)); err != nil {
				return err
			}
			for _, name := range namesOf(list) {
				if strings.HasPrefix(name, packageName) {
					left = append(left, kind+" "+name)
				}
			}
		}
		for _, running := range w.node.Running() {
			if strings.HasPrefix(running, namespace+"/") {
				left = append(left, "process of "+running)
			}
		}
		if len(left) > 0 {
			slices.Sort(left)
			return errors.New(strings.Join(left, ", "))
		}
		return nil
	})
}

// made counts namespaces.
var made atomic.Int32

// unique makes a name for this test only.
func unique(name string) string { return name + "-" + strconv.Itoa(int(made.Add(1))) }

// healthy fails the test where a manager or an agent lacked a right.
func (w *world) healthy(t *testing.T, namespace string) {
	t.Helper()
	logs := w.node.Logs(namespace)
	if len(logs) == 0 {
		t.Error("no container of the operator wrote anything")
	}
	for name, text := range logs {
		for line := range strings.Lines(text) {
			// OLM may start the manager some moments before it makes the bundle's Roles.
			early := strings.Contains(line, "Error retrieving lease lock")
			if strings.Contains(line, "forbidden") && !early || strings.HasPrefix(line, "panic") {
				t.Errorf("%s: %s", name, line)
			}
		}
	}
}

// wait gives what should not happen the time to happen.
func (w *world) wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
