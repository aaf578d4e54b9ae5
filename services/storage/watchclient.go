package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/internal/backoff"
)

const (
	firstWatchPause = 10 * time.Millisecond
	maxWatchPause   = time.Second
	// watchGrace is for how long a watch tries to resume when it is not known whether the storage
	// will be started again.
	watchGrace = 10 * time.Second
)

// Watch iterates over the changes of all keys with a prefix, or of one key with [Exact], in the
// order of their ids: those since an id with [Since], else those from now on. It yields each change
// once, when it is as durable as the storage promises. Changes are owned by the caller: see [As].
// One without a value is a removal.
//
// To miss nothing after a read, watch since an id from before: that of [Client.LastID], or of an
// entry that was read.
//
// While the storage is started again the iteration waits, and then goes on with the next change. An
// error ends it: that of ctx; a [HistoryLostError] if the storage does not know the next changes
// any more, because there were too many; or that of a storage that has ended for good.
func (c *Client) Watch(ctx context.Context, prefix string, opts ...WatchOption) iter.Seq2[*storagev1.Change, error] {
	return func(yield func(*storagev1.Change, error) bool) {
		req := &storagev1.WatchRequest{Prefix: prefix}
		for _, o := range opts {
			o(req)
		}
		w := &watch{client: c, req: req, yield: yield, pause: backoff.Backoff{First: firstWatchPause, Max: maxWatchPause}}
		err := w.run(ctx)
		if err == nil {
			return
		}
		if lost := new(HistoryLostError); !errors.As(err, &lost) { // its text names the watch
			err = fmt.Errorf("watch %q: %w", prefix, err)
		}
		yield(nil, err)
	}
}

// watch is one iteration over changes.
type watch struct {
	client *Client
	// req is for the changes that were not yielded yet, once the id is known that they follow.
	req   *storagev1.WatchRequest
	yield func(*storagev1.Change, error) bool
	// ended is set once the caller has ended the iteration.
	ended bool

	// incarnation is the storage's that has sent changes; 0 before the first, or if it is not
	// known.
	incarnation uint64

	pause backoff.Backoff
	// lost is when the storage was lost; zero while it sends changes.
	lost time.Time
}

// run yields changes until the caller ends the iteration, or there is an error.
func (w *watch) run(ctx context.Context) error {
	for {
		err := w.once(ctx)
		switch {
		case w.ended:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !w.mayResume(err):
			if errors.Is(err, io.EOF) {
				err = connect.NewError(connect.CodeUnavailable, "the storage was stopped")
			}
			return err
		}
		if w.pause.Wait(ctx) != nil {
			return context.Cause(ctx)
		}
	}
}

// once yields changes until the stream ends.
func (w *watch) once(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := w.client.handle.Watch(ctx, proto.CloneOf(w.req))
	if err != nil {
		return typed(err)
	}
	defer func() { _ = stream.Close() }()
	for {
		res, err := stream.Receive()
		if err != nil {
			return typed(err)
		}
		if err := w.checkResumed(ctx, res.GetId()); err != nil {
			return err
		}
		w.pause.Reset()
		w.lost = time.Time{}
		for _, change := range res.GetChanges() {
			if !w.yield(change, nil) {
				w.ended = true
				return nil
			}
		}
		upTo := max(w.req.GetSince(), res.GetId())
		w.req.Since = &upTo
	}
}

// checkResumed returns an error if another incarnation of a storage in memory sends the changes:
// its ids start again, and what the one before it had is lost.
func (w *watch) checkResumed(ctx context.Context, id uint64) error {
	before := w.incarnation
	w.incarnation = w.client.handle.Ref().Incarnation()
	if before == 0 || before == w.incarnation {
		return nil
	}
	res, err := w.client.handle.Status(ctx, &storagev1.StatusRequest{})
	if err != nil || res.GetDurability() != storagev1.Durability_DURABILITY_MEMORY {
		return err
	}
	lost := &HistoryLostError{Since: w.req.GetSince(), Newest: id}
	lost.cause = connect.Errorf(connect.CodeOutOfRange,
		"watch from the id %d: the storage was started again, and its data are only in memory; read the keys again, and watch from the id %d",
		w.req.GetSince(), id)
	return lost
}

// mayResume reports whether a stream that has ended with err may be opened again.
func (w *watch) mayResume(err error) bool {
	code := connect.CodeOf(err)
	// A node that is stopped ends its streams; a process that is killed its connections.
	if !errors.Is(err, io.EOF) && code != connect.CodeUnavailable && code != connect.CodeCanceled {
		return false
	}
	if w.lost.IsZero() {
		w.lost = time.Now()
	}
	switch rec := w.client.handle.Ref().Record(); {
	case rec.GetRestarts():
		return true
	case rec.GetState() == nodev1.NodeState_NODE_STATE_DEAD:
		return false
	}
	return time.Since(w.lost) < watchGrace
}
