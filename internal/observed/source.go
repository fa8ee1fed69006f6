// SPDX-License-Identifier: Apache-2.0

package observed

import (
	"context"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/podconfigmap/podconfigmap-controller/internal/wire"
)

// pageSize is how many objects are asked for at a time: a request has to be served
// within a minute, however little CPU time its reader gets.
const pageSize = 5000

// podFields are what NewPod reads, configMapFields what NewConfigMap does.
var (
	podFields = wire.FieldsOf[corev1.Pod](
		"metadata.namespace", "metadata.name", "metadata.uid", "metadata.resourceVersion",
		"metadata.labels", "metadata.annotations", "metadata.ownerReferences",
		"spec.nodeName", "spec.serviceAccountName", "spec.containers.name", "spec.containers.image",
		"status.phase", "status.qosClass", "status.startTime",
		"status.podIP", "status.podIPs", "status.hostIP", "status.hostIPs",
	)
	configMapFields = wire.FieldsOf[corev1.ConfigMap](
		"metadata.namespace", "metadata.name", "metadata.generateName", "metadata.uid", "metadata.resourceVersion",
		"metadata.labels", "metadata.annotations", "metadata.ownerReferences", "metadata.finalizers",
		"metadata.deletionTimestamp", "metadata.managedFields.manager",
		"data", "binaryData", "immutable",
	)
)

// NewClient returns the client that stores read with. It decodes of pods and ConfigMaps
// what stores keep, and is no good for anything else.
func NewClient(config *rest.Config, transport *http.Client) (rest.Interface, error) {
	config = rest.CopyConfig(config)
	config.GroupVersion, config.APIPath = &corev1.SchemeGroupVersion, "/api"
	config.ContentType, config.AcceptContentTypes = wire.ContentType, wire.ContentType
	config.NegotiatedSerializer = wire.Sparing(scheme.Codecs.WithoutConversion(),
		map[string]*wire.Fields{"Pod": podFields, "ConfigMap": configMapFields})
	client, err := rest.RESTClientForConfigAndClient(config, transport)
	if err != nil {
		return nil, fmt.Errorf("making the client that watches: %w", err)
	}
	return client, nil
}

// object is what the API server tells of.
type object interface {
	runtime.Object
	Unmarshal(encoded []byte) error
}

// source is where a store's objects come from, and what is kept of them.
type source struct {
	resource, selector string
	fresh              func() object
	fields             *wire.Fields
	// compact also takes what it made, and makes runtime.Objects.
	compact  cache.TransformFunc
	indexers cache.Indexers
}

// listWatch lists and watches a namespace.
func (s *source) listWatch(client rest.Interface, namespace string) listedFirst {
	get := func(o metav1.ListOptions) *rest.Request {
		o.LabelSelector = s.selector
		return client.Get().Namespace(namespace).Resource(s.resource).VersionedParams(&o, metav1.ParameterCodec)
	}
	return listedFirst{&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
			return s.list(ctx, get)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			return get(o).Watch(ctx)
		},
	}}
}

// listedFirst tells informers to list and then watch. A watch that begins with all
// objects costs both sides twice the CPU time of a list.
type listedFirst struct{ *cache.ListWatch }

// IsWatchListSemanticsUnSupported is what client-go asks for.
func (listedFirst) IsWatchListSemanticsUnSupported() bool { return true }

// list reads all objects, in their newest state: each is compact before the next one is
// read. It is not compressed, which would cost more than it saves within a cluster.
func (s *source) list(ctx context.Context, get func(metav1.ListOptions) *rest.Request) (runtime.Object, error) {
	all := &internalversion.List{}
	var pruned []byte // decoding copies what it keeps
	for {
		request := get(metav1.ListOptions{Limit: pageSize, Continue: all.Continue}).SetHeader("Accept-Encoding", "identity")
		body, err := request.Stream(ctx)
		if err != nil {
			return nil, err // the API server's own says enough, and informers look at its type
		}
		all.ListMeta, err = wire.ReadList(body, func(encoded []byte) (err error) {
			if pruned, err = s.fields.Prune(pruned[:0], encoded); err != nil {
				return err
			}
			obj, err := s.decode(pruned)
			all.Items = append(all.Items, obj)
			return err
		})
		_ = body.Close() // it has been read, or will not be
		switch {
		case err != nil:
			return nil, fmt.Errorf("listing %s: %w", s.resource, err)
		case all.Continue == "":
			return all, nil
		}
	}
}

// decode makes what is kept of an object, of which the source's fields are enough.
func (s *source) decode(encoded []byte) (runtime.Object, error) {
	obj := s.fresh()
	if err := obj.Unmarshal(encoded); err != nil {
		return nil, err
	}
	compact, err := s.compact(obj)
	if err != nil {
		return nil, err
	}
	return compact.(runtime.Object), nil
}
