// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/l4firewall"
)

// Config is what one generation of a PodConfigMapConfig asks of eBPF. It is
// immutable.
type Config struct {
	Namespace, Name string
	UID             types.UID
	Generation      int64
	ResourceVersion string

	selector labels.Selector
	syscalls *syscallWish
	firewall *l4firewall.Rules
	export   time.Duration // 0: none
}

// syscallWish is what one config wants counted.
type syscallWish struct {
	names  []string // none: all
	perPID bool
}

// alsoSelects are the calls that do the work of another one, in kernels and
// libraries that prefer them.
var alsoSelects = map[string][]string{"open": {"openat", "openat2"}, "accept": {"accept4"}}

// Compile reads a config.
func Compile(pcmc *v1alpha1.PodConfigMapConfig) *Config {
	c := &Config{Namespace: pcmc.Namespace, Name: pcmc.Name, UID: pcmc.UID, Generation: pcmc.Generation, ResourceVersion: pcmc.ResourceVersion}
	var err error
	if c.selector, err = metav1.LabelSelectorAsSelector(pcmc.Spec.LabelSelector()); err != nil {
		c.selector = labels.Nothing() // the CRD's schema refuses these
	}
	e := pcmc.Spec.EBPFConfig
	if e == nil || pcmc.DeletionTimestamp != nil {
		return c
	}
	if s := e.SyscallMonitoring; s != nil && s.Enabled {
		c.syscalls = &syscallWish{perPID: s.PerPID}
		for _, name := range s.SyscallNames {
			c.syscalls.names = append(c.syscalls.names, string(name))
			c.syscalls.names = append(c.syscalls.names, alsoSelects[string(name)]...)
		}
	}
	if f := e.L4Firewall; f != nil && f.Enabled {
		c.firewall = &l4firewall.Rules{
			Allowed: portNumbers(f.AllowedPorts), Blocked: portNumbers(f.BlockedPorts),
			Block:   f.EffectiveDefaultAction() == v1alpha1.FirewallActionBlock,
			Audit:   f.EffectiveMode() == v1alpha1.FirewallModeAudit,
			Ingress: slices.Contains(f.EffectiveDirections(), v1alpha1.FirewallDirectionIngress),
			Egress:  slices.Contains(f.EffectiveDirections(), v1alpha1.FirewallDirectionEgress),
		}
	}
	if m := e.MetricsExport; m != nil && m.Enabled {
		c.export = m.EffectiveInterval()
	}
	return c
}

func portNumbers(ports []v1alpha1.Port) []uint16 {
	var numbers []uint16
	for _, port := range ports {
		numbers = append(numbers, valid(int32(port))...)
	}
	slices.Sort(numbers)
	return slices.Compact(numbers)
}

// Key is the config's namespace and name.
func (c *Config) Key() types.NamespacedName {
	return types.NamespacedName{Namespace: c.Namespace, Name: c.Name}
}

// GetObjectMeta lets informers find the object's key; it allocates.
func (c *Config) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: c.Namespace, Name: c.Name, UID: c.UID, ResourceVersion: c.ResourceVersion}
}

// asks tells whether the config wants anything of the agent.
func (c *Config) asks() bool { return c.syscalls != nil || c.firewall != nil || c.export > 0 }

// registry holds the configs that ask for anything, by namespace, in the order
// of their names. Its slices are never changed in place.
type registry map[string][]*Config

// put adds a config, or a new generation of it, and tells whether that changes
// anything.
func (r registry) put(config *Config) bool {
	if !config.asks() {
		return r.remove(config.Key())
	}
	if old := r.get(config.Key()); old != nil && old.UID == config.UID && old.Generation == config.Generation {
		return false
	}
	all := without(r[config.Namespace], config.Name)
	at, _ := slices.BinarySearchFunc(all, config.Name, func(c *Config, name string) int { return strings.Compare(c.Name, name) })
	r[config.Namespace] = slices.Insert(all, at, config)
	return true
}

func (r registry) get(key types.NamespacedName) *Config {
	for _, c := range r[key.Namespace] {
		if c.Name == key.Name {
			return c
		}
	}
	return nil
}

func (r registry) remove(key types.NamespacedName) bool {
	if r.get(key) == nil {
		return false
	}
	if all := without(r[key.Namespace], key.Name); len(all) > 0 {
		r[key.Namespace] = all
	} else {
		delete(r, key.Namespace)
	}
	return true
}

// without copies the configs but the named one.
func without(configs []*Config, name string) []*Config {
	return slices.DeleteFunc(slices.Clone(configs), func(c *Config) bool { return c.Name == name })
}
