// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// marker is the file that every OCI layout has.
const marker = "oci-layout"

// writeLayout makes folder the OCI layout of this one image. What another layout
// left there is removed. A name is for those who import it: containerd takes all
// of it, others the tag.
func writeLayout(folder string, index v1.ImageIndex, imageName string) error {
	if err := makeRoom(folder); err != nil {
		return err
	}
	path, err := layout.Write(folder, empty.Index)
	if err != nil {
		return fmt.Errorf("starting the layout %s: %w", folder, err)
	}
	var options []layout.Option
	if imageName != "" {
		reference, err := name.NewTag(imageName)
		if err != nil {
			return fmt.Errorf("naming the image: %w", err)
		}
		options = append(options, layout.WithAnnotations(map[string]string{
			"io.containerd.image.name":          importName(reference),
			"org.opencontainers.image.ref.name": reference.TagStr(),
		}))
	}
	if err := path.AppendIndex(index, options...); err != nil {
		return fmt.Errorf("writing the layout %s: %w", folder, err)
	}
	return nil
}

func makeRoom(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("looking for an older layout: %w", err)
	}
	if len(entries) == 0 {
		return nil
	}
	if _, err := os.Stat(filepath.Join(folder, marker)); err != nil {
		return fmt.Errorf("%s holds other files: name an empty or a new folder for the layout", folder)
	}
	return os.RemoveAll(folder)
}

// writeTar writes the layout of this one image as a tar, in the order of its
// files' names.
func writeTar(file string, index v1.ImageIndex, imageName string, modified time.Time) error {
	folder, err := os.MkdirTemp(filepath.Dir(file), ".layout-")
	if err != nil {
		return fmt.Errorf("making room for the layout of %s: %w", file, err)
	}
	defer os.RemoveAll(folder)
	if err := writeLayout(folder, index, imageName); err != nil {
		return err
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := errors.Join(tarFolder(out, folder, modified), out.Close()); err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", file, err), os.Remove(file))
	}
	return nil
}

func tarFolder(out io.Writer, folder string, modified time.Time) error {
	w := tar.NewWriter(out)
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == folder {
			return err
		}
		relative, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return pack(w, filepath.ToSlash(relative), "", 0o755, modified)
		}
		return pack(w, filepath.ToSlash(relative), path, 0o644, modified)
	})
	if err != nil {
		return err
	}
	return w.Close()
}

// load reads the one image of a layout, or of a tar of one. The image reads its
// files when they are needed; clean removes them when they were unpacked for it.
func load(from string) (index v1.ImageIndex, clean func(), err error) {
	info, err := os.Stat(from)
	if err != nil {
		return nil, nil, fmt.Errorf("loading an image: %w", err)
	}
	if info.IsDir() {
		index, err = loadLayout(from)
		return index, func() {}, err
	}
	folder, err := os.MkdirTemp("", "image-")
	if err != nil {
		return nil, nil, fmt.Errorf("making room to unpack %s: %w", from, err)
	}
	clean = func() { os.RemoveAll(folder) }
	if err = unpack(from, folder); err == nil {
		index, err = loadLayout(folder)
	}
	if err != nil {
		clean()
		return nil, nil, fmt.Errorf("loading %s: %w", from, err)
	}
	return index, clean, nil
}

func loadLayout(folder string) (v1.ImageIndex, error) {
	all, err := layout.ImageIndexFromPath(folder)
	if err != nil {
		return nil, fmt.Errorf("%s is no OCI layout: %w", folder, err)
	}
	manifest, err := all.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("reading the layout %s: %w", folder, err)
	}
	if len(manifest.Manifests) != 1 || !manifest.Manifests[0].MediaType.IsIndex() {
		return nil, fmt.Errorf("the layout %s does not hold one image index, as those do that \"image build\" makes", folder)
	}
	return all.ImageIndex(manifest.Manifests[0].Digest)
}

func unpack(file, folder string) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	root, err := os.OpenRoot(folder)
	if err != nil {
		return err
	}
	defer root.Close()
	r := tar.NewReader(in)
	for {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := unpackEntry(root, header, r); err != nil {
			return fmt.Errorf("unpacking %s: %w", header.Name, err)
		}
	}
}

func unpackEntry(root *os.Root, header *tar.Header, content io.Reader) error {
	name := filepath.Clean(filepath.FromSlash(header.Name))
	switch header.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, 0o755)
	case tar.TypeReg:
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		out, err := root.Create(name)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, content)
		return errors.Join(err, out.Close())
	default:
		return errors.New("an OCI layout has only files and folders")
	}
}

// importName is a reference as container runtimes look for it: Docker's own registry
// is docker.io to them, whatever its host is.
func importName(reference name.Tag) string {
	if registry, rest, _ := strings.Cut(reference.Name(), "/"); registry == name.DefaultRegistry {
		return "docker.io/" + rest
	}
	return reference.Name()
}
