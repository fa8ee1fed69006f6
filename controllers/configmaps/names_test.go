// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"
)

func TestConfigMapName(t *testing.T) {
	// What stands before the hash of a cut name has up to 236 characters.
	const head = 236 - len("pod-")
	for name, tc := range map[string]struct{ pod, config, want string }{
		"short":               {"web", "metadata", "pod-web-from-metadata-cfg"},
		"dots stay":           {"db.0.example", "m", "pod-db.0.example-from-m-cfg"},
		"just fits":           {strings.Repeat("p", 238), "c", "pod-" + strings.Repeat("p", 238) + "-from-c-cfg"},
		"one too many":        {strings.Repeat("p", 239), "c", "pod-" + strings.Repeat("p", head) + "-c21158f304dc0caf"},
		"no dot before hash":  {strings.Repeat("p", head-1) + "." + strings.Repeat("q", 20), "c", "pod-" + strings.Repeat("p", head-1) + "-fac1a5791fd5d5be"},
		"no dash before hash": {strings.Repeat("p", head-2) + "--" + strings.Repeat("q", 20), "c", "pod-" + strings.Repeat("p", head-2) + "-573f1bd6c5dcfe14"},
		"both at their longest": {strings.Repeat("p", 253), strings.Repeat("c", 63),
			"pod-" + strings.Repeat("p", head) + "-200aa9fa94155f98"},
	} {
		t.Run(name, func(t *testing.T) {
			got := ConfigMapName(tc.pod, tc.config)
			if got != tc.want {
				t.Errorf("ConfigMapName(%q, %q) = %q, want %q", tc.pod, tc.config, got, tc.want)
			}
			if bad := validation.IsDNS1123Subdomain(got); len(bad) > 0 {
				t.Errorf("%q: %v", got, bad)
			}
		})
	}
}

func TestDataKey(t *testing.T) {
	long := strings.Repeat("x", 253) + "/" + strings.Repeat("y", 63)
	for name, tc := range map[string]struct{ prefix, key, want string }{
		"plain":             {"label_", "app", "label_app"},
		"slash is mapped":   {"label_", "app.kubernetes.io/name", "label_app.kubernetes.io_name"},
		"annotation":        {"annotation_", "deployment.kubernetes.io/revision", "annotation_deployment.kubernetes.io_revision"},
		"upper case stays":  {"label_", "A_b-c.D", "label_A_b-c.D"},
		"long is hashed":    {"label_", long, "label_" + strings.Repeat("x", 230) + "_edeb5c1364e16e8e"},
		"trimmed, then cut": {"label_", strings.Repeat("x", 229) + "." + strings.Repeat("x", 20) + "/y", "label_" + strings.Repeat("x", 229) + "_d3ff48fabc35e159"},
	} {
		t.Run(name, func(t *testing.T) {
			got := dataKey(tc.prefix, tc.key)
			if got != tc.want {
				t.Errorf("dataKey(%q, %q) = %q, want %q", tc.prefix, tc.key, got, tc.want)
			}
			if bad := validation.IsConfigMapKey(got); len(bad) > 0 {
				t.Errorf("%q: %v", got, bad)
			}
		})
	}
}

// validName turns any text into the name of an object with at most length
// characters.
func validName(text string, length int) string {
	name := strings.Map(func(r rune) rune {
		const accepted = "abcdefghijklmnopqrstuvwxyz0123456789-."
		return rune(accepted[uint32(r)%uint32(len(accepted))])
	}, text)
	name = strings.NewReplacer("..", ".a", ".-", ".b", "-.", "c.").Replace(name[:min(len(name), length)])
	return "a" + strings.Trim(name[min(len(name), 1):], "-.")
}

// FuzzConfigMapName checks that any names give a valid one, that it never
// changes, and that other names give another one.
func FuzzConfigMapName(f *testing.F) {
	f.Add("a", "b", "c", "d")
	f.Add("db.0", "m", "db-0", "m")
	f.Add(strings.Repeat("p", 253), "c", strings.Repeat("p", 252)+"q", "c")
	f.Add(strings.Repeat("p.", 126)+"p", "c", strings.Repeat("p-", 126)+"p", "c")
	f.Fuzz(func(t *testing.T, pod, config, otherPod, otherConfig string) {
		pod, config = validName(pod, 253), validName(config, 63)
		otherPod, otherConfig = validName(otherPod, 253), validName(otherConfig, 63)
		for _, name := range []string{pod, config, otherPod, otherConfig} {
			if len(validation.IsDNS1123Subdomain(name)) > 0 {
				t.Skip() // validName is no better than it has to be
			}
		}
		name, other := ConfigMapName(pod, config), ConfigMapName(otherPod, otherConfig)
		if bad := validation.IsDNS1123Subdomain(name); len(bad) > 0 {
			t.Errorf("ConfigMapName(%q, %q) = %q: %v", pod, config, name, bad)
		}
		if name != ConfigMapName(pod, config) {
			t.Errorf("ConfigMapName(%q, %q) changes", pod, config)
		}
		// Two pairs share a name only where "-from-" stands in one of the parts.
		same := pod+"-from-"+config == otherPod+"-from-"+otherConfig
		if (name == other) != same {
			t.Errorf("ConfigMapName(%q, %q) = %q, ConfigMapName(%q, %q) = %q", pod, config, name, otherPod, otherConfig, other)
		}
	})
}
