// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// descriptor, manifest and configuration are what the tests read of OCI's JSON.
type descriptor struct {
	MediaType string
	Digest    string
	Platform  struct{ OS, Architecture string }
}

type manifest struct {
	Manifests   []descriptor
	Config      descriptor
	Layers      []descriptor
	Annotations map[string]string
}

type configuration struct {
	OS, Architecture string
	Created          string
	Config           struct {
		User       string
		Entrypoint []string
		Cmd        []string
		Env        []string
		Labels     map[string]string
	}
}

// image is one platform's.
type image struct {
	manifest manifest
	config   configuration
	// files are all entries of all layers: headers, and contents of files.
	headers []*tar.Header
	files   map[string][]byte
}

// blob reads one file of a layout, and checks that it is what its name says.
func blob(t *testing.T, layout, digest string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(layout, "blobs", strings.ReplaceAll(digest, ":", "/")))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("sha256:%x", sha256.Sum256(text)); got != digest {
		t.Fatalf("the blob %s has the digest %s", digest, got)
	}
	return text
}

func decode(t *testing.T, text []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}

// readLayout reads the one image index of an OCI layout: its digest, and its
// images by their architecture.
func readLayout(t *testing.T, layout string) (digest string, index manifest, images map[string]image) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var top manifest
	if decode(t, text, &top); len(top.Manifests) != 1 {
		t.Fatalf("%d images in %s, want one", len(top.Manifests), layout)
	}
	digest = top.Manifests[0].Digest
	decode(t, blob(t, layout, digest), &index)
	images = map[string]image{}
	for _, d := range index.Manifests {
		if d.Platform.OS != "linux" {
			t.Errorf("an image for %q", d.Platform.OS)
		}
		images[d.Platform.Architecture] = readImage(t, layout, d.Digest)
	}
	return digest, index, images
}

func readImage(t *testing.T, layout, digest string) image {
	t.Helper()
	i := image{files: map[string][]byte{}}
	decode(t, blob(t, layout, digest), &i.manifest)
	decode(t, blob(t, layout, i.manifest.Config.Digest), &i.config)
	for _, layer := range i.manifest.Layers {
		unpacked, err := gzip.NewReader(bytes.NewReader(blob(t, layout, layer.Digest)))
		if err != nil {
			t.Fatal(err)
		}
		for r := tar.NewReader(unpacked); ; {
			header, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			i.headers = append(i.headers, header)
			if i.files[header.Name], err = io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	return i
}
