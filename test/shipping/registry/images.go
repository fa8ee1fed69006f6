// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/untar"
)

// Push brings the image of an OCI layout, or of a tar of one, to the registry under
// a name such as team/operator:v1.
func (r *Registry) Push(ctx context.Context, from, name string) error {
	return r.image(ctx, "push", "-from", from, r.Host+"/"+name)
}

// Unpack pulls an image and writes the files that it has for this machine's platform
// into a folder, as a container runtime does.
func (r *Registry) Unpack(ctx context.Context, name, folder string) error {
	layout, err := os.MkdirTemp("", "layout-")
	if err != nil {
		return fmt.Errorf("making room for an image: %w", err)
	}
	if err = r.image(ctx, "pull", "-layout", layout, r.Host+"/"+name); err == nil {
		err = unpackLayout(layout, folder)
	}
	return errors.Join(err, os.RemoveAll(layout))
}

// image runs bin/image, which trusts this registry only for it.
func (r *Registry) image(ctx context.Context, command string, args ...string) error {
	root, err := harness.Root()
	if err != nil {
		return err
	}
	program := filepath.Join(root, "bin", "image")
	if _, err := os.Stat(program); err != nil {
		return fmt.Errorf("bin/image is not built, run `make bin/image`: %w", err)
	}
	trust := []string{command, "-plain-http"}
	if r.CAFile != "" {
		trust = []string{command, "-ca", r.CAFile}
	}
	if said, err := exec.CommandContext(ctx, program, append(trust, args...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("image %s: %w\n%s", command, err, said)
	}
	return nil
}

// manifest is what is read of OCI's indices and manifests.
type manifest struct {
	Manifests []struct {
		Digest   string
		Platform struct{ OS, Architecture string }
	}
	Layers []struct{ Digest string }
}

func unpackLayout(layout, folder string) error {
	var top, index, image manifest
	if err := readJSON(filepath.Join(layout, "index.json"), &top); err != nil {
		return err
	}
	if len(top.Manifests) != 1 {
		return fmt.Errorf("%d images were pulled instead of one", len(top.Manifests))
	}
	if err := readJSON(blob(layout, top.Manifests[0].Digest), &index); err != nil {
		return err
	}
	digest := ""
	for _, one := range index.Manifests {
		if one.Platform.OS == "linux" && one.Platform.Architecture == runtime.GOARCH {
			digest = one.Digest
		}
	}
	if digest == "" {
		return fmt.Errorf("the image is not for linux/%s", runtime.GOARCH)
	}
	if err := readJSON(blob(layout, digest), &image); err != nil {
		return err
	}
	for _, layer := range image.Layers {
		if err := untar.File(blob(layout, layer.Digest), folder); err != nil {
			return fmt.Errorf("unpacking layer %s: %w", layer.Digest, err)
		}
	}
	return nil
}

func blob(layout, digest string) string {
	return filepath.Join(layout, "blobs", strings.ReplaceAll(digest, ":", "/"))
}

func readJSON(path string, into any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading the image: %w", err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("decoding %s: %w", path, err)
	}
	return nil
}
