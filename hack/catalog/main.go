// SPDX-License-Identifier: Apache-2.0

// Command catalog writes a file-based catalog of one bundle: OUT/PACKAGE/catalog.yaml,
// for the image that OLM is pointed to. What it says of the package comes from the
// bundle; opm adds the bundle itself, and checks the whole.
//
// Usage: go run ./hack/catalog -version VERSION -image REF [FLAGS] OUT
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	operatorsv1alpha1 "github.com/operator-framework/api/pkg/operators/v1alpha1"
	"sigs.k8s.io/yaml"
)

const (
	packageKey  = "operators.operatorframework.io.bundle.package.v1"
	channelsKey = "operators.operatorframework.io.bundle.channels.v1"
	defaultKey  = "operators.operatorframework.io.bundle.channel.default.v1"
)

// options are the command's flags, and its argument.
type options struct {
	version, image, bundle, opm, out string
}

func main() {
	log.SetFlags(0)
	var o options
	flag.StringVar(&o.version, "version", "", "version that the bundle has to be of, such as 1.2.3")
	flag.StringVar(&o.image, "image", "", "image of the bundle, which OLM unpacks")
	flag.StringVar(&o.bundle, "bundle", "bundle", "folder of the bundle")
	flag.StringVar(&o.opm, "opm", "bin/opm", "the program opm")
	flag.Parse()
	if o.version == "" || o.image == "" || flag.NArg() != 1 {
		log.Fatal("catalog: -version, -image and the folder for the catalog are needed")
	}
	o.out = flag.Arg(0)
	if err := o.run(); err != nil {
		log.Fatalf("catalog: %v", err)
	}
}

// These are opm's schemas, olm.package and olm.channel.
type (
	packageEntry struct {
		Schema         string `json:"schema"`
		Name           string `json:"name"`
		DefaultChannel string `json:"defaultChannel"`
		Description    string `json:"description"`
		Icon           icon   `json:"icon"`
	}
	icon struct {
		Base64Data string `json:"base64data"`
		MediaType  string `json:"mediatype"`
	}
	channel struct {
		Schema  string  `json:"schema"`
		Package string  `json:"package"`
		Name    string  `json:"name"`
		Entries []entry `json:"entries"`
	}
	entry struct {
		Name string `json:"name"`
		// SkipRange are the versions that this one replaces, whether or not the
		// catalog has them.
		SkipRange string `json:"skipRange"`
	}
)

func (o *options) run() error {
	entries, err := o.entries()
	if err != nil {
		return err
	}
	var text bytes.Buffer
	for _, one := range entries {
		document, err := yaml.Marshal(one)
		if err != nil {
			return fmt.Errorf("encoding the catalog: %w", err)
		}
		text.WriteString("---\n")
		text.Write(document)
	}
	// The bundle's manifests stay in its image, from which OLM unpacks them.
	rendered, err := o.runOPM("render", o.bundle, "--output=yaml", "--alpha-image-ref-template="+o.image, "--migrate-level=bundle-object-to-csv-metadata")
	if err != nil {
		return err
	}
	text.Write(rendered)
	if err := os.RemoveAll(o.out); err != nil {
		return fmt.Errorf("removing the old catalog: %w", err)
	}
	folder := filepath.Join(o.out, entries[0].(packageEntry).Name)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("making the catalog's folder: %w", err)
	}
	if err := os.WriteFile(filepath.Join(folder, "catalog.yaml"), text.Bytes(), 0o644); err != nil {
		return fmt.Errorf("writing the catalog: %w", err)
	}
	_, err = o.runOPM("validate", o.out)
	return err
}

// entries are the package's own, and one for each channel that the bundle names.
func (o *options) entries() ([]any, error) {
	csv, err := o.readCSV()
	if err != nil {
		return nil, err
	}
	if is := csv.Spec.Version.String(); is != o.version {
		return nil, fmt.Errorf("%s is of version %s, not %s: make it anew with `make bundle VERSION=%s`", o.bundle, is, o.version, o.version)
	}
	if len(csv.Spec.Icon) != 1 {
		return nil, fmt.Errorf("%s has %d icons instead of one", csv.Name, len(csv.Spec.Icon))
	}
	about, err := o.readAnnotations()
	if err != nil {
		return nil, err
	}
	all := []any{packageEntry{
		Schema: "olm.package", Name: about[packageKey], DefaultChannel: about[defaultKey], Description: csv.Spec.Description,
		Icon: icon{Base64Data: csv.Spec.Icon[0].Data, MediaType: csv.Spec.Icon[0].MediaType},
	}}
	for name := range strings.SplitSeq(about[channelsKey], ",") {
		all = append(all, channel{Schema: "olm.channel", Package: about[packageKey], Name: name,
			Entries: []entry{{Name: csv.Name, SkipRange: "<" + o.version}}})
	}
	return all, nil
}

func (o *options) readCSV() (*operatorsv1alpha1.ClusterServiceVersion, error) {
	files, err := filepath.Glob(filepath.Join(o.bundle, "manifests", "*.clusterserviceversion.yaml"))
	if err != nil || len(files) != 1 {
		return nil, errors.Join(fmt.Errorf("looking for the ClusterServiceVersion in %s: there are %d; `make bundle` writes it", o.bundle, len(files)), err)
	}
	csv := &operatorsv1alpha1.ClusterServiceVersion{}
	return csv, read(files[0], csv)
}

// readAnnotations returns the bundle's annotations, which have all that a catalog
// needs.
func (o *options) readAnnotations() (map[string]string, error) {
	var file struct {
		Annotations map[string]string `json:"annotations"`
	}
	path := filepath.Join(o.bundle, "metadata", "annotations.yaml")
	if err := read(path, &file); err != nil {
		return nil, err
	}
	for _, key := range []string{packageKey, channelsKey, defaultKey} {
		if file.Annotations[key] == "" {
			return nil, fmt.Errorf("%s has no %s", path, key)
		}
	}
	return file.Annotations, nil
}

func read(path string, into any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading the bundle: %w", err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		return fmt.Errorf("decoding %s: %w", path, err)
	}
	return nil
}

// runOPM runs opm and returns what it prints.
func (o *options) runOPM(args ...string) ([]byte, error) {
	if _, err := os.Stat(o.opm); err != nil {
		return nil, fmt.Errorf("looking for opm: %w; `make bin/opm` builds it", err)
	}
	command := exec.Command(o.opm, args...)
	var said bytes.Buffer
	command.Stderr = &said
	printed, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("running opm %s: %w\n%s", args[0], err, said.String())
	}
	return printed, nil
}
