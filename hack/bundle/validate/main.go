// SPDX-License-Identifier: Apache-2.0

// Command validate runs operator-sdk's validators on a bundle, and fails on their
// warnings, too.
//
// Usage: go run ./hack/bundle/validate [-operator-sdk FILE] FOLDER
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os/exec"
	"strings"
)

// selections are the validators besides those that always run.
var selections = []string{
	"suite=operatorframework", "name=good-practices", "name=operatorhub", "name=operatorhubv2", "name=capabilities",
	"name=categories", "name=community", "name=alpha-deprecated-apis",
}

// deprecated is what the validator operatorhub says of every bundle. What it names
// instead runs, too.
const deprecated = `Warning: Value : The "operatorhub" validator is deprecated; for equivalent validation use "operatorhub/v2", "standardcapabilities" and "standardcategories" validators`

func main() {
	log.SetFlags(0)
	sdk := flag.String("operator-sdk", "bin/operator-sdk", "the program operator-sdk")
	kubernetes := flag.String("kubernetes", "1.36", "version of Kubernetes whose removed APIs the bundle must not use")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("validate: name the bundle's folder")
	}
	var failures []error
	for _, selection := range selections {
		err := validate(*sdk, flag.Arg(0), selection, *kubernetes)
		if err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", selection, err))
			continue
		}
		fmt.Printf("%-28s no error, no warning\n", selection)
	}
	if len(failures) > 0 {
		log.Fatalf("validate: %v", errors.Join(failures...))
	}
}

func validate(sdk, folder, selection, kubernetes string) error {
	command := exec.Command(sdk, "bundle", "validate", folder, "--output=json-alpha1",
		"--select-optional="+selection, "--optional-values=k8s-version="+kubernetes)
	var out, said bytes.Buffer
	command.Stdout, command.Stderr = &out, &said
	err := command.Run() // fails on errors that it has printed, too
	if problem := judge(out.Bytes()); problem != nil {
		return problem
	}
	if err != nil {
		return fmt.Errorf("running operator-sdk bundle validate: %w\n%s", err, said.String())
	}
	return nil
}

// judge reads what operator-sdk prints.
func judge(printed []byte) error {
	var result struct {
		Passed  bool                             `json:"passed"`
		Outputs []struct{ Type, Message string } `json:"outputs"`
	}
	if err := json.Unmarshal(printed, &result); err != nil {
		return fmt.Errorf("reading the result of operator-sdk bundle validate: %w\n%s", err, printed)
	}
	var problems []string
	for _, o := range result.Outputs {
		if o.Message != deprecated {
			problems = append(problems, o.Type+": "+o.Message)
		}
	}
	if len(problems) > 0 || !result.Passed {
		return fmt.Errorf("the bundle has problems:\n  %s", strings.Join(problems, "\n  "))
	}
	return nil
}
