// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/eventnote"
	"github.com/podconfigmap/podconfigmap-controller/internal/logging"
)

// +kubebuilder:rbac:groups="",resources=nodes,verbs=get
// +kubebuilder:rbac:groups=podconfig.example.com,resources=ebpfnodes,verbs=get;create;patch,namespace=system
// +kubebuilder:rbac:groups=podconfig.example.com,resources=ebpfnodes/status,verbs=patch,namespace=system
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create,namespace=system

const (
	// FieldManager is the name under which agents write.
	FieldManager = "podconfigmap-controller-agent"

	// writeInterval is the least time between two writes of the report.
	writeInterval = 5 * time.Second
	// writeTimeout bounds one write, firstPause and maxPause the pause after one
	// that failed.
	writeTimeout = 30 * time.Second
	firstPause   = time.Second
	maxPause     = 30 * time.Second
)

// Writer keeps the node's EBPFNode: it is written when it changes, at most every
// five seconds, and tried again for as long as it takes.
type Writer struct {
	// Client reads and writes without a cache.
	Client client.Client
	// Namespace is the operator's, Node the node's name.
	Namespace, Node string
	// Report computes the status; the transition times of its conditions do not
	// matter. With nil there is nothing to report yet.
	Report func() *v1alpha1.EBPFNodeStatus
	// Events, where not nil, tell once of each feature that is not supported.
	Events events.EventRecorder

	changed chan struct{}
	written *v1alpha1.EBPFNodeStatus // nil: not known
	uid     types.UID
	begun   bool // this process has written the report before
}

// NewWriter completes a Writer.
func NewWriter(w Writer) *Writer {
	w.changed = make(chan struct{}, 1)
	return &w
}

// Changed has the report looked at.
func (w *Writer) Changed() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// Start writes until the context ends.
func (w *Writer) Start(ctx context.Context) error {
	pause := firstPause
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.changed:
		}
		wait := writeInterval
		wrote, err := w.Write(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			logging.Warning(klog.FromContext(ctx), "The node's report could not be written; trying again", "ebpfNode", klog.KRef(w.Namespace, w.Node), "err", err, "retryIn", pause)
			wait, pause = pause, min(2*pause, maxPause)
			w.Changed()
		case !wrote:
			continue
		default:
			pause = firstPause
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// Write writes the report where it differs from what was written last.
func (w *Writer) Write(ctx context.Context) (wrote bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	status := w.Report()
	if status == nil {
		return false, nil
	}
	if w.written == nil {
		if err := w.begin(ctx); err != nil {
			return false, err
		}
	}
	status.Conditions = stamped(w.written.Conditions, status.Conditions)
	if w.begun && equality.Semantic.DeepEqual(w.written, status) {
		return false, nil
	}
	node := w.object()
	node.Status = *status
	if err := w.apply(ctx, node, true); err != nil {
		if apierrors.IsNotFound(err) {
			w.written = nil // somebody deleted it
		}
		return false, fmt.Errorf("writing the status of EBPFNode %q: %w", w.Node, err)
	}
	w.written = status
	w.tellUnsupported(status)
	return true, nil
}

// stamped gives the conditions their transition times, which change with the
// condition's status only.
func stamped(before, now []metav1.Condition) []metav1.Condition {
	var all []metav1.Condition
	for _, c := range now {
		one := []metav1.Condition{}
		if old := meta.FindStatusCondition(before, c.Type); old != nil {
			one = append(one, *old)
		}
		meta.SetStatusCondition(&one, c)
		all = append(all, one...)
	}
	return all
}

// begin makes the object, or brings its owner up to date, and reads what stands
// in it.
func (w *Writer) begin(ctx context.Context) error {
	object := w.object()
	node := &corev1.Node{}
	err := w.Client.Get(ctx, client.ObjectKey{Name: w.Node}, node)
	switch {
	case err == nil:
		object.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}}
	case apierrors.IsNotFound(err):
		logging.Warning(klog.FromContext(ctx), "There is no Node of this name that could own the report", "node", w.Node)
	default:
		return fmt.Errorf("reading Node %q: %w", w.Node, err)
	}
	if err := w.apply(ctx, object, false); err != nil {
		return fmt.Errorf("writing EBPFNode %q: %w", w.Node, err)
	}
	found := &v1alpha1.EBPFNode{}
	if err := w.Client.Get(ctx, client.ObjectKeyFromObject(object), found); err != nil {
		return fmt.Errorf("reading EBPFNode %q: %w", w.Node, err)
	}
	w.written, w.uid = &found.Status, found.UID
	return nil
}

func (w *Writer) object() *v1alpha1.EBPFNode {
	return &v1alpha1.EBPFNode{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "EBPFNode"},
		ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: w.Node},
	}
}

// apply applies the object's metadata, or its status, on the server's side: what
// is not in it any more goes.
func (w *Writer) apply(ctx context.Context, node *v1alpha1.EBPFNode, status bool) error {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(node)
	if err != nil {
		return err
	}
	object := &unstructured.Unstructured{Object: fields}
	if !status {
		unstructured.RemoveNestedField(fields, "status")
		return w.Client.Apply(ctx, client.ApplyConfigurationFromUnstructured(object), client.FieldOwner(FieldManager), client.ForceOwnership)
	}
	return w.Client.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(object), client.FieldOwner(FieldManager), client.ForceOwnership)
}

// tellUnsupported emits an Event for each feature that the node lacks, once.
func (w *Writer) tellUnsupported(status *v1alpha1.EBPFNodeStatus) {
	again := w.begun
	if w.begun = true; again || w.Events == nil {
		return
	}
	object := w.object()
	object.UID = w.uid
	for _, f := range status.Features {
		if !f.Supported {
			w.Events.Eventf(object, nil, corev1.EventTypeWarning, "FeatureUnsupported", "Probe"+string(f.Name), "%s", // one action each, or they would be joined
				eventnote.Shorten(fmt.Sprintf("%s is not supported on node %s: %s", f.Name, w.Node, f.Reason), eventnote.MaxBytes))
		}
	}
}
