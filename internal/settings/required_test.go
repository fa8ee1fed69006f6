// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"strings"
	"testing"
)

func TestAgent(t *testing.T) {
	s, err := ParseAgent(map[string]string{"NODE_NAME": "node-1", "POD_NAMESPACE": "operators"})
	if err != nil || s.NodeName != "node-1" {
		t.Fatalf("settings %+v, error %v", s, err)
	}
	if got := s.EffectiveBPFFSRoot(); got != "/sys/fs/bpf/podconfigmap/operators" {
		t.Errorf("BPFFS_ROOT is %q by default", got)
	}
	if s.BPFFSRoot = "/bpf"; s.EffectiveBPFFSRoot() != "/bpf" {
		t.Errorf("BPFFS_ROOT is %q", s.EffectiveBPFFSRoot())
	}
}

func TestWhatTheAgentNeedsIsNamedWithAllElse(t *testing.T) {
	for name, tc := range map[string]struct {
		environ map[string]string
		want    []string
	}{
		"nothing set":      {nil, []string{"2 bad variable(s)", "NODE_NAME: the mode agent needs", "POD_NAMESPACE: the mode agent needs"}},
		"empty":            {map[string]string{"NODE_NAME": " ", "POD_NAMESPACE": "a"}, []string{"1 bad variable(s)", "NODE_NAME: the mode agent needs"}},
		"another is wrong": {map[string]string{"NODE_NAME": "a", "LOG_LEVEL": "loud"}, []string{"2 bad variable(s)", `LOG_LEVEL="loud"`, "POD_NAMESPACE: the mode agent needs"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseAgent(tc.environ)
			for _, want := range tc.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v, want %q in it", err, want)
				}
			}
		})
	}
}
