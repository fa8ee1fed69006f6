// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	operatorsv1alpha1 "github.com/operator-framework/api/pkg/operators/v1alpha1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

const root = "../.."

func load(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// `operator-sdk generate kustomize manifests` fails at a kind of PROJECT that has
// no spec, as EBPFNode has none.
func TestKindsOfTheProjectHaveASpec(t *testing.T) {
	var project struct{ Resources []struct{ Kind string } }
	load(t, "PROJECT", &project)
	if len(project.Resources) == 0 {
		t.Fatal("PROJECT has no kinds")
	}
	for _, resource := range project.Resources {
		crd := &apiextensionsv1.CustomResourceDefinition{}
		load(t, "config/crd/bases/podconfig.example.com_"+strings.ToLower(resource.Kind)+"s.yaml", crd)
		for _, part := range []string{"spec", "status"} {
			if _, ok := crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties[part]; !ok {
				t.Errorf("%s has no %s; leave it out of PROJECT", resource.Kind, part)
			}
		}
	}
}

var marker = regexp.MustCompile(`\+operator-sdk:csv:customresourcedefinitions:type=(\w+),displayName="([^"]+)",order=(\d+)(?:,xDescriptors=\{"([^}]*)"\})?\n`)

// The same command replaces the descriptors of the CSV's base by those of the
// markers in the code: they have to be the same.
func TestMarkersAreTheBasesDescriptors(t *testing.T) {
	csv := &operatorsv1alpha1.ClusterServiceVersion{}
	load(t, "config/manifests/bases/podconfigmap-controller.clusterserviceversion.yaml", csv)
	var want []string
	for _, owned := range csv.Spec.CustomResourceDefinitions.Owned {
		if owned.Kind != "PodConfigMapConfig" {
			continue
		}
		for i, d := range owned.SpecDescriptors {
			want = append(want, line("spec", strconv.Itoa(i+1), d.DisplayName, d.XDescriptors))
		}
		for i, d := range owned.StatusDescriptors {
			want = append(want, line("status", strconv.Itoa(i+1), d.DisplayName, d.XDescriptors))
		}
	}
	source, err := os.ReadFile(filepath.Join(root, "api/v1alpha1/podconfigmapconfig_types.go"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range marker.FindAllStringSubmatch(string(source), -1) {
		var urns []string
		if m[4] != "" {
			urns = strings.Split(m[4], `","`)
		}
		got = append(got, line(m[1], m[3], m[2], urns))
	}
	slices.Sort(got)
	slices.Sort(want)
	if len(want) < 20 || !slices.Equal(got, want) {
		t.Errorf("the markers are\n%s\nthe base has\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func line(part, order, name string, urns []string) string {
	return part + " " + order + " " + name + " " + strings.Join(urns, " ")
}
