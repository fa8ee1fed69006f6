// SPDX-License-Identifier: Apache-2.0

package packaged

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMakeTellsWhyNot(t *testing.T) {
	_, err := Make(t.Context(), t.TempDir(), Newer, "bundle", nil, "no-such-target")
	if err == nil || !strings.Contains(err.Error(), "no-such-target") {
		t.Errorf("the error is %v", err)
	}
}

func TestAddField(t *testing.T) {
	file := filepath.Join(t.TempDir(), "crd.yaml")
	if err := addField(file); err == nil {
		t.Error("no CRD: no error")
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := addField(file); err == nil || !strings.Contains(err.Error(), "reading") {
		t.Errorf("no YAML: %v", err)
	}
}

// What a command has started ends with it.
func TestRunEndsAll(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	file := filepath.Join(t.TempDir(), "pid")
	ended := make(chan error, 1)
	go func() {
		_, err := run(ctx, "/", nil, "sh", "-c", "sleep 600 & echo $! >"+file+"; wait")
		ended <- err
	}()
	var pid string
	for end := time.Now().Add(time.Minute); pid == "" && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		text, _ := os.ReadFile(file)
		pid = strings.TrimSpace(string(text))
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("an interrupted command: no error")
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
		if err != nil || strings.Contains(string(text), ") Z ") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %q still runs", pid)
		}
	}
}
