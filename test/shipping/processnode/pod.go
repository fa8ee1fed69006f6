// SPDX-License-Identifier: Apache-2.0

package processnode

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"reflect"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// restartPause is how long a container that ended waits for its next start.
const restartPause = time.Second

// pod is one that runs here.
type pod struct {
	node *Node
	uid  types.UID
	ip   string
	dir  string
	// latest is how the API server has it; nil when it has it no more.
	latest atomic.Pointer[corev1.Pod]
	ended  chan struct{}

	// What follows is of the goroutine of serve.
	init, main []*container
	reported   corev1.PodStatus
}

// serve runs the pod's containers until it is deleted, or the node stops.
func (p *pod) serve(ctx context.Context) error {
	spec := p.latest.Load().DeepCopy()
	roots, err := p.prepare(ctx, spec)
	if err != nil {
		return fmt.Errorf("preparing pod %s/%s: %w", spec.Namespace, spec.Name, err)
	}
	for i := range spec.Spec.InitContainers {
		p.init = append(p.init, newContainer(p, spec, &spec.Spec.InitContainers[i], roots))
	}
	for i := range spec.Spec.Containers {
		p.main = append(p.main, newContainer(p, spec, &spec.Spec.Containers[i], roots))
	}
	for ticker := time.NewTicker(period); ; {
		latest := p.latest.Load()
		if ctx.Err() != nil || latest == nil || latest.DeletionTimestamp != nil {
			ticker.Stop()
			return p.end(latest, spec.Spec.TerminationGracePeriodSeconds)
		}
		if err := p.step(ctx, latest); err != nil {
			p.node.note(fmt.Errorf("running pod %s/%s: %w", latest.Namespace, latest.Name, err))
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

// step starts what should run, and reports what does.
func (p *pod) step(ctx context.Context, latest *corev1.Pod) error {
	initialized := true
	for _, c := range p.init {
		if initialized = c.succeeded(); !initialized {
			if err := c.run(latest.Spec.RestartPolicy == corev1.RestartPolicyNever); err != nil {
				return err
			}
			break
		}
	}
	for _, c := range p.main {
		if initialized {
			if err := c.run(latest.Spec.RestartPolicy == corev1.RestartPolicyNever); err != nil {
				return err
			}
			c.ready = c.running() && p.probe(ctx, c.spec)
		}
	}
	return p.report(ctx, latest, initialized)
}

// probe asks as kubelet would; without a readiness probe a container is ready.
func (p *pod) probe(ctx context.Context, c *corev1.Container) bool {
	if c.ReadinessProbe == nil || c.ReadinessProbe.HTTPGet == nil {
		return true
	}
	get := c.ReadinessProbe.HTTPGet
	port := int(get.Port.IntVal)
	for _, named := range c.Ports {
		if named.Name == get.Port.StrVal && named.Name != "" {
			port = int(named.ContainerPort)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(p.ip, strconv.Itoa(port))+get.Path, nil)
	if err != nil {
		return false
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// report writes the pod's status where it is another.
func (p *pod) report(ctx context.Context, latest *corev1.Pod, initialized bool) error {
	status := corev1.PodStatus{PodIP: p.ip, PodIPs: []corev1.PodIP{{IP: p.ip}}, HostIP: "127.0.0.1", HostIPs: []corev1.HostIP{{IP: "127.0.0.1"}}}
	for _, c := range p.init {
		status.InitContainerStatuses = append(status.InitContainerStatuses, c.status())
	}
	ready := initialized
	for _, c := range p.main {
		status.ContainerStatuses = append(status.ContainerStatuses, c.status())
		ready = ready && c.ready
	}
	status.Phase = p.phase(initialized)
	for kind, holds := range map[corev1.PodConditionType]bool{
		corev1.PodScheduled: true, corev1.PodInitialized: initialized, corev1.ContainersReady: ready, corev1.PodReady: ready,
	} {
		status.Conditions = setCondition(latest.Status.Conditions, status.Conditions, kind, holds)
	}
	sortConditions(status.Conditions)
	if reflect.DeepEqual(status, p.reported) {
		return nil
	}
	before := latest.DeepCopy()
	after := latest.DeepCopy()
	status.StartTime, status.QOSClass, status.ObservedGeneration = latest.Status.StartTime, latest.Status.QOSClass, latest.Generation
	if status.StartTime == nil {
		now := metav1.Now()
		status.StartTime = &now
	}
	after.Status = status
	if err := p.node.client.Status().Patch(ctx, after, client.MergeFrom(before)); err != nil {
		return client.IgnoreNotFound(err)
	}
	status.StartTime, status.QOSClass, status.ObservedGeneration = nil, "", 0
	p.reported = status
	return nil
}

func (p *pod) phase(initialized bool) corev1.PodPhase {
	if !initialized {
		return corev1.PodPending
	}
	failed := false
	for _, c := range p.main {
		if !c.finished {
			return corev1.PodRunning
		}
		failed = failed || c.code != 0
	}
	if failed {
		return corev1.PodFailed
	}
	return corev1.PodSucceeded
}

// end stops the containers as kubelet does, and then lets the pod go.
func (p *pod) end(latest *corev1.Pod, seconds *int64) error {
	grace := 30 * time.Second
	if seconds != nil {
		grace = time.Duration(*seconds) * time.Second
	}
	if latest == nil {
		grace = 0
	}
	for _, c := range append(p.init, p.main...) {
		c.signal(syscall.SIGTERM)
	}
	deadline := time.After(grace)
	for _, c := range append(p.init, p.main...) {
		c.await(deadline)
	}
	if err := os.RemoveAll(p.dir); err != nil {
		return fmt.Errorf("removing a pod's folder: %w", err)
	}
	if latest == nil || latest.DeletionTimestamp == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return client.IgnoreNotFound(p.node.client.Delete(ctx, latest, client.GracePeriodSeconds(0), client.Preconditions{UID: &p.uid}))
}
