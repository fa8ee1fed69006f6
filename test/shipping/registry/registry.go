// SPDX-License-Identifier: Apache-2.0

// Package registry starts a container registry for tests: the one of the
// distribution project, on loopback, with TLS by an authority of its own.
package registry

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// Registry is one that runs. Whoever reaches it may push and delete.
type Registry struct {
	// Host is its address, as it stands at the start of references: 127.0.0.1:PORT.
	Host string
	// CAFile holds the certificate that its clients have to trust, in PEM. With
	// plain HTTP there is none.
	CAFile string

	command *exec.Cmd
	log     *bytes.Buffer
	exited  chan error
}

// Options tell how a registry serves.
type Options struct {
	// Folder is where it keeps its images and ca.crt.
	Folder string
	// PlainHTTP leaves TLS out.
	PlainHTTP bool
}

// Start starts a registry and waits until it answers. It ends with this process
// at the latest.
func Start(ctx context.Context, o Options) (*Registry, error) {
	root, err := harness.Root()
	if err != nil {
		return nil, err
	}
	program := filepath.Join(root, "bin", "registry")
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("the registry is not built, run `make bin/registry`: %w", err)
	}
	r := &Registry{log: &bytes.Buffer{}, exited: make(chan error, 1)}
	r.command = exec.Command(program, "-dir", o.Folder, fmt.Sprintf("-plain-http=%t", o.PlainHTTP))
	r.command.Stderr = r.log
	out, err := r.command.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("starting the registry: %w", err)
	}
	if err := controlplane.StartChild(r.command); err != nil {
		return nil, fmt.Errorf("starting the registry: %w", err)
	}
	if r.Host, err = firstLine(ctx, out); err != nil {
		err = errors.Join(err, r.command.Process.Kill(), r.command.Wait())
		return nil, fmt.Errorf("waiting for the registry's address: %w\n%s", err, r.log)
	}
	go func() { r.exited <- r.command.Wait() }()
	if !o.PlainHTTP {
		r.CAFile = filepath.Join(o.Folder, "ca.crt")
	}
	if err := r.ping(ctx); err != nil {
		return nil, errors.Join(err, r.Stop())
	}
	return r, nil
}

func firstLine(ctx context.Context, from io.Reader) (string, error) {
	type read struct {
		line string
		err  error
	}
	result := make(chan read, 1)
	go func() {
		line, err := bufio.NewReader(from).ReadString('\n')
		result <- read{strings.TrimSpace(line), err}
	}()
	select {
	case r := <-result:
		return r.line, r.err
	case <-time.After(harness.Patience):
		return "", fmt.Errorf("none within %v", harness.Patience)
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (r *Registry) ping(ctx context.Context) error {
	client, err := r.Client()
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL()+"/v2/", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("asking the registry whether it is there: %w", err)
	}
	if response.Body.Close(); response.StatusCode != http.StatusOK {
		return fmt.Errorf("the registry answers %s", response.Status)
	}
	return nil
}

// URL is the address with the scheme.
func (r *Registry) URL() string {
	if r.CAFile == "" {
		return "http://" + r.Host
	}
	return "https://" + r.Host
}

// Client is an HTTP client that trusts this registry, and no other server.
func (r *Registry) Client() (*http.Client, error) {
	pool := x509.NewCertPool()
	if r.CAFile != "" {
		text, err := os.ReadFile(r.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading the registry's authority: %w", err)
		}
		if !pool.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s holds no certificate", r.CAFile)
		}
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	return &http.Client{Transport: transport, Timeout: harness.Patience}, nil
}

// Stop ends the registry and waits until it is gone. Its files stay.
func (r *Registry) Stop() error {
	if err := r.command.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping the registry: %w", err)
	}
	select {
	case err := <-r.exited:
		if err != nil {
			return fmt.Errorf("the registry ended badly: %w\n%s", err, r.log)
		}
		return nil
	case <-time.After(harness.Patience):
		return errors.Join(errors.New("the registry did not end when it was told to"), r.command.Process.Kill())
	}
}
