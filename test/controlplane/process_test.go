// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"
)

// A goroutine that ends while locked takes its thread with it, and a child
// started on that thread would get the parent-death signal.
func TestProcessOutlivesThreadOfItsStarter(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	// Two at once, as the main thread never ends, and one may be on it.
	started, end := make(chan *process), make(chan struct{})
	for range 2 {
		go func() {
			runtime.LockOSThread()
			p, err := startProcess("sleep", log, "/bin/sleep", "60")
			if err != nil {
				t.Error(err)
			}
			started <- p
			<-end
		}()
	}
	processes := []*process{<-started, <-started}
	if t.Failed() {
		t.FailNow()
	}
	close(end)
	time.Sleep(300 * time.Millisecond)
	for _, p := range processes {
		if p.ended() {
			t.Errorf("it ended with its starter: %v", p.err)
		}
		if err := p.stop(); err != nil {
			t.Error(err)
		}
		if !p.ended() {
			t.Error("it runs after stop")
		}
	}
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func TestEnviron(t *testing.T) {
	for name, tc := range map[string]struct{ own, want []string }{
		"ours":   {[]string{"HOME=/", "GOGCX=1"}, []string{"HOME=/", "GOGCX=1", "GOGC=400"}},
		"theirs": {[]string{"GOGC=100", "HOME=/"}, []string{"GOGC=100", "HOME=/"}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := environ(tc.own); !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

// No port is given twice, also to other processes, and claims outlive garbage collection.
func TestClaim(t *testing.T) {
	ports, err := freePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		runtime.GC()
	}
	if claim(ports[0]) {
		t.Errorf("port %d can be claimed again", ports[0])
	}
	l, err := net.Listen("unix", fmt.Sprintf("@podconfigmap-controller/port/%d", 1))
	if err != nil {
		t.Fatal(err)
	}
	if claim(1) {
		t.Error("a port that another has claimed can be claimed")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if !claim(1) {
		t.Error("a port that nobody claims any more cannot be claimed")
	}
}
