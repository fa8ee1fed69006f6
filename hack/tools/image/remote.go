// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// target is where an image goes.
type target struct {
	layout, tar, name string
	references        []string
	ca                string
	plainHTTP         bool
}

func (t *target) register(flags *flag.FlagSet) {
	flags.StringVar(&t.layout, "layout", "", "write an OCI layout into this folder")
	flags.StringVar(&t.tar, "tar", "", "write a tar of an OCI layout, for containerd and others to import")
	flags.StringVar(&t.name, "name", "", "the image's name in the layout and the tar")
	flags.Func("push", "push it under this reference (repeatable)", each(&t.references))
	t.registerRemote(flags)
}

func (t *target) registerRemote(flags *flag.FlagSet) {
	flags.StringVar(&t.ca, "ca", "", "a file with the certificates that sign the registry's, besides the system's")
	flags.BoolVar(&t.plainHTTP, "plain-http", false, "speak HTTP with a registry that has no TLS (with one on this machine this is tried by itself)")
}

func (t *target) empty() bool {
	return t.layout == "" && t.tar == "" && len(t.references) == 0
}

func (t *target) deliver(ctx context.Context, index v1.ImageIndex) error {
	for _, path := range []string{t.layout, t.tar} {
		if path == "" {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("making room for the image: %w", err)
		}
	}
	if t.layout != "" {
		if err := writeLayout(t.layout, index, t.name); err != nil {
			return err
		}
	}
	if t.tar != "" {
		if err := writeTar(t.tar, index, t.name, time.Unix(0, 0)); err != nil {
			return err
		}
	}
	for _, reference := range t.references {
		if err := t.push(ctx, reference, index); err != nil {
			return fmt.Errorf("pushing %s: %w", reference, err)
		}
	}
	return nil
}

func (t *target) push(ctx context.Context, to string, index v1.ImageIndex) error {
	reference, options, err := t.dial(ctx, to)
	if err != nil {
		return err
	}
	return remote.WriteIndex(reference, index, options...)
}

// fetch reads what stands at a registry. An image for one platform only becomes
// an index with that one, so that all that comes from here is of one kind.
func (t *target) fetch(ctx context.Context, from string) (v1.ImageIndex, error) {
	reference, options, err := t.dial(ctx, from)
	if err != nil {
		return nil, err
	}
	found, err := remote.Get(reference, options...)
	if err != nil {
		return nil, fmt.Errorf("pulling %s: %w", from, err)
	}
	if found.MediaType.IsIndex() {
		return found.ImageIndex()
	}
	image, err := found.Image()
	if err != nil {
		return nil, fmt.Errorf("pulling %s: %w", from, err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("pulling the configuration of %s: %w", from, err)
	}
	only := mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: config.Platform()}}
	return mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), only), nil
}

// dial prepares to talk with the registry of a reference, with the credentials
// that `docker login` or its like stored for it.
func (t *target) dial(ctx context.Context, to string) (name.Reference, []remote.Option, error) {
	var how []name.Option
	if t.plainHTTP {
		how = append(how, name.Insecure)
	}
	reference, err := name.ParseReference(to, how...)
	if err != nil {
		return nil, nil, err
	}
	transport := remote.DefaultTransport.(*http.Transport).Clone()
	if t.ca != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, nil, fmt.Errorf("reading the system's certificates: %w", err)
		}
		text, err := os.ReadFile(t.ca)
		if err != nil {
			return nil, nil, fmt.Errorf("reading -ca: %w", err)
		}
		if !pool.AppendCertsFromPEM(text) {
			return nil, nil, errors.New("-ca " + t.ca + " holds no certificate in PEM")
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return reference, []remote.Option{
		remote.WithContext(ctx),
		remote.WithTransport(transport),
		remote.WithAuthFromKeychain(authn.DefaultKeychain),
	}, nil
}
