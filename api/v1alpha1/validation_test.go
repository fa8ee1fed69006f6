// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/syscalls"
)

// Messages that more than one field gives.
const (
	badLabelKey = "a label key is a name, or a lower-case DNS name of up to 253 characters, a slash and a name; " +
		"the name has 1 to 63 letters, digits, '-', '_' or '.', and starts and ends with a letter or digit; correct this one"
	badMetadataKey = "a key is a name, or a DNS name of up to 253 characters, a slash and a name; " +
		"the name has 1 to 63 letters, digits, '-', '_' or '.', and starts and ends with a letter or digit; correct or remove this one"
	badSelectorKey = "one of these label keys is malformed: a key is a name, or a lower-case DNS name of up to 253 characters, a slash and a name; " +
		"the name has 1 to 63 letters, digits, '-', '_' or '.', and starts and ends with a letter or digit; correct or remove it"
	badLabelValue = "a label's value is empty or has up to 63 letters, digits, '-', '_' or '.', " +
		"and starts and ends with a letter or digit; correct or remove this one"
	badPort        = "a port is a number from 1 to 65535; correct or remove this one"
	portInBoth     = "a port stands in both allowedPorts and blockedPorts; keep it in one of them"
	badSyscall     = "this is no Linux system call of amd64 or arm64; write its name in lower case without prefix, such as openat or execve, or remove it"
	needValues     = "the operators In and NotIn need values; list at least one, or use Exists or DoesNotExist"
	noValues       = "the operators Exists and DoesNotExist take no values; remove them, or use In or NotIn"
	badInterval    = "updateInterval is a Go duration above 0 and up to 1h, such as 30s, 500ms or 1m30s; correct it, or leave it out for 30s"
	badTemplateKey = "a template's key is a ConfigMap's data key: 1 to 253 letters, digits, '-', '_' or '.', neither '.' alone nor starting with '..'; rename or remove the one that is not"
	builtInKey     = "the keys podName, namespace, nodeName, phase and pcmcName are built in; rename or remove the template that uses one of them"
	reservedPrefix = "keys that start with label_, annotation_ or ebpf_ are the operator's own; rename or remove the template that uses one of them"
	tooManyBytes   = "a template has at most 16384 bytes; shorten it or split it over two keys"
)

// withoutRules is the error when the schema itself is violated so that the server
// adds that it ran no rule.
func withoutRules(errors ...string) string {
	return "[" + strings.Join(errors, ", ") + ", <nil>: Invalid value: null: some validation rules were not checked because the object was invalid; " +
		"correct the existing errors to complete validation]"
}

// numbers lists the count integers from 1 on, as YAML, each in a format.
func numbers(count int, format string) string {
	list := make([]string, count)
	for i := range list {
		list[i] = fmt.Sprintf(format, i+1)
	}
	return strings.Join(list, ", ")
}

func long(count int) string { return strings.Repeat("a", count) }

// Every rule has one entry. Good specs are admitted and decode to a selector
// that can be used, bad ones are refused with this very message.
var rules = map[string]struct{ good, bad, want string }{
	"labels: too many": {
		good: "labelsToInclude: [" + numbers(64, "l%d") + "]",
		bad:  "labelsToInclude: [" + numbers(65, "l%d") + "]",
		want: withoutRules("spec.labelsToInclude: Too many: 65: must have at most 64 items"),
	},
	"labels: key too long": {
		good: "labelsToInclude: [" + long(253) + "/" + long(63) + "]",
		bad:  "labelsToInclude: [" + long(253) + "/" + long(64) + "]",
		want: withoutRules("spec.labelsToInclude[0]: Too long: may not be more than 317 bytes"),
	},
	"labels: malformed key": {
		good: `labelsToInclude: [app.kubernetes.io/name, My_app.v1-2]`,
		bad:  `labelsToInclude: [app, "a b"]`,
		want: `spec.labelsToInclude[1]: Invalid value: "a b": ` + badMetadataKey,
	},
	"labels: prefix in upper case": {
		good: `labelsToInclude: [example.com/Name]`,
		bad:  `labelsToInclude: [Example.com/Name]`,
		want: `spec.labelsToInclude[0]: Invalid value: "Example.com/Name": the prefix of a label key is lower case (example.com/Name); correct or remove this one`,
	},
	"labels: twice the same": {
		good: `labelsToInclude: [a, b]`,
		bad:  `labelsToInclude: [a, b, a]`,
		want: `spec.labelsToInclude[2]: Duplicate value: "a"`,
	},
	"labels: two for one data key": {
		good: `{labelsToInclude: [a/b, a.b], annotationsToInclude: [a_b]}`,
		bad:  `labelsToInclude: [a/b, c, a_b]`,
		want: "spec.labelsToInclude: Invalid value: two of these keys would become the same data key, because / is written as _ (a/b and a_b both become label_a_b); remove one of them",
	},

	"annotations: too many": {
		good: "annotationsToInclude: [" + numbers(64, "a%d") + "]",
		bad:  "annotationsToInclude: [" + numbers(65, "a%d") + "]",
		want: withoutRules("spec.annotationsToInclude: Too many: 65: must have at most 64 items"),
	},
	"annotations: key too long": {
		good: "annotationsToInclude: [" + long(253) + "/" + long(63) + "]",
		bad:  "annotationsToInclude: [a, " + long(254) + "/" + long(63) + "]",
		want: withoutRules("spec.annotationsToInclude[1]: Too long: may not be more than 317 bytes"),
	},
	"annotations: malformed key": {
		good: `annotationsToInclude: [deployment.kubernetes.io/revision, Example.com/Name]`,
		bad:  `annotationsToInclude: [a/b/c]`,
		want: `spec.annotationsToInclude[0]: Invalid value: "a/b/c": ` + badMetadataKey,
	},
	"annotations: twice the same": {
		good: `annotationsToInclude: [a, b]`,
		bad:  `annotationsToInclude: [a, a]`,
		want: `spec.annotationsToInclude[1]: Duplicate value: "a"`,
	},
	"annotations: two for one data key": {
		good: `{annotationsToInclude: [a/b], labelsToInclude: [a_b]}`,
		bad:  `annotationsToInclude: [a_b, a/b]`,
		want: "spec.annotationsToInclude: Invalid value: two of these keys would become the same data key, because / is written as _ (a/b and a_b both become annotation_a_b); remove one of them",
	},

	"selector: too many labels": {
		good: "podSelector: {matchLabels: {" + numbers(64, "l%d: v") + "}}",
		bad:  "podSelector: {matchLabels: {" + numbers(65, "l%d: v") + "}}",
		want: withoutRules("spec.podSelector.matchLabels: Too many: 65: must have at most 64 items"),
	},
	"selector: malformed key of a label": {
		good: `podSelector: {matchLabels: {app.kubernetes.io/name: web}}`,
		bad:  `podSelector: {matchLabels: {-app: web}}`,
		want: "spec.podSelector.matchLabels: Invalid value: " + badSelectorKey,
	},
	"selector: malformed value of a label": {
		good: `podSelector: {matchLabels: {app: "", tier: Back_end.1}}`,
		bad:  `podSelector: {matchLabels: {app: web server}}`,
		want: `spec.podSelector.matchLabels[app]: Invalid value: "web server": ` + badLabelValue,
	},
	"selector: value of a label too long": {
		good: "podSelector: {matchLabels: {app: " + long(63) + "}}",
		bad:  "podSelector: {matchLabels: {app: " + long(64) + "}}",
		want: withoutRules("spec.podSelector.matchLabels.app: Too long: may not be more than 63 bytes"),
	},
	"selector: too many expressions": {
		good: "podSelector: {matchExpressions: [" + numbers(32, "{key: l%d, operator: Exists}") + "]}",
		bad:  "podSelector: {matchExpressions: [" + numbers(33, "{key: l%d, operator: Exists}") + "]}",
		want: withoutRules("spec.podSelector.matchExpressions: Too many: 33: must have at most 32 items"),
	},
	"selector: malformed key of an expression": {
		good: `podSelector: {matchExpressions: [{key: example.com/App, operator: Exists}]}`,
		bad:  `podSelector: {matchExpressions: [{key: Example.com/App, operator: Exists}]}`,
		want: `spec.podSelector.matchExpressions[0].key: Invalid value: "Example.com/App": ` + badLabelKey,
	},
	"selector: key of an expression too long": {
		good: "podSelector: {matchExpressions: [{key: " + long(253) + "/" + long(63) + ", operator: Exists}]}",
		bad:  "podSelector: {matchExpressions: [{key: " + long(254) + "/" + long(63) + ", operator: Exists}]}",
		want: withoutRules("spec.podSelector.matchExpressions[0].key: Too long: may not be more than 317 bytes"),
	},
	"selector: no key": {
		good: `podSelector: {matchExpressions: [{key: app, operator: Exists}]}`,
		bad:  `podSelector: {matchExpressions: [{operator: Exists}]}`,
		want: withoutRules("spec.podSelector.matchExpressions[0].key: Required value"),
	},
	"selector: no operator": {
		good: `podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}`,
		bad:  `podSelector: {matchExpressions: [{key: app}]}`,
		want: withoutRules("spec.podSelector.matchExpressions[0].operator: Required value"),
	},
	"selector: unknown operator": {
		good: `podSelector: {matchExpressions: [{key: app, operator: In, values: [web]}]}`,
		bad:  `podSelector: {matchExpressions: [{key: app, operator: Equals, values: [web]}]}`,
		want: `spec.podSelector.matchExpressions[0].operator: Invalid value: "Equals": operator is In, NotIn, Exists or DoesNotExist; choose one of them`,
	},
	"selector: In without values": {
		good: `podSelector: {matchExpressions: [{key: app, operator: In, values: [""]}]}`,
		bad:  `podSelector: {matchExpressions: [{key: app, operator: In}]}`,
		want: "spec.podSelector.matchExpressions[0]: Invalid value: " + needValues,
	},
	"selector: NotIn without values": {
		good: `podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [web]}]}`,
		bad:  `podSelector: {matchExpressions: [{key: app, operator: NotIn, values: []}]}`,
		want: "spec.podSelector.matchExpressions[0]: Invalid value: " + needValues,
	},
	"selector: Exists with values": {
		good: `podSelector: {matchExpressions: [{key: app, operator: Exists, values: []}]}`,
		bad:  `podSelector: {matchExpressions: [{key: app, operator: Exists, values: [web]}]}`,
		want: "spec.podSelector.matchExpressions[0]: Invalid value: " + noValues,
	},
	"selector: DoesNotExist with values": {
		good: `podSelector: {matchExpressions: [{key: app, operator: DoesNotExist, values: null}]}`,
		bad:  `podSelector: {matchExpressions: [{key: app, operator: DoesNotExist, values: [""]}]}`,
		want: "spec.podSelector.matchExpressions[0]: Invalid value: " + noValues,
	},
	"selector: malformed value of an expression": {
		good: `podSelector: {matchExpressions: [{key: app, operator: In, values: [web, ""]}]}`,
		bad:  `podSelector: {matchExpressions: [{key: app, operator: In, values: [web, _]}]}`,
		want: `spec.podSelector.matchExpressions[0].values[1]: Invalid value: "_": ` + badLabelValue,
	},
	"selector: value of an expression too long": {
		good: "podSelector: {matchExpressions: [{key: app, operator: In, values: [" + long(63) + "]}]}",
		bad:  "podSelector: {matchExpressions: [{key: app, operator: In, values: [" + long(64) + "]}]}",
		want: withoutRules("spec.podSelector.matchExpressions[0].values[0]: Too long: may not be more than 63 bytes"),
	},
	"selector: too many values": {
		good: "podSelector: {matchExpressions: [{key: app, operator: In, values: [" + numbers(64, "v%d") + "]}]}",
		bad:  "podSelector: {matchExpressions: [{key: app, operator: In, values: [" + numbers(65, "v%d") + "]}]}",
		want: withoutRules("spec.podSelector.matchExpressions[0].values: Too many: 65: must have at most 64 items"),
	},

	"syscalls: unknown": {
		good: `ebpfConfig: {syscallMonitoring: {syscallNames: [openat, open]}}`,
		bad:  `ebpfConfig: {syscallMonitoring: {syscallNames: [openat, SYS_OPEN]}}`,
		want: `spec.ebpfConfig.syscallMonitoring.syscallNames[1]: Invalid value: "SYS_OPEN": ` + badSyscall,
	},
	"syscalls: name too long": {
		good: `ebpfConfig: {syscallMonitoring: {syscallNames: [set_mempolicy_home_node]}}`,
		bad:  "ebpfConfig: {syscallMonitoring: {syscallNames: [" + long(65) + "]}}",
		want: withoutRules("spec.ebpfConfig.syscallMonitoring.syscallNames[0]: Too long: may not be more than 64 bytes"),
	},
	"syscalls: twice the same": {
		good: `ebpfConfig: {syscallMonitoring: {syscallNames: [openat, execve]}}`,
		bad:  `ebpfConfig: {syscallMonitoring: {syscallNames: [openat, openat]}}`,
		want: `spec.ebpfConfig.syscallMonitoring.syscallNames[1]: Duplicate value: "openat"`,
	},
	"syscalls: too many": {
		good: "ebpfConfig: {syscallMonitoring: {syscallNames: [" + strings.Join(syscalls.Names(), ", ") + "]}}",
		bad:  "ebpfConfig: {syscallMonitoring: {syscallNames: [" + numbers(513, "s%d") + "]}}",
		want: withoutRules("spec.ebpfConfig.syscallMonitoring.syscallNames: Too many: 513: must have at most 512 items"),
	},

	"firewall: allowed port too small": {
		good: `ebpfConfig: {l4Firewall: {allowedPorts: [1]}}`,
		bad:  `ebpfConfig: {l4Firewall: {allowedPorts: [80, 0]}}`,
		want: "spec.ebpfConfig.l4Firewall.allowedPorts[1]: Invalid value: 0: " + badPort,
	},
	"firewall: allowed port too large": {
		good: `ebpfConfig: {l4Firewall: {allowedPorts: [65535]}}`,
		bad:  `ebpfConfig: {l4Firewall: {allowedPorts: [65536]}}`,
		want: "spec.ebpfConfig.l4Firewall.allowedPorts[0]: Invalid value: 65536: " + badPort,
	},
	"firewall: blocked port too small": {
		good: `ebpfConfig: {l4Firewall: {blockedPorts: [1]}}`,
		bad:  `ebpfConfig: {l4Firewall: {blockedPorts: [-1]}}`,
		want: "spec.ebpfConfig.l4Firewall.blockedPorts[0]: Invalid value: -1: " + badPort,
	},
	"firewall: blocked port too large": {
		good: `ebpfConfig: {l4Firewall: {blockedPorts: [65535]}}`,
		bad:  `ebpfConfig: {l4Firewall: {blockedPorts: [65536]}}`,
		want: "spec.ebpfConfig.l4Firewall.blockedPorts[0]: Invalid value: 65536: " + badPort,
	},
	"firewall: allowed twice": {
		good: `ebpfConfig: {l4Firewall: {allowedPorts: [80, 443]}}`,
		bad:  `ebpfConfig: {l4Firewall: {allowedPorts: [80, 443, 80]}}`,
		want: "spec.ebpfConfig.l4Firewall.allowedPorts[2]: Duplicate value: 80",
	},
	"firewall: blocked twice": {
		good: `ebpfConfig: {l4Firewall: {blockedPorts: [80, 443]}}`,
		bad:  `ebpfConfig: {l4Firewall: {blockedPorts: [80, 80]}}`,
		want: "spec.ebpfConfig.l4Firewall.blockedPorts[1]: Duplicate value: 80",
	},
	"firewall: allowed and blocked": {
		good: `ebpfConfig: {l4Firewall: {allowedPorts: [80, 443], blockedPorts: [22]}}`,
		bad:  `ebpfConfig: {l4Firewall: {allowedPorts: [80, 443], blockedPorts: [22, 443]}}`,
		want: "spec.ebpfConfig.l4Firewall: Invalid value: " + portInBoth,
	},
	"firewall: too many allowed": {
		good: "ebpfConfig: {l4Firewall: {allowedPorts: [" + numbers(256, "%d") + "]}}",
		bad:  "ebpfConfig: {l4Firewall: {allowedPorts: [" + numbers(257, "%d") + "]}}",
		want: withoutRules("spec.ebpfConfig.l4Firewall.allowedPorts: Too many: 257: must have at most 256 items"),
	},
	"firewall: too many blocked": {
		good: "ebpfConfig: {l4Firewall: {blockedPorts: [" + numbers(256, "%d") + "]}}",
		bad:  "ebpfConfig: {l4Firewall: {blockedPorts: [" + numbers(257, "%d") + "]}}",
		want: withoutRules("spec.ebpfConfig.l4Firewall.blockedPorts: Too many: 257: must have at most 256 items"),
	},
	"firewall: unknown default action": {
		good: `ebpfConfig: {l4Firewall: {defaultAction: block}}`,
		bad:  `ebpfConfig: {l4Firewall: {defaultAction: deny}}`,
		want: `spec.ebpfConfig.l4Firewall.defaultAction: Invalid value: "deny": defaultAction is allow or block; choose one, or leave it out for allow`,
	},
	"firewall: default action too long": {
		good: `ebpfConfig: {l4Firewall: {defaultAction: allow}}`,
		bad:  "ebpfConfig: {l4Firewall: {defaultAction: " + long(65) + "}}",
		want: withoutRules("spec.ebpfConfig.l4Firewall.defaultAction: Too long: may not be more than 64 bytes"),
	},
	"firewall: unknown mode": {
		good: `ebpfConfig: {l4Firewall: {mode: audit}}`,
		bad:  `ebpfConfig: {l4Firewall: {mode: Audit}}`,
		want: `spec.ebpfConfig.l4Firewall.mode: Invalid value: "Audit": mode is enforce or audit; choose one, or leave it out for enforce`,
	},
	"firewall: mode too long": {
		good: `ebpfConfig: {l4Firewall: {mode: enforce}}`,
		bad:  "ebpfConfig: {l4Firewall: {mode: " + long(65) + "}}",
		want: withoutRules("spec.ebpfConfig.l4Firewall.mode: Too long: may not be more than 64 bytes"),
	},
	"firewall: unknown direction": {
		good: `ebpfConfig: {l4Firewall: {directions: [egress, ingress]}}`,
		bad:  `ebpfConfig: {l4Firewall: {directions: [in]}}`,
		want: `spec.ebpfConfig.l4Firewall.directions[0]: Invalid value: "in": a direction is ingress or egress; correct or remove this one`,
	},
	"firewall: direction too long": {
		good: `ebpfConfig: {l4Firewall: {directions: []}}`,
		bad:  "ebpfConfig: {l4Firewall: {directions: [" + long(65) + "]}}",
		want: withoutRules("spec.ebpfConfig.l4Firewall.directions[0]: Too long: may not be more than 64 bytes"),
	},
	"firewall: direction twice": {
		good: `ebpfConfig: {l4Firewall: {directions: [egress]}}`,
		bad:  `ebpfConfig: {l4Firewall: {directions: [egress, egress]}}`,
		want: `spec.ebpfConfig.l4Firewall.directions[1]: Duplicate value: "egress"`,
	},
	"firewall: too many directions": {
		good: `ebpfConfig: {l4Firewall: {directions: [ingress, egress]}}`,
		bad:  `ebpfConfig: {l4Firewall: {directions: [ingress, egress, both]}}`,
		want: withoutRules("spec.ebpfConfig.l4Firewall.directions: Too many: 3: must have at most 2 items"),
	},

	"metrics: bad interval": {
		good: `ebpfConfig: {metricsExport: {updateInterval: 1m30s}}`,
		bad:  `ebpfConfig: {metricsExport: {updateInterval: 1 minute}}`,
		want: `spec.ebpfConfig.metricsExport.updateInterval: Invalid value: "1 minute": ` + badInterval,
	},
	"metrics: interval of nothing": {
		good: `ebpfConfig: {metricsExport: {updateInterval: 1ns}}`,
		bad:  `ebpfConfig: {metricsExport: {updateInterval: 0s}}`,
		want: `spec.ebpfConfig.metricsExport.updateInterval: Invalid value: "0s": ` + badInterval,
	},
	"metrics: interval too long": {
		good: `ebpfConfig: {metricsExport: {updateInterval: 59m60s}}`,
		bad:  `ebpfConfig: {metricsExport: {updateInterval: 1h1ns}}`,
		want: `spec.ebpfConfig.metricsExport.updateInterval: Invalid value: "1h1ns": ` + badInterval,
	},
	"metrics: interval with too many characters": {
		good: `ebpfConfig: {metricsExport: {updateInterval: ` + strings.Repeat("1s", 32) + `}}`,
		bad:  `ebpfConfig: {metricsExport: {updateInterval: ` + strings.Repeat("1s", 33) + `}}`,
		want: withoutRules("spec.ebpfConfig.metricsExport.updateInterval: Too long: may not be more than 64 bytes"),
	},

	"templates: too many": {
		good: "configMapDataTemplate: {" + numbers(64, "t%d: x") + "}",
		bad:  "configMapDataTemplate: {" + numbers(65, "t%d: x") + "}",
		want: withoutRules("spec.configMapDataTemplate: Too many: 65: must have at most 64 items"),
	},
	"templates: malformed key": {
		good: "configMapDataTemplate: {" + long(253) + ": x, .a..b: z}",
		bad:  "configMapDataTemplate: {a/b: x}",
		want: "spec.configMapDataTemplate: Invalid value: " + badTemplateKey,
	},
	"templates: built-in key": {
		good: `configMapDataTemplate: {PodName: x, node: z}`,
		bad:  `configMapDataTemplate: {node: z, podName: x}`,
		want: "spec.configMapDataTemplate: Invalid value: " + builtInKey,
	},
	"templates: prefix of the operator": {
		good: `configMapDataTemplate: {label: x, my_label_app: z}`,
		bad:  `configMapDataTemplate: {label_app: x}`,
		want: "spec.configMapDataTemplate: Invalid value: " + reservedPrefix,
	},
	"templates: too many characters": {
		good: "configMapDataTemplate: {t: " + long(16384) + "}",
		bad:  "configMapDataTemplate: {t: " + long(16385) + "}",
		want: withoutRules("spec.configMapDataTemplate.t: Too long: may not be more than 16384 bytes"),
	},
	"templates: too many bytes": {
		good: "configMapDataTemplate: {t: " + strings.Repeat("é", 8192) + "}",
		bad:  "configMapDataTemplate: {t: " + strings.Repeat("é", 8193) + "}",
		want: `spec.configMapDataTemplate[t]: Invalid value: "` + strings.Repeat("é", 8193) + `": ` + tooManyBytes,
	},
}

func TestRules(t *testing.T) {
	for name, tc := range rules {
		t.Run(name, func(t *testing.T) {
			good, err := admit(t, "config", parse(t, tc.good))
			if err != nil {
				t.Fatalf("good spec: %v", err)
			}
			if _, err := metav1.LabelSelectorAsSelector(decode(t, good).Spec.LabelSelector()); err != nil {
				t.Errorf("good spec's selector: %v", err)
			}
			_, err = admit(t, "config", parse(t, tc.bad))
			wantRefusal(t, err, "config", tc.want)
		})
	}
}

func TestName(t *testing.T) {
	for name, tc := range map[string]struct{ name, want string }{
		"63 characters": {name: long(63)},
		"64 characters": {name: long(64), want: "<nil>: Invalid value: metadata.name has at most 63 characters, " +
			"because the ConfigMaps carry it as a label's value; choose a shorter name"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := admit(t, tc.name, map[string]any{})
			wantRefusal(t, err, tc.name, tc.want)
		})
	}
}

// wantRefusal checks the whole of an error's message; none is wanted where the
// message is empty.
func wantRefusal(t *testing.T, err error, name, message string) {
	t.Helper()
	want := ""
	if message != "" {
		want = fmt.Sprintf("PodConfigMapConfig.podconfig.example.com %q is invalid: %s", name, message)
	}
	got := ""
	if err != nil {
		got = err.Error()
	}
	if got != want {
		t.Errorf("refused with\n\t%q, want\n\t%q", got, want)
	}
}

// decode reads an object as the operator's caches do.
func decode(t *testing.T, object *unstructured.Unstructured) *v1alpha1.PodConfigMapConfig {
	t.Helper()
	text, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	config := &v1alpha1.PodConfigMapConfig{}
	if err := json.Unmarshal(text, config); err != nil {
		t.Fatalf("decoding what the server admitted: %v", err)
	}
	return config
}

// The schema's syntax of keys is Kubernetes' own: whatever key a pod can carry
// can be asked for, and no other.
func TestKeysAgreeWithKubernetes(t *testing.T) {
	for _, key := range []string{
		"", "a", "A", "0", "a-b", "a_b", "a.b", "a..b", "-a", "a-", "_a", "a_", ".a", "a.", "a b", "é", "a\n", "\na",
		"a/b", "A/b", "a.A/b", "a/B", "/b", "a/", "/", "a/b/c", "a//b", "a.b/c", "a..b/c", "-a/b", "a-/b", "a_b/c", ".a/b", "a./b", "a.-b/c",
		long(63), long(64), long(63) + "/a", long(64) + "/a", long(253) + "/a", long(254) + "/a", long(253) + "/" + long(63), "a/" + long(64),
	} {
		isLabel := len(validation.IsQualifiedName(key)) == 0
		isAnnotation := len(validation.IsQualifiedName(strings.ToLower(key))) == 0
		for field, tc := range map[string]struct {
			spec map[string]any
			want bool
		}{
			"labelsToInclude":      {map[string]any{"labelsToInclude": []any{key}}, isLabel},
			"annotationsToInclude": {map[string]any{"annotationsToInclude": []any{key}}, isAnnotation},
			"matchLabels":          {map[string]any{"podSelector": map[string]any{"matchLabels": map[string]any{key: "v"}}}, isLabel},
			"matchExpressions": {map[string]any{"podSelector": map[string]any{"matchExpressions": []any{
				map[string]any{"key": key, "operator": "Exists"}}}}, isLabel},
		} {
			t.Run(fmt.Sprintf("%s %.20q", field, key), func(t *testing.T) { wantAdmitted(t, tc.spec, tc.want) })
		}
	}
}

func TestLabelValuesAgreeWithKubernetes(t *testing.T) {
	for _, value := range []string{"", "a", "A", "0", "a-b", "a_b", "a.b", "a..b", "-", "-a", "a-", "_a", "a.", "a b", "a/b", "é", "a\n", long(63), long(64)} {
		want := len(validation.IsValidLabelValue(value)) == 0
		for field, selector := range map[string]any{
			"matchLabels":      map[string]any{"matchLabels": map[string]any{"k": value}},
			"matchExpressions": map[string]any{"matchExpressions": []any{map[string]any{"key": "k", "operator": "In", "values": []any{value}}}},
		} {
			t.Run(fmt.Sprintf("%s %.20q", field, value), func(t *testing.T) {
				wantAdmitted(t, map[string]any{"podSelector": selector}, want)
			})
		}
	}
}

func TestTemplateKeysAgreeWithKubernetes(t *testing.T) {
	reserved := []string{"podName", "namespace", "nodeName", "phase", "pcmcName", "ebpf_enabled", "ebpf_x", "label_", "label_x", "annotation_x"}
	for _, key := range append(reserved, "", ".", "..", "...", "..a", ".a", "a..", "-", "_", "a/b", "a b", "a\n", "é", "app.yaml", "labels", long(253), long(254)) {
		want := len(validation.IsConfigMapKey(key)) == 0 && !slices.Contains(reserved, key)
		t.Run(fmt.Sprintf("%.20q", key), func(t *testing.T) {
			wantAdmitted(t, map[string]any{"configMapDataTemplate": map[string]any{key: "x"}}, want)
		})
	}
}

// What is admitted is what Go reads as a duration of more than 0 and up to an
// hour. Refused besides: what nobody writes (a sign, no digit before the point,
// more digits than an hour has).
func TestIntervals(t *testing.T) {
	for interval, want := range map[string]bool{
		"30s": true, "1h": true, "60m": true, "3600s": true, "3600000ms": true, "3600000000us": true, "3600000000000ns": true,
		"1ns": true, "0.5h": true, "1.5s": true, "1m30s": true, "30s1m": true, "0h1s": true, "100µs": true, "100μs": true,
		"": false, "0": false, "0s": false, "0.0s": false, "30": false, "s": false, "-30s": false, "1m-1s": false, "61m": false, "2h": false,
		"59m61s": false, "3601s": false, "3600000000001ns": false, "1d": false, "1w": false, "30 s": false, " 30s": false, "30S": false, "30s\n": false,
		"99999999999999999999h": false, "1e3s": false, "0x1s": false, "0.1ns": false,
		"+30s": false, ".5s": false, "00030s": false,
	} {
		t.Run(fmt.Sprintf("%.20q", interval), func(t *testing.T) {
			spec := map[string]any{"ebpfConfig": map[string]any{"metricsExport": map[string]any{"updateInterval": interval}}}
			wantAdmitted(t, spec, want)
			if duration, err := time.ParseDuration(interval); want && (err != nil || duration <= 0 || duration > time.Hour) {
				t.Errorf("Go reads it as %v, %v", duration, err)
			}
		})
	}
}

func wantAdmitted(t *testing.T, spec map[string]any, want bool) {
	t.Helper()
	_, err := admit(t, "config", spec)
	if err != nil && !apierrors.IsInvalid(err) {
		t.Fatal(err)
	}
	if (err == nil) != want {
		t.Errorf("admitted: %v, want %v (%v)", err == nil, want, err)
	}
}

// The defaults of the schema, those of the accessors and the documented ones
// are the same.
func TestDefaults(t *testing.T) {
	object, err := admit(t, "config", parse(t, "ebpfConfig: {syscallMonitoring: {}, l4Firewall: {}, metricsExport: {}}"))
	if err != nil {
		t.Fatal(err)
	}
	ebpf := decode(t, object).Spec.EBPFConfig
	var unset v1alpha1.EBPFConfig
	for field, tc := range map[string]struct{ schema, accessor, documented any }{
		"defaultAction":  {ebpf.L4Firewall.DefaultAction, unset.L4Firewall.EffectiveDefaultAction(), v1alpha1.FirewallActionAllow},
		"mode":           {ebpf.L4Firewall.Mode, unset.L4Firewall.EffectiveMode(), v1alpha1.FirewallModeEnforce},
		"directions":     {fmt.Sprint(ebpf.L4Firewall.Directions), fmt.Sprint(unset.L4Firewall.EffectiveDirections()), "[ingress]"},
		"updateInterval": {ebpf.MetricsExport.EffectiveInterval(), unset.MetricsExport.EffectiveInterval(), 30 * time.Second},
		"requested":      {ebpf.Requested(), unset.Requested(), false},
		"export":         {ebpf.MetricsExport.Enabled, false, false},
		"perPID":         {ebpf.SyscallMonitoring.PerPID, false, false},
	} {
		if tc.schema != tc.documented || tc.accessor != tc.documented {
			t.Errorf("%s: schema %v, accessor %v, documented %v", field, tc.schema, tc.accessor, tc.documented)
		}
	}
	if ebpf.MetricsExport.UpdateInterval == "" {
		t.Error("updateInterval has no default in the schema")
	}
}

// What is absent, null or empty is admitted, and says the same thing.
func TestEmpty(t *testing.T) {
	everyFirewallDefault := "ebpfConfig: {l4Firewall: {enabled: false, defaultAction: allow, mode: enforce, directions: [ingress]}}"
	for name, tc := range map[string]struct{ spec, want string }{
		"no spec":          {"null", "null"},
		"empty spec":       {"{}", "{}"},
		"null sections":    {"{podSelector: null, labelsToInclude: null, annotationsToInclude: null, ebpfConfig: null, configMapDataTemplate: null}", "{}"},
		"empty lists":      {"{labelsToInclude: [], annotationsToInclude: [], configMapDataTemplate: {}}", "{labelsToInclude: [], annotationsToInclude: [], configMapDataTemplate: {}}"},
		"null in selector": {"podSelector: {matchLabels: null, matchExpressions: null}", "podSelector: {}"},
		"null in eBPF":     {"ebpfConfig: {syscallMonitoring: null, l4Firewall: null, metricsExport: null}", "ebpfConfig: {}"},
		"null in firewall": {"ebpfConfig: {l4Firewall: {enabled: null, allowedPorts: null, blockedPorts: null, defaultAction: null, mode: null, directions: null}}", everyFirewallDefault},
		"one list of ports": {"ebpfConfig: {l4Firewall: {enabled: true, mode: audit, defaultAction: block, directions: [], blockedPorts: [80]}}",
			"ebpfConfig: {l4Firewall: {enabled: true, mode: audit, defaultAction: block, directions: [], blockedPorts: [80]}}"},
		"null label":    {"podSelector: {matchLabels: {app: null}}", `podSelector: {matchLabels: {app: ""}}`},
		"null template": {"configMapDataTemplate: {key: null}", `configMapDataTemplate: {key: ""}`},
	} {
		t.Run(name, func(t *testing.T) {
			object, err := admit(t, "config", parse(t, tc.spec))
			if err != nil {
				t.Fatal(err)
			}
			decode(t, object)
			got, want := asJSON(t, object.Object["spec"]), asJSON(t, parse(t, tc.want))
			if got != want {
				t.Errorf("stored as %s, want %s", got, want)
			}
		})
	}
}

func asJSON(t *testing.T, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A spec at all of its bounds at once is admitted and stored: the rules stay
// within the server's budget of cost, the object within etcd's size.
func TestLargestSpec(t *testing.T) {
	if configs == nil {
		t.Skip("needs an API server; run without -short")
	}
	keys := func(count int) (list []any) { // differ at their end only, which costs most
		for i := range count {
			list = append(list, fmt.Sprintf("%s/%s%02d", strings.Repeat("a.", 126)+"a", long(61), i))
		}
		return list
	}
	texts := func(count int, value string) map[string]any {
		all := map[string]any{}
		for i := range count {
			all[fmt.Sprintf("%s%02d", long(61), i)] = value
		}
		return all
	}
	ports := func(first int64) (list []any) {
		for i := range int64(256) {
			list = append(list, first+i)
		}
		return list
	}
	var values, expressions, names []any
	for range 64 {
		values = append(values, long(63))
	}
	for _, key := range keys(32) {
		expressions = append(expressions, map[string]any{"key": key, "operator": "In", "values": values})
	}
	for _, name := range syscalls.Names() {
		names = append(names, name)
	}
	spec := map[string]any{
		"podSelector":           map[string]any{"matchLabels": texts(64, long(63)), "matchExpressions": expressions},
		"labelsToInclude":       keys(64),
		"annotationsToInclude":  keys(64),
		"configMapDataTemplate": texts(64, long(16384)),
		"ebpfConfig": map[string]any{
			"syscallMonitoring": map[string]any{"syscallNames": names},
			"l4Firewall":        map[string]any{"allowedPorts": ports(1), "blockedPorts": ports(65280)},
			"metricsExport":     map[string]any{"updateInterval": strings.Repeat("1s", 32)},
		},
	}
	object := &unstructured.Unstructured{Object: map[string]any{"spec": runtime.DeepCopyJSON(spec)}}
	object.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("PodConfigMapConfig"))
	object.SetName(long(63))
	stored, err := configs.Create(t.Context(), object, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("%.2000s", err)
	}
	decode(t, stored)
	if err := configs.Delete(t.Context(), stored.GetName(), metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
}

// Whatever the server stores, Go must decode: one object that it cannot would
// stop every informer.
func TestStoredObjectsDecode(t *testing.T) {
	if configs == nil {
		t.Skip("needs an API server; run without -short")
	}
	condition := func(timestamp string) string {
		return `{"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "` + timestamp + `"}]}}`
	}
	for name, tc := range map[string]struct {
		patch, subresource string
		stored             bool
	}{
		"whole number with a point":     {`{"spec": {"ebpfConfig": {"l4Firewall": {"allowedPorts": [80.0]}}}}`, "", false},
		"broken number":                 {`{"spec": {"ebpfConfig": {"l4Firewall": {"allowedPorts": [80.5]}}}}`, "", false},
		"number beyond 32 bits":         {`{"spec": {"ebpfConfig": {"l4Firewall": {"allowedPorts": [4294967376]}}}}`, "", false},
		"count with a point":            {`{"status": {"matchedPods": 1.0}}`, "status", true},
		"count beyond 32 bits":          {`{"status": {"matchedPods": 4294967296}}`, "status", false},
		"generation beyond 64 bits":     {`{"status": {"observedGeneration": 18446744073709551616}}`, "status", false},
		"timestamp":                     {condition("2030-01-02T03:04:05Z"), "status", true},
		"timestamp with zone":           {condition("2030-01-02T03:04:05.5+02:00"), "status", true},
		"timestamp in lower case":       {condition("2030-01-02t03:04:05z"), "status", false},
		"timestamp with a lower-case t": {condition("2030-01-02t03:04:05Z"), "status", false},
		"timestamp of no date":          {condition("2030-02-30T03:04:05Z"), "status", false},
	} {
		t.Run(name, func(t *testing.T) {
			object := &unstructured.Unstructured{}
			object.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("PodConfigMapConfig"))
			object.SetGenerateName("config-")
			object, err := configs.Create(t.Context(), object, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var subresources []string
			if tc.subresource != "" {
				subresources = append(subresources, tc.subresource)
			}
			stored, err := configs.Patch(t.Context(), object.GetName(), types.MergePatchType, []byte(tc.patch), metav1.PatchOptions{}, subresources...)
			if err != nil && !apierrors.IsInvalid(err) {
				t.Fatal(err)
			}
			if (err == nil) != tc.stored {
				t.Errorf("stored: %v, want %v (%v)", err == nil, tc.stored, err)
			}
			if err == nil {
				decode(t, stored)
			}
		})
	}
}

// Every rule and bound of the CRD has its message tested above: one whose message
// no entry of the table expects is one without a test.
func TestEveryMessageIsTested(t *testing.T) {
	tested := ""
	for _, name := range slices.Sorted(maps.Keys(rules)) {
		tested += rules[name].want + "\n"
	}
	crd, err := readCRD(crdFile)
	if err != nil {
		t.Fatal(err)
	}
	spec := crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]
	messages := messagesOf(spec)
	if len(messages) < 20 {
		t.Errorf("only %d rules: %q", len(messages), messages)
	}
	for _, message := range messages {
		if !strings.Contains(tested, message) {
			t.Errorf("no test of %q", message)
		}
	}
	bounds := boundsOf(spec, "spec")
	if len(bounds) < 25 {
		t.Errorf("only %d bounds: %q", len(bounds), bounds)
	}
	for _, bound := range bounds {
		if !regexp.MustCompile(bound).MatchString(tested) {
			t.Errorf("no test of %s", bound)
		}
	}
}

// boundsOf returns, for each bound of the schema itself, an expression that the
// server's answer to its violation matches.
func boundsOf(schema apiextensionsv1.JSONSchemaProps, path string) (bounds []string) {
	bound := func(set bool, answer string) {
		if set {
			bounds = append(bounds, path+answer)
		}
	}
	bound(schema.MaxItems != nil || schema.MaxProperties != nil, ": Too many: ")
	bound(schema.MaxLength != nil, ": Too long: ")
	bound(schema.XListType != nil && *schema.XListType == "set", `\[\d+\]: Duplicate value: `)
	for _, name := range schema.Required {
		bound(true, `\.`+name+": Required value")
	}
	for name, property := range schema.Properties {
		bounds = append(bounds, boundsOf(property, path+`\.`+name)...)
	}
	if schema.Items != nil {
		bounds = append(bounds, boundsOf(*schema.Items.Schema, path+`\[\d+\]`)...)
	}
	if schema.AdditionalProperties != nil {
		bounds = append(bounds, boundsOf(*schema.AdditionalProperties.Schema, path+`\.\w+`)...)
	}
	return bounds
}

func messagesOf(schema apiextensionsv1.JSONSchemaProps) (messages []string) {
	for _, rule := range schema.XValidations {
		messages = append(messages, rule.Message)
	}
	for _, property := range schema.Properties {
		messages = append(messages, messagesOf(property)...)
	}
	if schema.Items != nil {
		messages = append(messages, messagesOf(*schema.Items.Schema)...)
	}
	if schema.AdditionalProperties != nil {
		messages = append(messages, messagesOf(*schema.AdditionalProperties.Schema)...)
	}
	return messages
}
