// SPDX-License-Identifier: Apache-2.0

package main

import (
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strings"

	operatorsv1alpha1 "github.com/operator-framework/api/pkg/operators/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"
)

const (
	flag             = "EBPF_ENABLED"
	relatedImage     = "RELATED_IMAGE_"
	managerContainer = "manager"
)

// shippedRights are those of config/default, by ServiceAccount (make bundle).
//
//go:embed rights.yaml
var shippedRights []byte

// checkEnvironment: the manager's settings come from where OLM puts them. A
// Subscription can override a variable that has a value, and none that has a
// source.
func checkEnvironment(b *bundle) []string {
	containers := b.containers()
	at := slices.IndexFunc(containers, func(c corev1.Container) bool { return c.Name == managerContainer })
	if at < 0 {
		return []string{fmt.Sprintf("no container is named %q", managerContainer)}
	}
	env := map[string]corev1.EnvVar{}
	for _, v := range containers[at].Env {
		env[v.Name] = v
	}
	_, condition := env["OPERATOR_CONDITION_NAME"]
	return problems([]check{
		{fieldOf(env["WATCH_NAMESPACE"]) == "metadata.annotations['olm.targetNamespaces']", "WATCH_NAMESPACE does not come from the annotation olm.targetNamespaces"},
		{fieldOf(env["POD_NAMESPACE"]) == "metadata.namespace", "POD_NAMESPACE does not come from metadata.namespace"},
		{fieldOf(env["POD_NAME"]) == "metadata.name", "POD_NAME does not come from metadata.name"},
		{env[flag].Value == "false" && env[flag].ValueFrom == nil, flag + ` is not "false", for a Subscription to override`},
		{env["RELATED_IMAGE_AGENT"].Value != "", "RELATED_IMAGE_AGENT does not name the agent's image"},
		{!condition, "OPERATOR_CONDITION_NAME is set, which is OLM's to do"},
	})
}

// check is something that should be so, and the sentence for where it is not.
type check struct {
	holds   bool
	problem string
}

func problems(checks []check) []string {
	var all []string
	for _, c := range checks {
		if !c.holds {
			all = append(all, c.problem)
		}
	}
	return all
}

// fieldOf is the field that a variable comes from.
func fieldOf(v corev1.EnvVar) string {
	if v.ValueFrom == nil || v.ValueFrom.FieldRef == nil {
		return ""
	}
	return v.ValueFrom.FieldRef.FieldPath
}

// checkImages: what mirrors the bundle finds every image in spec.relatedImages, and
// none that is not used.
func checkImages(b *bundle) []string {
	used := map[string]bool{}
	for _, c := range b.containers() {
		used[c.Image] = true
		for _, v := range c.Env {
			if strings.HasPrefix(v.Name, relatedImage) {
				used[v.Value] = true
			}
		}
	}
	listed, names, found := map[string]bool{}, map[string]bool{}, []string(nil)
	for _, i := range b.csv.Spec.RelatedImages {
		listed[i.Image], names[i.Name] = true, true
		if !used[i.Image] {
			found = append(found, fmt.Sprintf("related image %q is not used", i.Image))
		}
	}
	for _, image := range slices.Sorted(maps.Keys(used)) {
		if !listed[image] {
			found = append(found, fmt.Sprintf("image %q is missing in relatedImages", image))
		}
	}
	for _, name := range []string{"manager", "agent"} {
		if !names[name] {
			found = append(found, fmt.Sprintf("no related image is named %q", name))
		}
	}
	if image := b.csv.Annotations["containerImage"]; !used[image] {
		found = append(found, fmt.Sprintf("the annotation containerImage names %q, which is not used", image))
	}
	return found
}

// rights are what one ServiceAccount may do: in every namespace that the operator
// watches, and in the operator's own.
type rights struct {
	Everywhere []rbacv1.PolicyRule `json:"everywhere"`
	Own        []rbacv1.PolicyRule `json:"own"`
}

// checkRights: the accounts may do in an installation by OLM just what they may do
// in any other.
func checkRights(b *bundle) []string {
	shipped := map[string]rights{}
	if err := yaml.UnmarshalStrict(shippedRights, &shipped); err != nil {
		return []string{fmt.Sprintf("decoding the shipped rights: %v", err)}
	}
	granted := map[string]*rights{}
	account := func(name string) *rights {
		if granted[name] == nil {
			granted[name] = &rights{}
		}
		return granted[name]
	}
	for _, list := range [][]operatorsv1alpha1.StrategyDeploymentPermissions{b.install().Permissions, b.install().ClusterPermissions} {
		for _, p := range list {
			a := account(p.ServiceAccountName)
			a.Everywhere = append(a.Everywhere, p.Rules...)
		}
	}
	for _, binding := range b.bindings {
		for _, s := range binding.Subjects {
			a := account(s.Name)
			a.Own = append(a.Own, b.rulesOf(binding.RoleRef)...)
		}
	}
	var found []string
	for name, want := range shipped {
		got := account(name)
		found = append(found, compare(name+" everywhere", got.Everywhere, want.Everywhere)...)
		found = append(found, compare(name+" in its own namespace", got.Own, want.Own)...)
		delete(granted, name)
	}
	for name := range granted {
		found = append(found, fmt.Sprintf("ServiceAccount %s gets rights, which it has nowhere else", name))
	}
	slices.Sort(found)
	return found
}

func (b *bundle) rulesOf(ref rbacv1.RoleRef) []rbacv1.PolicyRule {
	for i := range b.roles {
		if ref.Kind == "Role" && b.roles[i].Name == ref.Name {
			return b.roles[i].Rules
		}
	}
	return nil
}

func compare(what string, got, want []rbacv1.PolicyRule) []string {
	has, wants := single(got), single(want)
	var found []string
	for _, right := range slices.Sorted(maps.Keys(has)) {
		if !wants[right] {
			found = append(found, fmt.Sprintf("%s may %s, which config/default does not say", what, right))
		}
	}
	for _, right := range slices.Sorted(maps.Keys(wants)) {
		if !has[right] {
			found = append(found, fmt.Sprintf("%s may not %s", what, right))
		}
	}
	return found
}

// single takes rules apart into single rights.
func single(rules []rbacv1.PolicyRule) map[string]bool {
	all := map[string]bool{}
	for _, r := range rules {
		for _, group := range r.APIGroups {
			for _, resource := range r.Resources {
				for _, verb := range r.Verbs {
					all[fmt.Sprintf("%s %s.%s %v", verb, resource, group, r.ResourceNames)] = true
				}
			}
		}
		for _, url := range r.NonResourceURLs {
			all[fmt.Sprintf("%v %s", r.Verbs, url)] = true
		}
	}
	return all
}

// supportedKinds are those that OLM installs in every cluster; others need an
// optional API, or are none of OLM's.
var supportedKinds = []string{
	"ClusterServiceVersion", "CustomResourceDefinition", "ClusterRole", "Role", "RoleBinding", "Service",
}

// checkUnprivileged: nothing privileged comes with the bundle; only the manager
// brings agents, by the flag.
func checkUnprivileged(b *bundle) []string {
	var all []check
	for _, kind := range b.kinds {
		all = append(all, check{slices.Contains(supportedKinds, kind), fmt.Sprintf("the bundle has a %s", kind)})
	}
	for _, d := range b.install().DeploymentSpecs {
		pod := d.Spec.Template.Spec
		s := ptr.Deref(pod.SecurityContext, corev1.PodSecurityContext{})
		seccomp := ptr.Deref(s.SeccompProfile, corev1.SeccompProfile{}).Type
		all = append(all,
			check{!pod.HostNetwork && !pod.HostPID && !pod.HostIPC && len(pod.Volumes) == 0, fmt.Sprintf("Deployment %s uses volumes or namespaces of the host", d.Name)},
			check{ptr.Deref(s.RunAsNonRoot, false) && seccomp == corev1.SeccompProfileTypeRuntimeDefault, fmt.Sprintf("Deployment %s may run as root or without a seccomp profile", d.Name)})
	}
	for _, c := range b.containers() {
		s := ptr.Deref(c.SecurityContext, corev1.SecurityContext{})
		all = append(all, check{restricted(s), fmt.Sprintf("container %s has more than a restricted security context", c.Name)})
	}
	return problems(all)
}

func restricted(s corev1.SecurityContext) bool {
	capabilities := ptr.Deref(s.Capabilities, corev1.Capabilities{})
	none := len(capabilities.Add) == 0 && slices.Equal(capabilities.Drop, []corev1.Capability{"ALL"})
	return none && !ptr.Deref(s.Privileged, false) && !ptr.Deref(s.AllowPrivilegeEscalation, true) && ptr.Deref(s.ReadOnlyRootFilesystem, false)
}

// checkDescriptors: each descriptor of the CSV is about a field that the CRD has, and
// each field of the first level has one.
func checkDescriptors(b *bundle) []string {
	var found []string
	for _, owned := range b.csv.Spec.CustomResourceDefinitions.Owned {
		schema := b.schema(owned.Name, owned.Version)
		if schema == nil {
			found = append(found, fmt.Sprintf("%s %s has no schema in the bundle", owned.Name, owned.Version))
			continue
		}
		var spec, status []string
		for _, d := range owned.SpecDescriptors {
			spec = append(spec, d.Path)
		}
		for _, d := range owned.StatusDescriptors {
			status = append(status, d.Path)
		}
		found = append(found, compareFields(owned.Kind+" spec", schema.Properties["spec"], spec)...)
		found = append(found, compareFields(owned.Kind+" status", schema.Properties["status"], status)...)
	}
	return found
}

func (b *bundle) schema(name, version string) *apiextensionsv1.JSONSchemaProps {
	for _, crd := range b.crds {
		for _, v := range crd.Spec.Versions {
			if crd.Name == name && v.Name == version && v.Schema != nil {
				return v.Schema.OpenAPIV3Schema
			}
		}
	}
	return nil
}

func compareFields(what string, schema apiextensionsv1.JSONSchemaProps, paths []string) []string {
	var found []string
	for _, path := range paths {
		at := schema
		for field := range strings.SplitSeq(path, ".") {
			var known bool
			if at, known = at.Properties[field]; !known {
				found = append(found, fmt.Sprintf("%s: the descriptor %s is about no field", what, path))
				break
			}
		}
	}
	for _, field := range slices.Sorted(maps.Keys(schema.Properties)) {
		if !slices.Contains(paths, field) {
			found = append(found, fmt.Sprintf("%s: the field %s has no descriptor", what, field))
		}
	}
	return found
}
