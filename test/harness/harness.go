// SPDX-License-Identifier: Apache-2.0

// Package harness runs the operator as its users do, a process of its own,
// against a real control plane.
package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
)

// Patience is how long a process may take to start or stop: many times what it
// takes on a quiet machine.
const Patience = 2 * time.Minute

// Cluster is a control plane that knows our kind.
type Cluster struct {
	*controlplane.ControlPlane
	// Client is an administrator's, without a cache.
	Client client.Client
}

// StartCluster starts a control plane and installs the CRDs.
func StartCluster(ctx context.Context, o controlplane.Options) (*Cluster, error) {
	c, err := StartBareCluster(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(InstallCRD(ctx, c.Client), InstallNodeCRD(ctx, c.Client)); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

// StartBareCluster starts a control plane that does not know our kind.
func StartBareCluster(ctx context.Context, o controlplane.Options) (*Cluster, error) {
	plane, err := controlplane.Start(ctx, o)
	if err != nil {
		return nil, err
	}
	c := &Cluster{ControlPlane: plane}
	config := plane.Config()
	config.DisableCompression = true // on one machine it only costs
	if c.Client, err = NewClient(config); err != nil {
		return nil, errors.Join(err, plane.Stop())
	}
	return c, nil
}

// NewClient returns a client of the kinds that tests work with.
func NewClient(config *rest.Config) (client.Client, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), apiextensionsv1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("building the scheme: %w", err)
	}
	return client.New(config, client.Options{Scheme: scheme})
}

// InstallCRD applies the generated CRD of PodConfigMapConfigs and waits until it
// is served.
func InstallCRD(ctx context.Context, c client.Client) error {
	return install(ctx, c, "podconfigmapconfigs", &v1alpha1.PodConfigMapConfigList{})
}

// InstallNodeCRD does the same for EBPFNodes.
func InstallNodeCRD(ctx context.Context, c client.Client) error {
	return install(ctx, c, "ebpfnodes", &v1alpha1.EBPFNodeList{})
}

func install(ctx context.Context, c client.Client, plural string, list client.ObjectList) error {
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := readManifest("config/crd/bases/podconfig.example.com_"+plural+".yaml", crd); err != nil {
		return err
	}
	if err := c.Create(ctx, crd); err != nil {
		return fmt.Errorf("installing the CRD of %s: %w", plural, err)
	}
	err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, Patience, true, func(ctx context.Context) (bool, error) {
		return c.List(ctx, list) == nil, nil
	})
	if err != nil {
		return fmt.Errorf("waiting until %s are served: %w", plural, err)
	}
	return nil
}

// ShippedSettings are the environment variables with values that
// config/manager/manager.yaml sets.
func ShippedSettings() (map[string]string, error) {
	deployment := &appsv1.Deployment{}
	if err := readManifest("config/manager/manager.yaml", deployment); err != nil {
		return nil, err
	}
	environ := map[string]string{}
	for _, v := range deployment.Spec.Template.Spec.Containers[0].Env {
		if v.ValueFrom == nil {
			environ[v.Name] = v.Value
		}
	}
	return environ, nil
}

func readManifest(path string, into any) error {
	root, err := Root()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		return fmt.Errorf("reading a manifest: %w", err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		return fmt.Errorf("decoding %s: %w", path, err)
	}
	return nil
}

// Root is the repository's root: the folder with main.go above this one.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "main.go")); err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("not below the repository's root")
}

// versionLine is where a release's version stands: nowhere else is it written by hand.
var versionLine = regexp.MustCompile(`(?m)^VERSION \?= (\S+)$`)

// Version is the version of the tree, from the Makefile, such as 1.2.3.
func Version() (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		return "", fmt.Errorf("reading the version: %w", err)
	}
	return versionIn(text)
}

func versionIn(makefile []byte) (string, error) {
	found := versionLine.FindSubmatch(makefile)
	if found == nil {
		return "", errors.New("the Makefile has no line VERSION ?= 1.2.3")
	}
	return string(found[1]), nil
}

// Manager is one running process of the operator: a manager or a node agent.
type Manager struct {
	command         *exec.Cmd
	log             *lockedBuffer
	metrics, probes string
	exited          chan struct{}
	exitErr         error
}

// PatientLease are settings that keep a manager that a busy machine stops for seconds
// from losing its Lease, and with it its life. How often the Lease is renewed stays as
// shipped.
var PatientLease = map[string]string{"LEADER_ELECTION_LEASE_DURATION": "60s", "LEADER_ELECTION_RENEW_DEADLINE": "40s"}

// StartManager starts a manager process with the shipped settings, and those
// given on top of them (an empty value takes one away). It does not wait until
// it is ready.
func (c *Cluster) StartManager(extra map[string]string) (*Manager, error) {
	environ, err := ShippedSettings()
	if err != nil {
		return nil, err
	}
	maps.Copy(environ, extra)
	return c.start(process{environ: environ, args: []string{"manager"}})
}

// StartAgent starts a node agent process with the given settings, and arguments
// beyond "agent". It does not wait until it is ready.
func (c *Cluster) StartAgent(environ map[string]string, args ...string) (*Manager, error) {
	return c.StartAgentUnder(nil, environ, args...)
}

// StartAgentUnder is StartAgent by way of another program and its arguments,
// which becomes the agent, such as setpriv.
func (c *Cluster) StartAgentUnder(launcher []string, environ map[string]string, args ...string) (*Manager, error) {
	return c.StartAgentBuild("", launcher, environ, args...)
}

// StartAgentBuild is StartAgentUnder for an agent that is built with these build
// tags, as another version of it would be.
func (c *Cluster) StartAgentBuild(tags string, launcher []string, environ map[string]string, args ...string) (*Manager, error) {
	return c.start(process{tags: tags, launcher: launcher, environ: environ, args: append([]string{"agent"}, args...)})
}

// StartProgram starts the operator with just the given settings and arguments,
// but for addresses of its own where it is given none. It does not wait until it
// is ready.
func (c *Cluster) StartProgram(environ map[string]string, args ...string) (*Manager, error) {
	return c.start(process{environ: environ, args: args})
}

// process is how the operator is started.
type process struct {
	tags     string // of the build
	launcher []string
	environ  map[string]string
	args     []string
}

// start starts the operator as an administrator, unless the environment has a
// KUBECONFIG.
func (c *Cluster) start(p process) (*Manager, error) {
	binary, err := operator(p.tags)
	if err != nil {
		return nil, err
	}
	m := &Manager{log: &lockedBuffer{}, exited: make(chan struct{})}
	if m.metrics, err = controlplane.FreeAddress(); err != nil {
		return nil, err
	}
	if m.probes, err = controlplane.FreeAddress(); err != nil {
		return nil, err
	}
	all := map[string]string{"KUBECONFIG": c.Kubeconfig(), "METRICS_ADDR": m.metrics, "HEALTH_PROBE_ADDR": m.probes}
	maps.Copy(all, p.environ)
	line := slices.Concat(p.launcher, []string{binary}, p.args)
	m.command = exec.Command(line[0], line[1:]...)
	m.command.Stdout, m.command.Stderr = m.log, m.log
	m.command.Env = []string{"HOME=" + os.Getenv("HOME"), "PATH=" + os.Getenv("PATH"), "GOCOVERDIR=" + os.Getenv("GOCOVERDIR")}
	for name, value := range all {
		m.command.Env = append(m.command.Env, name+"="+value)
	}
	if err := controlplane.StartChild(m.command); err != nil {
		return nil, fmt.Errorf("starting the operator as %v: %w", p.args, err)
	}
	go func() {
		m.exitErr = m.command.Wait()
		close(m.exited)
	}()
	return m, nil
}

// WaitReady waits until /readyz answers ok.
func (m *Manager) WaitReady(ctx context.Context) error {
	err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, Patience, true, func(ctx context.Context) (bool, error) {
		select {
		case <-m.exited:
			return false, fmt.Errorf("it exited: %w", m.exitErr)
		default:
		}
		return m.probe(ctx) == nil, nil
	})
	if err != nil {
		return fmt.Errorf("waiting until it is ready: %w\n%s", err, m.LogTail(20))
	}
	return nil
}

func (m *Manager) probe(ctx context.Context) error {
	_, err := get(ctx, "http://"+m.probes+"/readyz")
	return err
}

// Probe asks a path of the health probe's server for its body.
func (m *Manager) Probe(ctx context.Context, path string) (string, error) {
	return get(ctx, "http://"+m.probes+path)
}

// MetricsAddress is the host and port of /metrics.
func (m *Manager) MetricsAddress() string { return m.metrics }

// Scrape reads /metrics.
func (m *Manager) Scrape(ctx context.Context) (map[string]*dto.MetricFamily, error) {
	text, err := get(ctx, "http://"+m.metrics+"/metrics")
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("reading /metrics: %w", err)
	}
	return families, nil
}

func get(ctx context.Context, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	// Compressing its metrics would cost the operator more than they cost unpacked.
	request.Header.Set("Accept-Encoding", "identity")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s: %s", url, response.Status, body)
	}
	return string(body), err
}

// Kill ends the process with SIGKILL and waits until it is gone.
func (m *Manager) Kill() error { return m.end(syscall.SIGKILL) }

// Stop ends the process with SIGTERM and waits until it is gone. The error is
// that of the process where it was no clean stop.
func (m *Manager) Stop() error {
	if err := m.end(syscall.SIGTERM); err != nil {
		return err
	}
	return m.exitErr
}

func (m *Manager) end(signal syscall.Signal) error {
	if err := m.command.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("sending %v: %w", signal, err)
	}
	select {
	case <-m.exited:
		return nil
	case <-time.After(Patience):
		return errors.Join(fmt.Errorf("it did not end within %v of %v", Patience, signal), m.command.Process.Kill())
	}
}

// Exited is closed when the process has ended; ExitError is its error then.
func (m *Manager) Exited() <-chan struct{} { return m.exited }

// ExitError is how the process ended; nil means code 0. Only after Exited.
func (m *Manager) ExitError() error { return m.exitErr }

// PID is the process's id.
func (m *Manager) PID() int { return m.command.Process.Pid }

// Log is what the process wrote so far.
func (m *Manager) Log() string { return m.log.String() }

// LogTail is the end of the log.
func (m *Manager) LogTail(lines int) string {
	all := strings.Split(strings.TrimSpace(m.Log()), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// lockedBuffer collects a process's output while it is read.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// NewNamespace creates a namespace.
func (c *Cluster) NewNamespace(ctx context.Context, name string) error {
	namespace := &corev1.Namespace{}
	namespace.Name = name
	if err := c.Client.Create(ctx, namespace); err != nil {
		return fmt.Errorf("creating namespace %q: %w", name, err)
	}
	return nil
}
