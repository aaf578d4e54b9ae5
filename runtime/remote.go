package runtime

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/runtime/tunnel"
)

// deathNoticeTimeout bounds how long a call whose connection was lost waits for the node's death
// notice. Process death is detected within a second.
const deathNoticeTimeout = time.Second

// remote is a node that lives in another process, as this process knows it.
type remote struct {
	host *Host
	nid  string
	// watched is set if this remote follows the node. It outlives the remote, for its cleanup.
	watched *atomic.Bool
	// route caches how calls reach the node until its record changes.
	route atomic.Pointer[route]

	// isLaunchedHere is set if this host launches the node's processes, see Host.launched.
	isLaunchedHere atomic.Bool

	mu sync.Mutex // guards the fields below; under it, route belongs to latest
	// latest is the record as last received; changed is closed when it is replaced.
	latest  *nodev1.NodeRecord
	changed chan struct{}
	// lastCause is why the last incarnation ended, for events.
	lastCause string
}

// route is an open connection to a node's host, and the node's target on it.
type route struct {
	conn   *tunnel.Conn
	target string
}

func newRemote(h *Host, nid string) *remote {
	r := &remote{host: h, nid: nid, latest: &nodev1.NodeRecord{Nid: nid}, changed: make(chan struct{}), watched: new(atomic.Bool)}
	watched := r.watched
	// Another handle of the nid may have made a new remote by now, which follows the node itself:
	// undo only this remote's own add.
	runtime.AddCleanup(r, func(nid string) {
		h.mu.Lock()
		if h.remotes[nid].Value() == nil {
			delete(h.remotes, nid)
		}
		h.mu.Unlock()
		if watched.Load() {
			h.session.Unfollow(nid)
		}
	}, nid)
	return r
}

// record is the node's record as last received; not to be modified.
func (r *remote) record() *nodev1.NodeRecord {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.latest
}

func (r *remote) path() string {
	if p := r.record().GetPath(); p != "" {
		return p
	}
	return r.nid
}

// update replaces the record by one that is not older.
func (r *remote) update(rec *nodev1.NodeRecord) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec.GetRevision() < r.latest.GetRevision() {
		return
	}
	if rec.GetPath() == "" {
		// Brain has no record of the node: what the handle knows stays readable.
		rec = mergeUnknown(rec, r.latest)
	}
	r.reportChange(r.latest, rec)
	r.latest = rec
	r.route.Store(nil)
	close(r.changed)
	r.changed = make(chan struct{})
}

// mergeUnknown is known with the state and cause of rec.
func mergeUnknown(rec, known *nodev1.NodeRecord) *nodev1.NodeRecord {
	out := proto.CloneOf(known)
	out.State, out.Cause = rec.GetState(), rec.GetCause()
	return out
}

// subscribe subscribes to the node's record.
func (r *remote) subscribe() {
	if !r.watched.Load() && !r.watched.Swap(true) {
		r.host.session.Follow(r.nid)
	}
}

// locate blocks until the node has a host, and returns its record.
func (r *remote) locate(ctx context.Context) (*nodev1.NodeRecord, error) {
	r.subscribe()
	for {
		r.mu.Lock()
		rec, changed := r.latest, r.changed
		r.mu.Unlock()
		switch {
		case rec.GetState() == nodev1.NodeState_NODE_STATE_DEAD && !rec.GetRestarts():
			return nil, deadError(rec)
		case rec.GetHost() != nil && rec.GetState() != nodev1.NodeState_NODE_STATE_DEAD:
			return rec, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			err := causeOf(ctx)
			return nil, connect.Errorf(connect.CodeOf(err), "%s was still starting: %v", r.path(), context.Cause(ctx)).WithCause(err)
		}
	}
}

// deadError is the error of calls to a dead node, with the cause of its death.
func deadError(rec *nodev1.NodeRecord) *connect.Error {
	name := rec.GetPath()
	if name == "" {
		name = "node " + rec.GetNid()
	}
	if rec.GetCause() == "" {
		return connect.Errorf(connect.CodeUnavailable, "%s is dead", name)
	}
	return connect.Errorf(connect.CodeUnavailable, "%s is dead: %s", name, rec.GetCause())
}

// conn returns the connection to the node's host, and the node's target on it.
func (r *remote) conn(ctx context.Context, tag string) (*tunnel.Conn, string, error) {
	if route := r.route.Load(); route != nil && tag == "" {
		select {
		case <-route.conn.Done():
		default:
			return route.conn, route.target, nil
		}
	}
	mayBlock(ctx)
	rec, err := r.locate(ctx)
	if err != nil {
		return nil, "", err
	}
	conn, err := r.host.peers.Get(ctx, rec, tag)
	if err != nil {
		if ctx.Err() != nil {
			return nil, "", causeOf(ctx)
		}
		if isRefused(err) {
			return nil, "", connect.Errorf(connect.CodeOf(err), "%s was not reached: %s", r.path(), connecterr.Text(err)).WithCause(err)
		}
		return nil, "", r.explain(ctx, err)
	}
	route := &route{conn, targetOf(r.nid, rec.GetIncarnation())}
	if tag == "" {
		r.mu.Lock()
		if r.latest == rec {
			r.route.Store(route)
		}
		r.mu.Unlock()
	}
	return route.conn, route.target, nil
}

// explain adds to the loss of a connection the cause of the node's end, if Brain knows it in time.
func (r *remote) explain(ctx context.Context, err error) error {
	r.subscribe()
	ctx, cancel := context.WithTimeout(ctx, deathNoticeTimeout)
	defer cancel()
	for {
		r.mu.Lock()
		rec, changed := r.latest, r.changed
		r.mu.Unlock()
		if rec.GetState() == nodev1.NodeState_NODE_STATE_DEAD {
			return deadError(rec).WithCause(err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return connect.Errorf(connect.CodeUnavailable, "%s did not answer: %s", r.path(), connecterr.Text(err)).WithCause(err)
		}
	}
}

// isNotHere reports whether a reply refused the call because the node is elsewhere. err must be the
// error of a tunnel call: it matches ErrNotRun only because of a flag in the reply, which the
// tunnel and the dispatcher of the node's host set before any code of the node has seen the call;
// only the dispatcher adds the detail. An error of a node can have the same code, text and details,
// but not the flag.
func isNotHere(err error) bool {
	e, ok := err.(*connect.Error) //nolint:errorlint // the reply's own error, not a wrapped one
	return ok && errors.Is(e, tunnel.ErrNotRun) && slices.ContainsFunc(e.Details(), isInternalDetail)
}

// isLost reports whether the connection was lost during the call, as opposed to an error from the
// node.
func isLost(err error) bool {
	e, ok := errors.AsType[*connect.Error](err)
	return ok && e.Code() == connect.CodeUnavailable && !e.IsRemote()
}

// isRefused reports whether the node's host is alive and has refused the connection with a reason:
// the token is wrong, or there is no such tunnel.
func isRefused(err error) bool {
	e, ok := errors.AsType[*tunnel.HandshakeError](err)
	return ok && e.Reason == tunnel.ReasonRefused && e.Remote && e.Code != connect.CodeUnavailable
}

// refresh gets the node's current record from Brain.
func (r *remote) refresh(ctx context.Context) error {
	res, err := r.host.brain.Lookup(ctx, &brainv1.LookupRequest{Where: &brainv1.Where{By: &brainv1.Where_Nid{Nid: r.nid}}})
	if err != nil {
		return fmt.Errorf("looking for %s: %w", r.path(), err)
	}
	r.update(res.GetNode())
	return nil
}

// ended blocks until the node's current incarnation has ended.
func (r *remote) ended(ctx context.Context) error {
	r.subscribe()
	incarnation := r.record().GetIncarnation()
	for {
		r.mu.Lock()
		rec, changed := r.latest, r.changed
		r.mu.Unlock()
		if incarnation == 0 {
			incarnation = rec.GetIncarnation() // its record was unknown before
		}
		if rec.GetState() == nodev1.NodeState_NODE_STATE_DEAD || rec.GetIncarnation() > incarnation {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return causeOf(ctx)
		}
	}
}

// remote returns the remote of a nid, which all handles of this process share. The node is followed
// as long as a handle exists.
func (h *Host) remote(nid string) *remote {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.remotes[nid].Value(); r != nil {
		return r
	}
	r := newRemote(h, nid)
	h.remotes[nid] = weak.Make(r)
	return r
}
