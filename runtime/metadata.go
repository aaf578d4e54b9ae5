package runtime

import (
	"context"
	"iter"
	"slices"
	"strings"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/runtime/tunnel"
)

// Metadata is what travels beside a message: pairs of a key and a value, in order. Keys are compared without regard to case and
// written in lower case. A Metadata is immutable; the zero value is empty.
type Metadata struct{ header tunnel.Header }

// With returns a copy with one more pair.
func (m Metadata) With(key, value string) Metadata {
	out := Metadata{header: slices.Clip(m.header)}
	out.header.Add(key, value)
	return out
}

// Get returns the first value of key, or "".
func (m Metadata) Get(key string) string { return m.header.Get(key) }

// Values returns all values of key, in order.
func (m Metadata) Values(key string) []string { return m.header.Values(key) }

// Len is the number of pairs.
func (m Metadata) Len() int { return len(m.header) }

// All yields the pairs in order.
func (m Metadata) All() iter.Seq2[string, string] { return m.header.All() }

type metadataKey struct{}

// WithMetadata makes the calls that are made with the returned context carry one more pair. A node reads it from [CallFrom]; it does not
// go further by itself: the calls that the node makes carry their own.
//
// Keys that begin with `raylink-`, and those that HTTP and gRPC reserve, are the transport's. A key that ends in `-bin` takes any bytes;
// other values must be printable ASCII.
func WithMetadata(ctx context.Context, key, value string) context.Context {
	return context.WithValue(ctx, metadataKey{}, outgoing(ctx).With(key, value))
}

// outgoing is what the calls made with ctx carry: what [WithMetadata] said, and the request headers of connect's own
// [connect.NewClientContext].
func outgoing(ctx context.Context) Metadata {
	md, _ := ctx.Value(metadataKey{}).(Metadata)
	return md
}

func outgoingAll(ctx context.Context) Metadata {
	md := outgoing(ctx)
	if info, ok := connect.CallInfoForClientContext(ctx); ok {
		for k, v := range metadataOf(info.RequestHeader()).All() {
			md = md.With(k, v)
		}
	}
	return md
}

// metadataOf copies connect's headers.
func metadataOf(h *connect.Header) Metadata {
	var md Metadata
	for key, values := range h.All() {
		for _, v := range values {
			md.header.Add(key, v)
		}
	}
	return md
}

// isCredential says whether a key, in lower case, is a secret between a caller and the listener that it
// reaches. No node's code is given one, whatever way a call comes: it could use it in the caller's name.
// Browsers send the cookies of everything else that the same machine serves, whatever its port.
func isCredential(key string) bool {
	switch key {
	case "authorization", "proxy-authorization", "cookie", "cookie2":
		return true
	}
	return false
}

// withoutCredentials returns the metadata that a node's code may see.
func (m Metadata) withoutCredentials() Metadata {
	credential := func(f tunnel.Field) bool { return isCredential(strings.ToLower(f.Key)) }
	if !slices.ContainsFunc(m.header, credential) {
		return m
	}
	return Metadata{header: slices.DeleteFunc(slices.Clone(m.header), credential)}
}

// addTo copies the metadata to connect's headers.
func (m Metadata) addTo(h *connect.Header) {
	for k, v := range m.All() {
		h.Add(k, v)
	}
}

// deliver tells a caller who asked for them, by [connect.NewClientContext], the response's headers and trailers.
func deliver(ctx context.Context, header, trailer Metadata) {
	if header.Len()+trailer.Len() == 0 {
		return
	}
	info, ok := connect.CallInfoForClientContext(ctx)
	if !ok {
		return
	}
	header.addTo(info.ResponseHeader())
	trailer.addTo(info.ResponseTrailer())
}
