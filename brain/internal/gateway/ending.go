package gateway

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"connectrpc.com/connect/v2"
)

// protocol is what of a caller's protocol the gateway has to know in order to end a response in its
// place.
type protocol int

const (
	other protocol = iota
	grpc
	grpcWeb
	connectStream
)

func protocolOf(contentType string) protocol {
	switch {
	case contentType == "application/grpc" || strings.HasPrefix(contentType, "application/grpc+"):
		return grpc
	case contentType == "application/grpc-web" || strings.HasPrefix(contentType, "application/grpc-web+"):
		return grpcWeb
	case strings.HasPrefix(contentType, "application/connect+"):
		return connectStream
	}
	return other
}

// watchEnding sees to it that a response which breaks off ends with an error that says why.
func (g *Gateway) watchEnding(res *http.Response) error {
	kind := protocolOf(res.Header.Get("Content-Type"))
	if kind == other {
		return nil // a length or a chunk tells the caller that something is missing
	}
	res.Body = &endedBody{ReadCloser: res.Body, gateway: g, res: res, kind: kind}
	return nil
}

// endedBody is a response's body. All three protocols send messages in envelopes: a byte of flags,
// four bytes of length, and as much of payload. The body is passed on as it is; counting envelopes
// tells whether there is room for an ending.
type endedBody struct {
	io.ReadCloser

	gateway *Gateway
	res     *http.Response
	kind    protocol

	head    [5]byte // what is known of the present envelope's head
	headLen int
	payload uint64 // what is still to come of the present envelope's payload
	tail    []byte // what the gateway has to say in the host's place
	ended   error  // what comes after the tail
}

// Read implements io.Reader.
func (b *endedBody) Read(p []byte) (int, error) {
	if b.ended != nil {
		n := copy(p, b.tail)
		b.tail = b.tail[n:]
		if len(b.tail) > 0 {
			return n, nil
		}
		return n, b.ended
	}
	n, err := b.ReadCloser.Read(p)
	b.count(p[:n])
	if err == nil || errors.Is(err, io.EOF) {
		return n, err //nolint:wrapcheck // the proxy compares with io.EOF
	}
	b.ended = b.end(err)
	return n, nil
}

// count follows the envelopes.
func (b *endedBody) count(p []byte) {
	for len(p) > 0 {
		if b.payload > 0 {
			n := min(b.payload, uint64(len(p)))
			b.payload -= n
			p = p[n:]
			continue
		}
		n := copy(b.head[b.headLen:], p)
		b.headLen += n
		p = p[n:]
		if b.headLen == len(b.head) {
			b.payload = uint64(binary.BigEndian.Uint32(b.head[1:]))
			b.headLen = 0
		}
	}
}

// end prepares an ending of the gateway's own, and gives the error that comes after it: io.EOF
// where there is nothing more to say, or what broke the body off where there was no room.
func (b *endedBody) end(broken error) error {
	if b.payload > 0 || b.headLen > 0 {
		return broken
	}
	ctx := b.res.Request.Context()
	err := b.gateway.explain(ctx, broken)
	if ctx.Err() != nil {
		return broken // nobody is listening
	}
	code, text := connect.CodeOf(err), messageOf(err)
	switch b.kind {
	case grpc:
		b.res.Trailer = http.Header{"Grpc-Status": {strconv.Itoa(int(code))}, "Grpc-Message": {percentEncode(text)}}
	case grpcWeb:
		trailers := fmt.Sprintf("grpc-status: %d\r\ngrpc-message: %s\r\n", code, percentEncode(text))
		b.tail = envelope(0x80, []byte(trailers))
	case connectStream:
		type wireError struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		}
		end, marshalErr := json.Marshal(struct {
			Error wireError `json:"error"`
		}{wireError{Code: code.String(), Message: text}})
		if marshalErr != nil {
			return broken
		}
		b.tail = envelope(0x02, end)
	case other:
		return broken
	}
	return io.EOF
}

func envelope(flags byte, payload []byte) []byte {
	head := binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(payload))) //nolint:gosec // an error's text
	return append(head, payload...)
}

func messageOf(err error) string {
	if authored, ok := errors.AsType[*connect.Error](err); ok {
		return authored.Message()
	}
	return err.Error()
}

// percentEncode writes a text as gRPC's `grpc-message` wants it: like a URL's path, spaces kept.
func percentEncode(text string) string {
	return strings.ReplaceAll(url.PathEscape(text), "%20", " ")
}
