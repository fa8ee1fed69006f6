// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const (
	// operatorAccount is the ServiceAccount whose calls are counted.
	operatorAccount   = "podconfigmap-bench"
	operatorNamespace = metav1.NamespaceDefault

	// quiet is how long an operator is left alone before its calls are counted.
	quiet = 5 * time.Second
)

// auditLog is the API server's own account of what the operator asks of it. It
// leaves out all other users, so it costs nothing where it is not wanted.
type auditLog struct{ folder string }

func newAuditLog(folder string) (auditLog, error) {
	l := auditLog{folder}
	policy := `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  users: ["system:serviceaccount:` + operatorNamespace + `:` + operatorAccount + `"]
- level: None
`
	if err := os.WriteFile(l.policy(), []byte(policy), 0o644); err != nil {
		return l, fmt.Errorf("writing the audit policy: %w", err)
	}
	return l, nil
}

func (l auditLog) policy() string     { return filepath.Join(l.folder, "audit-policy.yaml") }
func (l auditLog) events() string     { return filepath.Join(l.folder, "audit.log") }
func (l auditLog) kubeconfig() string { return filepath.Join(l.folder, "kubeconfig") }

func (l auditLog) flags() []string {
	return []string{"--audit-policy-file=" + l.policy(), "--audit-log-path=" + l.events()}
}

// calls are the operator's, by kind.
type calls struct {
	reads, writes, watches, lease int
	offenders                     map[string]int // reads and writes, by what they were
}

// count reads the calls that reached the API server between two times.
func (l auditLog) count(from, to time.Time) (calls, error) {
	c := calls{offenders: map[string]int{}}
	f, err := os.Open(l.events())
	if err != nil {
		return c, fmt.Errorf("opening the audit log: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e struct {
			Verb                     string
			RequestURI               string
			RequestReceivedTimestamp metav1.MicroTime
			ObjectRef                struct{ Resource, Subresource string }
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return c, fmt.Errorf("reading the audit log: %w", err)
		}
		if at := e.RequestReceivedTimestamp.Time; at.Before(from) || at.After(to) {
			continue
		}
		c.add(e.Verb, e.ObjectRef.Resource, e.ObjectRef.Subresource, e.RequestURI)
	}
	return c, lines.Err()
}

func (c *calls) add(verb, resource, subresource, uri string) {
	switch {
	case verb == "watch":
		c.watches++
		return
	case resource == "leases":
		c.lease++
		return
	case verb == "get" || verb == "list":
		c.reads++
	default:
		c.writes++
	}
	what := verb + " " + resource
	if subresource != "" {
		what += "/" + subresource
	}
	if resource == "" {
		what += uri
	}
	c.offenders[what]++
}

// account makes the ServiceAccount, which may do all, and a kubeconfig for it.
func (b *bench) account(ctx context.Context) error {
	config, err := b.ServiceAccountConfig(ctx, operatorNamespace, operatorAccount)
	if err != nil {
		return err
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: operatorAccount},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: operatorNamespace, Name: operatorAccount}},
	}
	if err := b.Client.Create(ctx, binding); err != nil {
		return fmt.Errorf("giving rights to the ServiceAccount: %w", err)
	}
	return writeKubeconfig(b.audit.kubeconfig(), config)
}

func writeKubeconfig(path string, from *rest.Config) error {
	const name = "bench"
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: from.Host, CertificateAuthorityData: from.CAData}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: from.BearerToken}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return fmt.Errorf("writing a kubeconfig: %w", err)
	}
	return nil
}

// steadyMinute measures the memory of an operator that has created everything,
// and then counts the API calls of one that takes over, while nothing changes
// but for its resync.
func (b *bench) steadyMinute(ctx context.Context, empty memory) error {
	if err := errors.Join(b.account(ctx), b.putConfigs(ctx, 0)); err != nil {
		return err
	}
	err := b.withOperator(nil, func(op *operator) error {
		if err := b.awaitObserved(ctx); err != nil {
			return err
		}
		full, err := op.settledMemory(ctx, b.settle)
		if err != nil {
			return err
		}
		b.reportMemory("having created all", empty, full)
		return b.verify(ctx, 0)
	})
	if err != nil {
		return err
	}
	environ := map[string]string{"KUBECONFIG": b.audit.kubeconfig(), "CONTROLLER_RESYNC_PERIOD": b.resync.String()}
	return b.withOperator(environ, func(op *operator) error {
		if err := b.awaitLooks(ctx, op); err != nil {
			return err
		}
		if err := sleep(ctx, quiet); err != nil {
			return err
		}
		if err := b.countCalls(ctx, op); err != nil {
			return err
		}
		return b.verify(ctx, 0)
	})
}

// awaitLooks waits until a fresh operator has looked at every pod once.
func (b *bench) awaitLooks(ctx context.Context, op *operator) error {
	if err := waitFor(ctx, crowdPatience, func() bool { return op.reconciles(ctx) >= len(b.pods) }); err != nil {
		return fmt.Errorf("waiting until the operator has looked at every pod: %w", err)
	}
	return nil
}

func (b *bench) countCalls(ctx context.Context, op *operator) error {
	say("counting API calls for %s", b.steady)
	before := op.reconciles(ctx)
	cpu, err := op.cpu()
	if err != nil {
		return err
	}
	from := time.Now()
	if err := sleep(ctx, b.steady); err != nil {
		return err
	}
	to := time.Now()
	after, err := op.cpu()
	if err != nil {
		return err
	}
	reconciles := op.reconciles(ctx) - before
	if reconciles < len(b.pods) {
		return fmt.Errorf("counting API calls: no resync in %s, only %d reconciles", b.steady, reconciles)
	}
	c, err := b.audit.count(from, to)
	if err != nil {
		return err
	}
	for _, what := range slices.Sorted(maps.Keys(c.offenders)) {
		say("API call in the steady time: %s, %d times", what, c.offenders[what])
	}
	span := fmt.Sprintf("in %s with resyncs", b.steady)
	b.table.compare("API reads "+span, float64(c.reads), "calls", 0, "0")
	b.table.compare("API writes "+span, float64(c.writes), "calls", 0, "0")
	b.table.add("API calls for watches "+span, float64(c.watches), "calls")
	b.table.add("API calls for the Lease "+span, float64(c.lease), "calls")
	b.table.add("reconciles "+span, float64(reconciles), "reconciles")
	b.table.add("CPU per reconcile (resync, nothing to do)", micro((after-cpu)/time.Duration(reconciles)), "µs")
	return nil
}

// reportMemory compares an operator with an empty one.
func (b *bench) reportMemory(when string, empty, full memory) {
	const kib = 1024
	each := func(full, empty float64) float64 { return (full - empty) / float64(len(b.pods)) / kib }
	b.table.compare("resident memory per pod and its two ConfigMaps, "+when, each(full.resident, empty.resident), "KiB", 8, "<= 8 KiB")
	b.table.add("anonymous memory per pod and its two ConfigMaps, "+when, each(full.anonymous, empty.anonymous), "KiB")
	b.table.add("Go heap per pod and its two ConfigMaps (with garbage), "+when, each(full.heap, empty.heap), "KiB")
	b.table.add("resident memory, "+when, full.resident/kib/kib, "MiB")
	b.table.add("resident memory of an empty manager", empty.resident/kib/kib, "MiB")
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
