// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"encoding/json"
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

// What `kubectl get pcmc -o wide` prints, the age aside.
func TestPrinterColumns(t *testing.T) {
	if configs == nil {
		t.Skip("needs an API server; run without -short")
	}
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("PodConfigMapConfig"))
	object.SetName("columns")
	if _, err := configs.Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	now := metav1.Now()
	status, err := json.Marshal(map[string]any{"status": v1alpha1.PodConfigMapConfigStatus{
		ObservedGeneration: 7, MatchedPods: 6, SyncedConfigMaps: 4, FailedConfigMaps: 2,
		Conditions: []metav1.Condition{
			{Type: v1alpha1.ConditionEBPFReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonAttached, LastTransitionTime: now},
			{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonNameConflict, LastTransitionTime: now},
		},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := configs.Patch(t.Context(), "columns", types.MergePatchType, status, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}

	want := `Name=columns priority 0
Ready=False priority 0
Matched=6 priority 0
Synced=4 priority 0
Failed=2 priority 0
EBPF=Attached priority 0
Reason=NameConflict priority 1
Observed=7 priority 1
`
	if got := columns(t, "podconfigmapconfigs", "columns"); got != want {
		t.Errorf("columns\n%swant\n%s", got, want)
	}
}

// columns returns what the server prints of an object, a line for each column.
func columns(t *testing.T, plural, name string) (lines string) {
	t.Helper()
	client, err := kubernetes.NewForConfig(serverConfig)
	if err != nil {
		t.Fatal(err)
	}
	text, err := client.RESTClient().Get().
		AbsPath("/apis/podconfig.example.com/v1alpha1/namespaces/default/"+plural+"/"+name).
		SetHeader("Accept", "application/json;as=Table;g=meta.k8s.io;v=v1").Do(t.Context()).Raw()
	if err != nil {
		t.Fatal(err)
	}
	var table metav1.Table
	if err := json.Unmarshal(text, &table); err != nil || len(table.Rows) != 1 {
		t.Fatalf("%d rows, want 1 (%v): %s", len(table.Rows), err, text)
	}
	for i, column := range table.ColumnDefinitions {
		if column.Name != "Age" {
			lines += fmt.Sprintf("%s=%v priority %d\n", column.Name, table.Rows[0].Cells[i], column.Priority)
		}
	}
	return lines
}
