package runtime

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
)

// webMemory bounds what a host holds of messages over HTTP; see [bodies].
type webMemory struct {
	maxMessage int
	// requests are what comes, inflated what that is decompressed to, and responses what goes.
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

// countedCall is what one call over HTTP holds.
type countedCall struct {
	request, inflated, response heldBody
}

type countedCallKey struct{}

// counted is the request with a body that counts. The caller calls done when the request has been
// served. When done has returned, the ResponseWriter is not used any more.
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
		// The message is a part of the URL. It is all there, and nothing says how large it becomes.
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
		r.Body = body
	}
	return r, done, nil
}

// maxInflation is how much larger gzip can make data.
const maxInflation = 1032

// countedBody is a request's body. What is read of it counts until the message has been handed on.
type countedBody struct {
	io.ReadCloser

	call       *countedCall
	maxMessage int
	// isEnveloped says that each message has its length before it, as gRPC's and the streams of
	// Connect. Else the body is one message.
	isEnveloped bool
	// isCompressed says that the message, the present one if there are several, is.
	isCompressed bool

	// Of enveloped messages: the present head, and what is still to come of the present message.
	head    [5]byte
	headLen int
	payload int
	// Of others: the size of the whole, or -1.
	size int64

	read int
	// reserved is how much of the message there is room for.
	reserved int
	// tail is the last four bytes that were read.
	tail [4]byte
}

// Read implements io.Reader.
func (b *countedBody) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return b.ReadCloser.Read(p) //nolint:wrapcheck // as a body
	}
	if b.isEnveloped {
		return b.readEnveloped(p)
	}
	switch {
	case b.size > int64(b.maxMessage):
		return 0, connect.Errorf(connect.CodeResourceExhausted, "message size %d is larger than configured max %d", b.size, b.maxMessage)
	case b.size >= 0 && b.reserved == 0:
		b.reserved = int(b.size)
		if err := b.call.request.reserve(b.reserved, false); err != nil {
			return 0, err
		}
	case b.size < 0 && b.read == b.reserved:
		b.reserved = min(b.read+min(max(b.read, firstStep), largestStep), b.maxMessage+bodyRoom)
		if b.read == b.reserved {
			return 0, connect.Errorf(connect.CodeResourceExhausted, "message is larger than configured max %d", b.maxMessage)
		}
		if err := b.call.request.reserve(b.reserved, true); err != nil {
			return 0, err
		}
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

// How much room a message of unknown size asks for beyond what has come: as much again, within
// these bounds in bytes.
const (
	firstStep   = 4 << 10
	largestStep = 256 << 10
)

// readEnveloped reads of the present head or message, not beyond its end.
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
		return n, err //nolint:wrapcheck // as a body
	}
	// What is too large is refused, and not kept.
	isKept := b.payload+b.read <= b.maxMessage
	if isKept && b.reserved == 0 {
		b.reserved = b.payload
		if err := b.call.request.reserve(b.reserved, false); err != nil {
			return 0, err
		}
	}
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
	return n, err //nolint:wrapcheck // as a body
}

// complete says that all of a message has come. What it is decompressed to counts from then on.
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

// countedStream ends the counting of a request's messages when they have been received, and counts
// responses while they are sent.
type countedStream struct {
	connect.ServerStream

	call *countedCall
}

// countStream counts a call's messages, if it came over HTTP.
func countStream(ctx context.Context, stream connect.ServerStream) connect.ServerStream {
	call, ok := ctx.Value(countedCallKey{}).(*countedCall)
	if !ok {
		return stream
	}
	return &countedStream{ServerStream: stream, call: call}
}

// Receive implements connect.ServerStream.
func (s *countedStream) Receive(msg any) error {
	err := s.ServerStream.Receive(msg)
	s.call.request.release()
	s.call.inflated.release()
	return err //nolint:wrapcheck // as a stream
}

// Send implements connect.ServerStream.
func (s *countedStream) Send(msg any) error {
	m, ok := msg.(proto.Message)
	if !ok {
		return s.ServerStream.Send(msg) //nolint:wrapcheck // as a stream
	}
	response := &s.call.response
	// A client may take more than the host: what is above the host's largest message is the
	// method's own.
	size := min(proto.Size(m), response.of.most/bodyFactor)
	if err := response.reserve(size, false); err != nil {
		return err
	}
	defer response.release()
	err := s.ServerStream.Send(msg)
	if err != nil && response.isSlow() {
		return response.tooSlow()
	}
	return err //nolint:wrapcheck // as a stream
}

// boundedCompressor decompresses no more than the data says itself that it becomes, which has been
// counted: it may be a thousand times what has come.
type boundedCompressor struct{ connect.Compressor }

// Decompress implements connect.Compressor.
func (c boundedCompressor) Decompress(src io.Reader) (io.ReadCloser, error) {
	most := int64(-1)
	if data, ok := src.(*bytes.Buffer); ok && data.Len() >= 4 {
		most = int64(binary.LittleEndian.Uint32(data.Bytes()[data.Len()-4:]))
	}
	r, err := c.Compressor.Decompress(src)
	if err != nil || most < 0 {
		return r, err //nolint:wrapcheck // connect says what was being done
	}
	return &boundedReader{ReadCloser: r, left: most}, nil
}

// boundedReader fails where there is more to read than left.
type boundedReader struct {
	io.ReadCloser

	left int64
}

// Read implements io.Reader.
func (r *boundedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if r.left -= int64(n); r.left < 0 {
		return 0, connect.Errorf(connect.CodeInvalidArgument, "the compressed message is larger than its end says: it must be one gzip stream")
	}
	return n, err //nolint:wrapcheck // connect compares it with io.EOF
}
