package runtime

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
)

// bodies bounds what a host holds of the messages of HTTP requests while they come, or of responses while they go: of all its
// connections together, before a mailbox has counted them and after it has ceased to. A message that finds no room waits
// for a moment, and is refused then.
//
// A message may take no more than twice what it leaves for others. So one that comes slowly, or never ends, can't keep small ones out.
type bodies struct {
	what  string
	limit int

	mu   sync.Mutex // guards what follows
	held int
	// released is closed when there is more room; nil while nothing waits for that.
	released chan struct{}
}

const (
	// bodyFactor is what a message takes while it is read or written, in its own size: buffers grow by doubling.
	bodyFactor = 2
	// bodyPatience is how long a message waits for room.
	bodyPatience = 5 * time.Second
	// bodyRoom is for what is around a message.
	bodyRoom = 64 << 10
	// bodyFloor is what there is for messages at least: where the largest are small, many come at once.
	bodyFloor = 4 << 20
)

// newBodies makes a bound which one of the largest messages keeps to when it is alone.
func newBodies(what string, maxMessage int) *bodies {
	return &bodies{what: what, limit: max(bodyFloor, 2*bodyFactor*(maxMessage+bodyRoom))}
}

// heldBody is what one message holds.
type heldBody struct {
	of  *bodies
	ctx context.Context //nolint:containedctx // as long as its call

	// What follows is guarded by the lock of bodies: what is held, and that the call is over.
	held int
	over bool
}

// take counts n more bytes of a message.
func (h *heldBody) take(n int) error {
	if !guarded {
		return nil
	}
	n *= bodyFactor
	b := h.of
	var timeout <-chan time.Time
	for {
		b.mu.Lock()
		if h.over {
			b.mu.Unlock()
			return http.ErrBodyReadAfterClose
		}
		if free := b.limit - b.held - n; h.held+n <= 2*free || free >= 0 && b.held == h.held {
			h.held += n
			b.held += n
			b.mu.Unlock()
			return nil
		}
		held, own := b.held, h.held
		if b.released == nil {
			b.released = make(chan struct{})
		}
		released := b.released
		b.mu.Unlock()
		if timeout == nil {
			timer := time.NewTimer(bodyPatience)
			defer timer.Stop()
			timeout = timer.C
		}
		select {
		case <-released:
		case <-h.ctx.Done():
			return causeOf(h.ctx)
		case <-timeout:
			return connect.Errorf(connect.CodeResourceExhausted, "the host holds %d bytes of %s over HTTP, of which it takes %d; one with %d bytes found no room within %v: "+
				"send fewer or smaller messages at once", held, b.what, b.limit, own+n, bodyPatience)
		}
	}
}

// release gives back all that was taken.
func (h *heldBody) release() {
	h.of.mu.Lock()
	defer h.of.mu.Unlock()
	h.free()
}

// end is release for a call that is over.
func (h *heldBody) end() {
	h.of.mu.Lock()
	defer h.of.mu.Unlock()
	h.over = true
	h.free()
}

// free is release. Callers hold the lock.
func (h *heldBody) free() {
	b := h.of
	if h.held == 0 {
		return
	}
	b.held -= h.held
	h.held = 0
	if b.released != nil {
		close(b.released)
		b.released = nil
	}
}

// countedBody is a request's body: what is read of it counts until the message has been handed on.
type countedBody struct {
	io.ReadCloser

	held *heldBody
	// declared is what is still to come by the request's own word. It is taken at once, so that requests that have a
	// part of their message each don't wait for each other.
	declared int64
	begun    bool
}

// Read implements io.Reader.
func (c *countedBody) Read(p []byte) (int, error) {
	if !c.begun {
		c.begun = true
		if err := c.held.take(int(c.declared)); err != nil {
			return 0, err
		}
	}
	n, err := c.ReadCloser.Read(p)
	if known := min(int64(n), c.declared); known > 0 {
		c.declared -= known
		return n, err //nolint:wrapcheck // as a body
	}
	if n > 0 {
		if err := c.held.take(n); err != nil {
			return 0, err
		}
	}
	return n, err //nolint:wrapcheck // as a body
}

type countedBodyKey struct{}

// counted is the request with a body that counts. The caller calls done when the request has been served.
func (b *bodies) counted(r *http.Request, maxMessage int) (_ *http.Request, done func()) {
	held := &heldBody{of: b, ctx: r.Context()}
	r = r.WithContext(context.WithValue(r.Context(), countedBodyKey{}, held))
	if r.Body != nil && r.Body != http.NoBody {
		declared := r.ContentLength
		if declared > int64(maxMessage+bodyRoom) {
			declared = 0 // it will be refused when that much has come
		}
		r.Body = &countedBody{ReadCloser: r.Body, held: held, declared: max(declared, 0)}
	}
	return r, held.end
}

// countedStream ends the counting of a request's messages when they have been received, and counts responses while they are sent.
type countedStream struct {
	connect.ServerStream

	received *heldBody
	sending  heldBody
}

// countStream counts a call's messages, if it came over HTTP.
func countStream(ctx context.Context, answers *bodies, stream connect.ServerStream) connect.ServerStream {
	received, ok := ctx.Value(countedBodyKey{}).(*heldBody)
	if !ok {
		return stream
	}
	return &countedStream{ServerStream: stream, received: received, sending: heldBody{of: answers, ctx: ctx}}
}

// Receive implements connect.ServerStream.
func (s *countedStream) Receive(msg any) error {
	err := s.ServerStream.Receive(msg)
	s.received.release()
	return err //nolint:wrapcheck // as a stream
}

// Send implements connect.ServerStream.
func (s *countedStream) Send(msg any) error {
	if m, ok := msg.(proto.Message); ok {
		if err := s.sending.take(proto.Size(m)); err != nil {
			return err
		}
		defer s.sending.release()
	}
	return s.ServerStream.Send(msg) //nolint:wrapcheck // as a stream
}

// countedCompressor counts what requests are decompressed to, which may be a thousand times what has come.
type countedCompressor struct {
	connect.Compressor

	of *bodies
}

// Decompress implements connect.Compressor.
func (c countedCompressor) Decompress(src io.Reader) (io.ReadCloser, error) {
	r, err := c.Compressor.Decompress(src)
	if err != nil {
		return nil, err //nolint:wrapcheck // connect says what was being done
	}
	return &countedReader{ReadCloser: r, held: heldBody{of: c.of, ctx: context.Background()}}, nil
}

type countedReader struct {
	io.ReadCloser

	held heldBody
}

// Read implements io.Reader.
func (d *countedReader) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if n > 0 {
		if err := d.held.take(n); err != nil {
			return 0, err
		}
	}
	return n, err //nolint:wrapcheck // connect compares it with io.EOF
}

// Close implements io.Closer.
func (d *countedReader) Close() error {
	d.held.release()
	return d.ReadCloser.Close() //nolint:wrapcheck // as a reader
}
