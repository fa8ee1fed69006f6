// SPDX-License-Identifier: Apache-2.0

// Package podcgroup finds the cgroups of a node's pods, and tells of each as soon
// as kubelet makes it.
package podcgroup

import (
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

const (
	slice = ".slice"
	// uidLength is that of a UUID in text, staticLength that of a static pod's UID,
	// which kubelet makes from a hash.
	uidLength    = 36
	staticLength = 32
)

// kind is what a directory is on the way from the root to the pods.
type kind int

const (
	// other: nothing of ours is below it.
	other kind = iota
	// above: kubelet's own root (--cgroup-root) may be here, or below.
	above
	// pods: kubepods, which holds QoS classes and guaranteed pods.
	pods
	// class: one QoS class, which holds pods.
	class
	// pod: a pod; containers are below.
	pod
)

// maxDepth is how many directories deep below the root kubepods is looked for.
const maxDepth = 4

// UIDOf returns the UID of the pod whose cgroup has this name: "pod<uid>" of
// kubelet's driver cgroupfs, "kubepods[-<class>]-pod<uid>.slice" of the driver
// systemd, where _ stands for - and names of kubelet's own root may stand in front.
// A UID is a UUID, or a static pod's 32 hexadecimal digits.
func UIDOf(dirName string) (types.UID, bool) {
	if uid, ok := strings.CutPrefix(dirName, "pod"); ok && isUID(uid, '-') {
		return types.UID(uid), true
	}
	name, ok := strings.CutSuffix(dirName, slice)
	if !ok {
		return "", false
	}
	at := strings.LastIndex(name, "-pod")
	if at < 0 {
		return "", false
	}
	parent, uid := name[:at], name[at+len("-pod"):]
	if !isUID(uid, '_') || !isPods(parent+slice) && !isSystemdClass(parent+slice) {
		return "", false
	}
	return types.UID(strings.ReplaceAll(uid, "_", "-")), true
}

// isUID says whether s is a UID with its parts set apart by separator.
func isUID(s string, separator byte) bool {
	if len(s) != uidLength && len(s) != staticLength {
		return false
	}
	for i := range len(s) {
		if len(s) == uidLength && (i == 8 || i == 13 || i == 18 || i == 23) {
			if s[i] != separator {
				return false
			}
			continue
		}
		if !isHex(s[i]) {
			return false
		}
	}
	return true
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// isPods says whether a directory of this name holds all pods of a kubelet.
func isPods(name string) bool {
	return name == "kubepods" || name == "kubepods"+slice || strings.HasSuffix(name, "-kubepods"+slice)
}

// isSystemdClass says whether a directory of this name holds the pods of one QoS
// class, as the driver systemd names it.
func isSystemdClass(name string) bool {
	for _, c := range []string{"-burstable", "-besteffort"} {
		if parent, ok := strings.CutSuffix(name, c+slice); ok && isPods(parent+slice) {
			return true
		}
	}
	return false
}

// childKind is what a directory is by its name, in a parent of a kind and depth
// (the root's is 0).
func childKind(parent kind, depth int, name string) kind {
	switch parent {
	case above:
		if isPods(name) {
			return pods
		}
		if depth < maxDepth-1 && !isUnit(name) {
			return above
		}
	case pods:
		if name == "burstable" || name == "besteffort" || isSystemdClass(name) {
			return class
		}
		return podKind(name)
	case class:
		return podKind(name)
	}
	return other
}

func podKind(name string) kind {
	if _, ok := UIDOf(name); ok {
		return pod
	}
	return other
}

// isUnit says whether a directory belongs to a systemd unit that has no slices of
// kubelet below.
func isUnit(name string) bool {
	for _, suffix := range []string{".service", ".scope", ".mount", ".socket", ".swap"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}
