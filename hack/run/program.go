// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
)

// program is the operator in one of its modes, a process of its own.
type program struct {
	mode            string // manager or agent
	command         *exec.Cmd
	log             string
	echo            *lineWriter
	metrics, probes string
	exited          chan struct{}
	err             error // how it ended; readable after exited
}

func (s *session) newProgram(mode string) *program {
	return &program{mode: mode, log: filepath.Join(filepath.Dir(s.log), mode+".log"), echo: s.lines(mode + " | "), exited: make(chan struct{})}
}

// run starts a program; while it is meant to run, its end is the session's.
func (s *session) run(p *program, environ map[string]string) error {
	if err := p.start(s.binary, environ); err != nil {
		return err
	}
	s.programs = append(s.programs, p)
	go func() {
		<-p.exited
		s.over(p.failure())
	}()
	return nil
}

func (p *program) start(binary string, environ map[string]string, args ...string) error {
	if err := os.MkdirAll(filepath.Dir(p.log), 0o755); err != nil {
		return fmt.Errorf("making the folder of the log: %w", err)
	}
	log, err := os.Create(p.log)
	if err != nil {
		return fmt.Errorf("making the log: %w", err)
	}
	p.command = exec.Command(binary, append([]string{p.mode}, args...)...)
	p.command.Env = os.Environ()
	for name, value := range environ {
		p.command.Env = append(p.command.Env, name+"="+value)
	}
	output := io.MultiWriter(log, p.echo)
	p.command.Stdout, p.command.Stderr = output, output
	if err := controlplane.StartChild(p.command); err != nil {
		return errors.Join(fmt.Errorf("starting the %s (make build makes it): %w", p.mode, err), log.Close())
	}
	go func() {
		p.err = errors.Join(p.command.Wait(), log.Close())
		close(p.exited)
	}()
	return nil
}

// ready asks /readyz. Where the user turned the probes off, it cannot.
func (p *program) ready(ctx context.Context) (bool, error) {
	if p.probes == "0" {
		return true, nil
	}
	response, err := get(ctx, p.probes, "/readyz")
	if err != nil {
		return false, err
	}
	return response.StatusCode == http.StatusOK, response.Body.Close()
}

// get asks a server of this machine, whose address may have no host.
func get(ctx context.Context, address, path string) (*http.Response, error) {
	if strings.HasPrefix(address, ":") {
		address = "127.0.0.1" + address
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return nil, err
	}
	return http.DefaultClient.Do(request)
}

// failure tells how the program ended by itself. Only after exited.
func (p *program) failure() error {
	end := "with code 0"
	if p.err != nil {
		end = p.err.Error()
	}
	return fmt.Errorf("the %s ended (%s); %s", p.mode, end, p.logTail())
}

func (p *program) logTail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return fmt.Sprintf("the %s's log (%s) ends with:\n%s", p.mode, p.log, strings.Join(lines[max(0, len(lines)-10):], "\n"))
}

// stop ends the program, by force when the context ends.
func (p *program) stop(ctx context.Context) error {
	select {
	case <-p.exited:
		return nil // told already
	default:
	}
	p.echo.quiet.Store(true) // what it says of its own end is in the log
	if err := p.command.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.exited:
		return p.err
	case <-ctx.Done():
		return errors.Join(ctx.Err(), p.command.Process.Kill())
	}
}
