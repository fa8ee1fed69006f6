// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"errors"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/caarlos0/env/v11"
)

// defaultBPFFS is where the node's BPF file system is mounted as a rule.
const defaultBPFFS = "/sys/fs/bpf/podconfigmap"

// agentNeeds are the variables that the mode agent cannot do without.
var agentNeeds = map[string]string{
	"NODE_NAME":     "NODE_NAME: the mode agent needs the name of its node; set it by the downward API (spec.nodeName)",
	"POD_NAMESPACE": "POD_NAMESPACE: the mode agent needs the operator's namespace; set it by the downward API (metadata.namespace)",
}

// LoadAgent reads the process's environment for the mode agent.
func LoadAgent() (*Settings, error) { return ParseAgent(env.ToMap(os.Environ())) }

// ParseAgent is Parse, and names what the mode agent needs and is not set, too.
func ParseAgent(environ map[string]string) (*Settings, error) {
	s, err := Parse(environ)
	bad := &Error{}
	if err != nil && !errors.As(err, &bad) {
		return nil, err
	}
	for _, v := range Variables() {
		if problem, needed := agentNeeds[v.Name]; needed && strings.TrimSpace(environ[v.Name]) == "" {
			bad.Problems = append(bad.Problems, problem)
		}
	}
	if len(bad.Problems) > 0 {
		return nil, &Error{Problems: slices.Clone(bad.Problems)}
	}
	return s, nil
}

// EffectiveBPFFSRoot is BPFFS_ROOT, or a directory of the operator's namespace
// in the node's BPF file system.
func (s *Settings) EffectiveBPFFSRoot() string {
	if s.BPFFSRoot != "" {
		return s.BPFFSRoot
	}
	return path.Join(defaultBPFFS, s.PodNamespace)
}
