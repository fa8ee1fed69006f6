// SPDX-License-Identifier: Apache-2.0

// Package controlplane runs a real Kubernetes control plane on loopback, for
// tests, benchmarks and trying the operator out: etcd, the API server with
// RBAC, and, if wanted, the controller manager. It has no nodes and no
// scheduler: Pods stay Pending unless the caller sets their status.
//
// The programs are built from pinned Go modules (see Build), so it needs Go
// and Linux and nothing else.
package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	loopback     = "127.0.0.1"
	serviceRange = "10.96.0.0/16"
	// serviceAddress is where pods would find the API server: the first of that range.
	serviceAddress = "10.96.0.1"
)

// Options say what Start starts.
type Options struct {
	// Dir holds data, credentials and logs. A control plane started in the
	// folder of a stopped one has its objects and credentials. If empty, it is
	// a temporary folder that Stop removes.
	Dir string
	// Logs is another folder for the logs, which stays.
	Logs string
	// ControllerManager runs kube-controller-manager: garbage collection,
	// ServiceAccounts, namespaces. Without it the admission of ServiceAccounts
	// is off too, or no Pod could be created.
	ControllerManager bool
	// APIServerFlags come after those that Start gives, such as
	// "--audit-policy-file=…".
	APIServerFlags []string
	// ControllerManagerFlags are the same for the controller manager, such as
	// "--controllers=namespace-controller".
	ControllerManagerFlags []string
	// Progress gets a line for each step. May be nil.
	Progress io.Writer
}

// ControlPlane is a running control plane. Its methods may be called from
// several goroutines.
type ControlPlane struct {
	options   Options
	dir       string
	ownDir    bool
	programs  string
	secrets   credentials
	etcdURL   string
	peerURL   string
	port      int // of the API server
	authority []byte

	mu                       sync.Mutex // guards the processes
	etcd, apiServer, manager *process
}

// Start builds what is not built yet, starts the control plane and waits until
// it is ready. ctx limits the start only: a control plane runs until Stop, or
// until this process ends, however it ends. When Start fails it leaves nothing
// running, and its error has the last lines of the log of what failed.
func Start(ctx context.Context, o Options) (*ControlPlane, error) {
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	c := &ControlPlane{options: o}
	var err error
	if c.programs, err = Build(ctx, o.Progress); err != nil {
		return nil, err
	}
	if err := c.prepare(); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	if err := c.startAll(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

// prepare makes the folders and credentials and chooses ports.
func (c *ControlPlane) prepare() (err error) {
	if c.dir, err = filepath.Abs(c.options.Dir); err != nil {
		return fmt.Errorf("finding the folder %q: %w", c.options.Dir, err)
	}
	if c.options.Dir == "" {
		if c.dir, err = os.MkdirTemp("", "controlplane-"); err != nil {
			return fmt.Errorf("making a temporary folder: %w", err)
		}
		c.ownDir = true
	}
	if err := os.MkdirAll(c.Logs(), 0o755); err != nil {
		return fmt.Errorf("making the folder of logs: %w", err)
	}
	if c.secrets, err = newCredentials(filepath.Join(c.dir, "credentials")); err != nil {
		return err
	}
	if c.authority, err = os.ReadFile(c.secrets.authority()); err != nil {
		return fmt.Errorf("reading the certificate of the authority: %w", err)
	}
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	c.port = ports[0]
	c.etcdURL = "http://" + net.JoinHostPort(loopback, strconv.Itoa(ports[1]))
	c.peerURL = "http://" + net.JoinHostPort(loopback, strconv.Itoa(ports[2]))
	return nil
}

func (c *ControlPlane) startAll(ctx context.Context) error {
	began := time.Now()
	if err := c.startEtcd(ctx); err != nil {
		return err
	}
	if err := c.StartAPIServer(ctx); err != nil {
		return err
	}
	if err := writeKubeconfig(c.Kubeconfig(), c.server(), c.authority, c.secrets.adminToken); err != nil {
		return err
	}
	if c.options.ControllerManager {
		if err := c.startControllerManager(ctx); err != nil {
			return err
		}
	}
	c.say("control plane ready at %s after %s", c.server(), time.Since(began).Round(100*time.Millisecond))
	return nil
}

func (c *ControlPlane) startEtcd(ctx context.Context) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.etcd, err = c.run(etcd,
		"--data-dir="+filepath.Join(c.dir, etcd),
		// The data need not survive a power failure, and tests are several
		// times as fast.
		"--unsafe-no-fsync",
		"--listen-client-urls="+c.etcdURL,
		"--advertise-client-urls="+c.etcdURL,
		"--listen-peer-urls="+c.peerURL,
		"--initial-advertise-peer-urls="+c.peerURL,
		"--initial-cluster=default="+c.peerURL,
		"--quota-backend-bytes="+strconv.Itoa(8<<30),
	)
	if err != nil {
		return err
	}
	return c.etcd.await(ctx, func(ctx context.Context) error {
		return get(ctx, http.DefaultTransport, c.etcdURL+"/readyz", "")
	})
}

// StartAPIServer starts the API server after KillAPIServer, at the same
// address, with the same certificates and objects, and waits until it is ready.
func (c *ControlPlane) StartAPIServer(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.apiServer != nil {
		return fmt.Errorf("starting %s: it runs already", apiServer)
	}
	p, err := c.run(apiServer, c.apiServerFlags()...)
	if err != nil {
		return err
	}
	if err := p.await(ctx, c.apiServerReady); err != nil {
		return errors.Join(err, p.kill())
	}
	c.apiServer = p
	return nil
}

func (c *ControlPlane) apiServerFlags() []string {
	flags := []string{
		"--etcd-servers=" + c.etcdURL,
		"--bind-address=" + loopback,
		"--secure-port=" + strconv.Itoa(c.port),
		"--advertise-address=" + loopback,
		// An endpoint of the Service "kubernetes" may not be on loopback.
		"--endpoint-reconciler-type=none",
		"--cert-dir=" + c.secrets.folder,
		"--service-cluster-ip-range=" + serviceRange,
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + c.secrets.publicKey(),
		"--service-account-signing-key-file=" + c.secrets.signingKey(),
		"--token-auth-file=" + c.secrets.tokens(),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
	}
	if !c.options.ControllerManager {
		flags = append(flags, "--disable-admission-plugins=ServiceAccount")
	}
	return append(flags, c.options.APIServerFlags...)
}

// apiServerReady asks the API server whether it is ready.
func (c *ControlPlane) apiServerReady(ctx context.Context) error {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.authority)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}
	return get(ctx, transport, c.server()+"/readyz", c.secrets.adminToken)
}

func (c *ControlPlane) startControllerManager(ctx context.Context) (err error) {
	kubeconfig := filepath.Join(c.secrets.folder, controllerManager+".kubeconfig")
	if err := writeKubeconfig(kubeconfig, c.server(), c.authority, c.secrets.kcmToken); err != nil {
		return err
	}
	clients, err := kubernetes.NewForConfig(c.Config())
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	flags := []string{
		"--kubeconfig=" + kubeconfig,
		"--service-account-private-key-file=" + c.secrets.signingKey(),
		"--root-ca-file=" + c.secrets.authority(),
		"--use-service-account-credentials=true",
		"--leader-elect=false",
		"--secure-port=0", // serves nothing
		// With the default of 20 a second its own start takes 5 s instead of 1 s.
		"--kube-api-qps=100",
		"--kube-api-burst=200",
	}
	c.manager, err = c.run(controllerManager, append(flags, c.options.ControllerManagerFlags...)...)
	if err != nil {
		return err
	}
	// Pods cannot be created before it has made this ServiceAccount.
	return c.manager.await(ctx, func(ctx context.Context) error {
		_, err := clients.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

func (c *ControlPlane) run(name string, args ...string) (*process, error) {
	c.say("starting %s", name)
	return startProcess(name, filepath.Join(c.Logs(), name+".log"), filepath.Join(c.programs, name), args...)
}

func (c *ControlPlane) say(format string, args ...any) {
	fmt.Fprintf(c.options.Progress, format+"\n", args...)
}

// get asks for url and returns nil if the answer is 200.
func get(ctx context.Context, transport http.RoundTripper, url, token string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return fmt.Errorf("asking for %s: %s: %s", url, response.Status, body)
	}
	return nil
}

// KillAPIServer ends the API server without warning (SIGKILL) and waits until
// it is gone.
func (c *ControlPlane) KillAPIServer() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.apiServer == nil {
		return fmt.Errorf("killing %s: it does not run", apiServer)
	}
	if err := c.apiServer.kill(); err != nil {
		return err
	}
	c.apiServer = nil
	return nil
}

// Stop ends everything and removes the folder if Start made it. It may be
// called again.
func (c *ControlPlane) Stop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	// The API server hangs, and keeps its port, when etcd goes before it.
	for _, p := range []**process{&c.manager, &c.apiServer, &c.etcd} {
		if *p == nil {
			continue
		}
		if err := (*p).stop(); err != nil {
			return err
		}
		*p = nil
	}
	if !c.ownDir {
		return nil
	}
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("removing the folder of the control plane: %w", err)
	}
	return nil
}

func (c *ControlPlane) server() string {
	return "https://" + net.JoinHostPort(loopback, strconv.Itoa(c.port))
}

// Config returns the configuration of a client in the group system:masters,
// without a limit of its own on requests. Any other user is an Impersonate away.
func (c *ControlPlane) Config() *rest.Config { return c.config(c.secrets.adminToken) }

func (c *ControlPlane) config(token string) *rest.Config {
	return &rest.Config{
		Host:            c.server(),
		BearerToken:     token,
		TLSClientConfig: rest.TLSClientConfig{CAData: c.authority},
		QPS:             -1,
	}
}

// Kubeconfig returns the path of a kubeconfig for the user of Config.
func (c *ControlPlane) Kubeconfig() string { return filepath.Join(c.dir, "kubeconfig") }

// Logs returns the folder of the logs, one NAME.log for each program.
func (c *ControlPlane) Logs() string {
	if c.options.Logs != "" {
		return c.options.Logs
	}
	return filepath.Join(c.dir, "logs")
}

// ServiceAccountConfig returns the configuration of a client that is the
// ServiceAccount, with a token for a day. It creates the ServiceAccount when
// absent; the namespace must exist.
func (c *ControlPlane) ServiceAccountConfig(ctx context.Context, namespace, name string) (*rest.Config, error) {
	clients, err := kubernetes.NewForConfig(c.Config())
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	accounts := clients.CoreV1().ServiceAccounts(namespace)
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := accounts.Create(ctx, account, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("creating ServiceAccount %q: %w", namespace+"/"+name, err)
	}
	day := int64(24 * 60 * 60)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &day}}
	token, err := accounts.CreateToken(ctx, name, request, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("requesting a token of ServiceAccount %q: %w", namespace+"/"+name, err)
	}
	return c.config(token.Status.Token), nil
}
