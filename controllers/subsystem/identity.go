// SPDX-License-Identifier: Apache-2.0

package subsystem

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
)

// +kubebuilder:rbac:groups="",resources=pods,verbs=get,namespace=system
// +kubebuilder:rbac:groups=apps,resources=replicasets,verbs=get,namespace=system

// identify reads what agents take over from the manager's own pod. Where there is
// no such pod, as out of a cluster, only the image of the settings is known.
func identify(ctx context.Context, live client.Reader, s *settings.Settings) (identity, error) {
	id := identity{image: s.RelatedImageAgent}
	if s.PodName == "" {
		return id, nil
	}
	pod := &corev1.Pod{}
	if err := live.Get(ctx, types.NamespacedName{Namespace: s.PodNamespace, Name: s.PodName}, pod); err != nil {
		if apierrors.IsNotFound(err) {
			return id, nil
		}
		return id, fmt.Errorf("reading the manager's own pod %q: %w", s.PodName, err)
	}
	own := managers(pod)
	id.pullPolicy, id.pullSecrets = own.ImagePullPolicy, pod.Spec.ImagePullSecrets
	if id.image == "" {
		id.image = own.Image
	}
	var err error
	id.owner, err = ownerOf(ctx, live, pod)
	return id, err
}

// managers is the manager's container; where none has its name, the first.
func managers(pod *corev1.Pod) *corev1.Container {
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == managerContainer {
			return &pod.Spec.Containers[i]
		}
	}
	return &pod.Spec.Containers[0]
}

// ownerOf is what stands behind a pod: the Deployment of its ReplicaSet, else
// its controller.
func ownerOf(ctx context.Context, live client.Reader, pod *corev1.Pod) (*metav1.OwnerReference, error) {
	owner := metav1.GetControllerOf(pod)
	if owner == nil {
		return nil, nil
	}
	if owner.Kind == "ReplicaSet" {
		set := &appsv1.ReplicaSet{}
		if err := live.Get(ctx, types.NamespacedName{Namespace: pod.Namespace, Name: owner.Name}, set); err != nil {
			return nil, fmt.Errorf("reading the manager's own ReplicaSet %q: %w", owner.Name, err)
		}
		if above := metav1.GetControllerOf(set); above != nil {
			owner = above
		}
	}
	// Neither controller, which it is not, nor blockOwnerDeletion, which needs more
	// rights.
	return &metav1.OwnerReference{APIVersion: owner.APIVersion, Kind: owner.Kind, Name: owner.Name, UID: owner.UID}, nil
}
