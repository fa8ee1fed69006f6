// SPDX-License-Identifier: Apache-2.0

// Package olm installs the bundle with the real Operator Lifecycle Manager, from the
// images that are shipped: OLM's two programs run as processes against a real control
// plane; a node of processes, which has the images from a registry, runs the pods
// that OLM makes: the catalog's, the bundle's, the operator's.
package olm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/packaged"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/processnode"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/stage"
)

const (
	packageName = "podconfigmap-controller"
	manager     = packageName + "-controller-manager"
	agent       = packageName + "-agent"
	catalogs    = "olm"
	newer       = packaged.Newer
)

// older is the version of the tree.
var older = func() string {
	version, err := harness.Version()
	if err != nil {
		panic(err)
	}
	return version
}()

// world is a cluster with OLM, a catalog, and a node.
type world struct {
	client client.Client
	plane  *stage.Cluster
	node   *processnode.Node
	kernel *sandbox.Node
	logs   string
	// held keeps agents from being started, as a node that pulls an image slowly.
	held atomic.Bool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{logs: t.TempDir(), kernel: sandbox.New(t)}
	images := shipped(t)
	programs := t.TempDir()
	for _, version := range []string{older, newer} {
		images[packaged.OperatorImage(version)] = processnode.Image{
			Program: stage.Got(processnode.BuildProgram(programs, ".", version))(t), Path: "/podconfigmap-controller", Env: w.environ,
		}
	}
	w.plane = stage.Start(t, processnode.Options{
		Images: images,
		Hold:   func(p *corev1.Pod) bool { return w.held.Load() && p.Labels["app.kubernetes.io/component"] == "agent" },
	})
	w.node = w.plane.Node
	t.Cleanup(func() { w.tell(t) })
	scheme := runtime.NewScheme()
	stage.Must(t, errors.Join(clientgoscheme.AddToScheme(scheme), apiextensionsv1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme),
		operatorsv1.AddToScheme(scheme), operatorsv1alpha1.AddToScheme(scheme), operatorsv2.AddToScheme(scheme)))
	w.client = stage.Got(client.New(w.plane.Config(), client.Options{Scheme: scheme}))(t)
	w.startOLM(t)
	return w
}

// tell shows what the programs of a test that failed wrote last.
func (w *world) tell(t *testing.T) {
	if !t.Failed() {
		return
	}
	texts := w.node.Logs(catalogs)
	for _, name := range []string{"olm", "olm-catalog"} {
		text, err := os.ReadFile(filepath.Join(w.logs, name+".log"))
		if err != nil {
			t.Error(err)
		}
		texts[name] = string(text)
	}
	for name, text := range texts {
		lines := strings.Split(strings.TrimSpace(text), "\n")
		t.Logf("%s:\n%s", name, strings.Join(lines[max(0, len(lines)-25):], "\n"))
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

// startOLM installs OLM's kinds, starts its programs, and names the catalog.
func (w *world) startOLM(t *testing.T) {
	t.Helper()
	for _, crd := range []*apiextensionsv1.CustomResourceDefinition{
		crds.CatalogSource(), crds.ClusterServiceVersion(), crds.InstallPlan(), crds.OLMConfig(), crds.OperatorCondition(), crds.OperatorGroup(), crds.Operator(), crds.Subscription(),
	} {
		stage.Must(t, w.client.Create(t.Context(), crd))
	}
	stage.Await(t, "OLM's kinds are served", func() error {
		in := client.InNamespace(catalogs)
		return errors.Join(w.client.List(t.Context(), &operatorsv1alpha1.SubscriptionList{}, in), w.client.List(t.Context(), &operatorsv1alpha1.CatalogSourceList{}, in),
			w.client.List(t.Context(), &operatorsv2.OperatorConditionList{}, in), w.client.List(t.Context(), &operatorsv1.OperatorGroupList{}, in),
			w.client.List(t.Context(), &operatorsv1.OLMConfigList{}), w.client.List(t.Context(), &operatorsv1alpha1.InstallPlanList{}, in))
	})
	w.namespace(t, catalogs, nil)
	// With TLS they leave the port 8080 alone. The one that comes second cannot have
	// 8443; it says so, and goes on.
	credentials := filepath.Join(filepath.Dir(w.plane.Kubeconfig()), "credentials")
	tls := []string{"--tls-cert=" + filepath.Join(credentials, "apiserver.crt"), "--tls-key=" + filepath.Join(credentials, "apiserver.key")}
	w.run(t, nil, "olm", append(tls, "--namespace="+catalogs, "--writeStatusName=", "--writePackageServerStatusName=")...)
	w.run(t, w.names(t), "olm-catalog", append(tls, "--namespace="+catalogs, "--writeStatusName=", "--kubeconfig="+w.plane.Kubeconfig(),
		"--opmImage="+packaged.OPMImage, "--util-image="+packaged.UtilImage)...)
	stage.Must(t, w.client.Create(t.Context(), &operatorsv1alpha1.CatalogSource{
		ObjectMeta: metav1.ObjectMeta{Namespace: catalogs, Name: "ours"},
		Spec: operatorsv1alpha1.CatalogSourceSpec{SourceType: operatorsv1alpha1.SourceTypeGrpc, DisplayName: "ours", Image: packaged.CatalogImage(older),
			GrpcPodConfig: &operatorsv1alpha1.GrpcPodConfig{ExtractContent: &operatorsv1alpha1.ExtractContentConfig{CatalogDir: "/configs"}}},
	}))
}

// names is a launcher that has a program find the catalog's Service under its name,
// as a cluster's DNS would let it: opm serves on all addresses.
func (w *world) names(t *testing.T) []string {
	t.Helper()
	hosts, resolver := filepath.Join(w.logs, "hosts"), filepath.Join(w.logs, "resolv.conf")
	stage.Must(t, errors.Join(os.WriteFile(hosts, []byte("127.0.0.1 localhost ours."+catalogs+".svc\n"), 0o644),
		os.WriteFile(resolver, []byte("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"), 0o644)))
	return []string{"unshare", "--mount", "sh", "-euc", `mount --bind "$1" /etc/hosts; mount --bind "$2" /etc/resolv.conf; shift 2; exec "$@"`, "sh", hosts, resolver}
}

// run starts one of the tools, by a launcher if there is one. It ends with the test.
func (w *world) run(t *testing.T, launcher []string, tool string, args ...string) {
	t.Helper()
	log := stage.Got(os.Create(filepath.Join(w.logs, tool+".log")))(t)
	defer log.Close()
	line := slices.Concat(launcher, []string{stage.Got(processnode.Tool(tool))(t)}, args)
	command := exec.Command(line[0], line[1:]...)
	command.Env = append(os.Environ(), "KUBECONFIG="+w.plane.Kubeconfig())
	command.Dir, command.Stdout, command.Stderr = t.TempDir(), log, log
	stage.Must(t, controlplane.StartChild(command))
	t.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGKILL)
		_ = command.Wait() // killed
	})
}

func (w *world) get(t *testing.T, namespace, name string, into client.Object) error {
	return w.client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, into)
}

func (w *world) namespace(t *testing.T, name string, labels map[string]string) {
	t.Helper()
	stage.Must(t, w.client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}))
}

// subscribe makes the OperatorGroup and the Subscription. No targets mean all
// namespaces.
func (w *world) subscribe(t *testing.T, channel, namespace string, targets ...string) {
	t.Helper()
	stage.Must(t, w.client.Create(t.Context(), &operatorsv1.OperatorGroup{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "group"}, Spec: operatorsv1.OperatorGroupSpec{TargetNamespaces: targets},
	}))
	stage.Must(t, w.client.Create(t.Context(), &operatorsv1alpha1.Subscription{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: packageName},
		Spec: &operatorsv1alpha1.SubscriptionSpec{
			CatalogSource: "ours", CatalogSourceNamespace: catalogs, Package: packageName, Channel: channel,
			InstallPlanApproval: operatorsv1alpha1.ApprovalAutomatic,
		},
	}))
}

// change edits the Subscription.
func (w *world) change(t *testing.T, namespace string, edit func(*operatorsv1alpha1.SubscriptionSpec)) {
	t.Helper()
	stage.Await(t, "the Subscription is changed", func() error {
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
	stage.Await(t, "version "+version+" is installed", func() error {
		csv := &operatorsv1alpha1.ClusterServiceVersion{}
		if err := w.get(t, namespace, packageName+".v"+version, csv); err != nil {
			return fmt.Errorf("%w; %s", err, w.subscriptionState(t, namespace))
		}
		if csv.Status.Phase != operatorsv1alpha1.CSVPhaseSucceeded {
			return fmt.Errorf("the CSV is %s: %s: %s", csv.Status.Phase, csv.Status.Reason, csv.Status.Message)
		}
		return nil
	})
	stage.Await(t, "the operator is ready", func() error {
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
	stage.Await(t, "no InstallPlan is under way", func() error {
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
	stage.Must(t, w.client.Delete(t.Context(), &operatorsv1alpha1.Subscription{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: packageName}}))
	stage.Await(t, "nothing of the operator is left in its namespace", func() error {
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
