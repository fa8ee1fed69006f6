// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// addition is one file or folder that goes into the image.
type addition struct {
	destination, source string
}

// machines are the processors whose programs a platform runs.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// collect lists the files of an image: their path in it, without the leading
// slash, and where each comes from; a folder's source is empty. All folders on
// the way are among them.
func collect(additions []addition, platform v1.Platform) (map[string]string, error) {
	files := map[string]string{}
	for _, a := range additions {
		source := strings.NewReplacer("{os}", platform.OS, "{arch}", platform.Architecture).Replace(a.source)
		err := filepath.WalkDir(source, func(name string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			relative, err := filepath.Rel(source, name)
			if err != nil {
				return err
			}
			return put(files, path.Join(a.destination, filepath.ToSlash(relative)), name, entry.Type())
		})
		if err != nil {
			return nil, fmt.Errorf("adding %s as %s: %w", source, a.destination, err)
		}
	}
	for name, source := range files {
		if err := checkMachine(source, platform); err != nil {
			return nil, fmt.Errorf("adding %s: %w", name, err)
		}
	}
	return files, nil
}

func put(files map[string]string, destination, source string, kind fs.FileMode) error {
	name := strings.TrimPrefix(destination, "/")
	switch {
	case kind.IsDir():
		source = ""
	case !kind.IsRegular():
		return fmt.Errorf("%s is neither a file nor a folder: add what it stands for", source)
	case name == "":
		return fmt.Errorf("%s is a file: give it a name in the image, not /", source)
	}
	if there, ok := files[name]; ok && (there != "" || source != "") {
		return fmt.Errorf("/%s is added twice", name)
	}
	for folder := path.Dir(name); folder != "." && folder != "/"; folder = path.Dir(folder) {
		if files[folder] != "" {
			return fmt.Errorf("/%s is a file, and cannot be a folder, too", folder)
		}
		files[folder] = ""
	}
	if name != "" {
		files[name] = source
	}
	return nil
}

// checkMachine refuses a program for another processor than the platform's.
func checkMachine(source string, platform v1.Platform) error {
	want, known := machines[platform.Architecture]
	if source == "" || !known {
		return nil
	}
	head := make([]byte, len(elf.ELFMAG))
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.ReadFull(f, head); err != nil || string(head) != elf.ELFMAG {
		return nil
	}
	program, err := elf.NewFile(f)
	if err != nil {
		return fmt.Errorf("reading the program %s: %w", source, err)
	}
	// Objects for machines without an operating system, such as BPF's, are data.
	if (program.Type == elf.ET_EXEC || program.Type == elf.ET_DYN) && program.Machine != want {
		return fmt.Errorf("%s is a program for %v: build it for %s, or leave that platform out", source, program.Machine, platform.Architecture)
	}
	return nil
}

// newLayer packs the files. Names are sorted, owners are root, times are one, and
// of the modes only "executable" is taken over, so that nothing of the machine
// that builds shows.
func newLayer(files map[string]string, created time.Time) (v1.Layer, error) {
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		mode, err := modeOf(files[name])
		if err == nil {
			err = pack(w, name, files[name], mode, created)
		}
		if err != nil {
			return nil, fmt.Errorf("packing /%s: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("packing the layer: %w", err)
	}
	opener := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed.Bytes())), nil }
	layer, err := tarball.LayerFromOpener(opener, tarball.WithMediaType(types.OCILayer),
		tarball.WithCompressionLevel(gzip.DefaultCompression), tarball.WithCompressedCaching)
	if err != nil {
		return nil, fmt.Errorf("compressing the layer: %w", err)
	}
	return layer, nil
}

// modeOf is a file's mode in the image.
func modeOf(source string) (int64, error) {
	if source == "" {
		return 0o755, nil
	}
	info, err := os.Stat(source)
	if err != nil {
		return 0, err
	}
	if info.Mode()&0o111 == 0 {
		return 0o644, nil
	}
	return 0o755, nil
}

// pack writes a file, or without a source a folder.
func pack(w *tar.Writer, name, source string, mode int64, modified time.Time) error {
	header := &tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, ModTime: modified}
	if source == "" {
		return w.WriteHeader(header)
	}
	content, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	header.Typeflag, header.Name, header.Size = tar.TypeReg, name, int64(len(content))
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err = w.Write(content)
	return err
}
