// SPDX-License-Identifier: Apache-2.0

package processnode

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// BuildProgram builds a package of this repository as a static program into a
// folder, with a version in it.
func BuildProgram(folder, pkg, version string) (string, error) {
	root, err := harness.Root()
	if err != nil {
		return "", err
	}
	program := filepath.Join(folder, filepath.Base(pkg)+"-"+version)
	const variable = "github.com/podconfigmap/podconfigmap-controller/internal/version.Version="
	command := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X "+variable+version, "-o", program, pkg)
	command.Dir = root
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", pkg, err, said)
	}
	return program, nil
}

// Tool is a program that make builds into bin/.
func Tool(name string) (string, error) {
	root, err := harness.Root()
	if err != nil {
		return "", err
	}
	program := filepath.Join(root, "bin", name)
	if _, err := os.Stat(program); err != nil {
		return "", fmt.Errorf("looking for a tool: %w; make bin/%s builds it", err, name)
	}
	return program, nil
}

// The port of this name is metricsPort instead of the container's, because other
// programs of the machine take that one on all addresses.
const (
	metricsName = "metrics"
	metricsPort = 18080
)

// Addresses let the operator listen on its pod's own address: the Env of its image.
func Addresses(_ *corev1.Pod, ip string) map[string]string {
	return map[string]string{"METRICS_ADDR": fmt.Sprintf("%s:%d", ip, metricsPort), "HEALTH_PROBE_ADDR": ip + ":8081"}
}
