// Package brain is the registry of a system: it knows every node, gives each a unique path,
// monitors liveness, notifies watchers, and is a gateway to all nodes.
//
// What it promises: a change that it has acknowledged is on disk, and survives kill -9. After a
// restart on the same directory every node has the same path, and indices continue where they were;
// no host is declared dead because of Brain's own absence. The death of a node is detected; it is
// removed from the tree with its descendants, and remembered for some time with its cause. Reads
// wait neither for the disk nor for each other.
//
// Start with [Open]. [Brain.Register] registers the service with a connect server, and
// [Brain.Gateway] makes the handler for its listener.
//
// Its parts are packages below internal: tree (the records and their rules), store (the directory),
// lease (liveness of hosts), watch (notification), gateway (the proxy). A change goes from the
// service through one goroutine, which groups concurrent changes, has the store sync the group, and
// then merges it into the tree that reads use.
package brain

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/raylink/raylink/brain/internal/gateway"
	"github.com/raylink/raylink/brain/internal/lease"
	"github.com/raylink/raylink/brain/internal/store"
	"github.com/raylink/raylink/brain/internal/tree"
	"github.com/raylink/raylink/brain/internal/watch"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/access"
	"github.com/raylink/raylink/internal/nodename"
	"github.com/raylink/raylink/internal/records"
)

// Brain is an open registry. Its methods are safe for concurrent use.
type Brain struct {
	opts   Options
	id     string
	store  *store.Store
	leases *lease.Watch
	hub    *watch.Hub

	changes chan *change
	closing chan struct{} // closed by Close: no further changes are accepted
	stopped chan struct{} // closed when the committing goroutine has returned
	failed  chan struct{} // closed when the store has failed

	// machinesChanged notifies the watchers of machines.
	machinesChanged broadcast

	mu   sync.RWMutex // guards tree; only the committing goroutine writes it
	tree *tree.Tree

	// access is set before calls are served, in a system with a CA.
	access access.Source

	gatewaysMu sync.Mutex // guards gateways
	gateways   []*gateway.Gateway

	closeOnce sync.Once
	closeErr  error
}

// Open opens the registry in opts.Dir, or creates one there. The caller must Close it.
func Open(opts Options) (*Brain, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	kept, err := store.Open(store.Options{Dir: opts.Dir, FS: opts.FS, Logger: opts.Logger})
	if err != nil {
		return nil, fmt.Errorf("open Brain: %w", err)
	}
	b := &Brain{
		opts:    opts,
		store:   kept,
		changes: make(chan *change, maxGroup),
		closing: make(chan struct{}),
		stopped: make(chan struct{}),
		failed:  make(chan struct{}),
		hub:     watch.NewHub(watch.Options{}),
	}
	if err := b.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open Brain: %w", err), kept.Close())
	}
	b.leases = lease.New(lease.Options{Lease: opts.Lease, Grace: opts.Grace, Reattach: opts.Reattach, Died: b.hostDied})
	for _, host := range b.tree.Owners() {
		b.leases.ExpectBack(host)
	}
	go b.commitLoop()
	return b, nil
}

// load reads Brain's identity and its tree from the store.
func (b *Brain) load() error {
	id, err := b.identity("id")
	if err != nil {
		return err
	}
	nid, err := b.identity("nid")
	if err != nil {
		return err
	}
	starts, err := b.store.Meta("starts")
	if err != nil {
		return err
	}
	incarnation := uint64(1)
	if len(starts) == 8 {
		incarnation = binary.BigEndian.Uint64(starts) + 1
	}
	if err := b.store.SetMeta("starts", binary.BigEndian.AppendUint64(nil, incarnation)); err != nil {
		return err
	}
	b.id = id
	root := &nodev1.NodeRecord{
		Nid: nid, Name: nodename.RootPath, Path: nodename.RootPath, Type: "brain", Service: brainv1connect.BrainServiceName,
		Incarnation: incarnation, State: nodev1.NodeState_NODE_STATE_RUNNING, Host: b.opts.Host, Created: timestamppb.Now(),
	}
	b.tree, err = tree.Load(root, tree.Limits{
		MaxNodes: b.opts.MaxNodes, MaxAttributeBytes: b.opts.MaxAttributeBytes,
		Tombstones: b.opts.Tombstones, TombstoneAge: b.opts.TombstoneAge,
		Requests: b.opts.Requests, RequestAge: b.opts.RequestAge,
	}, b.store.Entries())
	return err
}

// identity returns a UUID that is stored with the directory, and generates it on first use.
func (b *Brain) identity(name string) (string, error) {
	kept, err := b.store.Meta(name)
	if err != nil || kept != nil {
		return string(kept), err
	}
	id := tree.NewUUID()
	return id, b.store.SetMeta(name, []byte(id))
}

// ID is the id of this registry: each directory has its own, which survives restarts.
func (b *Brain) ID() string { return b.id }

// Options returns the options that Brain was opened with, defaults filled in.
func (b *Brain) Options() Options { return b.opts }

// Root is a copy of Brain's own record, which lookups find as `BRAIN`.
func (b *Brain) Root() *nodev1.NodeRecord {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return proto.CloneOf(b.tree.Root())
}

// SetHost sets the host under which Brain itself is reached. Call it once the listener is open.
func (b *Brain) SetHost(ctx context.Context, host *nodev1.HostInfo) error {
	if err := tree.CheckHost("host", host); err != nil {
		return err
	}
	root := b.Root()
	root.Host = proto.CloneOf(host)
	return b.change(ctx, func(*tree.Txn) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.tree.SetRoot(root)
		b.hub.Publish([]*nodev1.NodeRecord{root})
		return nil
	})
}

// Resolve finds the node that a path, an alias or an nid identifies. If there is none, it fails
// with NotFound, and the error says how the node died or what exists instead. The record must not
// be modified.
func (b *Brain) Resolve(_ context.Context, where string) (*nodev1.NodeRecord, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.tree.Lookup(tree.ByAny, where)
}

// AppendLookup appends the encoded response to a lookup that has come through a connection, as the
// service's Lookup would answer it. It only reads memory. What it appends with an error has no
// meaning.
func (b *Brain) AppendLookup(to []byte, req *brainv1.LookupRequest) ([]byte, error) {
	rec, err := b.lookUp(req)
	if err != nil {
		return to, err
	}
	return records.Append(to, lookupNode, rec) // records are immutable, so not under the lock
}

// lookupNode is the number of the field of [brainv1.LookupResponse] that has the record.
const lookupNode = 1

// Service returns the service for calls within the process, without a connection. Its streaming
// methods work only through a server.
func (b *Brain) Service() brainv1connect.BrainServiceHandler { return &service{brain: b} }

// Register registers the service with a server, before the server accepts calls.
func (b *Brain) Register(server *connect.Server) {
	brainv1connect.RegisterBrainServiceHandler(server, b.Service())
}

// Failed is closed when writing to the directory has failed. From then on Brain serves what it has
// in memory and refuses every change; whether the last change is on disk is known only after the
// directory has been opened again. [Brain.Err] returns the reason.
func (b *Brain) Failed() <-chan struct{} { return b.failed }

// Err is the reason why Brain has failed, or nil if it has not.
func (b *Brain) Err() error {
	if err := b.store.Err(); err != nil {
		return fmt.Errorf("brain: %w", err)
	}
	return nil
}

// Close ends Brain: all streams end with Unavailable, changes in progress are completed, and the
// directory is closed. Close Brain before the listener: a connection that breaks while Brain is
// open counts as the death of the host at its other end. Further calls return the same result.
func (b *Brain) Close() error {
	b.closeOnce.Do(func() {
		b.leases.Close()
		b.hub.Close(errClosing())
		close(b.closing)
		<-b.stopped
		b.gatewaysMu.Lock()
		defer b.gatewaysMu.Unlock()
		for _, g := range b.gateways {
			g.Close()
		}
		if err := b.store.Close(); err != nil {
			b.closeErr = fmt.Errorf("close Brain: %w", err)
		}
	})
	return b.closeErr
}

// hostDied is called by the leases when a host has died. It may block on the disk.
func (b *Brain) hostDied(ctx context.Context, host *nodev1.HostInfo, cause string) {
	var ended []*nodev1.NodeRecord
	err := b.change(ctx, func(x *tree.Txn) error {
		ended = x.HostDied(host, cause)
		return nil
	})
	switch {
	case err == nil:
		b.opts.Logger.Warn("host died", "host", host.GetId(), "pid", host.GetPid(), "machine", host.GetMachine(), "cause", cause, "nodes", len(ended))
	case ctx.Err() == nil:
		b.opts.Logger.Error("a host's death could not be recorded", "host", host.GetId(), "pid", host.GetPid(), "cause", cause, "error", err)
	}
}

// causeOfDeath waits briefly for the death notice of a node, because its callers notice a broken
// connection before Brain has determined what it means. It returns "" if there is none in time.
func (b *Brain) causeOfDeath(ctx context.Context, nid string) string {
	ctx, cancel := context.WithTimeout(ctx, b.opts.Grace+b.opts.Grace/2+250*time.Millisecond)
	defer cancel()
	watcher := b.hub.NewWatcher()
	defer watcher.Close()
	if err := b.follow(watcher, []string{nid}); err != nil {
		return ""
	}
	for {
		records, _, err := watcher.Next(ctx)
		if err != nil {
			return ""
		}
		for _, rec := range records {
			if rec.GetState() == nodev1.NodeState_NODE_STATE_DEAD {
				return rec.GetCause()
			}
		}
	}
}

// follow adds nids to a watcher with their current records, atomically with respect to changes.
func (b *Brain) follow(watcher *watch.Watcher, nids []string) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	current := make([]*nodev1.NodeRecord, 0, len(nids))
	for _, nid := range nids {
		rec := b.tree.Record(nid)
		if rec == nil {
			rec = &nodev1.NodeRecord{
				Nid: nid, State: nodev1.NodeState_NODE_STATE_DEAD, Revision: b.tree.Revision(),
				Cause: "Brain knows no node with this nid, and remembers none",
			}
		}
		current = append(current, rec)
	}
	return watcher.Add(current)
}

func (b *Brain) followAll(watcher *watch.Watcher) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	current, err := b.tree.List("", false)
	if err != nil {
		return err
	}
	return watcher.All(current)
}

func errClosing() error {
	return connect.NewError(connect.CodeUnavailable, "Brain is closing")
}
