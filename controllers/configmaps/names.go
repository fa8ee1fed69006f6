// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

const (
	// maxNameLength is that of an object's name, and of a ConfigMap's data key.
	maxNameLength = 253
	// hashLength is the length of the hash that ends a cut name, in hex digits.
	hashLength = 16
)

// ConfigMapName is the name of the ConfigMap of a pod and a config. One that
// would exceed 253 characters is cut and ended with a hash of the whole.
func ConfigMapName(pod, config string) string {
	return fit("pod-"+pod+"-from-"+config+"-cfg", "-")
}

// dataKey is the data key of a label or annotation. Of the characters that a
// metadata key may have, a data key lacks the slash only.
func dataKey(prefix, key string) string {
	return fit(prefix+strings.ReplaceAll(key, "/", "_"), "_")
}

// fit returns the name, or where it is too long its beginning, the separator
// and a hash. What comes before the hash does not end in "." or "-", as parts
// of an object's name may not.
func fit(name, separator string) string {
	if len(name) <= maxNameLength {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	kept := name[:maxNameLength-len(separator)-hashLength]
	return strings.TrimRight(kept, ".-") + separator + hex.EncodeToString(sum[:])[:hashLength]
}
