// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A cluster leaves nothing by construction where it can: network namespaces have no
// names, mounts are in mount namespaces of their own, pins in file systems that only
// these show, and every process dies with the first of its machine, which dies with
// the process that called Start. What is left are cgroups and a folder. Stop removes
// them; where it was not called, a janitor does, a process that waits until the first
// one has ended; and where that was killed, too, the next cluster does.
//
// A cluster's cgroup is also the lock on its number: whoever has locked it may use, or
// remove, all that has the number.

const (
	placePrefix = "podconfigmap-cluster-"
	maxPlaces   = 64
	// room is what /dev/shm has to offer to be used.
	room = 3 << 30
)

// place is what a cluster has of the host.
type place struct {
	number int
	cgroup string
	dir    string
	lock   *os.File // on cgroup
	pipe   *os.File // the janitor waits for its end
}

// reserve takes the first free number, and removes what an earlier cluster of that
// number has left.
func reserve() (*place, error) {
	mount, err := cgroupMount()
	if err != nil {
		return nil, err
	}
	for number := range maxPlaces {
		p := &place{number: number, cgroup: filepath.Join(mount, placePrefix+strconv.Itoa(number))}
		taken, err := p.take()
		if err != nil {
			return nil, fmt.Errorf("taking a place for the cluster: %w", err)
		}
		if taken {
			return p, p.settle()
		}
	}
	return nil, fmt.Errorf("taking a place for the cluster: %d clusters run already; stop some", maxPlaces)
}

// take makes the cgroup and locks it. False: somebody else has it.
func (p *place) take() (bool, error) {
	for {
		if err := os.Mkdir(p.cgroup, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return false, err
		}
		lock, err := os.Open(p.cgroup)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed by whoever had it
		}
		if err != nil {
			return false, err
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return false, errors.Join(lock.Close(), unlessLocked(err))
		}
		if isAt(lock, p.cgroup) {
			p.lock = lock
			return true, nil
		}
		lock.Close() // removed in between
	}
}

func unlessLocked(err error) error {
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	return err
}

// isAt tells whether an open file is still the one of that path.
func isAt(file *os.File, path string) bool {
	open, err := file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(open, there)
}

// settle clears the place, makes its folder and starts the janitor.
func (p *place) settle() error {
	if err := sweep(p.cgroup, false, folders(p.number)...); err != nil {
		return errors.Join(fmt.Errorf("removing an earlier cluster: %w", err), p.lock.Close())
	}
	p.dir = folders(p.number)[0]
	err := os.Mkdir(p.dir, 0o755)
	if err == nil {
		p.pipe, err = startJanitor(p)
	}
	if err != nil {
		return errors.Join(err, sweep(p.cgroup, true, p.dir), p.lock.Close())
	}
	return nil
}

// release removes all that the cluster had.
func (p *place) release() error {
	err := sweep(p.cgroup, true, p.dir)
	return errors.Join(err, p.pipe.Close(), p.lock.Close())
}

// folders are where a cluster of that number may have its folder; the first is where
// a new one has: in memory, if there is room.
func folders(number int) []string {
	name := placePrefix + strconv.Itoa(number)
	memory, disk := filepath.Join("/dev/shm", name), filepath.Join(os.TempDir(), name)
	var shm unix.Statfs_t
	if unix.Statfs("/dev/shm", &shm) == nil && shm.Type == unix.TMPFS_MAGIC && shm.Bavail*uint64(shm.Bsize) >= room {
		return []string{memory, disk}
	}
	return []string{disk, memory}
}

// sweep ends all processes of a cluster, and removes its cgroups and folders; of the
// cgroups all but the first, unless that, too.
func sweep(cgroup string, itself bool, dirs ...string) error {
	errs := []error{emptyCgroup(cgroup)}
	for _, dir := range dirs {
		errs = append(errs, os.RemoveAll(dir))
	}
	if itself {
		errs = append(errs, removeCgroup(cgroup))
	}
	return errors.Join(errs...)
}

// emptyCgroup ends all processes below a cgroup and removes its children.
func emptyCgroup(dir string) error {
	children, err := os.ReadDir(dir)
	if err != nil {
		return unlessGone(err)
	}
	var errs []error
	for _, child := range children {
		if child.IsDir() {
			errs = append(errs, removeCgroup(filepath.Join(dir, child.Name())))
		}
	}
	return errors.Join(errs...)
}

// removeCgroup removes a cgroup with all below it, and ends the processes inside.
func removeCgroup(dir string) error {
	deadline := time.Now().Add(patience)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := unlessGone(os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0))
		if err == nil {
			err = removeTree(dir)
		}
		// What was killed leaves its cgroup a moment later.
		if err == nil || !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pause)
	}
}

func removeTree(dir string) error {
	children, err := os.ReadDir(dir)
	if err != nil {
		return unlessGone(err)
	}
	var errs []error
	for _, child := range children {
		if child.IsDir() {
			errs = append(errs, removeTree(filepath.Join(dir, child.Name())))
		}
	}
	if err := unlessGone(unix.Rmdir(dir)); err != nil {
		errs = append(errs, fmt.Errorf("removing cgroup %s: %w", dir, err))
	}
	return errors.Join(errs...)
}

// unlessGone is err, unless it says that a cgroup is gone: ENODEV comes from what was
// open when it went.
func unlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// cgroupMount is where the kernel shows cgroup v2 on this machine.
func cgroupMount() (string, error) {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir, nil
		}
	}
	return "", errors.New("looking for cgroup v2: it is not mounted; mount -t cgroup2 none /sys/fs/cgroup/unified")
}

// startJanitor starts the process that clears the place when this one has ended
// without doing so. It holds the lock, too, so that nobody takes the place meanwhile.
func startJanitor(p *place) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	command := exec.Command("/proc/self/exe")
	command.Args = []string{"cluster-janitor", p.cgroup, p.dir}
	command.Env = []string{roleVariable + "=" + roleJanitor}
	command.Stdin = r
	command.ExtraFiles = []*os.File{p.lock}
	// A session of its own: Ctrl-C is for others. No output: `go test` waits until
	// nobody holds it.
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the janitor: %w", err), w.Close())
	}
	return w, command.Process.Release()
}

// beJanitor waits for the end of the process that started it.
func beJanitor(until io.Reader, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("a janitor wants a cgroup and a folder, not %q", args)
	}
	if _, err := io.Copy(io.Discard, until); err != nil {
		return err
	}
	if !isAt(os.NewFile(3, args[0]), args[0]) {
		return nil // all was removed
	}
	return sweep(args[0], true, args[1])
}

// Remains says what is left on this machine of clusters that nobody runs any more:
// cgroups, folders and processes. There is none, unless something is broken.
func Remains() ([]string, error) {
	mount, err := cgroupMount()
	if err != nil {
		return nil, err
	}
	var found []string
	for number := range maxPlaces {
		p := &place{number: number, cgroup: filepath.Join(mount, placePrefix+strconv.Itoa(number))}
		if running, err := p.running(); err != nil || running {
			if err != nil {
				return nil, err
			}
			continue
		}
		for _, path := range append(folders(number), p.cgroup) {
			if _, err := os.Lstat(path); err == nil {
				found = append(found, path)
			}
		}
		processes, err := processesOf(placePrefix + strconv.Itoa(number))
		if err != nil {
			return nil, err
		}
		found = append(found, processes...)
	}
	return found, nil
}

// running tells whether somebody holds the lock.
func (p *place) running() (bool, error) {
	lock, err := os.Open(p.cgroup)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer lock.Close()
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	return err != nil, unlessLocked(err)
}

// ended tells whether a process only waits for its parent to take note of its end: one
// whose own parent was killed may wait a moment for the machine's init.
func ended(process string) bool {
	text, err := os.ReadFile(filepath.Join(process, "stat"))
	if err != nil {
		return true
	}
	_, state, _ := strings.Cut(string(text), ") ")
	return strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X")
}

// processesOf are those in a cluster's cgroups, or with a mount of its folder.
func processesOf(name string) ([]string, error) {
	var found []string
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, process := range processes {
		if ended(process) {
			continue
		}
		for _, file := range []string{"cgroup", "mountinfo"} {
			text, err := os.ReadFile(filepath.Join(process, file))
			if err != nil {
				continue // it has ended
			}
			if slices.ContainsFunc(strings.FieldsFunc(string(text), func(r rune) bool { return r == '/' || r == '\n' || r == ' ' }), func(s string) bool { return s == name }) {
				command, _ := os.ReadFile(filepath.Join(process, "comm"))
				found = append(found, fmt.Sprintf("process %s (%s)", filepath.Base(process), strings.TrimSpace(string(command))))
				break
			}
		}
	}
	return found, nil
}
