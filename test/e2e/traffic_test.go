// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// tries is what a workload tells of its tries to reach an address.
type tries struct {
	Address string
	Results map[string]int
	Last    string
	Missed  map[string]string
}

func firstResults(p *point, pod *corev1.Pod) []tries {
	p.Helper()
	state := pod.Status.InitContainerStatuses[0].State.Terminated
	if state == nil {
		p.Fatalf("the init container of %s is %+v", pod.Name, pod.Status.InitContainerStatuses[0])
	}
	var results []tries
	if err := json.Unmarshal([]byte(state.Message), &results); err != nil || len(results) != 2 {
		p.Fatalf("the init container of %s says %q: %v", pod.Name, state.Message, err)
	}
	return results
}

func tcpSocket(port int) *corev1.TCPSocketAction {
	return &corev1.TCPSocketAction{Port: intstr.FromInt(port)}
}

func httpGet(path string, port int) *corev1.HTTPGetAction {
	return &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt(port)}
}

// ask has a workload do something, by its control port.
func (p *point) ask(pod *corev1.Pod, port int, path string, query url.Values, into any) {
	p.Helper()
	p.must(p.tryAsk(p.Context(), pod, port, path, query, into))
}

// tryAsk is ask for goroutines, and for what may fail. It is one connection.
func (w *world) tryAsk(ctx context.Context, pod *corev1.Pod, port int, path string, query url.Values, into any) error {
	target := "http://" + net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(port)) + path + "?" + query.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return err
	}
	w.asked.add(pod)
	response, err := w.web(pod).Do(request)
	if err != nil {
		return fmt.Errorf("asking %s for %s: %w", pod.Name, path, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("asking %s for %s: %w", pod.Name, path, err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("asking %s for %s: %s: %s", pod.Name, path, response.Status, text)
	}
	return json.Unmarshal(text, into)
}

// asked counts the connections that the tests themselves made to pods.
type asked struct {
	mu    sync.Mutex
	byPod map[types.UID]int
}

func (a *asked) add(pod *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.byPod == nil {
		a.byPod = map[types.UID]int{}
	}
	a.byPod[pod.UID]++
}

func (a *asked) forget(pod *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.byPod, pod.UID)
}

func (a *asked) of(pod *corev1.Pod) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.byPod[pod.UID]
}

// received is what all containers of a pod got so far.
func (p *point) received(pod *corev1.Pod) map[string]int {
	p.Helper()
	all := map[string]int{}
	for i := range pod.Spec.Containers {
		of := map[string]int{}
		p.ask(pod, controlOf(pod)+i, "/received", nil, &of)
		for what, n := range of {
			all[what] += n
		}
	}
	return all
}

// way is a try to reach an address from a pod, and what has to come of it.
type way struct {
	what      string
	from, to  *corev1.Pod
	by        *corev1.Pod // whose firewall judges
	container int         // of from, that tries
	network   string
	address   string
	passes    bool
	denied    bool // one that does not pass is told so at once
}

// limits of one try. What passes, or is denied at once, has time; what does not pass is
// listened to for a moment, and its server and its firewall tell whether it did.
const (
	passLimit  = "2m"
	blockLimit = "1500ms"
)

// wrong tells of a way that got another verdict than it should. Blocked are those that
// are denied, or get no answer: any other error is not the firewall's.
func (w *way) wrong(got *tries) error {
	passed, blocked := got.Results["reached"] == 1, got.Results["denied"] == 1 || !w.denied && got.Results["silent"] == 1
	if passed == w.passes && blocked != w.passes {
		return nil
	}
	return fmt.Errorf("%s: %s %s from %s: passes should be %t: %v: %s", w.what, w.network, w.address, w.from.Name, w.passes, got.Results, got.Last)
}

// walk tries many ways at once, and fails where something came of one that should not.
func (p *point) walk(ways []way) {
	p.Helper()
	var all sync.WaitGroup
	for _, w := range ways {
		all.Go(func() {
			limit := blockLimit
			if w.passes || w.denied {
				limit = passLimit
			}
			var got tries
			query := url.Values{"network": {w.network}, "address": {w.address}, "timeout": {limit}}
			if err := p.tryAsk(p.Context(), w.from, controlOf(w.from)+w.container, "/dial", query, &got); err != nil {
				p.Error(err)
				return
			}
			if err := w.wrong(&got); err != nil {
				p.Error(err)
			}
		})
	}
	all.Wait()
	if p.Failed() {
		p.FailNow()
	}
}

// A pod on the host's network has other ports: nodes have them only once.
const hostShift = 10000

func controlOf(pod *corev1.Pod) int {
	if pod.Spec.HostNetwork {
		return control + hostShift
	}
	return control
}

// route is from a pod to another, by some addresses of it.
type route struct {
	what      string
	from, to  *corev1.Pod
	by        *corev1.Pod
	container int
	addresses []string
	networks  []string // TCP and UDP where there are none
	denied    bool
}

// ways are those to an open and a blocked port.
func (r route) ways(open, closed int) []way {
	networks := r.networks
	if len(networks) == 0 {
		networks = []string{"tcp", "udp"}
	}
	var all []way
	for _, address := range r.addresses {
		for _, network := range networks {
			for port, passes := range map[int]bool{open: true, closed: false} {
				all = append(all, way{
					what: r.what, from: r.from, to: r.to, by: r.by, container: r.container, network: network,
					address: net.JoinHostPort(address, strconv.Itoa(port)), passes: passes, denied: r.denied && !passes,
				})
			}
		}
	}
	return all
}

// allPass are the same ways where nothing is blocked.
func allPass(ways []way) []way {
	for i := range ways {
		ways[i].passes, ways[i].denied = true, false
	}
	return ways
}

func podIPs(pod *corev1.Pod) []string {
	var all []string
	for _, ip := range pod.Status.PodIPs {
		all = append(all, ip.IP)
	}
	return all
}
