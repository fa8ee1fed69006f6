// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/pki"
)

// Programs of the control plane, by which their logs are named.
const (
	etcd              = "etcd"
	apiServer         = "kube-apiserver"
	controllerManager = "kube-controller-manager"
	scheduler         = "kube-scheduler"
	dns               = controlplane.CoreDNS
)

const (
	clusterName      = "podconfigmap-cluster"
	controlPlaneName = "control-plane"
	// etc is where a machine finds its configuration.
	etc = "/etc/cluster/"
	// insideServer is the API server as the machines see it.
	insideServer = "https://10.88.0.1:443"
)

// startControlPlane makes the machine of the control plane, with the bridge that
// nodes are joined to, and starts its programs.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	began := time.Now()
	if err := c.writeControlPlane(); err != nil {
		return err
	}
	var err error
	if c.plane, err = c.newMachine(ctx, controlPlaneName, false); err != nil {
		return err
	}
	if c.fabric, err = newFabric(c.plane); err != nil {
		return err
	}
	if err := c.openServer(); err != nil {
		return err
	}
	if err := c.startPrograms(ctx); err != nil {
		return err
	}
	c.say("control plane ready after %s", since(began))
	return nil
}

// writeControlPlane writes the credentials that the control plane reads.
func (c *Cluster) writeControlPlane() error {
	folder, err := c.configOf(controlPlaneName)
	if err != nil {
		return err
	}
	addresses := append([]netip.Addr{netip.MustParseAddr("127.0.0.1")}, append(serverAddresses, serviceAddresses...)...)
	serving, err := c.authority.Issue("kube-apiserver", "", addresses,
		"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
	if err != nil {
		return err
	}
	// What the API server is to kubelets.
	client, err := c.authority.Issue("kube-apiserver-kubelet-client", "system:masters", nil)
	if err != nil {
		return err
	}
	errs := []error{
		os.WriteFile(filepath.Join(folder, "ca.crt"), c.authority.PEM, 0o644),
		serving.Write(folder, "apiserver"), client.Write(folder, "kubelet-client"), pki.WriteAccountKeys(folder),
	}
	for _, name := range []string{controllerManager, scheduler, dns} {
		errs = append(errs, c.writeClient(folder, name, "system:"+name, ""))
	}
	errs = append(errs, os.WriteFile(filepath.Join(folder, "Corefile"), []byte(corefile), 0o644))
	return errors.Join(errs...)
}

// writeClient writes NAME.kubeconfig for a client inside of the cluster's network.
func (c *Cluster) writeClient(folder, name, user, group string) error {
	i, err := c.authority.Issue(user, group, nil)
	if err != nil {
		return err
	}
	return writeKubeconfig(filepath.Join(folder, name+".kubeconfig"), insideServer, c.authority, i)
}

// openServer makes the way from the host to the API server, and the administrator's
// configuration.
func (c *Cluster) openServer() error {
	inside := net.JoinHostPort(serverAddresses[0].String(), strconv.Itoa(serverPort))
	listener, err := net.Listen("tcp", c.address)
	if err != nil {
		return fmt.Errorf("listening for clients of the API server: %w", err)
	}
	c.gateways = append(c.gateways, openGateway(listener, func(ctx context.Context) (net.Conn, error) { return c.fabric.dial(ctx, "tcp", inside) }))
	admin, err := c.authority.Issue("admin", "system:masters", nil)
	if err != nil {
		return err
	}
	server := "https://" + c.address
	c.config = &rest.Config{
		Host: server, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: c.authority.PEM, CertData: admin.Certificate, KeyData: admin.Key},
	}
	if c.clients, err = kubernetes.NewForConfig(c.config); err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	return writeKubeconfig(c.Kubeconfig(), server, c.authority, admin)
}

func (c *Cluster) startPrograms(ctx context.Context) error {
	if err := c.plane.start(ctx, etcd, etcdCommand(), c.etcdReady); err != nil {
		return err
	}
	if err := c.plane.start(ctx, apiServer, append(apiServerCommand(), c.options.APIServerFlags...), c.apiServerReady); err != nil {
		return err
	}
	if err := c.plane.start(ctx, scheduler, schedulerCommand(), nil); err != nil {
		return err
	}
	// Pods cannot be created before it has made this ServiceAccount.
	err := c.plane.start(ctx, controllerManager, controllerManagerCommand(), func(ctx context.Context) error {
		_, err := c.clients.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	if err != nil {
		return err
	}
	return c.startDNS(ctx)
}

func etcdCommand() []string {
	const client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	return []string{
		etcd, "--data-dir=/var/lib/etcd",
		// The data need not survive a power failure.
		"--unsafe-no-fsync",
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=default=" + peer,
		"--quota-backend-bytes=" + strconv.Itoa(8<<30),
	}
}

func apiServerCommand() []string {
	return []string{
		apiServer, "--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=::", "--secure-port=" + strconv.Itoa(serverPort),
		"--advertise-address=" + serverAddresses[0].String(),
		"--tls-cert-file=" + etc + "apiserver.crt", "--tls-private-key-file=" + etc + "apiserver.key",
		"--client-ca-file=" + etc + "ca.crt",
		"--kubelet-certificate-authority=" + etc + "ca.crt",
		"--kubelet-client-certificate=" + etc + "kubelet-client.crt", "--kubelet-client-key=" + etc + "kubelet-client.key",
		"--kubelet-preferred-address-types=InternalIP",
		"--service-cluster-ip-range=" + serviceRange,
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + etc + "sa.pub", "--service-account-signing-key-file=" + etc + "sa.key",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		// Webhooks and aggregated APIs are reached at their pods: there is no kube-proxy
		// beside the API server.
		"--enable-aggregator-routing=true",
	}
}

func controllerManagerCommand() []string {
	return []string{
		controllerManager, "--kubeconfig=" + etc + controllerManager + ".kubeconfig",
		"--service-account-private-key-file=" + etc + "sa.key", "--root-ca-file=" + etc + "ca.crt",
		"--use-service-account-credentials=true", "--leader-elect=false", "--secure-port=0",
		"--kube-api-qps=100", "--kube-api-burst=200",
	}
}

func schedulerCommand() []string {
	return []string{scheduler, "--kubeconfig=" + etc + scheduler + ".kubeconfig", "--leader-elect=false", "--secure-port=0"}
}

func (c *Cluster) etcdReady(ctx context.Context) error {
	return c.get(ctx, &http.Transport{DialContext: c.fabric.dial, DisableKeepAlives: true}, "http://127.0.0.1:2379/readyz")
}

func (c *Cluster) apiServerReady(ctx context.Context) error {
	settings, err := rest.TLSConfigFor(c.config)
	if err != nil {
		return err
	}
	return c.get(ctx, &http.Transport{TLSClientConfig: withoutHTTP2(settings), DisableKeepAlives: true}, c.config.Host+"/readyz")
}

func withoutHTTP2(settings *tls.Config) *tls.Config {
	settings = settings.Clone()
	settings.NextProtos = nil
	return settings
}

// get asks for url and returns nil if the answer is 200.
func (c *Cluster) get(ctx context.Context, transport http.RoundTripper, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("asking for %s: %s", url, response.Status)
	}
	return nil
}

func since(began time.Time) time.Duration { return time.Since(began).Round(100 * time.Millisecond) }

// writeKubeconfig writes what a client of that identity needs.
func writeKubeconfig(path, server string, a *pki.Authority, i *pki.Identity) error {
	config := clientcmdapi.NewConfig()
	config.Clusters[clusterName] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: a.PEM}
	config.AuthInfos[clusterName] = &clientcmdapi.AuthInfo{ClientCertificateData: i.Certificate, ClientKeyData: i.Key}
	config.Contexts[clusterName] = &clientcmdapi.Context{Cluster: clusterName, AuthInfo: clusterName}
	config.CurrentContext = clusterName
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return fmt.Errorf("writing the kubeconfig %q: %w", path, err)
	}
	return nil
}
