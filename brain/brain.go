// Package brain is the registry: it knows every node of a system, gives each a unique path, sees
// who is alive, tells who wants to know, and is a gateway to all of them.
//
// What it promises: a change that it has acknowledged is on disk, and survives kill -9. After a
// restart on the same directory every node is where it was, with the same indices to come; nobody
// is declared dead for Brain's own absence. A dead node is noticed, taken out of the tree with all
// below it, and remembered for a while with how it died. Reading never waits for a disk or for
// another reader.
//
// Start with [Open]. [Brain.Register] puts the registry's service on a connect server, and
// [Brain.Gateway] makes the handler for its listener.
//
// Its parts, each in a package below internal: tree (the records and their rules), store (the
// directory), lease (who is alive), watch (who wants to know), gateway (the proxy). A change goes
// from the service through one goroutine, which puts what is asked at the same time into one group,
// has the store sync it, and only then merges it into the tree that everybody reads.
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
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// Brain is an open registry. Its methods may be called from any goroutine.
type Brain struct {
	opts   Options
	id     string
	store  *store.Store
	leases *lease.Watch
	hub    *watch.Hub

	changes chan *change
	closing chan struct{} // closed by Close: no change is taken any more
	stopped chan struct{} // closed when the committing goroutine has ended
	failed  chan struct{} // closed when the store has failed

	mu   sync.RWMutex // guards tree; only the committing goroutine writes
	tree *tree.Tree

	gatewaysMu sync.Mutex // guards gateways
	gateways   []*gateway.Gateway

	closeOnce sync.Once
	closeErr  error
}

// Open opens a registry in a directory, or makes a new one there.
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

// load reads who this Brain is, and its tree.
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
		Nid: nid, Name: tree.RootPath, Path: tree.RootPath, Type: "brain", Service: brainv1connect.BrainServiceName,
		Incarnation: incarnation, State: nodev1.NodeState_NODE_STATE_RUNNING, Host: b.opts.Host, Created: timestamppb.Now(),
	}
	b.tree, err = tree.Load(root, tree.Limits{
		MaxNodes: b.opts.MaxNodes, MaxAttributeBytes: b.opts.MaxAttributeBytes,
		Tombstones: b.opts.Tombstones, TombstoneAge: b.opts.TombstoneAge,
		Requests: b.opts.Requests, RequestAge: b.opts.RequestAge,
	}, b.store.Entries())
	return err
}

// identity is a UUID that is made with the directory and stays.
func (b *Brain) identity(name string) (string, error) {
	kept, err := b.store.Meta(name)
	if err != nil || kept != nil {
		return string(kept), err
	}
	id := tree.NewUUID()
	return id, b.store.SetMeta(name, []byte(id))
}

// ID is Brain's own id: new with each directory, the same after a restart.
func (b *Brain) ID() string { return b.id }

// Options are those that Brain was opened with, defaults filled in.
func (b *Brain) Options() Options { return b.opts }

// Root is Brain's own record, found as `BRAIN`.
func (b *Brain) Root() *nodev1.NodeRecord {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return proto.CloneOf(b.tree.Root())
}

// SetHost says where Brain itself, and with it the process's own host, can be reached: once the
// listener is there.
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

// Resolve finds the node that a path, an alias or an nid names. For one that isn't there it fails
// with NotFound, and says how it died or what there is instead. The record is not to be changed.
func (b *Brain) Resolve(_ context.Context, where string) (*nodev1.NodeRecord, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.tree.Lookup(tree.ByAny, where)
}

// Service is the registry as the embedding process calls it without a connection; the streams can
// be had from a server only.
func (b *Brain) Service() brainv1connect.BrainServiceHandler { return &service{brain: b} }

// Register puts the registry's service on a server. It is for set-up, before the server takes
// calls.
func (b *Brain) Register(server *connect.Server) {
	brainv1connect.RegisterBrainServiceHandler(server, b.Service())
}

// Failed is closed when the directory could not be written. From then on Brain serves what it has
// in memory, and refuses every change; only opening the directory again tells what of the last one
// is in it. [Brain.Err] says why.
func (b *Brain) Failed() <-chan struct{} { return b.failed }

// Err says why Brain has failed; nil while it hasn't.
func (b *Brain) Err() error {
	if err := b.store.Err(); err != nil {
		return fmt.Errorf("brain: %w", err)
	}
	return nil
}

// Close ends Brain: all streams end with Unavailable, changes under way are finished, and the
// directory is let go. Nobody is declared dead for it, as long as Brain is closed before the
// listener: connections that break while it is open mean that their hosts have gone.
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

// hostDied is told by the leases: it may wait for the disk.
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

// causeOfDeath waits a moment for the news that a node has died, since those who use it learn of a
// broken connection before Brain has made sure of what it means. It returns ” where none comes.
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

// follow adds nids to a watcher, with their records as they stand: no change may come between.
func (b *Brain) follow(watcher *watch.Watcher, nids []string) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	standing := make([]*nodev1.NodeRecord, 0, len(nids))
	for _, nid := range nids {
		rec := b.tree.Record(nid)
		if rec == nil {
			rec = &nodev1.NodeRecord{
				Nid: nid, State: nodev1.NodeState_NODE_STATE_DEAD, Revision: b.tree.Revision(),
				Cause: "Brain knows no node with this nid, and remembers none",
			}
		}
		standing = append(standing, rec)
	}
	return watcher.Add(standing)
}

func (b *Brain) followAll(watcher *watch.Watcher) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	standing, err := b.tree.List("", false)
	if err != nil {
		return err
	}
	return watcher.All(standing)
}

func errClosing() error {
	return connect.NewError(connect.CodeUnavailable, "Brain is closing")
}
