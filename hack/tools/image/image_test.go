// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"log"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// folder writes files, whose names may have folders in them; names that end in
// ".sh" are executable.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path, mode := filepath.Join(root, name), os.FileMode(0o600)
		if strings.HasSuffix(name, ".sh") {
			mode = 0o700
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o750), os.WriteFile(path, []byte(content), mode)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// must runs a command that has to succeed, and returns the digest it prints.
func must(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := run(t.Context(), args, &out); err != nil {
		t.Fatalf("image %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(out.String())
}

// images are those of a layout or tar, by platform; each is checked whole.
func images(t *testing.T, from string) map[string]v1.Image {
	t.Helper()
	index, clean, err := load(from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(clean)
	if err := validate.Index(index); err != nil {
		t.Errorf("%s is not valid: %v", from, err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]v1.Image{}
	for _, descriptor := range manifest.Manifests {
		if all[descriptor.Platform.String()], err = index.Image(descriptor.Digest); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// entries are the files of an image's only layer, as headers with their content.
func entries(t *testing.T, image v1.Image) (headers []*tar.Header, contents map[string]string) {
	t.Helper()
	layers, err := image.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers (%v)", len(layers), err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	contents = map[string]string{}
	for files := tar.NewReader(r); ; {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return headers, contents
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		headers, contents[header.Name] = append(headers, header), string(text)
	}
}

func TestBuild(t *testing.T) {
	source := folder(t, map[string]string{
		"amd64/tool.sh": "for amd64", "arm64/tool.sh": "for arm64",
		"docs/z": "z", "docs/a/b": "b",
		"annotations.yaml": "annotations:\n  one.example.com/label: from the file\n  org.opencontainers.image.title: from the file\n",
	})
	out := filepath.Join(t.TempDir(), "out")
	must(t, "build", "-add", "/bin/tool="+source+"/{arch}/tool.sh", "-add", "/docs="+source+"/docs",
		"-labels-from", source+"/annotations.yaml", "-label", "org.opencontainers.image.title=Given",
		"-entrypoint", "/bin/tool", "-entrypoint", "run", "-cmd", "fast", "-env", "A=b", "-workdir", "/docs",
		"-created", "1700000000", "-layout", out)
	all := images(t, out)
	if got := slices.Sorted(maps.Keys(all)); !slices.Equal(got, []string{"linux/amd64", "linux/arm64"}) {
		t.Fatalf("platforms %q", got)
	}
	for platform, image := range all {
		architecture := strings.TrimPrefix(platform, "linux/")
		headers, contents := entries(t, image)
		var names []string
		for _, h := range headers {
			names = append(names, h.Name)
			mode := int64(0o755)
			if strings.HasPrefix(h.Name, "docs/") && h.Typeflag == tar.TypeReg {
				mode = 0o644
			}
			if h.Mode != mode || h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.ModTime.Unix() != 1700000000 {
				t.Errorf("%s: /%s has mode %o, owner %d:%d %q, time %v", platform, h.Name, h.Mode, h.Uid, h.Gid, h.Uname, h.ModTime)
			}
		}
		if want := []string{"bin/", "bin/tool", "docs/", "docs/a/", "docs/a/b", "docs/z"}; !slices.Equal(names, want) {
			t.Errorf("%s: files %q, want %q", platform, names, want)
		}
		if contents["bin/tool"] != "for "+architecture {
			t.Errorf("%s: the tool is %q", platform, contents["bin/tool"])
		}
		config, err := image.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if c := config.Config; config.OS != "linux" || config.Architecture != architecture || !config.Created.Equal(time.Unix(1700000000, 0)) ||
			!slices.Equal(c.Entrypoint, []string{"/bin/tool", "run"}) || !slices.Equal(c.Cmd, []string{"fast"}) ||
			!slices.Equal(c.Env, []string{"A=b"}) || c.WorkingDir != "/docs" || c.User != "65532:65532" {
			t.Errorf("%s: configuration %+v", platform, config)
		}
		want := map[string]string{
			"one.example.com/label":            "from the file",
			"org.opencontainers.image.title":   "Given",
			"org.opencontainers.image.created": "2023-11-14T22:13:20Z",
		}
		if !maps.Equal(config.Config.Labels, want) {
			t.Errorf("%s: labels %v, want %v", platform, config.Config.Labels, want)
		}
		manifest, err := image.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		delete(want, "one.example.com/label")
		if !maps.Equal(manifest.Annotations, want) {
			t.Errorf("%s: annotations %v, want %v", platform, manifest.Annotations, want)
		}
	}
}

// The digest follows from names, contents and "executable", and from nothing else
// of the files.
func TestDigest(t *testing.T) {
	build := func(source string, more ...string) string {
		return must(t, append([]string{"build", "-add", "/x=" + source, "-layout", filepath.Join(t.TempDir(), "l"), "-tar", filepath.Join(t.TempDir(), "t.tar")}, more...)...)
	}
	files := map[string]string{"b": "1", "a/c": "2", "run.sh": "3"}
	first := build(folder(t, files))
	again := folder(t, files)
	if err := errors.Join(
		os.Chtimes(filepath.Join(again, "b"), time.Unix(5, 0), time.Unix(5, 0)),
		os.Chmod(filepath.Join(again, "b"), 0o664), os.Chmod(filepath.Join(again, "run.sh"), 0o555), os.Chmod(filepath.Join(again, "a"), 0o700),
	); err != nil {
		t.Fatal(err)
	}
	if got := build(again); got != first {
		t.Errorf("the same files elsewhere make %s, and made %s", got, first)
	}
	seen := map[string]string{first: "nothing"}
	for change, digest := range map[string]string{
		"a content":     build(folder(t, map[string]string{"b": "0", "a/c": "2", "run.sh": "3"})),
		"a name":        build(folder(t, map[string]string{"B": "1", "a/c": "2", "run.sh": "3"})),
		"executable":    build(folder(t, map[string]string{"b.sh": "1", "a/c": "2", "run.sh": "3"})),
		"a label":       build(again, "-label", "a=b"),
		"the time":      build(again, "-created", "1"),
		"the user":      build(again, "-user", ""),
		"the platforms": build(again, "-platform", "linux/amd64"),
	} {
		if other, there := seen[digest]; there {
			t.Errorf("changing %s makes the same image as changing %s", change, other)
		}
		seen[digest] = change
	}
}

func TestTarsAreTheSame(t *testing.T) {
	source := folder(t, map[string]string{"a": "b"})
	var tars [2][]byte
	for i := range tars {
		file := filepath.Join(t.TempDir(), "image.tar")
		must(t, "build", "-add", "/a="+source+"/a", "-tar", file, "-name", "registry.example.com/a:v1")
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		tars[i] = text
	}
	if !bytes.Equal(tars[0], tars[1]) {
		t.Error("two tars of the same files differ")
	}
	if !bytes.Contains(tars[0], []byte(`"io.containerd.image.name": "registry.example.com/a:v1"`)) {
		t.Error("the tar does not tell the image's name")
	}
}

func TestImportName(t *testing.T) {
	for given, want := range map[string]string{
		"busybox:1.37":                         "docker.io/library/busybox:1.37",
		"docker.io/library/busybox:1.37":       "docker.io/library/busybox:1.37",
		"docker.io/someone/tool:v1":            "docker.io/someone/tool:v1",
		"registry.example.com:5000/some/it:v1": "registry.example.com:5000/some/it:v1",
	} {
		tag, err := name.NewTag(given)
		if err != nil {
			t.Fatal(err)
		}
		if got := importName(tag); got != want {
			t.Errorf("%s becomes %s, want %s", given, got, want)
		}
	}
}

func TestARegistryGivesBackWhatItGot(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	work := t.TempDir()
	built := must(t, "build", "-add", "/a="+folder(t, map[string]string{"f": "text"}), "-tar", work+"/built.tar", "-push", host+"/team/built:v1")
	pushed := must(t, "push", "-from", work+"/built.tar", host+"/team/pushed:v1", host+"/team/pushed:v2")
	for _, reference := range []string{"built:v1", "pushed:v1", "pushed:v2", "pushed@" + built} {
		layout := filepath.Join(work, strings.ReplaceAll(reference, ":", "-"))
		if pulled := must(t, "pull", "-layout", layout, host+"/team/"+reference); pulled != built || pushed != built {
			t.Errorf("built %s, pushed %s, pulled %s", built, pushed, pulled)
		}
		for platform, image := range images(t, layout) {
			if _, contents := entries(t, image); contents["a/f"] != "text" {
				t.Errorf("%s of %s holds %v", platform, reference, contents)
			}
		}
	}
}

func TestALayoutIsReplaced(t *testing.T) {
	layout := filepath.Join(t.TempDir(), "layout")
	for _, content := range []string{"first", "second"} {
		must(t, "build", "-add", "/x="+folder(t, map[string]string{"f": content}), "-platform", "linux/amd64", "-layout", layout)
	}
	if _, contents := entries(t, images(t, layout)["linux/amd64"]); contents["x/f"] != "second" {
		t.Errorf("the layout holds %v", contents)
	}
	blobs, err := os.ReadDir(filepath.Join(layout, "blobs", "sha256"))
	if err != nil || len(blobs) != 4 {
		t.Errorf("%d blobs, want those of one image: index, manifest, configuration and layer (%v)", len(blobs), err)
	}
}

func TestRefused(t *testing.T) {
	source := folder(t, map[string]string{"f": "", "folder/g": "", "empty.yaml": "annotations: {}\n", "ca.pem": "no certificate"})
	if err := os.Symlink("f", filepath.Join(source, "folder", "link")); err != nil {
		t.Fatal(err)
	}
	file, out := source+"/f", filepath.Join(t.TempDir(), "out")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"no command":            {nil, "name a command"},
		"nowhere to go":         {[]string{"build", "-add", "/f=" + file}, "-layout, -tar or -push"},
		"nothing in it":         {[]string{"build", "-layout", out}, "would be empty"},
		"no such file":          {[]string{"build", "-add", "/f=" + source + "/none", "-layout", out}, "no such file"},
		"a relative name":       {[]string{"build", "-add", "f=" + file, "-layout", out}, "/DEST=SOURCE"},
		"a file as the root":    {[]string{"build", "-add", "/=" + file, "-layout", out}, "give it a name"},
		"a link":                {[]string{"build", "-add", "/f=" + source + "/folder", "-layout", out}, "neither a file nor a folder"},
		"the same name twice":   {[]string{"build", "-add", "/f=" + file, "-add", "/f=" + file, "-layout", out}, "added twice"},
		"a file as a folder":    {[]string{"build", "-add", "/f=" + file, "-add", "/f/g=" + file, "-layout", out}, "cannot be a folder"},
		"another's machine":     {[]string{"build", "-add", "/f=" + self, "-layout", out}, "is a program for EM_"},
		"no platform":           {[]string{"build", "-add", "/f=" + file, "-platform", "linux", "-layout", out}, "OS/ARCH"},
		"a platform twice":      {[]string{"build", "-add", "/f=" + file, "-platform", "linux/amd64,linux/amd64", "-layout", out}, "twice"},
		"a label without value": {[]string{"build", "-add", "/f=" + file, "-label", "x", "-layout", out}, "KEY=VALUE"},
		"no annotations":        {[]string{"build", "-add", "/f=" + file, "-labels-from", source + "/empty.yaml", "-layout", out}, "no map \"annotations\""},
		"no time":               {[]string{"build", "-add", "/f=" + file, "-created", "today", "-layout", out}, "seconds since 1970"},
		"a foreign folder":      {[]string{"build", "-add", "/f=" + file, "-layout", source}, "holds other files"},
		"a name that is none":   {[]string{"build", "-add", "/f=" + file, "-layout", out, "-name", "A B"}, "naming the image"},
		"push from nowhere":     {[]string{"push", "127.0.0.1:1/a:b"}, "-from"},
		"push of no layout":     {[]string{"push", "-from", source, "127.0.0.1:1/a:b"}, "no OCI layout"},
		"push of no tar":        {[]string{"push", "-from", source + "/ca.pem", "127.0.0.1:1/a:b"}, "loading"},
		"pull of two":           {[]string{"pull", "-layout", out, "a/b", "c/d"}, "one reference"},
		"no registry":           {[]string{"pull", "-layout", out, "127.0.0.1:1/a:b"}, "connection refused"},
		"no authority":          {[]string{"pull", "-layout", out, "-ca", source + "/ca.pem", "127.0.0.1:1/a:b"}, "no certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			err := run(t.Context(), tc.args, io.Discard)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			if _, err := os.Stat(out); err == nil {
				os.RemoveAll(out)
			}
		})
	}
}

// A tar from elsewhere may name files outside of it.
func TestUnpackStaysInside(t *testing.T) {
	file := filepath.Join(t.TempDir(), "evil.tar")
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	if err := errors.Join(w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "../outside", Mode: 0o644}), w.Close(), os.WriteFile(file, packed.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(t.TempDir(), "inside")
	if err := os.Mkdir(inside, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unpack(file, inside); err == nil {
		t.Error("a file outside was unpacked")
	}
	if _, err := os.Stat(filepath.Join(inside, "..", "outside")); err == nil {
		t.Error("it is there")
	}
}
