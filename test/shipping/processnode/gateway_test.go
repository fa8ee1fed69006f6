// SPDX-License-Identifier: Apache-2.0

package processnode

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

// behind are a Service and the only pod that it selects.
func behind(ready corev1.ConditionStatus) []client.Object {
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "garden", Name: "roses"}}
	service.Spec.Selector = map[string]string{"app": "rose"}
	service.Spec.Ports = []corev1.ServicePort{
		{Name: "metrics", Port: 80, TargetPort: intstr.FromString("metrics")}, {Name: "web", Port: 81, TargetPort: intstr.FromInt32(9090)},
		{Name: "none", Port: 82, TargetPort: intstr.FromString("none")},
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "garden", Name: "rose", Labels: map[string]string{"app": "rose"}}}
	p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "metrics", ContainerPort: 8080}, {Name: "web", ContainerPort: 9090}}}}
	p.Status = corev1.PodStatus{PodIP: "127.1.2.3", Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}}
	return []client.Object{service, p}
}

func TestServicesAreFound(t *testing.T) {
	for name, tc := range map[string]struct {
		url   string
		ready corev1.ConditionStatus
		want  string // the address, or part of the error
	}{
		"by the port's name":   {"http://roses.garden.svc:80/", corev1.ConditionTrue, "127.1.2.3:18080"},
		"by the port's number": {"http://roses.garden.svc:81/", corev1.ConditionTrue, "127.1.2.3:9090"},
		"not ready":            {"http://roses.garden.svc:80/", corev1.ConditionFalse, "no pod that is ready stands behind port 80"},
		"no such target":       {"http://roses.garden.svc:82/", corev1.ConditionTrue, "no pod that is ready stands behind port 82"},
		"no such port":         {"http://roses.garden.svc:83/", corev1.ConditionTrue, "has no port 83"},
		"no such Service":      {"http://tulips.garden.svc:80/", corev1.ConditionTrue, "not found"},
		"another name":         {"http://example.com/", corev1.ConditionTrue, "is no SERVICE.NAMESPACE.svc"},
	} {
		t.Run(name, func(t *testing.T) {
			g := &gateway{client: fake.NewClientBuilder().WithObjects(behind(tc.ready)...).Build()}
			of, err := url.Parse(tc.url)
			if err != nil {
				t.Fatal(err)
			}
			got, err := g.find(t.Context(), of)
			if err != nil {
				got = err.Error()
			}
			if !strings.Contains(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// Whoever uses the proxy is told why there is no answer.
func TestTheGatewayTellsWhy(t *testing.T) {
	g, err := startGateway(fake.NewClientBuilder().Build())
	if err != nil {
		t.Fatal(err)
	}
	defer g.server.Close()
	proxy, err := url.Parse(g.url)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{Proxy: http.ProxyURL(proxy)}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Get("http://roses.garden.svc/")
	if err != nil {
		t.Fatal(err)
	}
	if response.Body.Close(); response.StatusCode != http.StatusBadGateway {
		t.Errorf("the answer is %s", response.Status)
	}
}
