// SPDX-License-Identifier: Apache-2.0

// Command unlimited is runc for kernels whose cgroup v2 has no controllers to offer:
// before a container is created it takes the limits of resources out of its
// configuration, which runc could not set, and then becomes runc.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// runc is where a node has the real one.
const runc = "/opt/runtime/runc"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "unlimited:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if slices.Contains(args, "create") || slices.Contains(args, "run") {
		if err := unlimit(filepath.Join(bundle(args), "config.json")); err != nil {
			return err
		}
	}
	return syscall.Exec(runc, append([]string{runc}, args...), os.Environ())
}

// bundle is the folder that the arguments name; the current one by default.
func bundle(args []string) string {
	for i, arg := range args {
		if value, ok := strings.CutPrefix(arg, "--bundle="); ok {
			return value
		}
		if (arg == "--bundle" || arg == "-b") && i+1 < len(args) {
			return args[i+1]
		}
	}
	return "."
}

// unlimit keeps of a container's resources which devices it may use.
func unlimit(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	// Numbers stay as they are written: some do not fit a float64.
	var config map[string]json.RawMessage
	if err := json.Unmarshal(text, &config); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	var linux map[string]json.RawMessage
	if err := json.Unmarshal(config["linux"], &linux); err != nil {
		return fmt.Errorf("reading \"linux\" of %s: %w", path, err)
	}
	var resources struct {
		Devices json.RawMessage `json:"devices,omitempty"`
	}
	if linux["resources"] == nil {
		return nil
	}
	if err := json.Unmarshal(linux["resources"], &resources); err != nil {
		return fmt.Errorf("reading the resources of %s: %w", path, err)
	}
	for _, part := range []struct {
		into  map[string]json.RawMessage
		key   string
		value any
	}{{linux, "resources", resources}, {config, "linux", linux}} {
		if part.into[part.key], err = json.Marshal(part.value); err != nil {
			return err
		}
	}
	changed, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(path, changed, 0o600)
}
