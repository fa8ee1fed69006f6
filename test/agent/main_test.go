// SPDX-License-Identifier: Apache-2.0

// Package agent tests the node agent as it runs in a cluster: the real binary,
// with the shipped rights, a real API server and the real kernel. What kubelet and
// a container runtime would make (cgroups, network namespaces, processes), the
// sandbox makes; pods are bound to the node through the API.
package agent

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

const (
	// operators is the namespace of the agents and of their reports.
	operators = "operators"
	account   = "podconfigmap-controller-agent"
)

// shared is the cluster of the tests that leave the API server alive; nil with
// -short.
var shared *harness.Cluster

// scratch holds files of the whole run.
var scratch string

func TestMain(m *testing.M) {
	flag.Parse()
	ctrllog.SetLogger(logr.Discard())
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
	if scratch, err = os.MkdirTemp("", "agent-test-"); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	if shared, err = startCluster(context.Background()); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, shared.Stop()) }()
	return m.Run(), nil
}

// startCluster starts a control plane on which agents have the shipped rights.
func startCluster(ctx context.Context) (*harness.Cluster, error) {
	c, err := harness.StartCluster(ctx, controlplane.Options{Progress: os.Stderr})
	if err != nil {
		return nil, err
	}
	if err := errors.Join(c.NewNamespace(ctx, operators), giveRights(ctx, c)); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

// giveRights binds the shipped roles of the agent to its ServiceAccount.
func giveRights(ctx context.Context, c *harness.Cluster) error {
	cluster, local := &rbacv1.ClusterRole{}, &rbacv1.Role{}
	if err := errors.Join(readRole("ClusterRole", cluster), readRole("Role", local)); err != nil {
		return err
	}
	local.Namespace = operators
	everywhere := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: cluster.Name}, Subjects: agents(),
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: cluster.Name},
	}
	if err := errors.Join(c.Client.Create(ctx, cluster), c.Client.Create(ctx, local),
		c.Client.Create(ctx, everywhere), c.Client.Create(ctx, localBinding())); err != nil {
		return fmt.Errorf("giving the agents their rights: %w", err)
	}
	return nil
}

func agents() []rbacv1.Subject {
	return []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: operators, Name: account}}
}

// localBinding gives the agents their rights in the operator's namespace.
func localBinding() *rbacv1.RoleBinding {
	return &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: operators, Name: "agent-role"}, Subjects: agents(),
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "agent-role"},
	}
}

func readRole(kind string, into any) error {
	root, err := harness.Root()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(root, "config/rbac/agent_role.yaml"))
	if err != nil {
		return fmt.Errorf("reading the agent's rights: %w", err)
	}
	for document := range strings.SplitSeq(string(text), "---\n") {
		if strings.Contains(document, "\nkind: "+kind+"\n") {
			return yaml.UnmarshalStrict([]byte(document), into)
		}
	}
	return fmt.Errorf("config/rbac/agent_role.yaml has no %s", kind)
}

// kubeconfig writes a kubeconfig file of the agent's ServiceAccount.
func kubeconfig(ctx context.Context, c *harness.Cluster, path string) error {
	config, err := c.ServiceAccountConfig(ctx, operators, account)
	if err != nil {
		return err
	}
	return writeKubeconfig(path, config)
}

func writeKubeconfig(path string, config *rest.Config) error {
	text := clientcmdapi.NewConfig()
	text.Clusters["c"] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	text.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: config.BearerToken}
	text.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	text.CurrentContext = "x"
	return clientcmd.WriteToFile(*text, path)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func skipShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: this needs a control plane, root and cgroup v2")
	}
}
