// SPDX-License-Identifier: Apache-2.0

package olm

import (
	operatorsv1alpha1 "github.com/operator-framework/api/pkg/operators/v1alpha1"
	operatorsv2 "github.com/operator-framework/api/pkg/operators/v2"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// ownKinds are the kinds of what an installation has in its namespace.
func ownKinds() map[string]client.ObjectList {
	return map[string]client.ObjectList{
		"ClusterServiceVersion": &operatorsv1alpha1.ClusterServiceVersionList{}, "OperatorCondition": &operatorsv2.OperatorConditionList{},
		"Deployment": &appsv1.DeploymentList{}, "ReplicaSet": &appsv1.ReplicaSetList{}, "DaemonSet": &appsv1.DaemonSetList{},
		"Pod": &corev1.PodList{}, "Service": &corev1.ServiceList{}, "ServiceAccount": &corev1.ServiceAccountList{},
		"Role": &rbacv1.RoleList{}, "RoleBinding": &rbacv1.RoleBindingList{},
	}
}

// namesOf are the names of a list's objects.
func namesOf(list client.ObjectList) []string {
	var names []string
	_ = meta.EachListItem(list, func(o runtime.Object) error { // the function returns no error
		names = append(names, o.(client.Object).GetName())
		return nil
	})
	return names
}
