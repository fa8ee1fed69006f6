// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

const (
	managerAccount = packageName + "-controller-manager"
	agentAccount   = packageName + "-agent"
	ownGroup       = "podconfig.example.com/v1alpha1"
	rbacVersion    = "rbac.authorization.k8s.io/v1"
	// agentImage is the manager's variable that names the agent's image.
	agentImage = "RELATED_IMAGE_AGENT"
)

// object is a manifest.
type object map[string]any

func (o object) kind() string { return o.text("kind") }
func (o object) name() string { return o.text("metadata", "name") }

func (o object) text(path ...string) string {
	s, _, _ := unstructured.NestedString(o, path...)
	return s
}

// decode reads a stream of YAML documents.
func decode(stream io.Reader) ([]object, error) {
	var all []object
	for documents := utilyaml.NewYAMLOrJSONDecoder(stream, 4096); ; {
		one := object{}
		err := documents.Decode(&one)
		switch {
		case errors.Is(err, io.EOF) && len(all) == 0:
			return nil, errors.New("the standard input is empty: pipe `kustomize build config/manifests` into this")
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, fmt.Errorf("decoding the manifests: %w", err)
		case len(one) > 0:
			all = append(all, one)
		}
	}
}

func encode(objects []object) ([]byte, error) {
	var stream bytes.Buffer
	for _, one := range objects {
		text, err := yaml.Marshal(one)
		if err != nil {
			return nil, fmt.Errorf("encoding %s %q: %w", one.kind(), one.name(), err)
		}
		stream.WriteString("---\n")
		stream.Write(text)
	}
	return stream.Bytes(), nil
}

// forOLM changes manifests as OLM wants them. Listed are those that operator-sdk
// makes the ClusterServiceVersion and the bundle's manifests of; held are manifests
// of the bundle that it would take for part of the ClusterServiceVersion.
//
//   - What the accounts may do everywhere goes into the CSV's permissions, which OLM
//     copies to the namespaces that the operator watches, except for what concerns
//     objects without a namespace: that goes into clusterPermissions.
//   - What they may do in the operator's namespace only stays a Role. Among the
//     permissions, OLM would copy it, too: a manager of all namespaces could make
//     DaemonSets in each.
//   - OLM makes the ServiceAccounts; the namespace is not the bundle's.
func forOLM(objects []object, image string) (listed, held []object, err error) {
	change := map[string]func(object) (listed, held []object, err error){
		"Namespace":          nothing,
		"Pod":                nothing,
		"ServiceAccount":     nothing,
		"Role":               ownRole,
		"RoleBinding":        inOwnNamespace,
		"ClusterRoleBinding": func(o object) (listed, _ []object, err error) { listed, err = splitBinding(o, objects); return },
		"Deployment":         func(o object) (listed, _ []object, err error) { return []object{o}, nil, setImages(o, image) },
		"ClusterRole": func(o object) (listed, _ []object, _ error) {
			if bound(o.name(), objects) {
				return nil, nil, nil // its binding brings it
			}
			return []object{o}, nil, nil
		},
	}
	for _, one := range objects {
		changed := change[one.kind()]
		if changed == nil {
			changed = asItIs
		}
		l, h, err := changed(one)
		if err != nil {
			return nil, nil, err
		}
		listed, held = append(listed, l...), append(held, h...)
	}
	return listed, held, nil
}

func nothing(object) (listed, held []object, err error) { return nil, nil, nil }

// ownRole labels a Role as its binding is: OLM leaves both behind, and an uninstall
// has to find them.
func ownRole(o object) (listed, held []object, err error) {
	own := withoutNamespace(o)
	err = unstructured.SetNestedField(own, packageName, "metadata", "labels", "app.kubernetes.io/name")
	return nil, []object{own}, err
}

// asItIs leaves an object alone. Examples are for any namespace.
func asItIs(o object) (listed, held []object, err error) {
	if o.text("apiVersion") == ownGroup {
		o = withoutNamespace(o)
	}
	return []object{o}, nil, nil
}

func withoutNamespace(o object) object {
	copied := object(runtime.DeepCopyJSON(o))
	unstructured.RemoveNestedField(copied, "metadata", "namespace")
	return copied
}

// setImages names the image of the manager, and by a variable that of the agent,
// which OLM's mirroring of images follows.
func setImages(deployment object, image string) error {
	path := []string{"spec", "template", "spec", "containers"}
	containers, _, err := unstructured.NestedSlice(deployment, path...)
	if err != nil || len(containers) != 1 {
		return fmt.Errorf("reading Deployment %q: it has %d containers instead of 1 (%w)", deployment.name(), len(containers), err)
	}
	container := containers[0].(map[string]any)
	container["image"] = image
	env, _ := container["env"].([]any)
	container["env"] = append(env, map[string]any{"name": agentImage, "value": image})
	return unstructured.SetNestedSlice(deployment, containers, path...)
}

// inOwnNamespace lets a RoleBinding speak of the accounts of the namespace that it
// is in, which only an installation knows.
func inOwnNamespace(binding object) (listed, held []object, err error) {
	typed := &rbacv1.RoleBinding{}
	if err := typedAs(binding, typed); err != nil {
		return nil, nil, err
	}
	if err := checkSubjects(typed.Name, typed.Subjects); err != nil {
		return nil, nil, err
	}
	typed.Namespace = ""
	for i := range typed.Subjects {
		typed.Subjects[i].Namespace = ""
	}
	own, err := untyped(typed)
	return nil, []object{own}, err
}

// splitBinding makes of a ClusterRoleBinding and its role those from which
// operator-sdk makes permissions and clusterPermissions.
func splitBinding(binding object, objects []object) ([]object, error) {
	typed := &rbacv1.ClusterRoleBinding{}
	if err := typedAs(binding, typed); err != nil {
		return nil, err
	}
	if err := checkSubjects(typed.Name, typed.Subjects); err != nil {
		return nil, err
	}
	rules, err := rulesOf("ClusterRole", typed.RoleRef.Name, objects)
	if err != nil {
		return nil, fmt.Errorf("reading the role of ClusterRoleBinding %q: %w", typed.Name, err)
	}
	namespaced, clusterScoped, err := splitRules(rules)
	if err != nil {
		return nil, fmt.Errorf("splitting ClusterRole %q: %w", typed.RoleRef.Name, err)
	}
	var all []any
	meta := rbacv1.RoleBinding{TypeMeta: typed.TypeMeta, ObjectMeta: typed.ObjectMeta, Subjects: typed.Subjects, RoleRef: typed.RoleRef}
	meta.Kind = "RoleBinding"
	all = append(all, &meta, role(typed.RoleRef.Name, namespaced))
	if len(clusterScoped) > 0 {
		typed.RoleRef.Name += "-cluster"
		all = append(all, typed, role(typed.RoleRef.Name, clusterScoped))
	}
	var split []object
	for _, one := range all {
		o, err := untyped(one)
		if err != nil {
			return nil, err
		}
		split = append(split, o)
	}
	return split, nil
}

func role(name string, rules []rbacv1.PolicyRule) *rbacv1.ClusterRole {
	r := &rbacv1.ClusterRole{Rules: rules}
	r.APIVersion, r.Kind, r.Name = rbacVersion, "ClusterRole", name
	return r
}

// clusterScoped tells of each resource that a ClusterRole of ours names whether its
// objects have no namespace.
var clusterScoped = map[string]bool{
	"configmaps": false, "events": false, "nodes": true, "pods": false,
	"podconfigmapconfigs": false, "podconfigmapconfigs/status": false,
}

func splitRules(rules []rbacv1.PolicyRule) (namespaced, cluster []rbacv1.PolicyRule, err error) {
	for _, rule := range rules {
		scopes := map[bool]bool{}
		for _, resource := range rule.Resources {
			scope, known := clusterScoped[resource]
			if !known {
				return nil, nil, fmt.Errorf("resource %q: add it to clusterScoped in hack/bundle", resource)
			}
			scopes[scope] = true
		}
		switch {
		case len(scopes) != 1:
			return nil, nil, fmt.Errorf("resources %q: a rule is for objects with a namespace or for objects without one; write two", rule.Resources)
		case scopes[true]:
			cluster = append(cluster, rule)
		default:
			namespaced = append(namespaced, rule)
		}
	}
	return namespaced, cluster, nil
}

// checkSubjects refuses accounts that the bundle would not get: operator-sdk takes
// the Deployment's and the agents'.
func checkSubjects(binding string, subjects []rbacv1.Subject) error {
	for _, s := range subjects {
		if s.Kind != rbacv1.ServiceAccountKind || !slices.Contains([]string{managerAccount, agentAccount}, s.Name) {
			return fmt.Errorf("binding %q is for %s %q: the bundle knows the ServiceAccounts %s and %s only", binding, s.Kind, s.Name, managerAccount, agentAccount)
		}
	}
	return nil
}

func bound(clusterRole string, objects []object) bool {
	return slices.ContainsFunc(objects, func(o object) bool {
		return o.kind() == "ClusterRoleBinding" && o.text("roleRef", "name") == clusterRole
	})
}

func rulesOf(kind, name string, objects []object) ([]rbacv1.PolicyRule, error) {
	for _, one := range objects {
		if one.kind() == kind && one.name() == name {
			typed := &rbacv1.ClusterRole{} // a Role has the same rules
			err := typedAs(one, typed)
			return typed.Rules, err
		}
	}
	return nil, fmt.Errorf("%s %q is missing", kind, name)
}

func typedAs(o object, into any) error {
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o, into); err != nil {
		return fmt.Errorf("reading %s %q: %w", o.kind(), o.name(), err)
	}
	return nil
}

func untyped(typed any) (object, error) {
	o, err := runtime.DefaultUnstructuredConverter.ToUnstructured(typed)
	if err != nil {
		return nil, fmt.Errorf("converting a manifest: %w", err)
	}
	unstructured.RemoveNestedField(o, "metadata", "creationTimestamp")
	return o, nil
}

// withoutNulls takes away what an encoder adds to every object.
func withoutNulls(o object) error {
	unstructured.RemoveNestedField(o, "metadata", "creationTimestamp")
	delete(o, "status")
	return nil
}

// completeCSV says what operator-sdk leaves out of a ClusterServiceVersion, and
// takes away the one thing that is another in each run.
func completeCSV(csv object, image, replaces string, icon []byte) error {
	annotations, annotated, err := unstructured.NestedMap(csv, "metadata", "annotations")
	if err != nil {
		return err
	}
	spec, ok := csv["spec"].(map[string]any)
	if !ok || !annotated {
		return errors.New("it has no spec or no annotations")
	}
	delete(annotations, "createdAt")
	annotations["containerImage"] = image
	spec["icon"] = []any{map[string]any{"base64data": base64.StdEncoding.EncodeToString(icon), "mediatype": "image/svg+xml"}}
	spec["relatedImages"] = []any{
		map[string]any{"name": "manager", "image": image},
		map[string]any{"name": "agent", "image": image},
	}
	if replaces != "" {
		spec["replaces"] = packageName + ".v" + replaces
	}
	return unstructured.SetNestedMap(csv, annotations, "metadata", "annotations")
}

// nameScorecardImage puts the image of our own tests where their configuration says
// "scorecard".
func nameScorecardImage(config object, image string) error {
	stages, _, err := unstructured.NestedSlice(config, "stages")
	if err != nil {
		return err
	}
	named := 0
	for _, stage := range stages {
		tests, _, err := unstructured.NestedSlice(stage.(map[string]any), "tests")
		if err != nil {
			return err
		}
		for _, test := range tests {
			if one := test.(map[string]any); one["image"] == "scorecard" {
				one["image"] = image
				named++
			}
		}
		stage.(map[string]any)["tests"] = tests
	}
	if named == 0 {
		return errors.New(`no test has the image "scorecard"`)
	}
	config["stages"] = stages
	return nil
}

// rights are what one ServiceAccount may do: in every namespace that the operator
// watches, and in the operator's own.
type rights struct {
	Everywhere []rbacv1.PolicyRule `json:"everywhere"`
	Own        []rbacv1.PolicyRule `json:"own"`
}

// shippedRights reads the rights of the two accounts from the manifests.
func shippedRights(objects []object) (map[string]*rights, error) {
	all := map[string]*rights{managerAccount: {}, agentAccount: {}}
	for _, one := range objects {
		if one.kind() != "ClusterRoleBinding" && one.kind() != "RoleBinding" {
			continue
		}
		binding := &rbacv1.ClusterRoleBinding{} // a RoleBinding has the same fields
		if err := typedAs(one, binding); err != nil {
			return nil, err
		}
		if err := checkSubjects(binding.Name, binding.Subjects); err != nil {
			return nil, err
		}
		rules, err := rulesOf(binding.RoleRef.Kind, binding.RoleRef.Name, objects)
		if err != nil {
			return nil, fmt.Errorf("reading the role of %s %q: %w", one.kind(), binding.Name, err)
		}
		for _, subject := range binding.Subjects {
			into := &all[subject.Name].Own
			if one.kind() == "ClusterRoleBinding" {
				into = &all[subject.Name].Everywhere
			}
			*into = append(*into, rules...)
		}
	}
	return all, nil
}
