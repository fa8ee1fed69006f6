// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"maps"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PodConfigMapConfig makes one ConfigMap for every matching pod of its own
// namespace, named pod-<pod>-from-<config>-cfg and filled with that pod's
// metadata, and keeps it up to date. It can also count the pods' system calls
// and filter their TCP and UDP traffic by port, with eBPF. Its name has at most
// 63 characters, because the ConfigMaps carry it as a label's value.
//
// +operator-sdk:csv:customresourcedefinitions:displayName="Pod ConfigMap config",order=1,resources={{ConfigMap,v1,""},{Pod,v1,""},{Event,events.k8s.io/v1,""}}
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=podconfigmapconfigs,singular=podconfigmapconfig,shortName=pcmc,scope=Namespaced
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Matched",type=integer,JSONPath=`.status.matchedPods`,description="Pods that the selector matches"
// +kubebuilder:printcolumn:name="Synced",type=integer,JSONPath=`.status.syncedConfigMaps`,description="ConfigMaps that reflect the config and their pod"
// +kubebuilder:printcolumn:name="Failed",type=integer,JSONPath=`.status.failedConfigMaps`,description="Pods whose ConfigMap could not be written"
// +kubebuilder:printcolumn:name="EBPF",type=string,JSONPath=`.status.conditions[?(@.type=="EBPFReady")].reason`,description="Why eBPF is ready or not"
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`,priority=1,description="Why the config is ready or not"
// +kubebuilder:printcolumn:name="Observed",type=integer,JSONPath=`.status.observedGeneration`,priority=1,description="Generation that every matching pod is done with"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule=`self.metadata.name.size() <= 63`,message="metadata.name has at most 63 characters, because the ConfigMaps carry it as a label's value; choose a shorter name"
type PodConfigMapConfig struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec says which pods get a ConfigMap, what stands in it, and which eBPF
	// features the pods get. An empty spec makes a ConfigMap with the built-in
	// keys for every pod of the namespace.
	// +optional
	Spec PodConfigMapConfigSpec `json:"spec,omitempty"`

	// status is what the operator saw and did. Only the operator writes it.
	// +optional
	Status PodConfigMapConfigStatus `json:"status,omitempty"`
}

// PodConfigMapConfigList is a list of PodConfigMapConfigs.
//
// +kubebuilder:object:root=true
type PodConfigMapConfigList struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []PodConfigMapConfig `json:"items"`
}

// PodConfigMapConfigSpec is what a config asks for.
type PodConfigMapConfigSpec struct {
	// podSelector chooses pods by their labels, in the config's own namespace.
	// Default: absent, which matches every pod of the namespace; so does an
	// empty selector.
	// +operator-sdk:csv:customresourcedefinitions:type=spec,displayName="Pod selector",order=1,xDescriptors={"urn:alm:descriptor:com.tectonic.ui:selector:core:v1:Pod"}
	// +optional
	PodSelector *PodSelector `json:"podSelector,omitempty"`

	// labelsToInclude lists label keys. Each one that a pod carries becomes the
	// data key label_<key> of its ConfigMap, where / is written as _
	// (label_app.kubernetes.io_name); a label that the pod lacks is left out.
	// Default: none. At most 64 keys, each once.
	// +operator-sdk:csv:customresourcedefinitions:type=spec,displayName="Labels to include",order=2
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:XValidation:rule=`self.all(a, self.all(b, a == b || a.replace('/', '_') != b.replace('/', '_')))`,message="two of these keys would become the same data key, because / is written as _ (a/b and a_b both become label_a_b); remove one of them"
	// +kubebuilder:validation:items:XValidation:rule=`!self.matches('[A-Z].*/')`,message="the prefix of a label key is lower case (example.com/Name); correct or remove this one"
	LabelsToInclude []MetadataKey `json:"labelsToInclude,omitempty"`

	// annotationsToInclude lists annotation keys. Each one that a pod carries
	// becomes the data key annotation_<key> of its ConfigMap, where / is written
	// as _; an annotation that the pod lacks is left out.
	// Default: none. At most 64 keys, each once.
	// +operator-sdk:csv:customresourcedefinitions:type=spec,displayName="Annotations to include",order=3
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:XValidation:rule=`self.all(a, self.all(b, a == b || a.replace('/', '_') != b.replace('/', '_')))`,message="two of these keys would become the same data key, because / is written as _ (a/b and a_b both become annotation_a_b); remove one of them"
	AnnotationsToInclude []MetadataKey `json:"annotationsToInclude,omitempty"`

	// ebpfConfig asks for eBPF features for the matching pods. They work where
	// the operator runs with EBPF_ENABLED=true; elsewhere the condition EBPFReady
	// says so. Default: none.
	// +operator-sdk:csv:customresourcedefinitions:type=spec,displayName="eBPF",order=5
	// +optional
	EBPFConfig *EBPFConfig `json:"ebpfConfig,omitempty"`

	// configMapDataTemplate adds data keys of your own: each key is a data key of
	// the ConfigMap, each value a Go template over the pod, such as
	// "{{ .podName }} on {{ .nodeName }}". A template that does not parse is
	// reported by the condition ConfigMapsSynced (reason TemplateInvalid).
	// Default: none. At most 64 templates of at most 16 KiB; keys have at most
	// 253 letters, digits, '-', '_' or '.', do not start with label_, annotation_,
	// ebpf_ or .. and are none of the built-in keys podName, namespace, nodeName,
	// phase and pcmcName.
	// +operator-sdk:csv:customresourcedefinitions:type=spec,displayName="Data templates",order=4
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	// +kubebuilder:validation:XValidation:rule=`self.all(k, k.size() <= 253 && k.matches('^[-._a-zA-Z0-9]+$') && k != '.' && !k.startsWith('..'))`,message="a template's key is a ConfigMap's data key: 1 to 253 letters, digits, '-', '_' or '.', neither '.' alone nor starting with '..'; rename or remove the one that is not"
	// +kubebuilder:validation:XValidation:rule=`self.all(k, !(k in ['podName', 'namespace', 'nodeName', 'phase', 'pcmcName']))`,message="the keys podName, namespace, nodeName, phase and pcmcName are built in; rename or remove the template that uses one of them"
	// +kubebuilder:validation:XValidation:rule=`self.all(k, !k.startsWith('label_') && !k.startsWith('annotation_') && !k.startsWith('ebpf_'))`,message="keys that start with label_, annotation_ or ebpf_ are the operator's own; rename or remove the template that uses one of them"
	ConfigMapDataTemplate DataTemplates `json:"configMapDataTemplate,omitempty"`
}

// MetadataKey is the key of a label or an annotation: a name of at most 63
// letters, digits, '-', '_' or '.', where need be after a DNS name of at most
// 253 characters and a slash.
//
// +kubebuilder:validation:MaxLength=317
// +kubebuilder:validation:XValidation:rule=`self.indexOf('/') <= 253 && self.matches('^([A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?([.][A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$')`,message="a key is a name, or a DNS name of up to 253 characters, a slash and a name; the name has 1 to 63 letters, digits, '-', '_' or '.', and starts and ends with a letter or digit; correct or remove this one"
type MetadataKey string

// DataTemplates are templates by the data key that they make. Any
// map[string]string may be assigned: the values are an alias, which is there to
// carry markers.
//
// +kubebuilder:object:generate=false
type DataTemplates map[string]DataTemplate

// DeepCopy is written by hand, because the generator knows no map of aliases.
func (t DataTemplates) DeepCopy() DataTemplates { return maps.Clone(t) }

// DataTemplate is a Go template that renders one data value of a ConfigMap.
//
// +kubebuilder:default=""
// +kubebuilder:validation:MaxLength=16384
// +kubebuilder:validation:XValidation:rule=`bytes(self).size() <= 16384`,message="a template has at most 16384 bytes; shorten it or split it over two keys"
type DataTemplate = string

// PodSelector is a label selector as in Deployments and Services, with bounds:
// a pod matches when all of matchLabels and all of matchExpressions hold. An
// empty one matches every pod.
type PodSelector struct {
	// matchLabels are labels that a pod must carry with just these values.
	// Default: none. At most 64.
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	// +kubebuilder:validation:XValidation:rule=`self.all(k, k.indexOf('/') <= 253 && k.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))`,message="one of these label keys is malformed: a key is a name, or a lower-case DNS name of up to 253 characters, a slash and a name; the name has 1 to 63 letters, digits, '-', '_' or '.', and starts and ends with a letter or digit; correct or remove it"
	MatchLabels LabelValues `json:"matchLabels,omitempty"`

	// matchExpressions are conditions on labels, all of which must hold.
	// Default: none. At most 32.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	MatchExpressions []PodSelectorRequirement `json:"matchExpressions,omitempty"`
}

// LabelValues are labels' values by key. Any map[string]string may be assigned:
// the values are an alias, which is there to carry markers.
//
// +kubebuilder:object:generate=false
type LabelValues map[string]LabelValue

// DeepCopy is written by hand, because the generator knows no map of aliases.
func (v LabelValues) DeepCopy() LabelValues { return maps.Clone(v) }

// LabelValue is the value of a label: empty, or at most 63 letters, digits,
// '-', '_' or '.', starting and ending with a letter or digit.
//
// +kubebuilder:default=""
// +kubebuilder:validation:MaxLength=63
// +kubebuilder:validation:XValidation:rule=`self.matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$')`,message="a label's value is empty or has up to 63 letters, digits, '-', '_' or '.', and starts and ends with a letter or digit; correct or remove this one"
type LabelValue = string

// PodSelectorRequirement is one condition on one label.
//
// +kubebuilder:validation:XValidation:rule=`!(self.operator in ['In', 'NotIn']) || (has(self.values) && self.values.size() > 0)`,message="the operators In and NotIn need values; list at least one, or use Exists or DoesNotExist"
// +kubebuilder:validation:XValidation:rule=`!(self.operator in ['Exists', 'DoesNotExist']) || !has(self.values) || self.values.size() == 0`,message="the operators Exists and DoesNotExist take no values; remove them, or use In or NotIn"
type PodSelectorRequirement struct {
	// key is the label that the condition is about.
	// +kubebuilder:validation:MaxLength=317
	// +kubebuilder:validation:XValidation:rule=`self.indexOf('/') <= 253 && self.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$')`,message="a label key is a name, or a lower-case DNS name of up to 253 characters, a slash and a name; the name has 1 to 63 letters, digits, '-', '_' or '.', and starts and ends with a letter or digit; correct this one"
	Key string `json:"key"`

	// operator relates the label to values: In (its value is one of them), NotIn
	// (it is none of them, or the pod lacks the label), Exists (the pod carries
	// the label), DoesNotExist (it does not).
	// +kubebuilder:validation:XValidation:rule=`self in ['In', 'NotIn', 'Exists', 'DoesNotExist']`,message="operator is In, NotIn, Exists or DoesNotExist; choose one of them"
	Operator metav1.LabelSelectorOperator `json:"operator"`

	// values are what In and NotIn compare with; with Exists and DoesNotExist
	// there are none. At most 64.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:XValidation:rule=`self.matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$')`,message="a label's value is empty or has up to 63 letters, digits, '-', '_' or '.', and starts and ends with a letter or digit; correct or remove this one"
	Values []string `json:"values,omitempty"`
}

// EBPFConfig asks for eBPF features for the matching pods.
type EBPFConfig struct {
	// syscallMonitoring counts the system calls of the matching pods.
	// Default: off.
	// +optional
	SyscallMonitoring *SyscallMonitoring `json:"syscallMonitoring,omitempty"`

	// l4Firewall filters the TCP and UDP traffic of the matching pods by
	// destination port. Default: off.
	// +optional
	L4Firewall *L4Firewall `json:"l4Firewall,omitempty"`

	// metricsExport offers what the other two count as Prometheus metrics.
	// Default: off.
	// +optional
	MetricsExport *MetricsExport `json:"metricsExport,omitempty"`
}

// SyscallMonitoring counts system calls per pod, in all processes of all of its
// containers, from their first one.
type SyscallMonitoring struct {
	// enabled switches the counting on. Default: false.
	// +operator-sdk:csv:customresourcedefinitions:type=spec,displayName="Count system calls",order=6,xDescriptors={"urn:alm:descriptor:com.tectonic.ui:booleanSwitch"}
	// +optional
	// +kubebuilder:default=false
	Enabled bool `json:"enabled,omitempty"`

	// syscallNames are the system calls to count. Default: empty, which counts
	// all. At most 512, each once. Where several configs match a pod, their
	// names are united.
	// +operator-sdk:csv:customresourcedefinitions:type=spec,displayName="System calls",order=7
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=512
	SyscallNames []SyscallName `json:"syscallNames,omitempty"`

	// perPID also counts per process id, which makes one metric series per
	// process and system call; use it for a short time. Default: false.
	// +operator-sdk:csv:customresourcedefinitions:type=spec,displayName="Count per process",order=8,xDescriptors={"urn:alm:descriptor:com.tectonic.ui:booleanSwitch","urn:alm:descriptor:com.tectonic.ui:advanced"}
	// +optional
	// +kubebuilder:default=false
	PerPID bool `json:"perPID,omitempty"`
}

// Port is a TCP or UDP destination port, 1 to 65535.
//
// +kubebuilder:validation:XValidation:rule=`self >= 1 && self <= 65535`,message="a port is a number from 1 to 65535; correct or remove this one"
type Port int32

// FirewallAction says what happens to traffic that no list of ports names.
//
// +kubebuilder:validation:MaxLength=64
// +kubebuilder:validation:XValidation:rule=`self in ['allow', 'block']`,message="defaultAction is allow or block; choose one, or leave it out for allow"
type FirewallAction string

// FirewallMode says whether the firewall acts or only counts.
//
// +kubebuilder:validation:MaxLength=64
// +kubebuilder:validation:XValidation:rule=`self in ['enforce', 'audit']`,message="mode is enforce or audit; choose one, or leave it out for enforce"
type FirewallMode string

// FirewallDirection is a direction of traffic, seen from the pod.
//
// +kubebuilder:validation:MaxLength=64
// +kubebuilder:validation:XValidation:rule=`self in ['ingress', 'egress']`,message="a direction is ingress or egress; correct or remove this one"
type FirewallDirection string

// Values of the firewall's fields.
const (
	FirewallActionAllow FirewallAction = "allow"
	FirewallActionBlock FirewallAction = "block"

	FirewallModeEnforce FirewallMode = "enforce"
	FirewallModeAudit   FirewallMode = "audit"

	FirewallDirectionIngress FirewallDirection = "ingress"
	FirewallDirectionEgress  FirewallDirection = "egress"
)

// L4Firewall filters TCP and UDP, IPv4 and IPv6, by destination port: blocked
// ports beat allowed ones, allowed ones beat defaultAction. Replies to the
// pod's own traffic, ICMP and loopback always pass. Where several configs match
// a pod, traffic passes only if every one of them lets it pass.
//
// +kubebuilder:validation:XValidation:rule=`!has(self.allowedPorts) || !has(self.blockedPorts) || self.allowedPorts.all(p, !(p in self.blockedPorts))`,message="a port stands in both allowedPorts and blockedPorts; keep it in one of them"
type L4Firewall struct {
	// enabled switches the firewall on. Default: false.
	// +operator-sdk:csv:customresourcedefinitions:type=spec,displayName="Firewall",order=9,xDescriptors={"urn:alm:descriptor:com.tectonic.ui:booleanSwitch"}
	// +optional
	// +kubebuilder:default=false
	Enabled bool `json:"enabled,omitempty"`

	// allowedPorts are destination ports that pass whatever defaultAction says.
	// Default: none. At most 256, each once, from 1 to 65535.
	// +operator-sdk:csv:customresourcedefinitions:type=spec,displayName="Allowed ports",order=10
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	AllowedPorts []Port `json:"allowedPorts,omitempty"`

	// blockedPorts are destination ports that never pass.
	// Default: none. At most 256, each once, from 1 to 65535.
	// +operator-sdk:csv:customresourcedefinitions:type=spec,displayName="Blocked ports",order=11
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	BlockedPorts []Port `json:"blockedPorts,omitempty"`

	// defaultAction is what happens to traffic to a port of neither list: allow
	// or block. Default: allow.
	// +operator-sdk:csv:customresourcedefinitions:type=spec,displayName="Default action",order=12,xDescriptors={"urn:alm:descriptor:com.tectonic.ui:select:allow","urn:alm:descriptor:com.tectonic.ui:select:block"}
	// +optional
	// +kubebuilder:default=allow
	DefaultAction FirewallAction `json:"defaultAction,omitempty"`

	// mode is enforce, or audit, which lets all traffic pass and counts what
	// would be blocked. Default: enforce.
	// +operator-sdk:csv:customresourcedefinitions:type=spec,displayName="Mode",order=13,xDescriptors={"urn:alm:descriptor:com.tectonic.ui:select:enforce","urn:alm:descriptor:com.tectonic.ui:select:audit"}
	// +optional
	// +kubebuilder:default=enforce
	Mode FirewallMode `json:"mode,omitempty"`

	// directions are the directions that are filtered, seen from the pod:
	// ingress, egress or both. Default: [ingress], also where the list is empty.
	// +operator-sdk:csv:customresourcedefinitions:type=spec,displayName="Directions",order=14
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:default={ingress}
	Directions []FirewallDirection `json:"directions,omitempty"`
}

// MetricsExport offers the counters of syscallMonitoring and l4Firewall as
// Prometheus metrics. Where several configs match a pod, it is on if any of
// them says so, with the shortest interval.
type MetricsExport struct {
	// enabled switches the export on. Default: false.
	// +operator-sdk:csv:customresourcedefinitions:type=spec,displayName="Export metrics",order=15,xDescriptors={"urn:alm:descriptor:com.tectonic.ui:booleanSwitch"}
	// +optional
	// +kubebuilder:default=false
	Enabled bool `json:"enabled,omitempty"`

	// updateInterval is how long exported values may be old: a Go duration such
	// as 30s, 500ms or 1m30s, above 0 and up to 1h. Default: 30s.
	// +operator-sdk:csv:customresourcedefinitions:type=spec,displayName="Update interval",order=16,xDescriptors={"urn:alm:descriptor:com.tectonic.ui:text","urn:alm:descriptor:com.tectonic.ui:advanced"}
	// +optional
	// +kubebuilder:default="30s"
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule=`self.matches('^([0-9]([.][0-9]+)?h|[0-9]{1,2}([.][0-9]+)?m|[0-9]{1,4}([.][0-9]+)?s|[0-9]{1,7}([.][0-9]+)?ms|[0-9]{1,10}([.][0-9]+)?(us|µs|μs)|[0-9]{1,13}([.][0-9]+)?ns)+$') && duration(self) > duration('0s') && duration(self) <= duration('1h')`,message="updateInterval is a Go duration above 0 and up to 1h, such as 30s, 500ms or 1m30s; correct it, or leave it out for 30s"
	UpdateInterval string `json:"updateInterval,omitempty"`
}

// PodConfigMapConfigStatus is what the operator saw and did.
type PodConfigMapConfigStatus struct {
	// observedGeneration is the newest metadata.generation that every matching
	// pod is done with: its ConfigMap reflects it, or its failure is recorded in
	// the conditions.
	// +operator-sdk:csv:customresourcedefinitions:type=status,displayName="Observed generation",order=1,xDescriptors={"urn:alm:descriptor:text"}
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// matchedPods is the number of pods that podSelector matches.
	// +operator-sdk:csv:customresourcedefinitions:type=status,displayName="Matched pods",order=2,xDescriptors={"urn:alm:descriptor:com.tectonic.ui:podCount"}
	// +optional
	// +kubebuilder:default=0
	MatchedPods int32 `json:"matchedPods"`

	// syncedConfigMaps is the number of ConfigMaps that reflect the config and
	// their pod.
	// +operator-sdk:csv:customresourcedefinitions:type=status,displayName="Synced ConfigMaps",order=3,xDescriptors={"urn:alm:descriptor:text"}
	// +optional
	// +kubebuilder:default=0
	SyncedConfigMaps int32 `json:"syncedConfigMaps"`

	// failedConfigMaps is the number of matching pods whose ConfigMap could not
	// be written; the condition ConfigMapsSynced says why.
	// +operator-sdk:csv:customresourcedefinitions:type=status,displayName="Failed ConfigMaps",order=4,xDescriptors={"urn:alm:descriptor:text"}
	// +optional
	// +kubebuilder:default=0
	FailedConfigMaps int32 `json:"failedConfigMaps"`

	// ebpf counts the matching pods by what became of their eBPF features. It is
	// absent where the config asks for none.
	// +operator-sdk:csv:customresourcedefinitions:type=status,displayName="eBPF",order=5
	// +optional
	EBPF *EBPFStatus `json:"ebpf,omitempty"`

	// conditions are Ready (all of the others are True or not asked for),
	// ConfigMapsSynced and EBPFReady.
	// +operator-sdk:csv:customresourcedefinitions:type=status,displayName="Conditions",order=9,xDescriptors={"urn:alm:descriptor:io.kubernetes.conditions"}
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// EBPFStatus counts pods by what became of their eBPF features.
type EBPFStatus struct {
	// attachedPods is the number of pods whose features are at work.
	// +operator-sdk:csv:customresourcedefinitions:type=status,displayName="Pods served by eBPF",order=6,xDescriptors={"urn:alm:descriptor:text"}
	// +optional
	// +kubebuilder:default=0
	AttachedPods int32 `json:"attachedPods"`

	// failedPods is the number of pods whose node could not attach what it
	// should support.
	// +operator-sdk:csv:customresourcedefinitions:type=status,displayName="Pods that eBPF could not serve",order=7,xDescriptors={"urn:alm:descriptor:text"}
	// +optional
	// +kubebuilder:default=0
	FailedPods int32 `json:"failedPods"`

	// unsupportedPods is the number of pods whose node cannot serve a feature
	// that the config asks for.
	// +operator-sdk:csv:customresourcedefinitions:type=status,displayName="Pods on nodes without support",order=8,xDescriptors={"urn:alm:descriptor:text"}
	// +optional
	// +kubebuilder:default=0
	UnsupportedPods int32 `json:"unsupportedPods"`
}
