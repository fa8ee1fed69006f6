// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/podconfigmap/podconfigmap-controller/test/shipping/registry"
)

const oci = "org.opencontainers.image."

// created is when the copies' commit was made.
const created = "2026-01-02T03:04:05Z"

func wantedLabels(commit string) map[string]string {
	const source = "https://github.com/podconfigmap/podconfigmap-controller"
	return map[string]string{
		oci + "title":       "PodConfigMapController",
		oci + "description": "Keeps a ConfigMap with the metadata of every pod that a PodConfigMapConfig selects",
		oci + "version":     version,
		oci + "revision":    commit,
		oci + "created":     created,
		oci + "source":      source,
		oci + "url":         source,
		oci + "licenses":    "Apache-2.0",
	}
}

func TestTwoBuildsGiveOneDigest(t *testing.T) {
	all := mustBuild(t)
	one, _, _ := readLayout(t, all[0].layout())
	another, _, _ := readLayout(t, all[1].layout())
	if one != another {
		t.Errorf("the digests are %s and %s", one, another)
	}
	var tars [2][]byte
	for i := range tars {
		text, err := os.ReadFile(all[i].layout() + ".tar")
		if err != nil {
			t.Fatal(err)
		}
		tars[i] = text
	}
	if !bytes.Equal(tars[0], tars[1]) {
		t.Error("the tars differ")
	}
}

func TestWhatAnImageSays(t *testing.T) {
	tree := mustBuild(t)[0]
	_, index, images := readLayout(t, tree.layout())
	want := wantedLabels(tree.commit)
	if !maps.Equal(index.Annotations, want) {
		t.Errorf("annotations of the index: %v, want %v", index.Annotations, want)
	}
	if got := slices.Sorted(maps.Keys(images)); !slices.Equal(got, []string{"amd64", "arm64"}) {
		t.Fatalf("images for %q", got)
	}
	for architecture, i := range images {
		if !maps.Equal(i.config.Config.Labels, want) || !maps.Equal(i.manifest.Annotations, want) {
			t.Errorf("%s: labels %v, annotations %v, want %v", architecture, i.config.Config.Labels, i.manifest.Annotations, want)
		}
		c := i.config
		if c.OS != "linux" || c.Architecture != architecture || c.Created != created {
			t.Errorf("%s: it says %s/%s of %s", architecture, c.OS, c.Architecture, c.Created)
		}
		if c.Config.User != "65532:65532" || !slices.Equal(c.Config.Entrypoint, []string{"/podconfigmap-controller"}) || !slices.Equal(c.Config.Cmd, []string{"manager"}) || len(c.Config.Env) != 0 {
			t.Errorf("%s: it runs as %+v", architecture, c.Config)
		}
	}
}

// One static program for the right processor, and nothing else.
func TestWhatAnImageHolds(t *testing.T) {
	_, _, images := readLayout(t, mustBuild(t)[0].layout())
	for architecture, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		i := images[architecture]
		if len(i.headers) != 1 {
			t.Fatalf("%s: it holds %d files, want the program alone", architecture, len(i.headers))
		}
		h := i.headers[0]
		if h.Name != "podconfigmap-controller" || h.Typeflag != tar.TypeReg || h.Mode != 0o755 || h.Uid != 0 || h.Gid != 0 {
			t.Errorf("%s: it holds %q, type %c, mode %o of %d:%d", architecture, h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid)
		}
		program, err := elf.NewFile(bytes.NewReader(i.files[h.Name]))
		if err != nil {
			t.Fatal(err)
		}
		if program.Machine != machine {
			t.Errorf("%s: the program is for %v", architecture, program.Machine)
		}
		for _, p := range program.Progs {
			if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
				t.Errorf("%s: the program wants libraries (%v)", architecture, p.Type)
			}
		}
	}
}

// What Docker makes of the Dockerfile is described alike.
func TestTheDockerfileAgrees(t *testing.T) {
	text, err := os.ReadFile("../../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	_, final, ok := strings.Cut(string(text), "\nFROM scratch\n")
	if !ok {
		t.Fatal("the Dockerfile's last stage is not from scratch")
	}
	final = strings.NewReplacer("${VERSION}", version, "${COMMIT}", "the commit", "${CREATED}", created).Replace(final)
	labels := map[string]string{}
	for _, m := range regexp.MustCompile(`(org\.[a-z.]+)="([^"]*)"`).FindAllStringSubmatch(final, -1) {
		labels[m[1]] = m[2]
	}
	if want := wantedLabels("the commit"); !maps.Equal(labels, want) {
		t.Errorf("labels of the Dockerfile: %v, want %v", labels, want)
	}
	for _, line := range []string{
		"COPY --from=build /podconfigmap-controller /podconfigmap-controller", "USER 65532:65532",
		`ENTRYPOINT ["/podconfigmap-controller"]`, `CMD ["manager"]`,
	} {
		if !strings.Contains(final, "\n"+line+"\n") {
			t.Errorf("the Dockerfile lacks %s", line)
		}
	}
}

func TestBothPlatformsPassThroughARegistry(t *testing.T) {
	tree := mustBuild(t)[0]
	server, err := registry.Start(t.Context(), registry.Options{Folder: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	}()
	reference, pulled := server.Host+"/team/operator:v"+version, filepath.Join(t.TempDir(), "pulled")
	if out, err := exec.Command(tool(t, "image"), "push", "-from", tree.layout(), reference).CombinedOutput(); err == nil {
		t.Errorf("a registry of an unknown authority was trusted:\n%s", out)
	}
	for _, args := range [][]string{
		{"push", "-ca", server.CAFile, "-from", tree.layout() + ".tar", reference},
		{"pull", "-ca", server.CAFile, "-layout", pulled, reference},
	} {
		if out, err := exec.Command(tool(t, "image"), args...).CombinedOutput(); err != nil {
			t.Fatalf("image %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	before, _, sent := readLayout(t, tree.layout())
	after, _, received := readLayout(t, pulled)
	if before != after {
		t.Errorf("the digest was %s, and is %s", before, after)
	}
	for _, architecture := range []string{"amd64", "arm64"} {
		if program := received[architecture].files["podconfigmap-controller"]; len(program) == 0 || !bytes.Equal(program, sent[architecture].files["podconfigmap-controller"]) {
			t.Errorf("the program for %s, %d bytes, is not the one that was sent", architecture, len(program))
		}
	}
}
