// SPDX-License-Identifier: Apache-2.0

// Command scorecard is the image of our own tests for `operator-sdk scorecard`,
// which runs them in pods that see the bundle at /bundle:
//
//	scorecard TEST                 prints a TestStatus, as JSON
//	scorecard tar xvzf FILE -C DIR unpacks the bundle, for --untar-image
//
// It is one static program, so that scorecard can run where only our images are.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/operator-framework/api/pkg/apis/scorecard/v1alpha3"

	"github.com/podconfigmap/podconfigmap-controller/test/untar"
)

// bundleRoot is where scorecard mounts the bundle.
const bundleRoot = "/bundle"

// tests look at the bundle, or at a cluster where its operator runs, and return a
// sentence for each problem.
var tests = map[string]func(*bundle) []string{
	"env-wiring":     checkEnvironment,
	"related-images": checkImages,
	"rights":         checkRights,
	"unprivileged":   checkUnprivileged,
	"descriptors":    checkDescriptors,
	"sample":         checkSample,
}

func main() {
	log.SetFlags(0)
	if err := run(os.Args[1:], bundleRoot, os.Stdout); err != nil {
		log.Fatalf("scorecard: %v", err)
	}
}

func run(args []string, root string, out io.Writer) error {
	if len(args) > 0 && args[0] == "tar" {
		return unpack(args[1:])
	}
	if len(args) != 1 || tests[args[0]] == nil {
		return fmt.Errorf("name one of the tests %s, or tar", strings.Join(slices.Sorted(maps.Keys(tests)), ", "))
	}
	b, err := readBundle(root)
	if err != nil {
		return err
	}
	return report(args[0], tests[args[0]](b), out)
}

// unpack is what scorecard's init container needs of tar: xvzf FILE -C DIR.
func unpack(args []string) error {
	if len(args) != 4 || args[0] != "xvzf" || args[2] != "-C" {
		return fmt.Errorf("tar knows xvzf FILE -C DIR, not %q", args)
	}
	return untar.File(args[1], args[3])
}

// report prints what scorecard reads from the pod's log.
func report(name string, problems []string, out io.Writer) error {
	result := v1alpha3.TestResult{Name: name, State: v1alpha3.PassState, Errors: problems}
	if len(problems) > 0 {
		result.State = v1alpha3.FailState
	}
	text, err := json.MarshalIndent(v1alpha3.TestStatus{Results: []v1alpha3.TestResult{result}}, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the result: %w", err)
	}
	_, err = fmt.Fprintln(out, string(text))
	return err
}
