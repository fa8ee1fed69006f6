// SPDX-License-Identifier: Apache-2.0

package l4firewall

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"k8s.io/apimachinery/pkg/types"
)

// build is the programs of one build of the agent, with the versions of the
// layouts of its maps. A version is raised whenever its struct grows in C.
type build struct {
	load                                  func() (*ebpf.CollectionSpec, error)
	counters, policies, pods, flows, syns int
}

// hook is where a program is attached to a pod's cgroup.
type hook int

const (
	ingress hook = iota
	egress
	connect4
	connect6
	sendmsg4
	sendmsg6
	hooks
)

// hookNames are those of the programs, and in the names of pins.
var hookNames = [hooks]string{"ingress", "egress", "connect4", "connect6", "sendmsg4", "sendmsg6"}

var hookTypes = [hooks]ebpf.AttachType{
	ebpf.AttachCGroupInetIngress, ebpf.AttachCGroupInetEgress, ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect,
	ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
}

// Below Options.Dir, all in a folder of their own:
//
//	storage_HOOK                  the one layout that never changes
//	NAME_VERSION_ENTRIES          every other map of the programs
//	policy_VERSION_INDEX_KEY      what stands in the outer map policies, one pin each
//	pods/UID_SLOT_HOOK            links
const (
	folder     = "l4firewall"
	podsFolder = "pods"
)

func mapPin(name string, version int, entries uint32) string {
	return fmt.Sprintf("%s_%d_%d", name, version, entries)
}

// entriesOf returns the number of entries that a map's pin is named for.
func entriesOf(pin, name string) (entries uint32, ok bool) {
	parts := strings.Split(pin, "_")
	if len(parts) != 3 || parts[0] != name {
		return 0, false
	}
	n, err := strconv.ParseUint(parts[2], 10, 32)
	return uint32(n), err == nil
}

// policyPin names the pin of a policy.
type policyPin struct {
	version int
	index   uint32
	key     policyKey
}

func (p policyPin) String() string { return fmt.Sprintf("policy_%d_%d_%v", p.version, p.index, p.key) }

func parsePolicyPin(name string) (pin policyPin, ok bool) {
	var key []byte
	n, err := fmt.Sscanf(name, "policy_%d_%d_%x", &pin.version, &pin.index, &key)
	if n != 3 || err != nil || len(key) != len(pin.key) {
		return policyPin{}, false
	}
	pin.key = policyKey(key)
	return pin, true
}

// linkPin names the pin of a link. The slot is in it because a cgroup that is
// gone takes its storage along.
type linkPin struct {
	uid  types.UID
	slot uint32
	hook hook
}

func (p linkPin) String() string { return fmt.Sprintf("%s_%d_%s", p.uid, p.slot, hookNames[p.hook]) }

func parseLinkPin(name string) (pin linkPin, ok bool) {
	parts := strings.Split(name, "_")
	if len(parts) != 3 {
		return linkPin{}, false
	}
	slot, err := strconv.ParseUint(parts[1], 10, 32)
	if err != nil {
		return linkPin{}, false
	}
	for h, name := range hookNames {
		if name == parts[2] {
			return linkPin{types.UID(parts[0]), uint32(slot), hook(h)}, true
		}
	}
	return linkPin{}, false
}

// checkUID returns an error where the UID cannot be part of a pin's name.
func checkUID(uid types.UID) error {
	fits := len(uid) > 0 && len(uid) <= 64
	for _, c := range []byte(uid) {
		fits = fits && (c == '-' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z')
	}
	if !fits {
		return fmt.Errorf("%q is no UID: 1 to 64 letters, digits and hyphens", uid)
	}
	return nil
}

// names lists a folder; one that is not there is empty.
func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	list := make([]string, 0, len(entries))
	for _, entry := range entries {
		if !entry.IsDir() {
			list = append(list, entry.Name())
		}
	}
	return list, nil
}

// adoptMap opens the map that is pinned at path, or makes it, has it filled and
// pins it: what is pinned is complete, whenever the agent was killed.
func adoptMap(path string, spec *ebpf.MapSpec, fill func(*ebpf.Map) error) (m *ebpf.Map, err error) {
	m, err = ebpf.LoadPinnedMap(path, nil)
	switch {
	case err == nil:
		if err := spec.Compatible(m); err != nil {
			return nil, errors.Join(fmt.Errorf("map %s: %w", path, err), m.Close())
		}
		return m, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("opening map %s: %w", path, err)
	}
	if m, err = ebpf.NewMap(spec); err != nil {
		return nil, fmt.Errorf("making map %s: %w", filepath.Base(path), err)
	}
	if fill != nil {
		err = fill(m)
	}
	if err == nil {
		err = m.Pin(path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("filling map %s: %w", filepath.Base(path), err), m.Close())
	}
	return m, nil
}
