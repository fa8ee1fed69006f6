// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strconv"
	"syscall"
)

// made tells how many calls of a number were made.
type made struct {
	Number int `json:"number"`
	Count  int `json:"count"`
}

func makeCalls(args []string) error {
	m, err := calls(args)
	if err != nil {
		return err
	}
	return tell(m)
}

// calls makes a system call, without valid arguments, so many times.
func calls(args []string) (made, error) {
	if len(args) != 2 {
		return made{}, errors.New("calls wants a number and a count")
	}
	number, err := strconv.Atoi(args[0])
	if err != nil {
		return made{}, err
	}
	count, err := strconv.Atoi(args[1])
	if err != nil {
		return made{}, err
	}
	const none = ^uintptr(0)
	for range count {
		// Errors are expected, but for a call that does not exist at all.
		if _, _, errno := syscall.RawSyscall6(uintptr(number), none, none, none, none, none, none); errno == syscall.ENOSYS {
			return made{}, fmt.Errorf("system call %d: %w", number, errno)
		}
	}
	return made{Number: number, Count: count}, nil
}
