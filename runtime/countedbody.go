package runtime

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
)

// webMemory bounds the memory that a host uses for messages over HTTP; see [bodies].
type webMemory struct {
	maxMessage int
	// requests are request bodies, inflated their decompressed form, and responses response bodies.
	requests, inflated, responses *bodies
}

func newWebMemory(maxMessage int) *webMemory {
	m := &webMemory{
		maxMessage: maxMessage, requests: newBodies("requests that come", maxMessage),
		inflated: newBodies("requests that are decompressed", maxMessage), responses: newBodies("responses that go", maxMessage),
	}
	m.responses.parked = m.responses.most
	return m
}

// countedCall is the memory of one call over HTTP.
type countedCall struct {
	request, inflated, response heldBody
	body                        *countedBody // nil without one
}

type countedCallKey struct{}

// counted returns the request with a body that counts what is read. The caller must call done when
// the request has been served; after done has returned, the ResponseWriter is no longer used.
func (m *webMemory) counted(w http.ResponseWriter, r *http.Request) (_ *http.Request, done func(), _ error) {
	control, past := http.NewResponseController(w), time.Unix(1, 0)
	c := &countedCall{
		request:  heldBody{of: m.requests, ctx: r.Context(), interrupt: func() { _ = control.SetReadDeadline(past) }},
		inflated: heldBody{of: m.inflated, ctx: r.Context()},
		response: heldBody{of: m.responses, ctx: r.Context(), interrupt: func() { _ = control.SetWriteDeadline(past) }},
	}
	r = r.WithContext(context.WithValue(r.Context(), countedCallKey{}, c))
	done = func() {
		c.request.end()
		c.inflated.end()
		c.response.end()
	}
	if r.Method == http.MethodGet && r.URL.Query().Get("compression") != "" {
		// The message is part of the URL: it is complete, and its decompressed size is unknown.
		if err := c.inflated.reserve(min(m.maxMessage, maxInflation*len(r.URL.RawQuery)), false); err != nil {
			done()
			return nil, nil, err
		}
		c.inflated.complete()
	}
	if r.Body != nil && r.Body != http.NoBody {
		body := &countedBody{ReadCloser: r.Body, call: c, maxMessage: m.maxMessage, size: r.ContentLength}
		kind := r.Header.Get("Content-Type")
		body.isEnveloped = strings.HasPrefix(kind, "application/grpc") || strings.HasPrefix(kind, "application/connect+")
		encoding := r.Header.Get("Content-Encoding")
		body.isCompressed = !body.isEnveloped && encoding != "" && encoding != connect.CompressionNameIdentity
		c.body, r.Body = body, body
	}
	return r, done, nil
}

// maxInflation is the largest factor by which gzip can expand data.
const maxInflation = 1032

// countedBody is a request's body. What is read from it counts until its message has been
// delivered.
type countedBody struct {
	io.ReadCloser

	call       *countedCall
	maxMessage int
	// isEnveloped is set if a length precedes each message, as in gRPC and the streams of Connect.
	// Otherwise the body is one message.
	isEnveloped bool
	// isCompressed is set if the message is compressed; in a stream, the current one.
	isCompressed bool

	// For enveloped messages: the current prefix, and how much of the current message is still to
	// come.
	head    [5]byte
	headLen int
	payload int
	// For others: the size of the body, or -1 if it is unknown.
	size int64

	// ahead is what prefetch has read and Read has not returned yet; aheadErr follows it.
	ahead    []byte
	aheadErr error
	// room is the buffer of ahead, for the next message.
	room []byte

	read int
	// reserved is the memory reserved for the message, in bytes.
	reserved int
	// tail is the last four bytes read.
	tail [4]byte
}

// Read implements [io.Reader].
func (b *countedBody) Read(p []byte) (int, error) {
	switch {
	case len(b.ahead) > 0:
		n := copy(p, b.ahead)
		b.ahead = b.ahead[n:]
		return n, nil
	case b.aheadErr != nil:
		return 0, b.aheadErr
	case len(p) == 0:
		return b.ReadCloser.Read(p) //nolint:wrapcheck // errors of a body are passed through
	}
	b.ahead = nil
	return b.readReserved(p)
}

const (
	// prefetchMost is half of the largest buffer that connect recycles, 8 MiB (its package
	// bufferpool). A message of this size may take a buffer of that size.
	prefetchMost = 4 << 20
	// prefetchKept is the largest buffer that is kept for a stream's next message.
	prefetchKept = 4 << 10
)

// prefetch reads the next message, as far as prefetchMost, before connect takes a buffer for it.
// connect recycles its buffers whatever their size: each message that waits for memory, or arrives
// slowly, would occupy one that a large message has left.
func (b *countedBody) prefetch() {
	if len(b.ahead) > 0 || b.aheadErr != nil {
		return
	}
	got := b.room[:0]
	for b.aheadErr == nil && len(got) < prefetchMost {
		if b.isEnveloped && len(got) >= len(b.head) && (b.payload == 0 || b.isRefused()) {
			break
		}
		if b.aheadErr = b.reserveNext(); b.aheadErr != nil {
			break
		}
		got = slices.Grow(got, b.missing(got))
		var n int
		n, b.aheadErr = b.readReserved(got[len(got):cap(got)])
		got = got[:len(got)+n]
	}
	if b.ahead, b.room = got, nil; cap(got) <= prefetchKept {
		b.room = got
	}
}

// missing is how much room prefetch needs after what it has got: for all that is to come if its
// size is known, else for a part.
func (b *countedBody) missing(got []byte) int {
	switch {
	case b.isEnveloped && b.payload == 0:
		return len(b.head) - b.headLen
	case b.isEnveloped:
		return min(b.payload, prefetchMost)
	case b.size >= 0: // and for one byte, to find the end without growing
		return max(1, min(int(b.size)+1, prefetchMost)-len(got))
	case len(got) < cap(got):
		return 0
	}
	return bytes.MinRead
}

// isRefused reports whether the current message is too large. It is not kept, so needs no memory.
func (b *countedBody) isRefused() bool { return b.payload+b.read > b.maxMessage }

// readReserved reads from the underlying body what memory is reserved for, and reserves it first if
// necessary.
func (b *countedBody) readReserved(p []byte) (int, error) {
	if err := b.reserveNext(); err != nil {
		return 0, err
	}
	if b.isEnveloped {
		return b.readEnveloped(p)
	}
	if b.size < 0 {
		p = p[:min(len(p), b.reserved-b.read)]
	}
	n, err := b.readMore(p)
	if err == io.EOF { //nolint:errorlint // a body's end is never wrapped
		if failed := b.complete(); failed != nil {
			return n, failed
		}
	}
	return n, err
}

// reserveNext reserves the memory that the next bytes need. It may block.
func (b *countedBody) reserveNext() error {
	switch {
	case b.isEnveloped:
		if b.payload == 0 || b.isRefused() || b.reserved > 0 {
			return nil
		}
		b.reserved = b.payload
		return b.call.request.reserve(b.reserved, false)
	case b.size > int64(b.maxMessage):
		return connect.Errorf(connect.CodeResourceExhausted, "message size %d is larger than configured max %d", b.size, b.maxMessage)
	case b.size >= 0 && b.reserved == 0:
		b.reserved = int(b.size)
		return b.call.request.reserve(b.reserved, false)
	case b.size < 0 && b.read == b.reserved:
		b.reserved = min(b.read+min(max(b.read, firstStep), largestStep), b.maxMessage+bodyRoom)
		if b.read == b.reserved {
			return connect.Errorf(connect.CodeResourceExhausted, "message is larger than configured max %d", b.maxMessage)
		}
		return b.call.request.reserve(b.reserved, true)
	}
	return nil
}

// A message of unknown size reserves as much again as has come, within these bounds in bytes.
const (
	firstStep   = 4 << 10
	largestStep = 256 << 10
)

// readEnveloped reads from the current prefix or message, not beyond its end.
func (b *countedBody) readEnveloped(p []byte) (int, error) {
	if b.payload == 0 {
		p = p[:min(len(p), len(b.head)-b.headLen)]
		n, err := b.ReadCloser.Read(p)
		b.headLen += copy(b.head[b.headLen:], p[:n])
		if b.headLen == len(b.head) {
			b.headLen, b.read, b.reserved = 0, 0, 0
			b.payload = int(binary.BigEndian.Uint32(b.head[1:]))
			b.isCompressed = b.head[0]&1 != 0
		}
		return n, err //nolint:wrapcheck // errors of a body are passed through
	}
	isKept := !b.isRefused()
	n, err := b.readMore(p[:min(len(p), b.payload)])
	if b.payload -= n; b.payload == 0 && isKept {
		if failed := b.complete(); failed != nil {
			return n, failed
		}
	}
	return n, err
}

func (b *countedBody) readMore(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.read += n
	if n >= len(b.tail) {
		copy(b.tail[:], p[n-len(b.tail):n])
	} else {
		copy(b.tail[:], b.tail[n:])
		copy(b.tail[len(b.tail)-n:], p[:n])
	}
	if err != nil && err != io.EOF && b.call.request.isSlow() { //nolint:errorlint // a body's end is never wrapped
		err = b.call.request.tooSlow()
	}
	return n, err //nolint:wrapcheck // errors of a body are passed through
}

// complete records that a message has been read completely, and reserves memory for its
// decompressed form.
func (b *countedBody) complete() error {
	b.call.request.complete()
	if !b.isCompressed || b.read < len(b.tail) {
		return nil
	}
	size := binary.LittleEndian.Uint32(b.tail[:])
	if err := b.call.inflated.reserve(min(int(size), b.maxMessage), false); err != nil {
		return err
	}
	b.call.inflated.complete()
	return nil
}

// countedStream releases a request's memory when the message has been received, and counts
// responses while they are sent.
type countedStream struct {
	connect.ServerStream

	call *countedCall
}

// countStream wraps the stream of a call that came over HTTP.
func countStream(ctx context.Context, stream connect.ServerStream) connect.ServerStream {
	call, ok := ctx.Value(countedCallKey{}).(*countedCall)
	if !ok {
		return stream
	}
	return &countedStream{ServerStream: stream, call: call}
}

// Receive implements [connect.ServerStream].
func (s *countedStream) Receive(msg any) error {
	if s.call.body != nil {
		s.call.body.prefetch()
	}
	err := s.ServerStream.Receive(msg)
	s.call.request.release()
	s.call.inflated.release()
	return err //nolint:wrapcheck // errors of a stream are passed through
}

// Send implements [connect.ServerStream].
func (s *countedStream) Send(msg any) error {
	m, ok := msg.(proto.Message)
	if !ok {
		return s.ServerStream.Send(msg) //nolint:wrapcheck // errors of a stream are passed through
	}
	response := &s.call.response
	// A response may be larger than what the host accepts, if the client accepts it. What exceeds
	// the host's limit is not counted: it is the method's own.
	size := min(proto.Size(m), response.of.most/bodyFactor)
	if err := response.reserve(size, false); err != nil {
		return err
	}
	defer response.release()
	err := s.ServerStream.Send(msg)
	if err != nil && response.isSlow() {
		return response.tooSlow()
	}
	return err //nolint:wrapcheck // errors of a stream are passed through
}

// boundedCompressor decompresses no more than the size in the gzip trailer, which has been
// reserved: the data may expand a thousandfold.
type boundedCompressor struct{ connect.Compressor }

// Decompress implements [connect.Compressor].
func (c boundedCompressor) Decompress(src io.Reader) (io.ReadCloser, error) {
	most := int64(-1)
	if data, ok := src.(*bytes.Buffer); ok && data.Len() >= 4 {
		most = int64(binary.LittleEndian.Uint32(data.Bytes()[data.Len()-4:]))
	}
	r, err := c.Compressor.Decompress(src)
	if err != nil || most < 0 {
		return r, err //nolint:wrapcheck // connect adds the operation
	}
	return &boundedReader{ReadCloser: r, left: most}, nil
}

// boundedReader fails when more than left bytes can be read.
type boundedReader struct {
	io.ReadCloser

	left int64
}

// Read implements [io.Reader].
func (r *boundedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if r.left -= int64(n); r.left < 0 {
		return 0, connect.Errorf(connect.CodeInvalidArgument, "the compressed message is larger than its end says: it must be one gzip stream")
	}
	return n, err //nolint:wrapcheck // connect compares it with io.EOF
}
