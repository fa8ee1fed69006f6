// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"fmt"
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// Grant is one verb on one resource that a rule of a bound role allows.
type Grant struct {
	Right
	// Rule names the rule: the binding, the role, and the rule's place in it.
	Rule string
}

func (g Grant) String() string { return g.Right.String() + " (" + g.Rule + ")" }

// allows tells whether the grant alone allows what needs the right.
func (g Grant) allows(r Right) bool {
	return (g.Namespace == "" || g.Namespace == r.Namespace) && g.Group == r.Group && g.Resource == r.Resource && g.Verb == r.Verb
}

// Grants lists what the roles and bindings among the objects give to a
// ServiceAccount. A wildcard in a rule, or one that is bound to a role that is not
// among the objects, is an error.
func Grants(objects []*unstructured.Unstructured, namespace, account string) ([]Grant, error) {
	var all []Grant
	for _, object := range objects {
		if kind := object.GetKind(); kind != "RoleBinding" && kind != "ClusterRoleBinding" {
			continue
		}
		var binding rbacv1.RoleBinding // a ClusterRoleBinding has the same fields
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &binding); err != nil {
			return nil, fmt.Errorf("reading the %s %s: %w", object.GetKind(), object.GetName(), err)
		}
		if !slices.ContainsFunc(binding.Subjects, func(s rbacv1.Subject) bool {
			return s.Kind == rbacv1.ServiceAccountKind && s.Name == account && s.Namespace == namespace
		}) {
			continue
		}
		grants, err := grantsOf(objects, object, binding.RoleRef)
		if err != nil {
			return nil, err
		}
		all = append(all, grants...)
	}
	return all, nil
}

func grantsOf(objects []*unstructured.Unstructured, binding *unstructured.Unstructured, ref rbacv1.RoleRef) ([]Grant, error) {
	at := slices.IndexFunc(objects, func(o *unstructured.Unstructured) bool {
		return o.GetKind() == ref.Kind && o.GetName() == ref.Name && (ref.Kind == "ClusterRole" || o.GetNamespace() == binding.GetNamespace())
	})
	if at < 0 {
		return nil, fmt.Errorf("the %s %s is of the %s %s, which there is not", binding.GetKind(), binding.GetName(), ref.Kind, ref.Name)
	}
	var role rbacv1.ClusterRole // a Role has the same fields
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(objects[at].Object, &role); err != nil {
		return nil, fmt.Errorf("reading the %s %s: %w", ref.Kind, ref.Name, err)
	}
	var grants []Grant
	for i, rule := range role.Rules {
		name := fmt.Sprintf("%s %s, %s %s, rule %d", binding.GetKind(), binding.GetName(), ref.Kind, ref.Name, i+1)
		if slices.Contains(slices.Concat(rule.APIGroups, rule.Resources, rule.Verbs), "*") || len(rule.NonResourceURLs) > 0 {
			return nil, fmt.Errorf("%s has a wildcard, or a URL: %v", name, rule)
		}
		for _, r := range rightsOf(rule, binding.GetNamespace()) {
			grants = append(grants, Grant{r, name})
		}
	}
	return grants, nil
}

func rightsOf(rule rbacv1.PolicyRule, namespace string) (rights []Right) {
	for _, group := range rule.APIGroups {
		for _, resource := range rule.Resources {
			for _, verb := range rule.Verbs {
				rights = append(rights, Right{namespace, group, resource, verb})
			}
		}
	}
	return rights
}

// Unneeded lists the grants without which every request would still have been
// allowed, by the other rules. A list is needed by who watches: its server may not
// be able to stream the list as a watch.
func Unneeded(grants []Grant, used map[Right]bool) []Grant {
	return slices.DeleteFunc(slices.Clone(grants), func(g Grant) bool {
		if g.Verb == "list" {
			watch := g
			watch.Verb = "watch"
			if slices.Contains(grants, watch) && needed(watch, grants, used) {
				return true
			}
		}
		return needed(g, grants, used)
	})
}

// needed tells whether some request would have been refused without the rule.
func needed(g Grant, grants []Grant, used map[Right]bool) bool {
	for r := range used {
		if g.allows(r) && !slices.ContainsFunc(grants, func(other Grant) bool { return other.Rule != g.Rule && other.allows(r) }) {
			return true
		}
	}
	return false
}
