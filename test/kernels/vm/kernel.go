// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// wantedModules are those that the network of pods is made of, and a node's disk and
// network; all else is built into Debian's kernels.
var wantedModules = []string{"veth", "bridge", "overlay", "virtio_pci", "virtio_net"}

// Kernel is one that can be booted: a directory that holds vmlinuz, modules,
// modules.json, their names in an order in which they can be loaded, and wanted.json,
// what they were looked up for.
type Kernel struct {
	Series  string // as it was asked for
	Version string // of Debian's package
	Dir     string
}

// Newest is the series of the newest kernel, whatever it is.
const Newest = "newest"

// Image is the path of the kernel itself.
func (k Kernel) Image() string { return filepath.Join(k.Dir, imageFile) }

// Modules are the paths of its modules, in an order in which they can be loaded.
func (k Kernel) Modules() ([]string, error) {
	text, err := os.ReadFile(filepath.Join(k.Dir, modulesFile))
	if err != nil {
		return nil, err
	}
	var paths []string
	if err := json.Unmarshal(text, &paths); err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(k.Dir, modulesFile), err)
	}
	for i, name := range paths {
		paths[i] = filepath.Join(k.Dir, name)
	}
	return paths, nil
}

// complete tells whether a directory is there, and made for all modules that are
// wanted now.
func complete(dir string) bool {
	text, err := os.ReadFile(filepath.Join(dir, wantedFile))
	var made []string
	return err == nil && json.Unmarshal(text, &made) == nil && slices.Equal(made, wantedModules)
}

const (
	imageFile   = "vmlinuz"
	modulesFile = "modules.json"
	wantedFile  = "wanted.json"
)

// dirOf is where a version is kept.
func dirOf(cache, version string) string {
	return filepath.Join(cache, strings.ReplaceAll(version, "~", "_"))
}

// answer is what the mirror had of a series when it was asked.
type answer struct {
	Version string
	Asked   time.Time
}

// goodFor is how long an answer is: asking takes longer than some of the tests.
const goodFor = 24 * time.Hour

// answersFile holds the last answers, by series.
const answersFile = "newest.json"

func answers(cache string) (map[string]answer, error) {
	known := map[string]answer{}
	text, err := os.ReadFile(filepath.Join(cache, answersFile))
	if errors.Is(err, fs.ErrNotExist) {
		return known, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &known); err != nil {
		return nil, fmt.Errorf("reading %s, which can be deleted: %w", filepath.Join(cache, answersFile), err)
	}
	return known, nil
}

// remembered returns the kernels of those series of which the mirror's answer is good
// for now, and the kernel there.
func remembered(cache string, series []string, now time.Time) ([]Kernel, error) {
	known, err := answers(cache)
	if err != nil {
		return nil, err
	}
	var kernels []Kernel
	for _, s := range series {
		last, ok := known[s]
		k := Kernel{Series: s, Version: last.Version, Dir: dirOf(cache, last.Version)}
		if ok && now.Sub(last.Asked) < goodFor && complete(k.Dir) {
			kernels = append(kernels, k)
		}
	}
	return kernels, nil
}

// remember notes which kernels are the newest now.
func remember(cache string, kernels []Kernel, now time.Time) error {
	known, err := answers(cache)
	if err != nil {
		return err
	}
	for _, k := range kernels {
		known[k.Series] = answer{k.Version, now}
	}
	text, err := json.Marshal(known)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(cache, answersFile), text, 0o644)
}

// getKernel returns the newest kernel of a series, from the cache where that has it.
func getKernel(ctx context.Context, a *archive, cache, series string) (Kernel, error) {
	prefix := series + "."
	if series == Newest {
		prefix = ""
	}
	meta, err := a.newest(ctx, prefix)
	if err != nil {
		return Kernel{}, err
	}
	k := Kernel{Series: series, Version: meta.version, Dir: dirOf(cache, meta.version)}
	if complete(k.Dir) {
		return k, nil
	}
	packages, err := a.packages(ctx, meta)
	if err != nil {
		return k, err
	}
	fresh, err := os.MkdirTemp(cache, "fresh-")
	if err != nil {
		return k, err
	}
	defer os.RemoveAll(fresh)
	tree, kept := filepath.Join(fresh, "tree"), filepath.Join(fresh, "kept")
	if err := a.fetch(ctx, packages, tree); err != nil {
		return k, err
	}
	if err := keep(ctx, tree, kept); err != nil {
		return k, fmt.Errorf("looking for the kernel in %v: %w", packages, err)
	}
	// One that was made for fewer modules makes way.
	return k, errors.Join(os.RemoveAll(k.Dir), os.Rename(kept, k.Dir))
}

// keep copies what a boot needs from an unpacked kernel.
func keep(ctx context.Context, tree, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	images, modules, err := findKernel(tree)
	if err != nil {
		return err
	}
	if len(images) != 1 {
		return fmt.Errorf("%d images, not one: %v", len(images), images)
	}
	for _, path := range images {
		if err := os.Rename(path, filepath.Join(to, imageFile)); err != nil {
			return err
		}
	}
	return keepModules(ctx, modules, to)
}

// findKernel finds the images and the modules of an unpacked kernel by their names.
func findKernel(tree string) (images, modules map[string]string, err error) {
	images, modules = map[string]string{}, map[string]string{}
	err = filepath.WalkDir(tree, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name := entry.Name()
		if strings.HasPrefix(name, "vmlinuz") {
			images[name] = path
		} else if base, extension, ok := strings.Cut(name, ".ko"); ok && (extension == "" || extension == ".xz") {
			modules[strings.ReplaceAll(base, "-", "_")] = path
		}
		return nil
	})
	return images, modules, err
}

// keepModules copies the wanted modules and what they depend on.
func keepModules(ctx context.Context, modules map[string]string, to string) error {
	order := []string{}
	var visit func(name string) error
	visit = func(name string) error {
		path, ok := modules[name]
		if file := name + ".ko"; !ok || slices.Contains(order, file) {
			return nil // What is no module is built in.
		}
		data, err := readModule(ctx, path)
		if err != nil {
			return err
		}
		needs, err := dependencies(data)
		if err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
		for _, need := range needs {
			if err := visit(need); err != nil {
				return err
			}
		}
		order = append(order, name+".ko")
		return os.WriteFile(filepath.Join(to, name+".ko"), data, 0o644)
	}
	for _, name := range wantedModules {
		if err := visit(name); err != nil {
			return err
		}
	}
	list, err := json.Marshal(order)
	if err != nil {
		return err
	}
	wanted, err := json.Marshal(wantedModules)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(to, modulesFile), list, 0o644), os.WriteFile(filepath.Join(to, wantedFile), wanted, 0o644))
}

func readModule(ctx context.Context, path string) ([]byte, error) {
	if strings.HasSuffix(path, ".xz") {
		return exec.CommandContext(ctx, "xz", "-dc", path).Output()
	}
	return os.ReadFile(path)
}

// dependencies returns the names of the modules that must be loaded before one. The
// packages have no modules.dep: that is made at installation, from the same place.
func dependencies(module []byte) ([]string, error) {
	file, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	section := file.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for _, field := range bytes.Split(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(field), "depends="); ok && list != "" {
			return strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
		}
	}
	return nil, nil
}

// Kernels returns the newest kernel of each series, such as "6.1", or Newest. They are
// fetched from the mirror that the machine's apt knows, unless the user's cache has
// them; the mirror is asked once a day. progress gets a line for each that was asked
// for.
func Kernels(ctx context.Context, progress io.Writer, series ...string) ([]Kernel, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	cache = filepath.Join(cache, "podconfigmap-controller", "kernels")
	kernels, err := remembered(cache, series, time.Now())
	if err != nil || len(kernels) == len(series) {
		return kernels, err
	}
	a, err := openArchive(ctx, filepath.Join(cache, "apt"))
	if err != nil {
		return nil, err
	}
	kernels = nil
	for _, s := range series {
		began := time.Now()
		k, err := getKernel(ctx, a, cache, s)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(progress, "%-7s Linux %s (%.1f s)\n", s, k.Version, time.Since(began).Seconds())
		kernels = append(kernels, k)
	}
	return kernels, remember(cache, kernels, time.Now())
}
