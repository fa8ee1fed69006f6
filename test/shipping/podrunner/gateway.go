// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// gateway does for the pods what a cluster's DNS and its Services do: it is an
// HTTP proxy that finds, for http://SERVICE.NAMESPACE.svc:PORT, a ready pod that
// the Service selects and that has its port.
type gateway struct {
	runner *Runner
	url    string
	server *http.Server
}

func startGateway(r *Runner) (*gateway, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening for the pods' requests: %w", err)
	}
	g := &gateway{runner: r, url: "http://" + listener.Addr().String()}
	proxy := &httputil.ReverseProxy{Rewrite: func(*httputil.ProxyRequest) {}}
	g.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		address, err := g.find(request.Context(), request.URL)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		request.URL.Host = address
		proxy.ServeHTTP(w, request)
	})}
	go func() { _ = g.server.Serve(listener) }() // until stop
	return g, nil
}

func (g *gateway) stop() error { return g.server.Close() }

// find is the address of a process that stands behind a URL of a Service.
func (g *gateway) find(ctx context.Context, of *url.URL) (string, error) {
	parts := strings.Split(of.Hostname(), ".")
	if len(parts) != 3 || parts[2] != "svc" || parts[1] != g.runner.namespace {
		return "", fmt.Errorf("%s is no Service of namespace %s", of.Hostname(), g.runner.namespace)
	}
	service := &corev1.Service{}
	if err := g.runner.cluster.Client.Get(ctx, types.NamespacedName{Namespace: parts[1], Name: parts[0]}, service); err != nil {
		return "", err
	}
	target := ""
	for _, port := range service.Spec.Ports {
		if strconv.Itoa(int(port.Port)) == of.Port() {
			target = port.TargetPort.String()
		}
	}
	pods := &corev1.PodList{}
	if err := g.runner.cluster.Client.List(ctx, pods, client.InNamespace(service.Namespace), client.MatchingLabels(service.Spec.Selector)); err != nil {
		return "", err
	}
	for i := range pods.Items {
		if address := g.address(&pods.Items[i], target); address != "" {
			return address, nil
		}
	}
	return "", fmt.Errorf("no pod that is ready stands behind port %s of %s", of.Port(), of.Hostname())
}

// address is that of a pod's port for metrics, where the pod is ready and target
// is that port.
func (g *gateway) address(pod *corev1.Pod, target string) string {
	g.runner.mu.Lock()
	defer g.runner.mu.Unlock()
	one := g.runner.running[pod.UID]
	if one == nil || !ready(pod) {
		return ""
	}
	for _, port := range pod.Spec.Containers[0].Ports {
		if port.Name == "metrics" && (target == port.Name || target == strconv.Itoa(int(port.ContainerPort))) {
			return one.process.MetricsAddress()
		}
	}
	return ""
}
