// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"sync"
)

// keeper is what package sandbox asks of a test, for a program: failures become
// errors.
type keeper struct {
	mu       sync.Mutex
	failures []error
	cleanups []func()
}

// failure is what Fatalf and Skipf panic with; try makes an error of it.
type failure struct{ error }

func (*keeper) Helper()      {}
func (*keeper) Name() string { return "make run" }

func (k *keeper) Errorf(format string, args ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failures = append(k.failures, fmt.Errorf(format, args...))
}

func (*keeper) Fatalf(format string, args ...any) { panic(failure{fmt.Errorf(format, args...)}) }
func (*keeper) Skipf(format string, args ...any)  { panic(failure{fmt.Errorf(format, args...)}) }

func (k *keeper) Cleanup(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cleanups = append(k.cleanups, f)
}

// try calls f, which may fail as in a test.
func (*keeper) try(f func()) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case failure:
			err = r.error
		default:
			panic(r)
		}
	}()
	f()
	return nil
}

// close cleans up, last things first, and returns what failed there or before.
func (k *keeper) close() error {
	k.mu.Lock()
	cleanups := k.cleanups
	k.cleanups = nil
	k.mu.Unlock()
	for i := len(cleanups) - 1; i >= 0; i-- {
		if err := k.try(cleanups[i]); err != nil {
			k.Errorf("%w", err)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return errors.Join(k.failures...)
}
