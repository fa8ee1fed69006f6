// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"bytes"
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

func sayAll(logger logr.Logger) {
	logger.Error(errors.New("boom"), "an error", "pod", "ns/p")
	Warning(logger, "a warning", "pod", "ns/p")
	logger.Info("an info", "pod", "ns/p")
	logger.V(Debug).Info("a debug", "pod", "ns/p")
}

func TestLevels(t *testing.T) {
	for level, want := range map[string][]string{
		"error":   {"an error"},
		"warning": {"an error", "a warning"},
		"info":    {"an error", "a warning", "an info"},
		"debug":   {"an error", "a warning", "an info", "a debug"},
	} {
		for _, asJSON := range []bool{false, true} {
			var out bytes.Buffer
			logger, err := New(&out, level, asJSON)
			if err != nil {
				t.Fatal(err)
			}
			sayAll(logger)
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			if len(lines) != len(want) {
				t.Fatalf("%s, json %v: %d lines, want %d:\n%s", level, asJSON, len(lines), len(want), &out)
			}
			for i, line := range lines {
				if !strings.Contains(line, want[i]) {
					t.Errorf("%s, json %v: line %q lacks %q", level, asJSON, line, want[i])
				}
			}
		}
	}
	if _, err := New(&bytes.Buffer{}, "loud", false); err == nil {
		t.Error("an unknown level was accepted")
	}
}

func TestTextIsKlogs(t *testing.T) {
	var out bytes.Buffer
	logger, err := New(&out, "debug", false)
	if err != nil {
		t.Fatal(err)
	}
	sayAll(logger)
	for i, want := range []string{
		`^E\d{4} .* logging_test\.go:\d+\] "an error" err="boom" pod="ns/p"$`,
		`^W\d{4} .* logging_test\.go:\d+\] "a warning" pod="ns/p"$`,
		`^I\d{4} .* logging_test\.go:\d+\] "an info" pod="ns/p"$`,
		`^I\d{4} .* logging_test\.go:\d+\] "a debug" pod="ns/p"$`,
	} {
		if line := strings.Split(out.String(), "\n")[i]; !regexp.MustCompile(want).MatchString(line) {
			t.Errorf("line %q does not match %s", line, want)
		}
	}
}

func TestJSONFields(t *testing.T) {
	var out bytes.Buffer
	logger, err := New(&out, "debug", true)
	if err != nil {
		t.Fatal(err)
	}
	sayAll(logger)
	decoder := json.NewDecoder(&out)
	for _, level := range []string{"error", "warning", "info", "debug"} {
		var line struct{ Level, Msg, Pod, Caller string }
		if err := decoder.Decode(&line); err != nil {
			t.Fatal(err)
		}
		if line.Level != level || line.Msg == "" || line.Pod != "ns/p" || !strings.HasPrefix(line.Caller, "logging/logging_test.go:") {
			t.Errorf("line of level %s: %+v", level, line)
		}
	}
}

func TestInstallServesKlog(t *testing.T) {
	var out bytes.Buffer
	logger, err := New(&out, "debug", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := Install(logger, "debug"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(klog.ClearLogger)
	klog.V(Debug).InfoS("through klog", "key", "value")
	klog.Flush()
	if !strings.Contains(out.String(), `"msg":"through klog"`) || !strings.Contains(out.String(), `"level":"debug"`) {
		t.Errorf("klog's message did not arrive: %q", &out)
	}
}
