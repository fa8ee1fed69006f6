// SPDX-License-Identifier: Apache-2.0

// Command sbom writes a program's bill of materials in CycloneDX's JSON: the
// modules that it was linked from, with their hashes and licenses.
//
// It is cyclonedx-gomod's "bin" with what that leaves open: licenses although the
// program's own module is published nowhere yet, and a time and a serial number
// that follow from the commit and the program, so that a bill made twice is one.
// It runs in the folder of the program's module, whose dependencies have to be in
// the module cache, as they are after a build.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"time"

	"github.com/CycloneDX/cyclonedx-go"
	"github.com/CycloneDX/cyclonedx-gomod/pkg/generate/bin"
	"github.com/CycloneDX/cyclonedx-gomod/pkg/licensedetect/local"
	"github.com/google/uuid"
	"github.com/rs/zerolog"
)

// generator is the module that does the work.
const generator = "github.com/CycloneDX/cyclonedx-gomod"

func main() {
	program := flag.String("program", "", "the program, built by Go")
	version := flag.String("version", "", "its version, such as v1.2.3")
	license := flag.String("license", "", "its license, by its SPDX name")
	created := flag.Int64("created", 0, "the time of the bill, in seconds since 1970")
	out := flag.String("out", "", "the file to write")
	flag.Parse()
	if err := write(*program, *version, *license, time.Unix(*created, 0).UTC(), *out); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func write(program, version, license string, created time.Time, out string) error {
	if program == "" || version == "" || license == "" || out == "" {
		return errors.New("-program, -version, -license and -out have to be given")
	}
	content, err := os.ReadFile(program)
	if err != nil {
		return fmt.Errorf("reading the program: %w", err)
	}
	from, err := bin.NewGenerator(program, bin.WithLogger(zerolog.Nop()), bin.WithIncludeStdlib(true), bin.WithVersionOverride(version))
	if err != nil {
		return fmt.Errorf("preparing to read %s: %w", program, err)
	}
	bill, err := from.Generate()
	if err != nil {
		return fmt.Errorf("reading what %s was linked from: %w", program, err)
	}
	bill.SerialNumber = uuid.NewSHA1(uuid.NameSpaceURL, content).URN()
	bill.Metadata.Timestamp = created.Format(time.RFC3339)
	if bill.Metadata.Tools, err = tools(); err != nil {
		return err
	}
	bill.Metadata.Component.Licenses = &cyclonedx.Licenses{{License: &cyclonedx.License{ID: license}}}
	if err := addLicenses(*bill.Components); err != nil {
		return err
	}
	return encode(bill, out)
}

// tools names the generator with its version, which this program was linked with.
func tools() (*cyclonedx.ToolsChoice, error) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return nil, errors.New("this program does not know what it was linked from: build it with `make bin/sbom`")
	}
	for _, module := range info.Deps {
		if module.Path == generator {
			return &cyclonedx.ToolsChoice{Components: &[]cyclonedx.Component{{
				Type:    cyclonedx.ComponentTypeApplication,
				Name:    "cyclonedx-gomod",
				Version: module.Version,
			}}}, nil
		}
	}
	return nil, fmt.Errorf("this program was not linked with %s", generator)
}

// addLicenses tells for each module which license its files are recognized as.
// It is evidence, not the word of the module's authors.
func addLicenses(components []cyclonedx.Component) error {
	folders, err := moduleFolders()
	if err != nil {
		return err
	}
	detector := local.NewDetector(zerolog.Nop())
	for i := range components {
		component := &components[i]
		if component.Name == "std" {
			continue
		}
		folder := folders[component.Name+"@"+component.Version]
		if folder == "" {
			return fmt.Errorf("module %s %s is not in the module cache: run `go mod download`, in the folder of the program's module", component.Name, component.Version)
		}
		found, err := detector.Detect(component.Name, component.Version, folder)
		if err != nil {
			return fmt.Errorf("looking for the license of %s: %w", component.Name, err)
		}
		if len(found) == 0 {
			continue
		}
		component.Evidence = &cyclonedx.Evidence{Licenses: &cyclonedx.Licenses{{License: &found[0]}}}
	}
	return nil
}

// moduleFolders are where the module cache has each PATH@VERSION.
func moduleFolders() (map[string]string, error) {
	list := exec.Command("go", "list", "-m", "-json=Path,Version,Dir", "all")
	var problems bytes.Buffer
	list.Stderr = &problems
	text, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("listing the modules: %w\n%s", err, &problems)
	}
	folders := map[string]string{}
	for decoder := json.NewDecoder(bytes.NewReader(text)); decoder.More(); {
		var module struct{ Path, Version, Dir string }
		if err := decoder.Decode(&module); err != nil {
			return nil, fmt.Errorf("reading the list of modules: %w", err)
		}
		folders[module.Path+"@"+module.Version] = module.Dir
	}
	return folders, nil
}

func encode(bill *cyclonedx.BOM, out string) error {
	file, err := os.Create(out)
	if err != nil {
		return err
	}
	encoder := cyclonedx.NewBOMEncoder(file, cyclonedx.BOMFileFormatJSON).SetPretty(true)
	if err := errors.Join(encoder.EncodeVersion(bill, cyclonedx.SpecVersion1_6), file.Close()); err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", out, err), os.Remove(out))
	}
	return nil
}
