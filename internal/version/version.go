// SPDX-License-Identifier: Apache-2.0

// Package version tells which build this is.
package version

import "runtime/debug"

// Version and Commit are set by the Makefile through the linker.
var (
	Version = "dev"
	Commit  = ""
)

// String is the version, with the commit where it is known.
func String() string {
	commit := Commit
	if info, ok := debug.ReadBuildInfo(); ok && commit == "" {
		for _, setting := range info.Settings {
			if setting.Key == "vcs.revision" {
				commit = setting.Value
			}
		}
	}
	if commit == "" {
		return Version
	}
	return Version + " (" + commit + ")"
}
