// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"sigs.k8s.io/yaml"
)

// ociPrefix is what the labels have that OCI defines for images.
const ociPrefix = "org.opencontainers.image."

// recipe is all that decides an image's digest.
type recipe struct {
	additions  []addition
	platforms  []v1.Platform
	labels     map[string]string
	labelsFrom string
	config     v1.Config
	created    time.Time
}

func (r *recipe) add(value string) error {
	destination, source, ok := strings.Cut(value, "=")
	if !ok || source == "" || !strings.HasPrefix(destination, "/") {
		return fmt.Errorf("%q is not of the form /DEST=SOURCE", value)
	}
	r.additions = append(r.additions, addition{destination: destination, source: source})
	return nil
}

func (r *recipe) setPlatforms(names []string) error {
	if len(names) == 0 {
		names = []string{"linux/amd64", "linux/arm64"}
	}
	for _, name := range names {
		platform, err := v1.ParsePlatform(name)
		if err != nil || platform.OS == "" || platform.Architecture == "" {
			return fmt.Errorf("-platform %q is not of the form OS/ARCH", name)
		}
		if slices.ContainsFunc(r.platforms, platform.Equals) {
			return fmt.Errorf("-platform names %s twice", name)
		}
		r.platforms = append(r.platforms, *platform)
	}
	return nil
}

// setLabels takes the labels of the file first, then those of the command line,
// which win. The time of creation is always among them.
func (r *recipe) setLabels(given []string) error {
	r.labels = map[string]string{ociPrefix + "created": r.created.Format(time.RFC3339)}
	if r.labelsFrom != "" {
		annotations, err := readAnnotations(r.labelsFrom)
		if err != nil {
			return err
		}
		maps.Copy(r.labels, annotations)
	}
	for _, label := range given {
		key, value, ok := strings.Cut(label, "=")
		if !ok || key == "" {
			return fmt.Errorf("-label %q is not of the form KEY=VALUE", label)
		}
		r.labels[key] = value
	}
	return nil
}

func readAnnotations(path string) (map[string]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading labels: %w", err)
	}
	var file struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := yaml.UnmarshalStrict(text, &file); err != nil {
		return nil, fmt.Errorf("reading labels from %s: %w", path, err)
	}
	if len(file.Annotations) == 0 {
		return nil, fmt.Errorf("%s has no map \"annotations\" to make labels of", path)
	}
	return file.Annotations, nil
}

// build makes an index with one image for each platform, also for one platform.
func (r *recipe) build() (v1.ImageIndex, error) {
	if len(r.additions) == 0 {
		return nil, errors.New("the image would be empty: name what goes in with -add /DEST=SOURCE")
	}
	var images []mutate.IndexAddendum
	for _, platform := range r.platforms {
		image, err := r.image(platform)
		if err != nil {
			return nil, fmt.Errorf("building for %s: %w", platform.String(), err)
		}
		images = append(images, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &platform}})
	}
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), images...)
	return mutate.Annotations(index, r.annotations()).(v1.ImageIndex), nil
}

func (r *recipe) image(platform v1.Platform) (v1.Image, error) {
	files, err := collect(r.additions, platform)
	if err != nil {
		return nil, err
	}
	layer, err := newLayer(files, r.created)
	if err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.Append(image, mutate.Addendum{Layer: layer, History: v1.History{
		Created:   v1.Time{Time: r.created},
		CreatedBy: "hack/tools/image",
	}})
	if err != nil {
		return nil, fmt.Errorf("adding the layer: %w", err)
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("reading the image's configuration: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Variant = platform.OS, platform.Architecture, platform.Variant
	file.Created = v1.Time{Time: r.created}
	file.Config = r.config
	file.Config.Labels = r.labels
	image, err = mutate.ConfigFile(image, file)
	if err != nil {
		return nil, fmt.Errorf("setting the image's configuration: %w", err)
	}
	return mutate.Annotations(image, r.annotations()).(v1.Image), nil
}

// annotations are those labels that OCI also wants on manifests, where
// registries look for them.
func (r *recipe) annotations() map[string]string {
	annotations := maps.Clone(r.labels)
	maps.DeleteFunc(annotations, func(key, _ string) bool { return !strings.HasPrefix(key, ociPrefix) })
	return annotations
}
