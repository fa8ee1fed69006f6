// SPDX-License-Identifier: Apache-2.0

// Command crd adds to generated CRDs what markers cannot say:
//
//   - A null in a map of strings becomes the empty string, as in built-in
//     resources. Without it the server drops the key, and a selector with
//     "app: null" would match every pod.
//   - A timestamp has no lower-case t or z. The server's date-time format accepts
//     them, Go does not, and one such object would stop every informer.
//
// Usage: go run ./hack/crd FILE…
package main

import (
	"fmt"
	"log"
	"os"

	"sigs.k8s.io/yaml"
)

func main() {
	log.SetFlags(0)
	for _, file := range os.Args[1:] {
		if err := complete(file); err != nil {
			log.Fatalf("completing %s: %v", file, err)
		}
	}
}

func complete(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var crd map[string]any
	if err := yaml.Unmarshal(text, &crd); err != nil {
		return err
	}
	if crd["kind"] != "CustomResourceDefinition" {
		return fmt.Errorf("its kind is %v, not CustomResourceDefinition", crd["kind"])
	}
	walk(crd)
	if text, err = yaml.Marshal(crd); err != nil {
		return err
	}
	return os.WriteFile(file, append([]byte("---\n"), text...), 0o644)
}

// walk completes every schema below a node.
func walk(node any) {
	switch node := node.(type) {
	case []any:
		for _, child := range node {
			walk(child)
		}
	case map[string]any:
		if values, ok := node["additionalProperties"].(map[string]any); ok && values["type"] == "string" {
			values["default"] = ""
		}
		if node["type"] == "string" && node["format"] == "date-time" {
			node["pattern"] = "^[^tz]+$"
		}
		for _, child := range node {
			walk(child)
		}
	}
}
