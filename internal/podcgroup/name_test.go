// SPDX-License-Identifier: Apache-2.0

package podcgroup

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

const (
	uid       = "0c1e7e4e-6c9a-4f4e-9d3a-2f1b8e7a6d5c"
	lowered   = "0c1e7e4e_6c9a_4f4e_9d3a_2f1b8e7a6d5c"
	staticUID = "d2f7a3c1b4e5968778695a4b3c2d1e0f"
)

func TestUIDOf(t *testing.T) {
	for name, want := range map[string]types.UID{
		"pod" + uid:                                           uid,
		"pod" + staticUID:                                     staticUID,
		"kubepods-pod" + lowered + ".slice":                   uid,
		"kubepods-burstable-pod" + lowered + ".slice":         uid,
		"kubepods-besteffort-pod" + lowered + ".slice":        uid,
		"kubepods-burstable-pod" + staticUID + ".slice":       staticUID,
		"kubelet-kubepods-burstable-pod" + lowered + ".slice": uid,
		"a-b-kubepods-pod" + lowered + ".slice":               uid,
		"pod" + strings.ToUpper(uid):                          types.UID(strings.ToUpper(uid)),
		"":                                                    "",
		"pod":                                                 "",
		"pods":                                                "",
		"podruntime.slice":                                    "",
		"pod" + lowered:                                       "",
		"pod" + uid + "x":                                     "",
		"pod" + uid[1:]:                                       "",
		"pod" + strings.Replace(uid, "-", "a", 1):             "",
		"pod" + strings.Replace(uid, "c", "g", 1):             "",
		"pod" + staticUID[1:]:                                 "",
		uid:                                                   "",
		"kubepods-pod" + uid + ".slice":                       "",
		"kubepods-pod" + lowered:                              "",
		"kubepods-pod" + lowered + ".scope":                   "",
		"kubepods-guaranteed-pod" + lowered + ".slice":        "",
		"xkubepods-pod" + lowered + ".slice":                  "",
		"-pod" + lowered + ".slice":                           "",
		"system-pod" + lowered + ".slice":                     "",
		"kubepods-burstable.slice":                            "",
		"kubepods.slice":                                      "",
		"cri-containerd-" + staticUID + staticUID + ".scope":  "",
		"kubepods-burstable-pod" + lowered + ".slice:cri-containerd:x": "",
	} {
		got, ok := UIDOf(name)
		if got != want || ok != (want != "") {
			t.Errorf("UIDOf(%q) = %q, %v, want %q", name, got, ok, want)
		}
	}
}

func FuzzUIDOf(f *testing.F) {
	for _, name := range []string{"", "pod", "pod" + uid, "pod" + staticUID, "kubepods-pod" + lowered + ".slice", "a-kubepods-burstable-pod" + lowered + ".slice", "kubepods-pod-pod" + lowered + ".slice"} {
		f.Add(name, []byte(uid))
	}
	f.Fuzz(func(t *testing.T, name string, random []byte) {
		if got, ok := UIDOf(name); ok {
			escaped := strings.ReplaceAll(string(got), "-", "_")
			if name != "pod"+string(got) && !strings.HasSuffix(name, "kubepods-pod"+escaped+".slice") && !strings.HasSuffix(name, "-pod"+escaped+".slice") {
				t.Errorf("UIDOf(%q) = %q, which is not in it", name, got)
			}
			if len(got) != 32 && uuid.Validate(string(got)) != nil {
				t.Errorf("UIDOf(%q) = %q, which is no UID", name, got)
			}
			// What kubelet would make of it gives it back.
			for _, path := range paths(got) {
				if again, ok := UIDOf(filepath.Base(path)); !ok || again != got {
					t.Errorf("UIDOf(%q) = %q, %v, want %q", filepath.Base(path), again, ok, got)
				}
			}
		} else if got != "" {
			t.Errorf("UIDOf(%q) = %q, false", name, got)
		}
		id, err := uuid.FromBytes(random)
		if err != nil {
			return
		}
		for _, want := range []types.UID{types.UID(id.String()), types.UID(strings.ReplaceAll(id.String(), "-", ""))} {
			for _, path := range paths(want) {
				if got, ok := UIDOf(filepath.Base(path)); !ok || got != want {
					t.Errorf("UIDOf(%q) = %q, %v, want %q", filepath.Base(path), got, ok, want)
				}
			}
		}
	})
}

// paths are all that kubelet can make for a pod.
func paths(uid types.UID) []string {
	var all []string
	for _, driver := range []sandbox.Driver{sandbox.Cgroupfs, sandbox.Systemd} {
		for _, qos := range []corev1.PodQOSClass{corev1.PodQOSGuaranteed, corev1.PodQOSBurstable, corev1.PodQOSBestEffort} {
			all = append(all, sandbox.PodPath(driver, qos, uid))
		}
	}
	return all
}
