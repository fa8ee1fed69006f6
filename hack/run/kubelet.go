// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	demoNode = "demo-node"
	nodeIP   = "192.0.2.1" // TEST-NET-1
)

// kubelet does, through the API alone, what is seen of a scheduler and a kubelet:
// it binds pods, says that they run, and lets them go. Nothing is started, but for
// the pods that machinery makes real.
type kubelet struct {
	client client.Client
	node   *corev1.Node
	lease  *coordinationv1.Lease
	pods   int        // that got an address
	real   *machinery // nil where no pod is
	// agentReady is set when the agent runs, which another part starts.
	agentReady atomic.Bool
}

// startKubelet lets a pretended node serve every pod until the session ends.
func (s *session) startKubelet(ctx context.Context) error {
	s.say("")
	s.say("There is no kubelet here, so nothing starts the pods' containers. Instead, this program")
	s.say("binds them to %s, a node that does not exist, and sets their status to Running.", demoNode)
	k := &kubelet{client: s.client, real: s.real}
	s.kubelet = k
	if err := k.register(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		k.serve(ctx, func(err error) { s.say("the pretended node: %v", err) })
	}()
	s.later("stopping the pretended node", func(context.Context) error {
		cancel()
		<-ended
		return nil
	})
	return nil
}

// register makes the node. Its Lease keeps it ready: the pods of a node that is
// not get evicted.
func (k *kubelet) register(ctx context.Context) error {
	k.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: demoNode, Labels: map[string]string{
		corev1.LabelHostname: demoNode, corev1.LabelOSStable: runtime.GOOS, corev1.LabelArchStable: runtime.GOARCH,
	}}}
	if err := k.client.Create(ctx, k.node); err != nil {
		return fmt.Errorf("making the pretended node: %w", err)
	}
	ready := corev1.NodeCondition{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Pretended", Message: "make run pretends that this node exists",
		LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
	}
	before := k.node.DeepCopy()
	k.node.Status.Conditions = []corev1.NodeCondition{ready}
	k.node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeIP}}
	if err := k.client.Status().Patch(ctx, k.node, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("making the pretended node ready: %w", err)
	}
	holder, seconds := demoNode, int32(40)
	k.lease = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: demoNode, Namespace: corev1.NamespaceNodeLease}}
	k.lease.Spec = coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, RenewTime: &metav1.MicroTime{Time: time.Now()}}
	if err := k.client.Create(ctx, k.lease); err != nil {
		return fmt.Errorf("making the Lease of the pretended node: %w", err)
	}
	return nil
}

func (k *kubelet) serve(ctx context.Context, failed func(error)) {
	beat := time.NewTicker(10 * time.Second)
	defer beat.Stop()
	look := time.NewTicker(200 * time.Millisecond)
	defer look.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case now := <-beat.C:
			k.lease.Spec.RenewTime = &metav1.MicroTime{Time: now}
			err = whole(ctx, func(ctx context.Context) error { return k.client.Update(ctx, k.lease) })
		case <-look.C:
			err = whole(ctx, k.servePods)
		}
		// Somebody else was faster; the next look sees it.
		if err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			failed(err)
		}
	}
}

// whole lets calls end that are under way when the context does: client-go would
// print an error of a body that it cannot read to its end.
func whole(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return do(ctx)
}

func (k *kubelet) servePods(ctx context.Context) error {
	pods := &corev1.PodList{}
	if err := k.client.List(ctx, pods); err != nil {
		return err
	}
	if k.real != nil {
		if err := k.real.keep(pods.Items); err != nil {
			return err
		}
	}
	for i := range pods.Items {
		if err := k.servePod(ctx, &pods.Items[i]); err != nil {
			return err
		}
	}
	return nil
}

func (k *kubelet) servePod(ctx context.Context, pod *corev1.Pod) error {
	switch {
	case pod.DeletionTimestamp != nil:
		return k.client.Delete(ctx, pod, client.GracePeriodSeconds(0), client.Preconditions{UID: &pod.UID})
	case pod.Spec.NodeName == "":
		return k.client.SubResource("binding").Create(ctx, pod, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: demoNode}})
	case pod.Status.Phase == corev1.PodPending:
		addresses, err := k.run(pod)
		if err != nil || len(addresses) == 0 {
			return err
		}
		before := pod.DeepCopy()
		setRunning(pod, addresses)
		return k.client.Status().Patch(ctx, pod, client.MergeFrom(before))
	}
	return nil
}

// run starts a pod, or pretends to, and returns its addresses; none where it does
// not run yet.
func (k *kubelet) run(pod *corev1.Pod) ([]corev1.PodIP, error) {
	switch {
	case k.real != nil && pod.Namespace == k.real.namespace:
		addresses, err := k.real.run(pod)
		var all []corev1.PodIP
		for _, a := range addresses {
			all = append(all, corev1.PodIP{IP: a.String()})
		}
		return all, err
	case pod.Labels["app.kubernetes.io/component"] == agentPods["app.kubernetes.io/component"] && !k.agentReady.Load():
		return nil, nil
	}
	k.pods++
	return []corev1.PodIP{{IP: fmt.Sprintf("192.0.2.%d", 2+k.pods%250)}}, nil
}

// setRunning makes the status say that the pod runs.
func setRunning(pod *corev1.Pod, addresses []corev1.PodIP) {
	now := metav1.Now()
	s := &pod.Status
	s.Phase, s.StartTime = corev1.PodRunning, &now
	s.PodIP, s.PodIPs = addresses[0].IP, addresses
	s.HostIP, s.HostIPs = nodeIP, []corev1.HostIP{{IP: nodeIP}}
	for _, condition := range []corev1.PodConditionType{corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		s.Conditions = append(s.Conditions, corev1.PodCondition{Type: condition, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	s.ContainerStatuses = nil
	started := true
	for _, c := range pod.Spec.Containers {
		s.ContainerStatuses = append(s.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, Ready: true, Started: &started,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		})
	}
}
