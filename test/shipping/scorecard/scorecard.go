// SPDX-License-Identifier: Apache-2.0

// Package scorecard runs the real `operator-sdk scorecard` on a bundle. Its test does
// so on a control plane with a node of processes, which runs the tests' pods and the
// operator that config/default installs.
package scorecard

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/operator-framework/api/pkg/apis/scorecard/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// Standard is the image of operator-sdk's own tests.
const Standard = "quay.io/operator-framework/scorecard-test:v1.42.2"

// names are all tests of the bundle, by the names of their results.
var names = []string{
	"basic-check-spec", "descriptors", "env-wiring", "olm-bundle-validation", "olm-crds-have-resources", "olm-crds-have-validation",
	"olm-spec-descriptors", "olm-status-descriptors", "related-images", "rights", "sample", "unprivileged",
}

// Ours is how a bundle names the image of our own tests.
func Ours(bundle string) (string, error) {
	text, err := os.ReadFile(filepath.Join(bundle, "tests/scorecard/config.yaml"))
	if err != nil {
		return "", err
	}
	config := &v1alpha3.Configuration{}
	if err := yaml.Unmarshal(text, config); err != nil {
		return "", fmt.Errorf("reading scorecard's configuration: %w", err)
	}
	for _, stage := range config.Stages {
		for _, test := range stage.Tests {
			if test.Image != Standard {
				return test.Image, nil
			}
		}
	}
	return "", errors.New("the bundle has no tests of our own")
}

// Admit makes a ServiceAccount in a namespace, with the rights that docs/olm.md says
// the tests need.
func Admit(ctx context.Context, c client.Client, namespace, account string) error {
	rules := []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"create", "patch", "delete"}},
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"get"}},
		{APIGroups: []string{"podconfig.example.com"}, Resources: []string{"podconfigmapconfigs"}, Verbs: []string{"create", "delete"}},
	}
	meta := metav1.ObjectMeta{Namespace: namespace, Name: account}
	return errors.Join(
		c.Create(ctx, &corev1.ServiceAccount{ObjectMeta: meta}),
		c.Create(ctx, &rbacv1.Role{ObjectMeta: meta, Rules: rules}),
		c.Create(ctx, &rbacv1.RoleBinding{ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: account},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: account}}}),
	)
}

// Run is the command that users run, with the image of our own tests to unpack the
// bundle. It returns the tests' results, also where some did not pass, which is an
// error, too.
func Run(ctx context.Context, kubeconfig, namespace, account, bundle, ours string, more ...string) (*v1alpha3.TestList, error) {
	root, err := harness.Root()
	if err != nil {
		return nil, err
	}
	args := append([]string{"scorecard", bundle, "--kubeconfig=" + kubeconfig, "--namespace=" + namespace, "--service-account=" + account,
		"--untar-image=" + ours, "--pod-security=restricted", "--wait-time=10m", "--output=json"}, more...)
	program := filepath.Join(root, "bin", "operator-sdk")
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("%w; build it by: make bin/operator-sdk", err)
	}
	command := exec.CommandContext(ctx, program, args...)
	command.Dir = os.TempDir()
	var out, said bytes.Buffer
	command.Stdout, command.Stderr = &out, &said
	err = command.Run()
	list := &v1alpha3.TestList{}
	if problem := json.Unmarshal(out.Bytes(), list); problem != nil {
		return nil, fmt.Errorf("operator-sdk scorecard: %w (%w)\n%s\n%s", errors.Join(err, ctx.Err()), problem, out.String(), said.String())
	}
	return list, err
}

// Table has a line for each result.
func Table(list *v1alpha3.TestList) string {
	var text strings.Builder
	for _, r := range results(list) {
		fmt.Fprintf(&text, "%-26s %-5s %s\n", r.Name, r.State, strings.Join(append(r.Errors, r.Suggestions...), "; "))
	}
	return text.String()
}

// Complete is nil when all tests of the bundle ran and passed.
func Complete(list *v1alpha3.TestList) error {
	var ran []string
	var errs []error
	for _, r := range results(list) {
		ran = append(ran, r.Name)
		if r.State != v1alpha3.PassState {
			errs = append(errs, fmt.Errorf("%s: %s %q", r.Name, r.State, r.Errors))
		}
	}
	slices.Sort(ran)
	if !slices.Equal(ran, names) {
		errs = append(errs, fmt.Errorf("tests that ran: %q, want %q", ran, names))
	}
	return errors.Join(errs...)
}

func results(list *v1alpha3.TestList) []v1alpha3.TestResult {
	var all []v1alpha3.TestResult
	for _, test := range list.Items {
		all = append(all, test.Status.Results...)
	}
	return all
}
