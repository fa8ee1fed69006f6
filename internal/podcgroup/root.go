// SPDX-License-Identifier: Apache-2.0

package podcgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// ErrNoCgroup2 says that no mount shows the node's cgroup v2 hierarchy.
var ErrNoCgroup2 = errors.New("no mount shows the whole cgroup v2 hierarchy")

// mount is a line of mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	id, parent  int
	root, point string
	kind        string
}

// FindRoot returns where the node's cgroup v2 hierarchy is mounted, by the
// mountinfo of a process (/proc/self/mountinfo): /sys/fs/cgroup, or in a hybrid
// set-up the mount "unified" below, or any other that shows it all. In a container
// with a cgroup namespace of its own a mount that shows more than the container's
// cgroups goes before one that does not. The error is ErrNoCgroup2 where there is
// none.
func FindRoot(mountinfo io.Reader) (string, error) {
	mounts := map[int]mount{}
	var order []mount
	lines := bufio.NewScanner(mountinfo)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m, err := parseMount(lines.Text())
		if err != nil {
			return "", err
		}
		mounts[m.id] = m
		order = append(order, m)
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("reading mountinfo: %w", err)
	}
	best, bestRank := "", -1
	for _, m := range order {
		if rank := m.rank(); rank > bestRank && !hidden(m, order, mounts) {
			best, bestRank = m.point, rank
		}
	}
	if best == "" {
		return "", ErrNoCgroup2
	}
	return best, nil
}

func parseMount(line string) (mount, error) {
	before, after, ok := strings.Cut(line, " - ")
	fields, rest := strings.Fields(before), strings.Fields(after)
	if !ok || len(fields) < 5 || len(rest) < 1 {
		return mount{}, fmt.Errorf("mountinfo has a line %q", line)
	}
	id, err := strconv.Atoi(fields[0])
	if err != nil {
		return mount{}, fmt.Errorf("mountinfo has a line %q: %w", line, err)
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return mount{}, fmt.Errorf("mountinfo has a line %q: %w", line, err)
	}
	return mount{id: id, parent: parent, root: unescape(fields[3]), point: unescape(fields[4]), kind: rest[0]}, nil
}

// unescape turns the kernel's octal escapes, such as \040, back into characters.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// rank tells how well a mount serves as the root: -1 not at all, else the higher
// the better.
func (m mount) rank() int {
	if m.kind != "cgroup2" {
		return -1
	}
	rank := 0
	// From inside a cgroup namespace the node's root shows as /../.. and so on, one
	// step for each cgroup that the namespace is below it.
	for part := range strings.SplitSeq(strings.Trim(m.root, "/"), "/") {
		switch part {
		case "":
		case "..":
			rank += 3
		default:
			return -1 // a part of the hierarchy
		}
	}
	switch m.point {
	case "/sys/fs/cgroup":
		rank += 2
	case "/sys/fs/cgroup/unified":
		rank++
	}
	return rank
}

// hidden says whether another mount covers m: one at the same place or above that
// m does not stand on.
func hidden(m mount, order []mount, mounts map[int]mount) bool {
	ground := map[int]bool{m.id: true}
	for at, ok := mounts[m.parent]; ok && !ground[at.id]; at, ok = mounts[at.parent] {
		ground[at.id] = true
	}
	for _, other := range order {
		covers := other.point == "/" || other.point == m.point || strings.HasPrefix(m.point, other.point+"/")
		if covers && !ground[other.id] {
			return true
		}
	}
	return false
}
