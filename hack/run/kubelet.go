// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	nodeName = "demo-node"
	nodeIP   = "192.0.2.1" // TEST-NET-1
)

// kubelet does, through the API alone, what is seen of a scheduler and a kubelet:
// it binds pods, says that they run, and lets them go. Nothing is started.
type kubelet struct {
	client client.Client
	node   *corev1.Node
	lease  *coordinationv1.Lease
	pods   int // that got an address
}

// startKubelet lets a pretended node serve every pod until the session ends.
func (s *session) startKubelet(ctx context.Context) error {
	s.say("")
	s.say("There is no kubelet here, so nothing starts the pods' containers. Instead, this program")
	s.say("binds them to %s, a node that does not exist, and sets their status to Running.", nodeName)
	k := &kubelet{client: s.client}
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
	k.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}
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
	holder, seconds := nodeName, int32(40)
	k.lease = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: nodeName, Namespace: corev1.NamespaceNodeLease}}
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
			err = k.client.Update(ctx, k.lease)
		case <-look.C:
			err = k.servePods(ctx)
		}
		// Somebody else was faster; the next look sees it.
		if err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			failed(err)
		}
	}
}

func (k *kubelet) servePods(ctx context.Context) error {
	pods := &corev1.PodList{}
	if err := k.client.List(ctx, pods); err != nil {
		return err
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
		return k.client.SubResource("binding").Create(ctx, pod, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: nodeName}})
	case pod.Status.Phase == corev1.PodPending:
		before := pod.DeepCopy()
		k.pods++
		setRunning(pod, fmt.Sprintf("192.0.2.%d", 2+k.pods%250))
		return k.client.Status().Patch(ctx, pod, client.MergeFrom(before))
	}
	return nil
}

// setRunning makes the status say that the pod runs.
func setRunning(pod *corev1.Pod, ip string) {
	now := metav1.Now()
	s := &pod.Status
	s.Phase, s.StartTime = corev1.PodRunning, &now
	s.PodIP, s.PodIPs = ip, []corev1.PodIP{{IP: ip}}
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
