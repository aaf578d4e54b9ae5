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

	"github.com/raylink/raylink/internal/connecterr"
)

// protocol is the caller's RPC protocol, as far as the gateway must know it to end a response in
// the host's place.
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

// watchEnding ensures that a response which breaks off ends with an error that gives the reason.
func (g *Gateway) watchEnding(res *http.Response) error {
	kind := protocolOf(res.Header.Get("Content-Type"))
	if kind == other {
		return nil // the caller detects a missing part by the length or the last chunk
	}
	res.Body = &endedBody{ReadCloser: res.Body, gateway: g, res: res, kind: kind}
	return nil
}

// endedBody is a response's body. In all three protocols messages are in envelopes: a byte of
// flags, four bytes of length, and the payload. The body is passed through unchanged; by counting
// envelopes the gateway knows whether an ending can follow.
type endedBody struct {
	io.ReadCloser

	gateway *Gateway
	res     *http.Response
	kind    protocol

	head    [5]byte // the known part of the current envelope's header
	headLen int
	payload uint64 // the rest of the current envelope's payload
	tail    []byte // the ending that the gateway adds
	ended   error  // the error that follows the tail
}

// Read implements [io.Reader].
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
		return n, err //nolint:wrapcheck // the proxy compares it with io.EOF
	}
	b.ended = b.end(err)
	return n, nil
}

// count tracks the envelopes.
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

// end prepares an ending of the gateway's own, and returns the error that follows it: io.EOF, or
// the original error if no ending can follow.
func (b *endedBody) end(broken error) error {
	if b.payload > 0 || b.headLen > 0 {
		return broken
	}
	ctx := b.res.Request.Context()
	err := b.gateway.explain(ctx, broken)
	if ctx.Err() != nil {
		return broken // the caller has gone
	}
	code, text := connect.CodeOf(err), connecterr.Text(err)
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

// percentEncode encodes a text for gRPC's `grpc-message`: like a URL's path, with spaces kept.
func percentEncode(text string) string {
	return strings.ReplaceAll(url.PathEscape(text), "%20", " ")
}
