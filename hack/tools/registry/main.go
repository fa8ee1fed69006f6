// SPDX-License-Identifier: Apache-2.0

// Command registry is a container registry for tests: the one of the
// distribution project, on this machine only, with its files in one folder and a
// certificate by an authority of its own.
//
// It prints its address once it can be reached, and serves until it is sent
// SIGINT or SIGTERM. Clients that verify it trust DIR/ca.crt.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"github.com/sirupsen/logrus"
)

func main() {
	folder := flag.String("dir", "", "the folder for images, and for ca.crt")
	address := flag.String("address", "127.0.0.1:0", "where to listen, on this machine; port 0 is a free one")
	plain := flag.Bool("plain-http", false, "serve HTTP without TLS")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, *folder, *address, *plain); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, folder, address string, plain bool) error {
	if folder == "" {
		return errors.New("-dir is missing: name a folder for the images")
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("making the folder for images: %w", err)
	}
	listener, err := listen(ctx, address)
	if err != nil {
		return err
	}
	if !plain {
		certificate, err := newCertificate(filepath.Join(folder, "ca.crt"))
		if err != nil {
			return err
		}
		listener = tls.NewListener(listener, &tls.Config{
			Certificates: []tls.Certificate{certificate},
			MinVersion:   tls.VersionTLS12,
			NextProtos:   []string{"http/1.1"},
		})
	}
	server := &http.Server{Handler: newHandler(ctx, folder), ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	fmt.Println(listener.Addr())
	select {
	case err := <-served:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
		return server.Close()
	}
}

// listen refuses addresses that others than this machine's processes reach:
// whoever asks may push.
func listen(ctx context.Context, address string) (net.Listener, error) {
	resolved, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("reading -address: %w", err)
	}
	if !resolved.IP.IsLoopback() {
		return nil, fmt.Errorf("-address %s is not of this machine only: use 127.0.0.1 or ::1", address)
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", resolved.String())
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	return listener, nil
}

func newHandler(ctx context.Context, folder string) http.Handler {
	// Otherwise each request is told of.
	logrus.SetLevel(logrus.ErrorLevel)
	return handlers.NewApp(ctx, &configuration.Configuration{
		Version: configuration.CurrentVersion,
		Storage: configuration.Storage{
			"filesystem": {"rootdirectory": folder},
			"delete":     {"enabled": true},
		},
	})
}
