// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// manager is the operator, a process of its own.
type manager struct {
	command         *exec.Cmd
	log             string
	echo            *lineWriter
	metrics, probes string
	exited          chan struct{}
	err             error // how it ended; readable after exited
}

// startManager starts the manager with the shipped settings, below those of the
// user's environment, below those given, and waits until it is ready.
func (s *session) startManager(ctx context.Context, settings map[string]string) error {
	s.step("The manager")
	shipped, err := harness.ShippedSettings()
	if err != nil {
		return err
	}
	m := &manager{log: s.log, echo: s.lines("manager | "), exited: make(chan struct{})}
	if m.metrics, err = address("METRICS_ADDR"); err != nil {
		return err
	}
	if m.probes, err = address("HEALTH_PROBE_ADDR"); err != nil {
		return err
	}
	environ := map[string]string{"LOG_LEVEL": "warning"}
	maps.Copy(environ, shipped)
	maps.DeleteFunc(environ, func(name, _ string) bool { return os.Getenv(name) != "" })
	maps.Copy(environ, map[string]string{"METRICS_ADDR": m.metrics, "HEALTH_PROBE_ADDR": m.probes})
	maps.Copy(environ, settings)
	if err := m.start(s.binary, environ); err != nil {
		return err
	}
	s.manager = m
	s.later("stopping the manager", m.stop)
	s.say("process %d, %s manager", m.command.Process.Pid, s.binary)
	s.say("log      %s (level %s; warnings show here, too)", s.log, cmp.Or(os.Getenv("LOG_LEVEL"), "warning"))
	s.say("metrics  http://%s/metrics", m.metrics)
	took, err := s.await(ctx, "the manager is ready", m.ready)
	if err != nil {
		return err
	}
	s.say("ready after %s", seconds(took))
	return nil
}

// address is the one that the user's environment gives, or else a free one.
func address(variable string) (string, error) {
	if given := os.Getenv(variable); given != "" {
		return given, nil
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("finding a free port: %w", err)
	}
	return listener.Addr().String(), listener.Close()
}

func (m *manager) start(binary string, environ map[string]string) error {
	if err := os.MkdirAll(filepath.Dir(m.log), 0o755); err != nil {
		return fmt.Errorf("making the folder of the log: %w", err)
	}
	log, err := os.Create(m.log)
	if err != nil {
		return fmt.Errorf("making the log: %w", err)
	}
	m.command = exec.Command(binary, "manager")
	m.command.Env = os.Environ()
	for name, value := range environ {
		m.command.Env = append(m.command.Env, name+"="+value)
	}
	output := io.MultiWriter(log, m.echo)
	m.command.Stdout, m.command.Stderr = output, output
	if err := controlplane.StartChild(m.command); err != nil {
		return errors.Join(fmt.Errorf("starting the manager (make build makes it): %w", err), log.Close())
	}
	go func() {
		m.err = errors.Join(m.command.Wait(), log.Close())
		close(m.exited)
	}()
	return nil
}

// ready asks /readyz. Where the user turned the probes off, it cannot.
func (m *manager) ready(ctx context.Context) (bool, error) {
	if m.probes == "0" {
		return true, nil
	}
	host := m.probes
	if strings.HasPrefix(host, ":") {
		host = "127.0.0.1" + host
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/readyz", nil)
	if err != nil {
		return false, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false, err
	}
	return response.StatusCode == http.StatusOK, response.Body.Close()
}

// failure tells how the manager ended by itself. Only after exited.
func (m *manager) failure() error {
	end := "with code 0"
	if m.err != nil {
		end = m.err.Error()
	}
	return fmt.Errorf("the manager ended (%s); its log (%s) ends with:\n%s", end, m.log, m.logTail())
}

func (m *manager) logTail() string {
	text, err := os.ReadFile(m.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// stop ends the manager, by force when the context ends.
func (m *manager) stop(ctx context.Context) error {
	select {
	case <-m.exited:
		return nil // told already
	default:
	}
	m.echo.quiet.Store(true) // what it says of its own end is in the log
	if err := m.command.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-m.exited:
		return m.err
	case <-ctx.Done():
		return errors.Join(ctx.Err(), m.command.Process.Kill())
	}
}
