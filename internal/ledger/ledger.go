// SPDX-License-Identifier: Apache-2.0

// Package ledger keeps, in memory, what became of every pod for every config.
// The ConfigMap controller writes it, the status controller reads it; after a
// restart it fills again as each pod is looked at.
package ledger

import (
	"sync"

	"k8s.io/apimachinery/pkg/types"
)

// Failure is why a pod's ConfigMap does not reflect its config.
type Failure struct {
	// Reason is a reason of the condition ConfigMapsSynced.
	Reason string
	// Message says what is wrong and what to do, for one pod.
	Message string
}

func (f *Failure) Error() string { return f.Message }

// Entry is what became of one pod for one config.
type Entry struct {
	// Generation of the config that the pod is done with: its ConfigMap reflects
	// it, or its failure is recorded. Zero while work is under way.
	Generation int64
	// Failure is nil where the ConfigMap reflects the generation.
	Failure *Failure
	// Present tells that the pod has a ConfigMap of this config, be it an old one.
	Present bool
}

// Ledger is safe for concurrent use.
type Ledger struct {
	mu    sync.Mutex
	books map[types.UID]*book // by the config's UID
	// changed is called, outside of the lock, when a config's entries begin to
	// differ from what was last read.
	changed func(config types.NamespacedName)
}

type book struct {
	config  types.NamespacedName
	head    Head
	entries map[string]Entry // by the pod's name
	dirty   bool
}

// New returns an empty ledger.
func New() *Ledger {
	return &Ledger{books: map[types.UID]*book{}, changed: func(types.NamespacedName) {}}
}

// OnChange sets what is called when a config's entries change.
func (l *Ledger) OnChange(changed func(config types.NamespacedName)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed = changed
}

// Head is what is known of a config itself, whatever the pod.
type Head struct {
	// Generation of the config that its pods are being brought to; zero where the
	// config is not open.
	Generation int64
	// Problem is set where the config itself is at fault.
	Problem *Failure
}

// Open begins to keep entries for a config, or notes that it changed.
func (l *Ledger) Open(uid types.UID, config types.NamespacedName, head Head) {
	l.mu.Lock()
	if _, open := l.books[uid]; !open {
		l.books[uid] = &book{entries: map[string]Entry{}}
	}
	b := l.books[uid]
	b.config, b.head, b.dirty = config, head, true
	changed := l.changed
	l.mu.Unlock()
	changed(config)
}

// Close forgets a config.
func (l *Ledger) Close(uid types.UID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.books, uid)
}

// Record notes what became of a pod. A config that is not open is ignored.
func (l *Ledger) Record(config types.UID, pod string, e Entry) {
	l.update(config, func(b *book) bool {
		old, known := b.entries[pod]
		if known && old.equals(e) {
			return false
		}
		b.entries[pod] = e
		return true
	})
}

// Forget drops a pod that is gone or no longer matches.
func (l *Ledger) Forget(config types.UID, pod string) {
	l.update(config, func(b *book) bool {
		_, known := b.entries[pod]
		delete(b.entries, pod)
		return known
	})
}

func (l *Ledger) update(config types.UID, change func(*book) bool) {
	l.mu.Lock()
	b := l.books[config]
	if b == nil || !change(b) || b.dirty {
		l.mu.Unlock()
		return
	}
	b.dirty = true
	key, changed := b.config, l.changed
	l.mu.Unlock()
	changed(key)
}

// Get returns what is known of one pod.
func (l *Ledger) Get(config types.UID, pod string) (Entry, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.books[config]; b != nil {
		e, known := b.entries[pod]
		return e, known
	}
	return Entry{}, false
}

// Begin begins to read a config: what changes from now on is announced again.
// Only then list its pods, or one that comes in between is never announced.
func (l *Ledger) Begin(config types.UID) Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.books[config]
	if b == nil {
		return Head{}
	}
	b.dirty = false
	return b.head
}

// Read calls visit for each of the pods, with the zero Entry where nothing is
// known, as one consistent picture.
func (l *Ledger) Read(config types.UID, pods []string, visit func(pod string, e Entry)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.books[config]
	if b == nil {
		b = &book{}
	}
	for _, pod := range pods {
		visit(pod, b.entries[pod])
	}
}

func (e Entry) equals(other Entry) bool {
	if e.Generation != other.Generation || e.Present != other.Present {
		return false
	}
	if e.Failure == nil || other.Failure == nil {
		return e.Failure == other.Failure
	}
	return *e.Failure == *other.Failure
}
