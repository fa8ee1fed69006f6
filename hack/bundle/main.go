// SPDX-License-Identifier: Apache-2.0

// Command bundle writes the OLM bundle: the folder bundle/ and bundle.Dockerfile. It
// reads the manifests of config/manifests, as kustomize builds them, changes what
// OLM wants otherwise (see forOLM), has `operator-sdk generate bundle` make the
// ClusterServiceVersion, and completes that. The same input gives the same files.
//
// Usage: kustomize build config/manifests | go run ./hack/bundle FLAGS
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

const (
	packageName = "podconfigmap-controller"
	manifests   = "bundle/manifests"
	csvFile     = manifests + "/" + packageName + ".clusterserviceversion.yaml"
	configFile  = "bundle/tests/scorecard/config.yaml"
	dockerfile  = "bundle.Dockerfile"
)

// options are the command's flags.
type options struct {
	version, replaces        string
	image, scorecardImage    string
	channels, defaultChannel string
	sdk, project, icon       string
	out, rights              string
}

func main() {
	log.SetFlags(0)
	var o options
	flag.StringVar(&o.version, "version", "", "version of the bundle, such as 1.2.3")
	flag.StringVar(&o.replaces, "replaces", "", "version that this one replaces, if any")
	flag.StringVar(&o.image, "image", "", "image of manager and agent")
	flag.StringVar(&o.scorecardImage, "scorecard-image", "", "image of our own scorecard tests")
	flag.StringVar(&o.channels, "channels", "candidate,stable", "channels of the bundle")
	flag.StringVar(&o.defaultChannel, "default-channel", "stable", "channel for those who name none")
	flag.StringVar(&o.sdk, "operator-sdk", "bin/operator-sdk", "the program operator-sdk")
	flag.StringVar(&o.project, "project", "PROJECT", "the project's file")
	flag.StringVar(&o.icon, "icon", "config/manifests/icon.svg", "the operator's icon")
	flag.StringVar(&o.out, "out", ".", "folder that gets bundle/ and bundle.Dockerfile")
	flag.StringVar(&o.rights, "rights", "", "file that gets the shipped rights, by ServiceAccount, if any")
	flag.Parse()
	if o.version == "" || o.image == "" || o.scorecardImage == "" || flag.NArg() > 0 {
		log.Fatal("bundle: -version, -image and -scorecard-image are needed, and no arguments")
	}
	if err := o.run(os.Stdin); err != nil {
		log.Fatalf("bundle: %v", err)
	}
}

func (o *options) run(stream io.Reader) error {
	objects, err := decode(stream)
	if err != nil {
		return err
	}
	if o.rights != "" {
		shipped, err := shippedRights(objects)
		if err != nil {
			return err
		}
		if err := writeYAML(o.rights, shipped); err != nil {
			return err
		}
	}
	listed, held, err := forOLM(objects, o.image)
	if err != nil {
		return err
	}
	// operator-sdk's own reading of a CRD may be older than the CRD.
	for _, one := range objects {
		if one.kind() == "CustomResourceDefinition" {
			held = append(held, one)
		}
	}
	work, err := os.MkdirTemp("", "bundle-")
	if err != nil {
		return fmt.Errorf("making a folder to work in: %w", err)
	}
	return errors.Join(o.make(work, listed, held), os.RemoveAll(work))
}

// make makes the bundle in the folder work, and moves it from there whole.
func (o *options) make(work string, listed, held []object) error {
	if err := o.generate(work, listed); err != nil {
		return err
	}
	if err := o.complete(work); err != nil {
		return err
	}
	for _, object := range held {
		if err := writeYAML(filepath.Join(work, manifests, fileName(object)), object); err != nil {
			return err
		}
	}
	return o.install(work)
}

// fileName is that which operator-sdk gives to such an object.
func fileName(o object) string {
	if o.kind() == "CustomResourceDefinition" {
		return fmt.Sprintf("%s_%s.yaml", o.text("spec", "group"), o.text("spec", "names", "plural"))
	}
	return fmt.Sprintf("%s_%s_%s.yaml", o.name(), strings.ReplaceAll(o.text("apiVersion"), "/", "_"), strings.ToLower(o.kind()))
}

// generate runs operator-sdk, which looks for the file PROJECT in its folder.
func (o *options) generate(work string, objects []object) error {
	project, err := os.ReadFile(o.project)
	if err != nil {
		return fmt.Errorf("reading the project's file: %w", err)
	}
	if err := os.WriteFile(filepath.Join(work, "PROJECT"), project, 0o644); err != nil {
		return fmt.Errorf("copying the project's file: %w", err)
	}
	sdk, err := filepath.Abs(o.sdk)
	if err != nil {
		return fmt.Errorf("finding operator-sdk: %w", err)
	}
	if _, err := os.Stat(sdk); err != nil {
		return fmt.Errorf("finding operator-sdk: %w; make bin/operator-sdk builds it", err)
	}
	stream, err := encode(objects)
	if err != nil {
		return err
	}
	command := exec.Command(sdk, "generate", "bundle", "--quiet", "--version="+o.version, "--package="+packageName,
		"--channels="+o.channels, "--default-channel="+o.defaultChannel, "--extra-service-accounts="+agentAccount)
	command.Dir = work
	command.Stdin = bytes.NewReader(stream)
	if said, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("running operator-sdk generate bundle: %w\n%s", err, said)
	}
	return nil
}

// complete edits what operator-sdk wrote.
func (o *options) complete(work string) error {
	icon, err := os.ReadFile(o.icon)
	if err != nil {
		return fmt.Errorf("reading the icon: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(work, manifests, "*.yaml"))
	if err != nil {
		return fmt.Errorf("listing what operator-sdk wrote: %w", err)
	}
	edits := map[string]func(object) error{}
	for _, path := range files {
		edits[path] = withoutNulls
	}
	edits[filepath.Join(work, csvFile)] = func(csv object) error { return completeCSV(csv, o.image, o.replaces, icon) }
	edits[filepath.Join(work, configFile)] = func(config object) error { return nameScorecardImage(config, o.scorecardImage) }
	for path, edit := range edits {
		text, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("reading what operator-sdk wrote: %w", err)
		}
		content := object{}
		if err := yaml.Unmarshal(text, &content); err != nil {
			return fmt.Errorf("decoding %s: %w", path, err)
		}
		if err := edit(content); err != nil {
			return fmt.Errorf("completing %s: %w", path, err)
		}
		if err := writeYAML(path, content); err != nil {
			return err
		}
	}
	return nil
}

// install replaces what is in the folder of the output, and so removes files that
// are no longer part of the bundle.
func (o *options) install(work string) error {
	target := filepath.Join(o.out, "bundle")
	if err := os.RemoveAll(target); err != nil {
		return fmt.Errorf("removing the old bundle: %w", err)
	}
	if err := os.CopyFS(target, os.DirFS(filepath.Join(work, "bundle"))); err != nil {
		return fmt.Errorf("writing the bundle: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(work, dockerfile))
	if err != nil {
		return fmt.Errorf("reading what operator-sdk wrote: %w", err)
	}
	if err := os.WriteFile(filepath.Join(o.out, dockerfile), text, 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", dockerfile, err)
	}
	return nil
}

func writeYAML(path string, content any) error {
	text, err := yaml.Marshal(content)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", path, err)
	}
	if err := os.WriteFile(path, text, 0o644); err != nil {
		return fmt.Errorf("writing a file of the bundle: %w", err)
	}
	return nil
}
