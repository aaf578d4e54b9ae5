package ps

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/services/ps/store"
)

// Parameters are one version of a tag. They do not change until they are released. Release them
// once they are not needed: until then their memory can't be used for later versions. Parameters
// that are forgotten are released by the garbage collector.
type Parameters struct {
	id      uint64
	version func() *psv1.Version
	bytes   []byte
	tensors *tensors
	release func() error
	once    sync.Once
}

func fetchedParameters(version *psv1.Version, bytes []byte, t *tensors, release func() error) *Parameters {
	return &Parameters{id: version.GetId(), version: func() *psv1.Version { return version }, bytes: bytes, tensors: t, release: release}
}

// Version describes the parameters. It must not be modified.
func (p *Parameters) Version() *psv1.Version { return p.version() }

// Bytes returns the parameters. They must not be modified: writing to mapped memory crashes the
// process. They must not be used after Release, nor when p is not reachable any longer.
func (p *Parameters) Bytes() []byte { return p.bytes }

// Release releases the parameters. Further calls do nothing.
func (p *Parameters) Release() error {
	var err error
	p.once.Do(func() {
		p.bytes = nil
		err = p.release()
	})
	return err
}

// ID returns the id of a tag's newest version, or 0 if there is none. If the parameters are mapped
// it takes nanoseconds, so it can be called in every iteration of a loop. It never goes back,
// except to 0 when the tag is deleted.
func (c *Client) ID(ctx context.Context, tag string) (uint64, error) {
	v, err := c.view(tag)
	if err != nil {
		return 0, err
	}
	r, err := c.mapped(tag)
	if err != nil {
		return 0, err
	}
	if r == nil {
		res, err := c.captain.GetID(ctx, &psv1.GetIDRequest{Tag: tag})
		if err != nil {
			return 0, err
		}
		return v.shown(res.GetId(), res.GetLast()), nil
	}
	id, err := r.ID()
	if err == nil && id > 0 {
		return v.raise(id), nil
	}
	state, err := r.State()
	if errors.Is(err, ErrClosed) {
		return c.ID(ctx, tag) // another officer's files have replaced these, or the client was closed
	}
	return v.shown(state.ID, state.Last), err
}

// shown returns the id to show: at least the one that was shown before. A source without a version
// shows that the tag was deleted if its last id is no older; else the source is an officer that has
// not caught up.
func (v *view) shown(id, last uint64) uint64 {
	if id == 0 && last >= v.floor.Load() {
		return 0
	}
	return v.raise(id)
}

// deleted reports whether an officer's files have no version of a tag, although they have had the
// one that the client has shown.
func (v *view) deleted(r *store.Reader) bool {
	state, err := r.State()
	return err == nil && state.ID == 0 && state.Last >= v.floor.Load()
}

// Pull returns a tag's newest parameters, without a copy if they are mapped. It returns
// [ErrNoVersion] if there are none. The version is at least the one that this client has shown
// before, or has been given for a push; if this machine does not have it yet, Pull waits for it.
func (c *Client) Pull(ctx context.Context, tag string) (*Parameters, error) {
	v, err := c.view(tag)
	if err != nil {
		return nil, err
	}
	var p *Parameters
	behind := backoff.Backoff{First: time.Millisecond, Max: 20 * time.Millisecond}
	for began := time.Now(); ; {
		r, err := c.mapped(tag)
		if err != nil {
			return nil, err
		}
		if r == nil {
			return c.fetch(ctx, v)
		}
		if p, err = pullMapped(r); err == nil && p.id >= v.floor.Load() {
			v.raise(p.id)
			return p, nil
		}
		switch {
		case errors.Is(err, ErrClosed):
			continue // as in ID
		case errors.Is(err, ErrNoVersion) && v.deleted(r):
			return nil, err // nothing was pushed, or the tag was deleted
		case err != nil && !errors.Is(err, ErrNoVersion):
			return nil, err
		case err == nil:
			_ = p.Release()
		}
		// The client has seen a newer version than this machine's officer has.
		if time.Since(began) > behindWait {
			return c.fetch(ctx, v)
		}
		if err := behind.Wait(ctx); err != nil {
			return nil, fmt.Errorf("pull %q: wait for version %d: %w", tag, v.floor.Load(), err)
		}
	}
}

// behindWait is how long Pull waits for this machine's officer before it calls the captain.
const behindWait = 500 * time.Millisecond

func pullMapped(r *store.Reader) (*Parameters, error) {
	p, err := r.Pull()
	if err != nil {
		return nil, err
	}
	return &Parameters{id: p.ID(), version: p.Version, bytes: p.Bytes(), tensors: &tensors{}, release: p.Release}, nil
}

// PullIfNewer pulls a tag's newest parameters if their id is above have. Otherwise it returns nil
// and false, and nothing is transferred.
func (c *Client) PullIfNewer(ctx context.Context, tag string, have uint64) (*Parameters, bool, error) {
	id, err := c.ID(ctx, tag)
	if err != nil || id <= have && (id > 0 || have > 0) {
		return nil, false, err
	}
	p, err := c.Pull(ctx, tag)
	if err != nil {
		return nil, false, err
	}
	if p.id <= have {
		return nil, false, p.Release()
	}
	return p, true, nil
}

// fetched is a version that was fetched from the captain, in memory of this process.
type fetched struct {
	version *psv1.Version
	bytes   []byte
	// holders counts the parameters that were returned and not released.
	holders atomic.Int64
}

// buffer returns memory for the next version: that of this one if it is not in use. A size is not
// trusted before the bytes arrive: at first there is memory for firstBuffer.
func (f *fetched) buffer(size uint64) []byte {
	if f != nil && f.holders.Load() == 0 && uint64(cap(f.bytes)) >= size && uint64(cap(f.bytes))/2 <= size {
		return f.bytes[:0]
	}
	return make([]byte, 0, min(size, firstBuffer))
}

const firstBuffer = 64 << 20

func (v *view) setFetched(f *fetched) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fetched = f
}

func (v *view) lastFetched() *fetched {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.fetched
}

// fetch pulls from the captain. A version that the client has is not transferred again.
func (c *Client) fetch(ctx context.Context, v *view) (*Parameters, error) {
	v.fetching.Lock()
	defer v.fetching.Unlock()
	have := v.lastFetched()
	f, err := c.fetchVersion(ctx, v.tag, have)
	if err != nil {
		v.setFetched(nil) // its memory may have been overwritten
		return nil, c.noVersion(ctx, v.tag, err)
	}
	v.raise(f.version.GetId())
	v.setFetched(f)
	return f.parameters(), nil
}

func (f *fetched) parameters() *Parameters {
	f.holders.Add(1)
	return fetchedParameters(f.version, f.bytes, &tensors{}, func() error { f.holders.Add(-1); return nil })
}

// fetchVersion fetches the newest version of a tag, or returns the one that the caller has.
func (c *Client) fetchVersion(ctx context.Context, tag string, have *fetched) (*fetched, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var id uint64
	if have != nil {
		id = have.version.GetId()
	}
	stream, err := c.captain.Fetch(ctx, &psv1.FetchRequest{Tag: tag, Have: id, Process: process})
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	return receiveVersion(tag, stream.Receive, have)
}

// receiveVersion receives a version, or returns the one that the caller has if that is the newest.
func receiveVersion(tag string, receive func() (*psv1.FetchResponse, error), have *fetched) (*fetched, error) {
	f := &fetched{}
	for {
		res, err := receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if version := res.GetVersion(); version != nil {
			if have != nil && version.GetId() == have.version.GetId() {
				return have, nil
			}
			f.version, f.bytes = version, have.buffer(version.GetSize())
			continue
		}
		if chunk := res.GetChunk(); chunk != nil {
			if err := f.append(chunk); err != nil {
				return nil, err
			}
		}
	}
	if f.version == nil || uint64(len(f.bytes)) != f.version.GetSize() {
		return nil, connect.Errorf(connect.CodeDataLoss, "pull %q: only %d of %d bytes arrived", tag, len(f.bytes), f.version.GetSize())
	}
	return f, nil
}

// append appends a chunk after those that have arrived.
func (f *fetched) append(chunk *psv1.Chunk) error {
	data, size := chunk.GetData(), f.version.GetSize()
	if uint64(chunk.GetIndex())*store.ChunkSize != uint64(len(f.bytes)) || uint64(len(f.bytes)+len(data)) > size ||
		store.Checksum(data) != chunk.GetChecksum() {
		return connect.Errorf(connect.CodeDataLoss, "pull %q: chunk %d of version %d is damaged or out of order",
			f.version.GetTag(), chunk.GetIndex(), f.version.GetId())
	}
	if len(f.bytes)+len(data) > cap(f.bytes) {
		grown := make([]byte, len(f.bytes), min(size, max(2*uint64(cap(f.bytes)), uint64(len(f.bytes)+len(data)))))
		copy(grown, f.bytes)
		f.bytes = grown
	}
	f.bytes = append(f.bytes, data...)
	return nil
}
