// SPDX-License-Identifier: Apache-2.0

// Package configmaps keeps, for every pod and every config that selects it, a
// ConfigMap with the pod's metadata. The unit of work is the pod: observe it,
// its namespace's configs and its ConfigMaps, all from caches; plan, purely;
// carry the plan out; report.
package configmaps
