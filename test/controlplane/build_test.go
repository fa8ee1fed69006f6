// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

func TestRequiredVersion(t *testing.T) {
	const module = "k8s.io/kubernetes"
	for name, tc := range map[string]struct{ gomod, want string }{
		"in a block":              {"require (\n\tk8s.io/kubernetes v1.36.3 // indirect\n)\n", "v1.36.3"},
		"on a line of its own":    {"require k8s.io/kubernetes v1.36.3\n", "v1.36.3"},
		"a longer name":           {"require k8s.io/kubernetes/x v1.0.0\n", ""},
		"a tool is not a version": {"tool (\n\tk8s.io/kubernetes\n)\n", ""},
		"a replacement neither":   {"replace k8s.io/kubernetes => k8s.io/kubernetes v1.0.0\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := requiredVersion(tc.gomod, module); got != tc.want {
				t.Errorf("requiredVersion(%q) = %q, want %q", tc.gomod, got, tc.want)
			}
		})
	}
}

// The names and folders of all programs must fit the go.mod files that pin them.
func TestEveryProgramIsPinned(t *testing.T) {
	root, err := repositoryRoot()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range programs {
		if v, err := pinnedVersion(root, p); err != nil || v == "" {
			t.Errorf("%s: version %q, %v", name, v, err)
		}
	}
}

func TestLinkFlags(t *testing.T) {
	flags := linkFlags(programs[apiServer], "v1.36.3")
	for _, want := range []string{"version.gitVersion=v1.36.3", "version.gitMajor=1 ", "version.gitMinor=36 "} {
		if !strings.Contains(flags, want) {
			t.Errorf("linkFlags = %q, lacks %q", flags, want)
		}
	}
	if flags := linkFlags(programs[etcd], "v3.6.16"); flags != "-s -w" {
		t.Errorf("linkFlags of etcd = %q", flags)
	}
	if flags := linkFlags(programs[Containerd], "v2.4.2"); !strings.HasSuffix(flags, "/v2/version.Version=v2.4.2") {
		t.Errorf("linkFlags of containerd = %q", flags)
	}
	if flags := linkFlags(programs[Runc], "v1.5.2"); !strings.Contains(flags, "-static") {
		t.Errorf("linkFlags of runc = %q", flags)
	}
}

// A failed build with C in it has to say what may be missing.
func TestRemedy(t *testing.T) {
	if r := programs[Runc].remedy(); !strings.Contains(r, "apt-get install") {
		t.Errorf("remedy of runc: %q", r)
	}
	if r := programs[etcd].remedy(); r != "" {
		t.Errorf("remedy of etcd: %q", r)
	}
}

func TestUnknownProgram(t *testing.T) {
	if _, err := Build(t.Context(), nil, "kube-nothing"); err == nil || !strings.Contains(err.Error(), "kube-nothing") {
		t.Errorf("Build of an unknown program: %v", err)
	}
}

func TestLastLines(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"fewer": {"a\n", "a"},
		"more":  {"a\nb\nc\n", "b\nc"},
		"none":  {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := lastLines(tc.in, 2); got != tc.want {
				t.Errorf("lastLines(%q, 2) = %q, want %q", tc.in, got, tc.want)
			}
		})
	}
}

func TestOneBuilderAtATime(t *testing.T) {
	b := &builder{out: t.TempDir(), progress: io.Discard}
	unlock, err := b.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := b.lock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second lock: %v, want a deadline exceeded", err)
	}
	unlock()
	if unlock, err = b.lock(t.Context()); err != nil {
		t.Fatalf("locking what was unlocked: %v", err)
	}
	unlock()
}
