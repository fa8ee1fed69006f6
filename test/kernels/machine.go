// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/podconfigmap/podconfigmap-controller/test/kernels/vm"
	"github.com/podconfigmap/podconfigmap-controller/test/kernels/wire"
)

// patience is after how long a machine that says nothing more is given up. It is no
// measure of speed: the emulation is slow, and the host may be busy.
const patience = time.Hour

// boot runs a kernel with an initramfs and more arguments in QEMU, and hands each
// message of the guest to receive. It returns after the machine has ended. What the
// kernel says goes to the file console.
func boot(ctx context.Context, k vm.Kernel, initrd, console, arguments string, receive func(wire.Message)) error {
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, vm.QEMU, append(vm.Arguments(k, initrd, 2, vm.AllFeatures, 1536, arguments),
		"-serial", "file:"+console,
		"-serial", "stdio")...)
	cmd.Stdout, cmd.Stderr = in, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	if err := errors.Join(err, in.Close()); err != nil {
		return fmt.Errorf("starting a machine: %w", err)
	}
	heard := listen(out, cmd.Process, receive)
	err = cmd.Wait()
	return errors.Join(heard, err)
}

// listen reads messages until the last; a machine that is silent too long is ended.
func listen(out io.Reader, machine *os.Process, receive func(wire.Message)) error {
	silence := time.AfterFunc(patience, func() { _ = machine.Kill() })
	defer silence.Stop()
	ended := false
	reader := bufio.NewReader(out)
	for {
		line, err := reader.ReadBytes('\n')
		silence.Reset(patience)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("reading what the machine says: %w", err)
		}
		var message wire.Message
		if err := json.Unmarshal(line, &message); err != nil {
			return fmt.Errorf("reading what the machine says: %w: %q", err, line)
		}
		ended = ended || message.End
		receive(message)
	}
	if !ended {
		return errors.New("the machine ended before it had done its work")
	}
	return nil
}
