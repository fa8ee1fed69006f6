// SPDX-License-Identifier: Apache-2.0

package processnode

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// gateway does for the containers what a cluster's DNS and its Services do, for HTTP:
// it is their proxy, and finds for http://SERVICE.NAMESPACE.svc:PORT a ready pod that
// the Service selects.
type gateway struct {
	client client.Client
	url    string
	server *http.Server
}

func startGateway(c client.Client) (*gateway, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening for the pods' requests: %w", err)
	}
	g := &gateway{client: c, url: "http://" + listener.Addr().String()}
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
	go func() { _ = g.server.Serve(listener) }() // until it is closed
	return g, nil
}

// find is the address of a pod behind a URL of a Service.
func (g *gateway) find(ctx context.Context, of *url.URL) (string, error) {
	parts := strings.Split(of.Hostname(), ".")
	if len(parts) != 3 || parts[2] != "svc" {
		return "", fmt.Errorf("%s is no SERVICE.NAMESPACE.svc", of.Hostname())
	}
	service := &corev1.Service{}
	if err := g.client.Get(ctx, client.ObjectKey{Namespace: parts[1], Name: parts[0]}, service); err != nil {
		return "", err
	}
	at := slices.IndexFunc(service.Spec.Ports, func(p corev1.ServicePort) bool { return strconv.Itoa(int(p.Port)) == of.Port() })
	if at < 0 {
		return "", fmt.Errorf("%s has no port %s", of.Hostname(), of.Port())
	}
	pods := &corev1.PodList{}
	if err := g.client.List(ctx, pods, client.InNamespace(service.Namespace), client.MatchingLabels(service.Spec.Selector)); err != nil {
		return "", err
	}
	for i := range pods.Items {
		if address := addressOf(&pods.Items[i], service.Spec.Ports[at].TargetPort.String()); address != "" {
			return address, nil
		}
	}
	return "", fmt.Errorf("no pod that is ready stands behind port %s of %s", of.Port(), of.Hostname())
}

// addressOf is that of a port, by its name or number, of a pod that is ready.
func addressOf(p *corev1.Pod, target string) string {
	if !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	}) {
		return ""
	}
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			if target != port.Name && target != strconv.Itoa(int(port.ContainerPort)) {
				continue
			}
			number := int(port.ContainerPort)
			if port.Name == metricsName {
				number = metricsPort
			}
			return net.JoinHostPort(p.Status.PodIP, strconv.Itoa(number))
		}
	}
	return ""
}
