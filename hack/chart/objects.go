// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/podconfigmap/podconfigmap-controller/controllers/subsystem"
)

const (
	// prefix begins the names of what config/chart installs, and namespace is where.
	prefix    = "podconfigmap-controller-"
	namespace = "podconfigmap-controller-system"
	group     = ".podconfig.example.com"
	// manager is the Deployment's name, and its ServiceAccount's.
	manager = prefix + "controller-manager"

	// include begins the call of one of the chart's own templates.
	include   = `include "podconfigmap-controller.`
	fullName  = include + `fullname" $`
	appLabel  = "app.kubernetes.io/name"
	app       = "podconfigmap-controller"
	rbacGroup = "rbac.authorization.k8s.io/"

	watched  = "$.Values.watchNamespaces"
	toWatch  = "{{- range " + watched + " }}"
	ifAll    = "{{- if not " + watched + " }}"
	ifEnd    = "{{- end }}"
	document = "---"
)

// object is one manifest.
type object map[string]any

func (o object) kind() string { kind, _ := o["kind"].(string); return kind }
func (o object) name() string {
	metadata, _ := o["metadata"].(map[string]any)
	name, _ := metadata["name"].(string)
	return name
}
func (o object) String() string { return o.kind() + " " + o.name() }

// in is the map at a path, which has to be there. A number is an index of a list.
func (o object) in(path ...any) (map[string]any, error) {
	var at any = map[string]any(o)
	for i, step := range path {
		found := false
		switch step := step.(type) {
		case string:
			var m map[string]any
			if m, found = at.(map[string]any); found {
				at, found = m[step]
			}
		case int:
			var list []any
			if list, found = at.([]any); found {
				if found = step < len(list); found {
					at = list[step]
				}
			}
		}
		if !found {
			return nil, fmt.Errorf("config has no %v any more: change hack/chart with it", path[:i+1])
		}
	}
	m, ok := at.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%v is no map in config any more: change hack/chart with it", path)
	}
	return m, nil
}

// common gives an object the release's namespace, names and labels.
func (p *page) common(o object) error {
	metadata, err := o.in("metadata")
	if err != nil {
		return err
	}
	metadata["name"] = p.named(o.kind(), o.name())
	if metadata["namespace"] == namespace {
		metadata["namespace"] = p.value("$.Release.Namespace | quote")
	}
	labels, ok := metadata["labels"].(map[string]any)
	if !ok {
		labels = map[string]any{}
		metadata["labels"] = labels
	}
	labels[appLabel] = app
	p.merged(labels, include+`labels" $`)
	return p.bound(o)
}

// bound renames what a binding binds.
func (p *page) bound(o object) error {
	role, isBinding := o["roleRef"].(map[string]any)
	if !isBinding {
		return nil
	}
	name, _ := role["name"].(string)
	role["name"] = p.named("Role", name)
	subjects, _ := o["subjects"].([]any)
	for i := range subjects {
		subject, err := o.in("subjects", i)
		if err != nil {
			return err
		}
		name, _ := subject["name"].(string)
		subject["name"] = p.named("ServiceAccount", name)
		subject["namespace"] = p.value("$.Release.Namespace | quote")
	}
	return nil
}

// named is a name of config as the release has it. The agents' ServiceAccount is
// the one that the manager puts into their DaemonSet.
func (p *page) named(kind, name string) string {
	own, prefixed := strings.CutPrefix(name, prefix)
	switch {
	case kind == "ServiceAccount" && name == subsystem.AgentName, !prefixed:
		return name
	case kind == "ServiceAccount" && name == manager:
		return p.value(include + `serviceAccountName" $ | quote`)
	default:
		return p.value(fullName) + "-" + own
	}
}

// plain adds an object that has no value of its own.
func (p *page) plain(o object) error { return p.when("", o) }

// when adds an object that is there under a condition only.
func (p *page) when(condition string, o object) error {
	if err := p.common(o); err != nil {
		return err
	}
	if condition == "" {
		p.add(o)
		return nil
	}
	p.raw("{{- if " + condition + " }}")
	p.add(o)
	p.raw(ifEnd)
	return nil
}

func (p *page) crd(o object) error {
	annotations, err := o.in("metadata", "annotations")
	if err != nil {
		return err
	}
	// With a CRD everything of its kind goes, so that is left to the user.
	annotations["helm.sh/resource-policy"] = "keep"
	return p.when("$.Values.crds.enabled", o)
}

func (p *page) account(o object) error {
	metadata, err := o.in("metadata")
	if err != nil {
		return err
	}
	if o.name() != manager {
		return p.plain(o)
	}
	metadata["annotations"] = p.block("$.Values.serviceAccount.annotations")
	return p.when("$.Values.serviceAccount.create", o)
}

// namespaced tells which resources of ClusterRoles are: rights on them can be
// given for single namespaces.
var namespaced = map[string]bool{
	"pods": true, "configmaps": true, "events": true,
	"podconfigmapconfigs": true, "podconfigmapconfigs/status": true,
	"nodes": false,
}

// clusterRole adds the ClusterRole, and for watchNamespaces a Role in each of them
// that has its rules, without those for resources that are in no namespace.
func (p *page) clusterRole(o object) error {
	if forPeople(o) {
		return p.plain(o)
	}
	everywhere, there, err := split(o)
	if err != nil {
		return err
	}
	role := runtime.DeepCopyJSON(o)
	role["rules"] = there
	if len(everywhere) > 0 {
		inAll := strings.Split(strings.TrimSpace(mustYAML(there)), "\n")
		o["rules"] = append(everywhere, p.more(slices.Concat([]string{ifAll}, inAll, []string{ifEnd})...))
		err = p.plain(o)
	} else {
		err = p.when("not "+watched, o)
	}
	if err != nil {
		return err
	}
	return p.inEach(role, "Role")
}

// clusterRoleBinding does the same with the binding.
func (p *page) clusterRoleBinding(o object) error {
	role, err := o.in("roleRef")
	if err != nil {
		return err
	}
	binding := object(runtime.DeepCopyJSON(o))
	condition := "not " + watched
	if name, _ := role["name"].(string); p.permanent[name] {
		condition = ""
	}
	if err := p.when(condition, o); err != nil {
		return err
	}
	there, err := binding.in("roleRef")
	if err != nil {
		return err
	}
	there["kind"] = "Role"
	there["name"] = watchedName(there["name"])
	return p.inEach(binding, "RoleBinding")
}

// inEach adds an object to each watched namespace.
func (p *page) inEach(o object, kind string) error {
	metadata, err := o.in("metadata")
	if err != nil {
		return err
	}
	o["kind"], metadata["name"] = kind, watchedName(metadata["name"])
	if err := p.common(o); err != nil {
		return err
	}
	metadata["namespace"] = p.value(". | quote")
	p.raw(toWatch)
	p.raw(document)
	p.add(o)
	p.raw(ifEnd)
	return nil
}

// watchedName keeps the roles of watched namespaces apart from the operator's own
// in its namespace, which may be one of them.
func watchedName(name any) string {
	text, _ := name.(string)
	if at := strings.LastIndex(text, "-"); at >= 0 {
		return text[:at] + "-watched" + text[at:]
	}
	return text
}

// forPeople tells that a ClusterRole is part of a built-in one.
func forPeople(o object) bool {
	metadata, _ := o["metadata"].(map[string]any)
	labels, _ := metadata["labels"].(map[string]any)
	for label := range labels {
		if strings.HasPrefix(label, rbacGroup+"aggregate-to-") {
			return true
		}
	}
	return false
}

// split separates a ClusterRole's rules for resources of the cluster from those
// that a Role can have.
func split(o object) (everywhere, there []any, err error) {
	rules, _ := o["rules"].([]any)
	if len(rules) == 0 {
		return nil, nil, errors.New("it has no rules")
	}
	for i := range rules {
		rule, err := o.in("rules", i)
		if err != nil {
			return nil, nil, err
		}
		resources, _ := rule["resources"].([]any)
		in := map[bool]bool{}
		for _, r := range resources {
			name, _ := r.(string)
			is, known := namespaced[name]
			if !known {
				return nil, nil, fmt.Errorf("whether %q has namespaces is not known: say so in hack/chart/objects.go", name)
			}
			in[is] = true
		}
		switch {
		case len(in) != 1:
			return nil, nil, fmt.Errorf("rule %d has resources with and without namespaces, or none: give each a rule of its own", i+1)
		case in[true]:
			there = append(there, rule)
		default:
			everywhere = append(everywhere, rule)
		}
	}
	return everywhere, there, nil
}
