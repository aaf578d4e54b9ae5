package ps

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"connectrpc.com/connect/v2"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/services/ps/store"
)

const (
	// heartbeat is how often a source that waits for a chunk itself shows that it responds. So only
	// the neighbors of an officer that has stalled turn to another source, not all behind it.
	heartbeat = 200 * time.Millisecond
	// firstTimeout bounds how long a source may take to begin, which it does at once.
	firstTimeout = 500 * time.Millisecond
	// chunkTimeout bounds how long a source may send nothing, no heartbeat either, before the next
	// source is asked. It grows to slowChunks times the longest time that a chunk has taken: on a
	// slow link the heartbeats wait behind the chunks.
	chunkTimeout = time.Second
	slowChunks   = 8
	// announceWait is how long a source waits for a content that it does not know: states arrive at
	// the officers in any order.
	announceWait = 2 * time.Second
)

// fetchSender is the stream on which parameters are sent.
type fetchSender interface {
	Send(res *psv1.FetchResponse) error
}

// Fetch sends parameters in chunks, as soon as the officer has each of them.
func (o *officer) Fetch(ctx context.Context, req *psv1.FetchRequest, stream psv1raylink.OfficerFetchServerStream) error {
	source, err := o.source(ctx, req, stream)
	if err != nil {
		return err
	}
	defer func() { _ = source.Release() }()
	v := source.Version()
	if err := stream.Send(&psv1.FetchResponse{Part: &psv1.FetchResponse_Version{Version: v}}); err != nil {
		return err
	}
	if req.GetContent() == "" && v.GetId() == req.GetHave() {
		return nil
	}
	chunks := store.Chunks(v.GetSize())
	ranges := req.GetRanges()
	if len(ranges) == 0 {
		ranges = []*psv1.ChunkRange{{First: req.GetFirst(), Count: uint32(max(0, chunks-int(req.GetFirst())))}} //nolint:gosec // bounded by the size
	}
	stopping := stoppingOf(ctx)
	copies := req.GetProcess() == "" || req.GetProcess() == process
	for _, r := range ranges {
		for i := int(r.GetFirst()); i < int(r.GetFirst())+int(r.GetCount()) && i < chunks; i++ {
			if err := sendChunk(ctx, source, i, copies, stream); err != nil {
				return err
			}
			select {
			case <-stopping:
				return connect.NewError(connect.CodeUnavailable, "the officer stops")
			default:
			}
		}
	}
	return nil
}

// source returns the source that a request names. It waits for a content that is not known yet.
func (o *officer) source(ctx context.Context, req *psv1.FetchRequest, stream fetchSender) (*store.Source, error) {
	if req.GetContent() == "" {
		source, err := o.store.SourceOf(req.GetTag())
		if err != nil {
			return nil, o.sourceError(req.GetTag(), err)
		}
		return source, nil
	}
	deadline := time.NewTimer(announceWait)
	defer deadline.Stop()
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		changed := o.changes()
		source, err := o.store.Source(req.GetContent())
		if err == nil {
			return source, nil
		}
		if !errors.Is(err, store.ErrNoVersion) {
			return nil, withCode(err)
		}
		select {
		case <-changed:
		case <-beat.C:
			if err := stream.Send(&psv1.FetchResponse{}); err != nil {
				return nil, err
			}
		case <-deadline.C:
			return nil, connect.Errorf(connect.CodeNotFound, "fetch: the officer of machine %s has no content %q", o.machine, req.GetContent())
		case <-stoppingOf(ctx):
			return nil, connect.NewError(connect.CodeUnavailable, "the officer stops")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// process identifies this process: see FetchRequest.
var process = newToken() //nolint:gochecknoglobals // there is one process

// sendChunk sends a chunk, or a copy of it, when it is there, and heartbeats until then.
func sendChunk(ctx context.Context, source *store.Source, i int, copies bool, stream fetchSender) error {
	for {
		wait, cancel := context.WithTimeout(ctx, heartbeat)
		data, sum, err := source.Chunk(wait, i)
		cancel()
		switch {
		case err == nil:
			if copies {
				data = slices.Clone(data)
			}
			return stream.Send(&psv1.FetchResponse{Part: &psv1.FetchResponse_Chunk{
				Chunk: &psv1.Chunk{Index: uint32(i), Data: data, Checksum: sum}, //nolint:gosec // bounded by the size
			}})
		case ctx.Err() != nil:
			return ctx.Err()
		case !errors.Is(err, context.DeadlineExceeded):
			return withCode(err)
		}
		if err := stream.Send(&psv1.FetchResponse{}); err != nil {
			return err
		}
	}
}

// fill fetches the chunks that a draft lacks. It turns to the next source when one fails or sends
// nothing in time, and fails when all have.
func (o *officer) fill(ctx context.Context, d *store.Draft, sources func() []*nodev1.NodeRef) error {
	var errs []error
	timeout := chunkTimeout
	for _, ref := range sources() {
		o.mu.Lock()
		find := o.find
		o.mu.Unlock()
		from, err := find(ref)
		if err == nil {
			err = fillFrom(ctx, d, from, &timeout)
		}
		if err == nil && d.Complete() {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		errs = append(errs, fmt.Errorf("fetch %q from %s: %w", d.Tag(), ref.GetPath(), err))
		if errors.Is(err, store.ErrNoRoom) || errors.Is(err, store.ErrDiscarded) {
			break
		}
	}
	if d.Complete() {
		return nil
	}
	return errors.Join(append(errs, connect.Errorf(connect.CodeUnavailable, "fetch %q: no source has sent the parameters", d.Tag()))...)
}

// fillFrom fetches from one source. It raises the timeout if chunks take long.
func fillFrom(ctx context.Context, d *store.Draft, from *psv1raylink.Officer, timeout *time.Duration) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := connect.NewError(connect.CodeUnavailable, "the officer has stalled")
	timer := time.AfterFunc(firstTimeout, func() { cancel(stalled) })
	defer timer.Stop()
	stream, err := from.Fetch(ctx, &psv1.FetchRequest{Content: d.Content(), First: uint32(d.Written()), Process: process}) //nolint:gosec // bounded by the size
	if err != nil {
		return cause(ctx, err)
	}
	defer func() { _ = stream.Close() }()
	last := time.Now()
	for {
		res, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return cause(ctx, err)
		}
		now := time.Now()
		if chunk := res.GetChunk(); chunk != nil {
			*timeout = max(*timeout, slowChunks*now.Sub(last))
			if err := d.WriteChunk(int(chunk.GetIndex()), chunk.GetData(), chunk.GetChecksum()); err != nil {
				return withCode(err)
			}
		}
		last = now
		timer.Reset(*timeout)
	}
}

// cause returns the cause of a context's end in place of the error that follows from it.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
