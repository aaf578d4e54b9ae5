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
// once, when it is as durable as the storage promises. A change without a value is a removal.
// Changes must not be modified; the values that [As] returns may.
//
// To miss nothing after a read, watch since the id that [AsOf] has the read set. To go on after the
// program was restarted, watch since the id of the last change that it has handled, or that which
// AsOf has the watch set. With [Exact], the id of the key's current write will do, however old it
// is.
//
// Writes of a batch follow each other, and when the first of them is yielded all of them can be
// read. Their end is not marked: have the batch write a key last by which the watcher recognizes
// it. An iteration may end within a batch, and one since the id of any change goes on after that.
//
// While the storage is started again the iteration waits, and then goes on with the next change. An
// error ends it: that of ctx; a [HistoryLostError] if the storage does not know the next changes
// any more, because there were too many, or because its data were only in memory; or that of a
// storage that has ended for good. After a HistoryLostError, read the keys again.
func (c *Client) Watch(ctx context.Context, prefix string, opts ...WatchOption) iter.Seq2[*storagev1.Change, error] {
	return func(yield func(*storagev1.Change, error) bool) {
		req := &storagev1.WatchRequest{Prefix: prefix}
		w := &watch{client: c, req: req, yield: yield, pause: backoff.Backoff{First: firstWatchPause, Max: maxWatchPause}}
		for _, o := range opts {
			o.applyToWatch(req)
			if o, ok := o.(ReadOption); ok {
				w.seen = append(w.seen, o)
			}
		}
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

	// seen are the options that want the id up to which all changes were yielded.
	seen []ReadOption

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
		w.pause.Reset()
		w.lost = time.Time{}
		for _, change := range res.GetChanges() {
			setAsOf(w.seen, change.GetId())
			if !w.yield(change, nil) {
				w.ended = true
				return nil
			}
		}
		upTo := max(w.req.GetSince(), res.GetId())
		w.req.Since = &upTo
		setAsOf(w.seen, upTo)
	}
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
