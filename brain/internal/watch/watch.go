// Package watch notifies watchers of changed records.
//
// A slow watcher delays nothing: what it has not received yet is kept once per node, as the newest
// record, and publishing never blocks. A watcher that is too far behind is ended with an error; its
// caller can watch again, and gets the current records.
//
// For each nid that is added, the watcher first receives the current record; from there on no
// change is missed, though several may arrive as one. The caller of [Hub.Publish], [Watcher.Add]
// and [Watcher.All] must ensure that the records that it passes are neither older nor
// newer than what was published, by calling them under the lock that guards the records.
package watch

import (
	"context"
	"fmt"
	"sync"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// Options bounds the resources of watchers. The zero value of a field means its default.
type Options struct {
	// MaxNids is how many nids one watcher may follow. Default 65,536.
	MaxNids int
	// MaxPending is how many records may be queued for one watcher, in addition to the whole tree
	// that it asked for. Default 65,536.
	MaxPending int
	// BatchBytes bounds the size of the records that a watcher gets at once, in bytes. Default 1
	// MiB, a quarter of what clients accept by default.
	BatchBytes int
}

// Hub passes published records to watchers. Its methods are safe for concurrent use.
type Hub struct {
	opts Options

	mu     sync.Mutex // guards the fields below, and the watchers
	byNid  map[string]map[*Watcher]struct{}
	all    map[*Watcher]struct{}
	closed error
	open   map[*Watcher]struct{}
}

// Watcher follows records. Only one goroutine may call Next; its other methods are safe for
// concurrent use.
type Watcher struct {
	hub     *Hub
	nids    map[string]struct{}
	all     bool
	pending map[string]*nodev1.NodeRecord
	// queue has the nids of pending, the oldest first.
	queue []string
	// allowed is how many records may be queued: the bound, plus the whole tree if that was asked
	// for.
	allowed int
	// unsynced is how many records at the queue's head belong to the whole tree as of the time when
	// it was asked for; -1 if Next has returned all of them, or the tree was not asked for.
	unsynced int
	failed   error
	ready    chan struct{} // holds one token while there may be something to receive
}

// NewHub makes a hub. It needs no goroutine.
func NewHub(opts Options) *Hub {
	if opts.MaxNids == 0 {
		opts.MaxNids = 1 << 16
	}
	if opts.MaxPending == 0 {
		opts.MaxPending = 1 << 16
	}
	if opts.BatchBytes == 0 {
		opts.BatchBytes = 1 << 20
	}
	return &Hub{
		opts:  opts,
		byNid: make(map[string]map[*Watcher]struct{}),
		all:   make(map[*Watcher]struct{}),
		open:  make(map[*Watcher]struct{}),
	}
}

// Close ends all watchers with an error, including those that are made later.
func (h *Hub) Close(cause error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = cause
	for w := range h.open {
		w.fail(cause)
	}
}

// Publish passes changed records to watchers. It never blocks on a watcher.
func (h *Hub) Publish(records []*nodev1.NodeRecord) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, rec := range records {
		for w := range h.all {
			w.push(rec)
		}
		for w := range h.byNid[rec.GetNid()] {
			if !w.all {
				w.push(rec)
			}
		}
		if rec.GetState() == nodev1.NodeState_NODE_STATE_DEAD && !rec.GetRestarts() {
			// An nid is never reused.
			for w := range h.byNid[rec.GetNid()] {
				w.drop(rec.GetNid())
			}
		}
	}
}

// NewWatcher makes a watcher that follows no node yet. The caller must Close it.
func (h *Hub) NewWatcher() *Watcher {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := &Watcher{
		hub: h, allowed: h.opts.MaxPending, unsynced: -1,
		nids: make(map[string]struct{}), pending: make(map[string]*nodev1.NodeRecord), ready: make(chan struct{}, 1),
	}
	h.open[w] = struct{}{}
	if h.closed != nil {
		w.fail(h.closed)
	}
	return w
}

// Close ends the watcher.
func (w *Watcher) Close() {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	w.fail(connect.NewError(connect.CodeCanceled, "the watch was closed"))
	delete(w.hub.open, w)
}

// Add follows nodes from now on. current are their current records.
func (w *Watcher) Add(current []*nodev1.NodeRecord) error {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	if w.failed != nil {
		return w.failed
	}
	if len(w.nids)+len(current) > w.hub.opts.MaxNids {
		return connect.Errorf(connect.CodeResourceExhausted, "%d more nids are too many: the watch follows %d, and the bound is %d",
			len(current), len(w.nids), w.hub.opts.MaxNids)
	}
	for _, rec := range current {
		nid := rec.GetNid()
		if rec.GetState() != nodev1.NodeState_NODE_STATE_DEAD || rec.GetRestarts() {
			w.nids[nid] = struct{}{}
			if w.hub.byNid[nid] == nil {
				w.hub.byNid[nid] = make(map[*Watcher]struct{})
			}
			w.hub.byNid[nid][w] = struct{}{}
		}
		w.push(rec)
	}
	return w.failed
}

// All follows all nodes from now on. current is the whole tree as it is now. A second call has no
// effect.
func (w *Watcher) All(current []*nodev1.NodeRecord) error {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	if w.failed != nil || w.all {
		return w.failed
	}
	w.all = true
	w.hub.all[w] = struct{}{}
	w.allowed += len(current)
	for _, rec := range current {
		w.push(rec)
	}
	w.unsynced = len(w.queue)
	w.wake()
	return w.failed
}

// Remove stops following nodes. Changes that are already queued are still delivered.
func (w *Watcher) Remove(nids []string) {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	for _, nid := range nids {
		w.drop(nid)
	}
}

// Next blocks until there are changes and returns some of them, each node's newest record. synced
// is true once: when the last of the whole tree's records have been returned.
func (w *Watcher) Next(ctx context.Context) (records []*nodev1.NodeRecord, synced bool, err error) {
	for {
		records, synced, err = w.next()
		if err != nil || synced || len(records) > 0 {
			return records, synced, err
		}
		select {
		case <-w.ready:
		case <-ctx.Done():
			return nil, false, fmt.Errorf("wait for changes: %w", context.Cause(ctx))
		}
	}
}

func (w *Watcher) next() (records []*nodev1.NodeRecord, synced bool, err error) {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	if w.failed != nil {
		return nil, false, w.failed
	}
	size := 0
	for len(w.queue) > 0 {
		rec := w.pending[w.queue[0]]
		if size += proto.Size(rec); size > w.hub.opts.BatchBytes && len(records) > 0 {
			w.wake()
			break
		}
		delete(w.pending, w.queue[0])
		w.queue[0] = ""
		w.queue = w.queue[1:]
		records = append(records, rec)
		if w.unsynced > 0 {
			w.unsynced--
		}
	}
	if w.unsynced == 0 {
		w.unsynced = -1
		w.allowed = w.hub.opts.MaxPending
		synced = true
	}
	return records, synced, nil
}

// push queues a record for the watcher, and replaces an older one of the same node. The caller
// holds mu.
func (w *Watcher) push(rec *nodev1.NodeRecord) {
	if w.failed != nil {
		return
	}
	nid := rec.GetNid()
	if _, waits := w.pending[nid]; !waits {
		if len(w.queue) >= w.allowed {
			w.fail(connect.Errorf(connect.CodeResourceExhausted, "the watcher is %d records behind, which is the bound; watch again", len(w.queue)))
			return
		}
		w.queue = append(w.queue, nid)
	}
	w.pending[nid] = rec
	w.wake()
}

func (w *Watcher) drop(nid string) {
	delete(w.nids, nid)
	watchers := w.hub.byNid[nid]
	delete(watchers, w)
	if len(watchers) == 0 {
		delete(w.hub.byNid, nid)
	}
}

// fail ends the watcher and releases its resources. The caller holds mu.
func (w *Watcher) fail(err error) {
	if w.failed != nil {
		return
	}
	w.failed = err
	for nid := range w.nids {
		w.drop(nid)
	}
	delete(w.hub.all, w)
	w.pending, w.queue = nil, nil
	w.wake()
}

func (w *Watcher) wake() {
	select {
	case w.ready <- struct{}{}:
	default:
	}
}
