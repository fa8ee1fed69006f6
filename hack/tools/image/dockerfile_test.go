// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

const repository = "../../.."

// instruction is one of a Dockerfile, continued lines joined.
type instruction struct {
	verb, rest string
}

// stages are the Dockerfile's, each from its FROM on.
func stages(t *testing.T) [][]instruction {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	text = regexp.MustCompile(`(?m)^\s*#.*\n`).ReplaceAll(text, nil)
	var all [][]instruction
	for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", " ")) {
		verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if verb == "FROM" {
			all = append(all, nil)
		}
		if verb != "" && len(all) > 0 {
			all[len(all)-1] = append(all[len(all)-1], instruction{verb, strings.TrimSpace(rest)})
		}
	}
	if len(all) != 2 {
		t.Fatalf("%d stages in the Dockerfile, want one that builds and one that is the image", len(all))
	}
	return all
}

// copyContext copies what .dockerignore lets in of the given sources of COPY.
func copyContext(t *testing.T, sources []string, to string) {
	t.Helper()
	file, err := os.Open(filepath.Join(repository, ".dockerignore"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	patterns, err := ignorefile.ReadAll(file)
	if err != nil {
		t.Fatal(err)
	}
	matcher, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	for _, source := range sources {
		copied := 0
		err := filepath.WalkDir(filepath.Join(repository, source), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			name, err := filepath.Rel(repository, path)
			if err != nil {
				return err
			}
			ignored, err := matcher.MatchesOrParentMatches(name)
			if err != nil || ignored {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			copied++
			target := filepath.Join(to, name)
			return errors.Join(os.MkdirAll(filepath.Dir(target), 0o700), os.WriteFile(target, text, 0o600))
		})
		if err != nil {
			t.Fatal(err)
		}
		if copied == 0 {
			t.Errorf("%s is copied, of which .dockerignore lets nothing in", source)
		}
	}
}

// Docker's own build, but for Docker: the same files, the same command.
func TestDockerfileBuilds(t *testing.T) {
	work := t.TempDir()
	var sources []string
	command := ""
	for _, i := range stages(t)[0] {
		switch i.verb {
		case "COPY":
			words := strings.Fields(i.rest)
			last := len(words) - 1
			if to := words[last]; to != "./" && (last != 1 || to != "./"+words[0]) {
				t.Errorf("COPY %s: this test knows only copies to the same place", i.rest)
			}
			sources = append(sources, words[:last]...)
		case "RUN":
			command = i.rest
		}
	}
	copyContext(t, sources, filepath.Join(work, "src"))
	binary := filepath.Join(work, "podconfigmap-controller")
	build := exec.Command("sh", "-c", strings.ReplaceAll(command, "-o /podconfigmap-controller", "-o "+binary))
	build.Dir = filepath.Join(work, "src")
	build.Env = append(os.Environ(), "GOWORK=off", "TARGETOS=linux", "TARGETARCH=amd64", "VERSION=1.2.3-test", "COMMIT=abcdef")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("the Dockerfile's %q: %v\n%s", command, err, out)
	}
	out, err := exec.Command(binary, "--version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "1.2.3-test (abcdef)") {
		t.Errorf("--version of what it builds: %q (%v)", out, err)
	}
}

// Docker's build of the bundle: all of it is let in, and it is labelled as the bundle
// says of itself.
func TestBundleDockerfile(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repository, "bundle.Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	annotations, err := os.ReadFile(filepath.Join(repository, "bundle", "metadata", "annotations.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var sources []string
	labels := 0
	for line := range strings.Lines(string(text)) {
		verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch verb {
		case "COPY":
			sources = append(sources, strings.Fields(rest)[0])
		case "LABEL":
			labels++
			if key, value, _ := strings.Cut(rest, "="); !strings.Contains(string(annotations), "  "+key+": "+value+"\n") {
				t.Errorf("label %s is none of annotations.yaml", rest)
			}
		}
	}
	if len(sources) != 3 || labels == 0 {
		t.Errorf("it copies %v and sets %d labels, want manifests, metadata and tests, and labels", sources, labels)
	}
	work := t.TempDir()
	copyContext(t, sources, work)
	if _, err := os.Stat(filepath.Join(work, "bundle", "manifests", "podconfigmap-controller.clusterserviceversion.yaml")); err != nil {
		t.Error(err)
	}
}
