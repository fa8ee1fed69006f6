// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// leaseDuration is the shipped one: only when it has passed may another manager
// take over.
const leaseDuration = 5 * time.Second

// thief is another holder of the Lease.
const thief = "thief"

// TestLeaseIsLost takes the Lease from a leader that is at work. It must be gone
// before another manager could lead, and its exit must say why.
func TestLeaseIsLost(t *testing.T) {
	skipShort(t)
	for name, lose := range map[string]func(*leader) time.Time{
		"unanswered": (*leader).hangLease,
		"taken":      (*leader).takeLease,
		"refused":    (*leader).failLease,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			l := newLeader(t, "lease-"+name)
			lost := lose(l)
			select {
			case <-l.manager.Exited():
			case <-time.After(patience):
				t.Fatal("a leader without its Lease goes on")
			}
			left := time.Now()
			l.stopWork()
			if holder := leaseHolder(t, shared, l.namespace); name == "taken" && holder != thief {
				t.Errorf("the Lease that was taken is now %q's", holder)
			}
			figure(t, "a leader whose Lease is %s ends %.2fs after the last renewal, limit %s", name, left.Sub(lost).Seconds(), leaseDuration)
			l.checkEnd(lost, left)
		})
	}
}

func (l *leader) checkEnd(lost, left time.Time) {
	l.t.Helper()
	if late := left.Sub(lost); late > leaseDuration {
		l.t.Errorf("it ended %v after the last renewal: another manager may lead after %v", late, leaseDuration)
	}
	if l.proxy.writesAfter(lost) == 0 {
		l.t.Error("it wrote nothing in all that time: this test shows nothing")
	}
	if n := l.proxy.writesAfter(left); n > 0 {
		l.t.Errorf("%d writes after its end", n)
	}
	checkExit(l.t, l.manager)
	if why := "podconfigmap-controller: leader election lost"; !strings.Contains(l.manager.Log(), why) {
		l.t.Errorf("the log does not say %q", why)
	}
}

// leader is a manager that leads, behind a proxy, with pods that keep it at work.
type leader struct {
	t         *testing.T
	namespace string
	proxy     *proxy
	manager   *harness.Manager
	stopWork  func()
}

func newLeader(t *testing.T, namespace string) *leader {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context())) // that ends before cleanups run
	l := &leader{t: t, namespace: namespace}
	populate(t, shared, namespace, 5)
	must(t, shared.Client.Create(t.Context(), newConfig(namespace, "c", "", "1")))
	l.proxy = startProxy(t, shared)
	l.manager = startReady(t, shared, map[string]string{
		"KUBECONFIG": l.proxy.kubeconfig(t, shared), "POD_NAMESPACE": namespace, "WATCH_NAMESPACE": namespace,
	})
	waitExact(t, shared, namespace)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ctx.Err() == nil; i++ {
			if err := setLabel(ctx, shared, namespace, podName(i%5), "tier", strconv.Itoa(i)); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			time.Sleep(25 * time.Millisecond)
		}
	}()
	l.stopWork = func() { cancel(); <-ended }
	t.Cleanup(l.stopWork)
	return l
}

func ofLease(r *http.Request) bool { return strings.Contains(r.URL.Path, "/leases/") }

// hangLease leaves calls of the Lease without an answer, and returns when it was
// renewed last.
func (l *leader) hangLease() time.Time { return l.faultOfLease(fault{kind: hang}) }

// failLease answers them with an error.
func (l *leader) failLease() time.Time { return l.faultOfLease(fault{kind: broken}) }

func (l *leader) faultOfLease(f fault) time.Time {
	l.proxy.set(func(r *http.Request) fault {
		if ofLease(r) {
			return f
		}
		return fault{}
	})
	time.Sleep(200 * time.Millisecond) // what was under way is done
	return readLease(l.t, shared, l.namespace).Spec.RenewTime.Time
}

// takeLease puts another holder into the Lease.
func (l *leader) takeLease() time.Time {
	l.t.Helper()
	for {
		lease := readLease(l.t, shared, l.namespace)
		renewed := lease.Spec.RenewTime.Time
		holder, now := thief, metav1.NowMicro()
		lease.Spec.HolderIdentity, lease.Spec.RenewTime = &holder, &now
		err := shared.Client.Update(l.t.Context(), lease)
		if err == nil {
			return renewed
		}
		if !isGone(err) {
			l.t.Fatal(err)
		}
	}
}
