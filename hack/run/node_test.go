// SPDX-License-Identifier: Apache-2.0

//go:build nodes

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// startOnNode starts a session with a real node, with the image that
// `make cluster-image` has built.
func startOnNode(t *testing.T, environ []string, args ...string) *process {
	t.Helper()
	top, err := harness.Root()
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{"-image", filepath.Join(top, operatorImage), "-patience", patience.String()}, args...)
	return start(t, append([]string{"NODE=true"}, environ...), args...)
}

// wantNoFolder checks that the cluster's folder, which is where its kubeconfig was, is
// gone.
func (p *process) wantNoFolder(t *testing.T) {
	t.Helper()
	found := regexp.MustCompile(`KUBECONFIG=(\S+)`).FindStringSubmatch(p.output())
	if found == nil {
		t.Fatalf("printed no KUBECONFIG:\n%s", p.output())
	}
	if _, err := os.Stat(filepath.Dir(found[1])); !os.IsNotExist(err) {
		t.Errorf("%s is left (%v)", filepath.Dir(found[1]), err)
	}
}

func TestOnNodeUntilInterrupted(t *testing.T) {
	p := startOnNode(t, []string{"EBPF_ENABLED=true"})
	p.awaitOutput(t, "Ctrl-C stops everything")
	p.interrupt(t)
	p.end(t, 0,
		"1. A Kubernetes cluster with one real node",
		"setting  EBPF_ENABLED=true",
		"summary                            Orders (backend) is running on node-1",
		"bystander has none",
		"+ label_tier  canary",
		"pod-orders-from-shop-info-cfg was gone",
		"shop-info  True   1        1       0",
		"served by l4_firewall and syscall_counter",
		"connected, after ",
		"Operation not permitted, after ",
		":9090: i/o timeout, after ",
		"server  1        1        0",
		"client  1        1        0",
		"node-1  True   2",
		"EBPFReady  True  Attached: 2 matching pods on 1 node",
		"kubectl logs -n podconfigmap-controller-system deployment/",
		"kubectl exec -n podconfigmap-ebpf-demo client -- timeout 3 wget",
		nothingLeft,
	)
	p.wantNoFolder(t)
	if strings.Contains(p.output(), "none of 0 BPF programs") {
		t.Errorf("looked for no BPF program:\n%s", p.output())
	}
}

func TestOnNodeFailsWhereNothingAppears(t *testing.T) {
	p := startOnNode(t, []string{"ONCE=true", "WATCH_NAMESPACE=elsewhere"}, "-patience=90s")
	p.end(t, 1, "waiting until ConfigMap pod-storefront-from-shop-info-cfg is as it should be, for ",
		"the log of pod podconfigmap-controller-controller-manager-", nothingLeft)
}

func TestOnNodeInterrupted(t *testing.T) {
	for _, text := range []string{"control plane ready", "2. The operator"} {
		p := startOnNode(t, nil)
		p.awaitOutput(t, text)
		p.interrupt(t)
		p.end(t, 130, "run: interrupted")
	}
}

func TestOnNodeWithoutAnImage(t *testing.T) {
	p := startOnNode(t, nil, "-image=/nowhere.tar")
	p.end(t, 1, "taking the image /nowhere.tar")
}
