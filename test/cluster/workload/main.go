// SPDX-License-Identifier: Apache-2.0

// Command workload is what pods of a test cluster run: it serves and dials, and
// makes known system calls.
//
//	workload pause                      wait for a signal to end
//	workload sleep                      the same, for the eyes of who looks
//	workload serve [flags]              serve TCP and UDP, and carry out what it is asked
//	workload dial [flags] ADDRESS...    connect some times, and tell the results
//	workload calls NUMBER COUNT         make a system call so many times
//	workload exit CODE                  end with a code
//
// What dial and calls have to tell goes to standard output, and into the file of
// Kubernetes for a container's last message, so that it is in the pod's status.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

// lastMessage is read by the kubelet when a container has ended.
const lastMessage = "/dev/termination-log"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	commands := map[string]func([]string) error{
		"pause": wait, "sleep": wait, "serve": serve, "dial": dial, "calls": makeCalls, "exit": exit,
	}
	if len(args) == 0 || commands[args[0]] == nil {
		return errors.New("name a command: pause, sleep, serve, dial, calls or exit")
	}
	return commands[args[0]](args[1:])
}

func wait([]string) error {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	<-end
	return nil
}

func exit(args []string) error {
	if len(args) != 1 {
		return errors.New("exit wants a code")
	}
	code, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	os.Exit(code)
	return nil
}

// tell publishes what a command has found.
func tell(result any) error {
	text, err := json.Marshal(result)
	if err != nil {
		return err
	}
	fmt.Println(string(text))
	file, err := os.OpenFile(lastMessage, os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // not in a pod
	}
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	return errors.Join(err, file.Close())
}
