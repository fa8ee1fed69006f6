// SPDX-License-Identifier: Apache-2.0

// Package integration tests what the operator promises, on a real control
// plane with garbage collection, with managers that run as processes of their
// own and with no more rights than the shipped roles give. There is no kubelet:
// tests set the pods' status themselves.
package integration

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

const (
	// operators is the namespace of the managers.
	operators = "operators"
	// operatorsGroup are the managers' ServiceAccounts.
	operatorsGroup = "system:serviceaccounts:" + operators
	// sharedNamespaces is how many namespaces the shared manager watches.
	sharedNamespaces = 40
	// atOnce is how many tests may run together; most of the time they wait.
	atOnce = "10"
)

// patience is how long anything may take: many times what it takes on a quiet
// machine.
var patience time.Duration

func init() {
	flag.DurationVar(&patience, "integration.patience", time.Minute, "how long a test waits for what has to come")
}

// cluster is the control plane of all tests; nil with -short.
var cluster *harness.Cluster

// auditLog is where the API server notes the managers' calls.
var auditLog string

func TestMain(m *testing.M) {
	flag.Parse()
	ctrllog.SetLogger(logr.Discard()) // the API server's warnings to the tests' own client
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if testing.Short() {
		return m.Run(), nil
	}
	if err := raise("test.parallel", atOnce); err != nil {
		return 1, err
	}
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "integration-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	flags, err := auditFlags(dir)
	if err != nil {
		return 1, err
	}
	cluster, err = harness.StartCluster(ctx, controlplane.Options{ControllerManager: true, APIServerFlags: flags, Progress: os.Stderr})
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, cluster.Stop()) }()
	if err := prepare(ctx); err != nil {
		return 1, err
	}
	code = m.Run()
	if err := stopShared(); err != nil {
		return 1, err
	}
	return code, nil
}

// raise sets a flag that was not given on the command line.
func raise(name, value string) error {
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == name })
	if given {
		return nil
	}
	return flag.Set(name, value)
}

// auditFlags make the API server note every call of a manager, before it
// answers. Secrets and contents are not noted.
func auditFlags(dir string) ([]string, error) {
	policy := filepath.Join(dir, "policy.yaml")
	auditLog = filepath.Join(dir, "audit.log")
	text := "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n" +
		"- {level: Metadata, userGroups: [\"" + operatorsGroup + "\"]}\n- {level: None}\n"
	if err := os.WriteFile(policy, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("writing the audit policy: %w", err)
	}
	return []string{"--audit-policy-file=" + policy, "--audit-log-path=" + auditLog}, nil
}

// prepare makes the namespaces, and gives the managers the shipped roles.
func prepare(ctx context.Context) error {
	names := []string{operators}
	for i := range sharedNamespaces {
		names = append(names, sharedName(i))
	}
	for _, name := range names {
		if err := cluster.NewNamespace(ctx, name); err != nil {
			return err
		}
	}
	role := &rbacv1.ClusterRole{}
	if err := readRole("config/rbac/role.yaml", "ClusterRole", role); err != nil {
		return err
	}
	managers := []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: operatorsGroup}}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role.Name}, Subjects: managers,
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
	}
	if err := errors.Join(cluster.Client.Create(ctx, role), cluster.Client.Create(ctx, binding)); err != nil {
		return fmt.Errorf("giving the managers their role: %w", err)
	}
	return errors.Join(allowLeases(ctx, operators), allowAgents(ctx, operators))
}

// allowAgents gives all managers, in a namespace, the role for deploying agents,
// as in the operator's own.
func allowAgents(ctx context.Context, namespace string) error {
	return allow(ctx, namespace, "config/rbac/role.yaml")
}

// allowLeases gives all managers the role of leader election in a namespace.
func allowLeases(ctx context.Context, namespace string) error {
	return allow(ctx, namespace, "config/rbac/leader_election_role.yaml")
}

// allow gives all managers the Role of a manifest in a namespace.
func allow(ctx context.Context, namespace, manifest string) error {
	role := &rbacv1.Role{}
	if err := readRole(manifest, "Role", role); err != nil {
		return err
	}
	role.Namespace = namespace
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: role.Name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: operatorsGroup}},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role.Name},
	}
	if err := errors.Join(cluster.Client.Create(ctx, role), cluster.Client.Create(ctx, binding)); err != nil {
		return fmt.Errorf("giving the managers the Role of %s: %w", manifest, err)
	}
	return nil
}

// readRole reads the first object of that kind from a manifest.
func readRole(path, kind string, into client.Object) error {
	root, err := harness.Root()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		return fmt.Errorf("reading a role: %w", err)
	}
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		if strings.Contains(document, "\nkind: "+kind+"\n") {
			return yaml.UnmarshalStrict([]byte(document), into)
		}
	}
	return fmt.Errorf("%s has no %s", path, kind)
}

// manager is a running manager, and who it is to the API server.
type manager struct {
	*harness.Manager
	user string
}

// launch starts a manager under a ServiceAccount of its own, with a Lease of
// its own that a busy machine does not take from it.
func launch(ctx context.Context, account string, extra map[string]string) (*manager, error) {
	config, err := cluster.ServiceAccountConfig(ctx, operators, account)
	if err != nil {
		return nil, err
	}
	kubeconfig := filepath.Join(filepath.Dir(auditLog), account+".kubeconfig")
	if err := writeKubeconfig(kubeconfig, config); err != nil {
		return nil, err
	}
	environ := map[string]string{
		"KUBECONFIG": kubeconfig, "POD_NAMESPACE": operators, "POD_NAME": account,
		"LEADER_ELECTION_LOCK_NAME":      account,
		"LEADER_ELECTION_LEASE_DURATION": "60s", "LEADER_ELECTION_RENEW_DEADLINE": "40s", "LEADER_ELECTION_RETRY_PERIOD": "500ms",
	}
	for name, value := range extra {
		environ[name] = value
	}
	m, err := cluster.StartManager(environ)
	if err != nil {
		return nil, err
	}
	return &manager{m, "system:serviceaccount:" + operators + ":" + account}, nil
}

func writeKubeconfig(path string, config *rest.Config) error {
	text := clientcmdapi.NewConfig()
	text.Clusters["c"] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	text.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: config.BearerToken}
	text.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	text.CurrentContext = "x"
	return clientcmd.WriteToFile(*text, path)
}

// accounts numbers the managers' ServiceAccounts.
var accounts atomic.Int32

// start starts a manager for one test and waits until it is ready. When the
// test ends it is stopped, which has to be clean.
func start(t *testing.T, extra map[string]string) *manager {
	t.Helper()
	m := begin(t, extra)
	if err := m.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

// begin is start without the wait.
func begin(t *testing.T, extra map[string]string) *manager {
	t.Helper()
	return beginAs(t, newAccount(), extra)
}

func newAccount() string { return fmt.Sprintf("manager-%d", accounts.Add(1)) }

// beginAs is begin under a given name, such as that of a manager before.
func beginAs(t *testing.T, account string, extra map[string]string) *manager {
	t.Helper()
	m, err := launch(t.Context(), account, extra)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		select {
		case <-m.Exited(): // the test ended it
		default:
			if err := m.Stop(); err != nil {
				t.Errorf("the manager did not stop cleanly: %v", err)
			}
		}
		if t.Failed() {
			t.Logf("the manager's log ends with\n%s", m.LogTail(30))
		}
	})
	return m
}

// stop stops a manager, which has to be clean.
func (m *manager) stop(t *testing.T) {
	t.Helper()
	if err := m.Stop(); err != nil {
		t.Fatalf("the manager did not stop cleanly: %v\n%s", err, m.LogTail(20))
	}
}

// expectNoErrors fails the test where the manager logged an error.
func (m *manager) expectNoErrors(t *testing.T) {
	t.Helper()
	if all := harness.ErrorLines(m.Log()); len(all) > 0 {
		t.Errorf("the manager logged errors:\n%s", strings.Join(all, "\n"))
	}
}

// in is the same namespace for a subtest.
func (s *space) in(t *testing.T) *space { return &space{t: t, name: s.name, manager: s.manager} }

func sharedName(i int) string { return fmt.Sprintf("shared-%02d", i) }

// shared is the manager of all tests that need no other settings than the
// shipped ones. It watches several namespaces; each test takes one.
var shared = struct {
	sync.Mutex
	*manager
	taken int
}{}

// inShared returns a namespace of the shared manager.
func inShared(t *testing.T) *space {
	t.Helper()
	skipShort(t)
	shared.Lock()
	defer shared.Unlock()
	if shared.manager == nil {
		var all []string
		for i := range sharedNamespaces {
			all = append(all, sharedName(i))
		}
		m, err := launch(context.Background(), "shared", map[string]string{"WATCH_NAMESPACE": strings.Join(all, ",")})
		if err == nil {
			err = m.WaitReady(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		shared.manager = m
	}
	if shared.taken == sharedNamespaces {
		t.Fatalf("all %d namespaces are taken; raise sharedNamespaces", sharedNamespaces)
	}
	s := &space{t: t, name: sharedName(shared.taken), manager: shared.manager}
	shared.taken++
	s.awaitAccount()
	return s
}

// awaitAccount waits for what no pod can be created without.
func (s *space) awaitAccount() {
	s.t.Helper()
	s.eventually("the namespace has its ServiceAccount", func() error {
		return cluster.Client.Get(s.t.Context(), s.key("default"), &corev1.ServiceAccount{})
	})
}

// stopShared ends the shared manager. Nothing that the tests do to it is an
// error of the manager's.
func stopShared() error {
	if shared.manager == nil {
		return nil
	}
	if err := shared.Stop(); err != nil {
		return fmt.Errorf("the shared manager did not stop cleanly: %w\n%s", err, shared.LogTail(30))
	}
	if all := harness.ErrorLines(shared.Log()); len(all) > 0 {
		return fmt.Errorf("the shared manager logged errors:\n%s", strings.Join(all, "\n"))
	}
	return nil
}

func skipShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: this needs a control plane")
	}
}

// own returns a new namespace that no manager watches yet.
func own(t *testing.T) *space {
	t.Helper()
	skipShort(t)
	s := &space{t: t, name: fmt.Sprintf("own-%d", namespaces.Add(1))}
	if err := cluster.NewNamespace(t.Context(), s.name); err != nil {
		t.Fatal(err)
	}
	s.awaitAccount()
	return s
}

var namespaces atomic.Int32

// watched starts a manager for the namespace alone.
func (s *space) watched(extra map[string]string) *space {
	s.t.Helper()
	environ := map[string]string{"WATCH_NAMESPACE": s.name}
	for name, value := range extra {
		environ[name] = value
	}
	s.manager = start(s.t, environ)
	return s
}
