// SPDX-License-Identifier: Apache-2.0

// Package untar unpacks archives of plain files, such as the layers of images and
// scorecard's bundles.
package untar

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// File unpacks a tar that gzip has packed into an existing folder. Of the files'
// modes only the permissions are taken over, and everybody may read them. Nothing is written beside the folder:
// names that lead out of it, and all but files and folders, are errors.
func File(path, folder string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening the archive: %w", err)
	}
	defer file.Close()
	root, err := os.OpenRoot(folder)
	if err != nil {
		return fmt.Errorf("opening the folder to unpack into: %w", err)
	}
	defer root.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	for archive := tar.NewReader(unzipped); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
		if err := unpack(root, header, archive); err != nil {
			return fmt.Errorf("unpacking %s: %w", header.Name, err)
		}
	}
}

func unpack(root *os.Root, header *tar.Header, content io.Reader) error {
	name := filepath.Clean(header.Name)
	switch header.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, 0o755)
	case tar.TypeReg:
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		out, err := root.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, header.FileInfo().Mode().Perm()|0o444)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, content)
		return errors.Join(err, out.Close())
	}
	return fmt.Errorf("its type %q is neither a file nor a folder", header.Typeflag)
}
