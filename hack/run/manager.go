// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"maps"
	"os"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// startManager starts the manager with the shipped settings, below those of the
// user's environment, below those given, and waits until it is ready.
func (s *session) startManager(ctx context.Context, settings map[string]string) error {
	s.step("The manager")
	shipped, err := harness.ShippedSettings()
	if err != nil {
		return err
	}
	m := s.newProgram("manager")
	m.log = s.log
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
	if err := s.run(m, environ); err != nil {
		return err
	}
	s.later("stopping the manager", m.stop)
	return s.awaitProgram(ctx, m)
}

// awaitProgram tells of a program that was started, and waits until it is ready.
func (s *session) awaitProgram(ctx context.Context, p *program) error {
	s.say("process %d, %s %s", p.command.Process.Pid, s.binary, p.mode)
	s.say("log      %s (level %s; warnings show here, too)", p.log, cmp.Or(os.Getenv("LOG_LEVEL"), "warning"))
	s.say("metrics  http://%s/metrics", p.metrics)
	took, err := s.await(ctx, "the "+p.mode+" is ready", p.ready)
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
	return controlplane.FreeAddress()
}
