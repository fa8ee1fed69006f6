// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// dnsAddress is that of kubelet.yaml, and of the Service.
	dnsAddress = "10.96.0.10"
	dnsService = "kube-dns"
	dnsPort    = 53
	// dnsReady answers on the control plane's loopback.
	dnsReady = "127.0.0.1:8181"

	corefile = `.:53 {
    errors
    ready ` + dnsReady + `
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        kubeconfig ` + etc + dns + `.kubeconfig
    }
}
`
)

// startDNS starts CoreDNS beside the API server, and makes the Service by which pods
// ask it. It knows the names of the cluster only.
func (c *Cluster) startDNS(ctx context.Context) error {
	if err := c.admitDNS(ctx); err != nil {
		return fmt.Errorf("giving %s its rights: %w", dns, err)
	}
	err := c.plane.start(ctx, dns, []string{dns, "-conf", etc + "Corefile"}, func(ctx context.Context) error {
		return c.get(ctx, &http.Transport{DialContext: c.fabric.dial, DisableKeepAlives: true}, "http://"+dnsReady+"/ready")
	})
	if err != nil {
		return err
	}
	if err := c.serveDNS(ctx); err != nil {
		return fmt.Errorf("making the Service %s: %w", dnsService, err)
	}
	return nil
}

// admitDNS gives CoreDNS the rights that kubeadm gives it.
func (c *Cluster) admitDNS(ctx context.Context) error {
	const name = "system:" + dns
	read := []string{"list", "watch"}
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"services", "pods", "namespaces"}, Verbs: read},
		{APIGroups: []string{discoveryv1.GroupName}, Resources: []string{"endpointslices"}, Verbs: read},
	}}
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: name}},
	}
	if _, err := c.clients.RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{}); err != nil {
		return err
	}
	_, err := c.clients.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{})
	return err
}

// serveDNS makes a Service without pods, whose one endpoint is the control plane.
func (c *Cluster) serveDNS(ctx context.Context) error {
	ready, port := true, int32(dnsPort)
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: dnsService}, Spec: corev1.ServiceSpec{ClusterIP: dnsAddress}}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: dnsService, Labels: map[string]string{discoveryv1.LabelServiceName: dnsService}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{serverAddresses[0].String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
	}
	for name, protocol := range map[string]corev1.Protocol{"dns": corev1.ProtocolUDP, "dns-tcp": corev1.ProtocolTCP} {
		service.Spec.Ports = append(service.Spec.Ports, corev1.ServicePort{Name: name, Protocol: protocol, Port: port})
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &port})
	}
	if _, err := c.clients.CoreV1().Services(metav1.NamespaceSystem).Create(ctx, service, metav1.CreateOptions{}); err != nil {
		return err
	}
	_, err := c.clients.DiscoveryV1().EndpointSlices(metav1.NamespaceSystem).Create(ctx, slice, metav1.CreateOptions{})
	return err
}
