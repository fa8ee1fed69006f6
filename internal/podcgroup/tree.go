// SPDX-License-Identifier: Apache-2.0

package podcgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// rescanInterval is how often everything is looked at, should the kernel ever have
// told less than it did.
const rescanInterval = time.Minute

// Event tells that a pod's cgroup has appeared or is gone.
type Event struct {
	UID types.UID
	// Path of the cgroup's directory.
	Path string
	// Removed: it is gone. A directory that was replaced by another of its name is
	// told as gone, then as new.
	Removed bool
}

// Tree knows the cgroups of the pods below a root. It looks at a directory
// whenever inotify tells that it was made or removed, and believes only what it
// sees then; so it does not matter which events come late, twice, or not at all
// because the queue was full (all is looked at again then). Only the few
// directories above the pods are watched.
type Tree struct {
	root    string
	inotify *os.File

	// What Run alone uses: the watched directories by path, their paths by watch
	// descriptor, the pods' inode numbers by path.
	dirs    map[string]*dir
	watches map[int32]string
	inodes  map[string]uint64
	tell    func(Event)

	scanned chan struct{}
	once    sync.Once // closes scanned

	mu    sync.Mutex
	paths map[types.UID][]string
}

// dir is a watched directory.
type dir struct {
	kind  kind
	depth int // the root's is 0
	watch int32
	// children by name: the watched directories and pods that are known in it.
	children map[string]struct{}
}

// Open prepares to watch the cgroups below root. Run must follow, or Close.
func Open(root string) (*Tree, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(root); err != nil {
		return nil, fmt.Errorf("opening the cgroup root: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("opening the cgroup root: %s is not a directory", root)
	}
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		if errors.Is(err, unix.EMFILE) {
			err = fmt.Errorf("%w: raise the sysctl fs.inotify.max_user_instances", err)
		}
		return nil, fmt.Errorf("opening inotify: %w", err)
	}
	return &Tree{
		root: root, inotify: os.NewFile(uintptr(fd), "inotify"),
		dirs: map[string]*dir{}, watches: map[int32]string{}, inodes: map[string]uint64{},
		paths: map[types.UID][]string{}, scanned: make(chan struct{}),
	}, nil
}

// Scanned is closed when Run has told of everything that existed when it began:
// only from then on a pod that is not known has no cgroup.
func (t *Tree) Scanned() <-chan struct{} { return t.scanned }

// Close ends a tree that is not run.
func (t *Tree) Close() error { return t.inotify.Close() }

// Path returns the directory of a pod's cgroup. Of two (one is left over from
// another cgroup driver) it is the one that appeared last.
func (t *Tree) Path(uid types.UID) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	paths := t.paths[uid]
	if len(paths) == 0 {
		return "", false
	}
	return paths[len(paths)-1], true
}

// All returns every pod's directory.
func (t *Tree) All() map[types.UID]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make(map[types.UID]string, len(t.paths))
	for uid, paths := range t.paths {
		all[uid] = paths[len(paths)-1]
	}
	return all
}

// Run tells of what exists, then of each change as it happens, until ctx ends,
// and closes the tree. It calls tell from its own goroutine; Path and All know of
// a change before tell does. A directory can be gone again by the time that tell
// hears of it. The error is nil where ctx has ended.
func (t *Tree) Run(ctx context.Context, tell func(Event)) error {
	t.tell = tell
	defer t.inotify.Close()
	stop := context.AfterFunc(ctx, func() { t.inotify.Close() })
	defer stop()
	err := t.watch()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("watching the cgroups below %s: %w", t.root, err)
}

func (t *Tree) watch() error {
	buffer := make([]byte, 64<<10)
	for {
		if err := t.scan(t.root, above, 0); err != nil {
			return err
		}
		t.once.Do(func() { close(t.scanned) })
		for rescan := time.Now().Add(rescanInterval); ; {
			complete, err := t.next(buffer, rescan)
			if err != nil {
				return err
			}
			if !complete || time.Now().After(rescan) {
				break
			}
		}
	}
}

// next waits for events and looks at what they name. complete is false where some
// were lost.
func (t *Tree) next(buffer []byte, deadline time.Time) (complete bool, err error) {
	if err := t.inotify.SetReadDeadline(deadline); err != nil {
		return false, err
	}
	n, err := t.inotify.Read(buffer)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	complete = true
	for e := range events(buffer[:n]) {
		if e.mask&unix.IN_Q_OVERFLOW != 0 {
			complete = false
			continue
		}
		if err := t.handle(e); err != nil {
			return false, err
		}
	}
	return complete, nil
}

func (t *Tree) handle(e event) error {
	path, ok := t.watches[e.watch]
	if !ok {
		return nil
	}
	if e.mask&unix.IN_IGNORED != 0 {
		delete(t.watches, e.watch)
		if path == t.root {
			return fmt.Errorf("%s is gone: %w", path, fs.ErrNotExist)
		}
		return nil
	}
	if e.mask&unix.IN_ISDIR == 0 || e.name == "" {
		return nil
	}
	return t.look(path, e.name)
}

// look brings what is known about one name in a watched directory in line with
// what is there.
func (t *Tree) look(parent, name string) error {
	d := t.dirs[parent]
	path := filepath.Join(parent, name)
	switch k := childKind(d.kind, d.depth, name); k {
	case other:
		return nil
	case pod:
		return t.lookAtPod(d, path, name)
	default:
		d.children[name] = struct{}{}
		return t.scan(path, k, d.depth+1)
	}
}

func (t *Tree) lookAtPod(d *dir, path, name string) error {
	inode, err := inodeOf(path)
	if err != nil || inode == t.inodes[path] {
		return err
	}
	uid, _ := UIDOf(name)
	if t.inodes[path] != 0 {
		delete(d.children, name)
		t.lose(uid, path)
	}
	if inode != 0 {
		d.children[name] = struct{}{}
		t.find(uid, path, inode)
	}
	return nil
}

// scan watches a directory above the pods, and looks at all that is in it or was.
func (t *Tree) scan(path string, k kind, depth int) error {
	// The watch comes first: what is made after it is told, what is made before it
	// is listed.
	d, err := t.enter(path, k, depth)
	if vanished(err) && path != t.root {
		t.forget(path)
		return nil
	}
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(path)
	if err != nil && !vanished(err) {
		return err
	}
	names := maps.Clone(d.children)
	for _, e := range entries {
		if e.IsDir() {
			names[e.Name()] = struct{}{}
		}
	}
	for name := range names {
		if err := t.look(path, name); err != nil {
			return err
		}
	}
	return nil
}

// enter watches a directory, or makes sure that it is the one that is watched.
func (t *Tree) enter(path string, k kind, depth int) (*dir, error) {
	watch, err := t.add(path)
	if err != nil {
		return nil, err
	}
	d := t.dirs[path]
	if d == nil {
		d = &dir{kind: k, depth: depth, children: map[string]struct{}{}}
		t.dirs[path] = d
	} else if d.watch != watch {
		delete(t.watches, d.watch)
	}
	d.watch = watch
	t.watches[watch] = path
	return d, nil
}

// add watches a directory.
func (t *Tree) add(path string) (watch int32, err error) {
	// Not by Fd, which would make reads block.
	raw, err := t.inotify.SyscallConn()
	if err != nil {
		return 0, err
	}
	var wd int
	var failed error
	if err := raw.Control(func(fd uintptr) {
		wd, failed = unix.InotifyAddWatch(int(fd), path, unix.IN_CREATE|unix.IN_DELETE|unix.IN_ONLYDIR|unix.IN_DONT_FOLLOW)
	}); err != nil {
		return 0, err
	}
	if errors.Is(failed, unix.ENOSPC) {
		failed = fmt.Errorf("%w: raise the sysctl fs.inotify.max_user_watches", failed)
	}
	if failed != nil {
		return 0, fmt.Errorf("watching %s: %w", path, failed)
	}
	return int32(wd), nil
}

// forget drops a directory that is gone, with all that was below.
func (t *Tree) forget(path string) {
	if parent := t.dirs[filepath.Dir(path)]; parent != nil {
		delete(parent.children, filepath.Base(path))
	}
	d := t.dirs[path]
	if d == nil {
		return
	}
	for name := range d.children {
		child := filepath.Join(path, name)
		if t.inodes[child] == 0 {
			t.forget(child)
			continue
		}
		uid, _ := UIDOf(name)
		t.lose(uid, child)
	}
	delete(t.dirs, path)
	delete(t.watches, d.watch)
}

func (t *Tree) find(uid types.UID, path string, inode uint64) {
	t.inodes[path] = inode
	t.mu.Lock()
	t.paths[uid] = append(t.paths[uid], path)
	t.mu.Unlock()
	t.tell(Event{UID: uid, Path: path})
}

func (t *Tree) lose(uid types.UID, path string) {
	delete(t.inodes, path)
	t.mu.Lock()
	left := slices.DeleteFunc(t.paths[uid], func(p string) bool { return p == path })
	if t.paths[uid] = left; len(left) == 0 {
		delete(t.paths, uid)
	}
	t.mu.Unlock()
	t.tell(Event{UID: uid, Path: path, Removed: true})
}

// inodeOf returns the inode number of a directory, 0 where there is none.
func inodeOf(path string) (uint64, error) {
	var st syscall.Stat_t
	for {
		err := syscall.Lstat(path, &st)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case vanished(err):
			return 0, nil
		case err != nil:
			return 0, fmt.Errorf("looking at %s: %w", path, err)
		case st.Mode&syscall.S_IFMT != syscall.S_IFDIR:
			return 0, nil
		}
		return st.Ino, nil
	}
}

// vanished says whether an error means that a directory is gone.
func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOTDIR)
}
