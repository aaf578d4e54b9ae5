package runtime

import (
	"context"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/runtime/tunnel"
)

// Metadata is what travels along with a message: pairs of a key and a value, in order. Keys are
// case-insensitive and stored in lower case. A Metadata is immutable; the zero value is empty.
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

// contextMetadata is the context value of [WithMetadata].
type contextMetadata struct {
	metadata Metadata
	// err is the reason why a call cannot carry it.
	err error
}

// WithMetadata returns a context whose calls carry one more pair. The called node reads it with
// [CallFrom]. It is not propagated: calls that the node makes in turn carry only their own.
//
// What can be carried is the same for every way of a call. Keys consist of letters, digits, `-`,
// `_` and `.`. The value of a key that ends in `-bin` is arbitrary bytes; other values are
// printable ASCII without leading or trailing spaces. Keys that begin with `raylink-`, and those
// that HTTP, connect and gRPC reserve (`authorization` and `user-agent` among them), belong to the
// transports. A call's metadata is at most 32 KiB, counting 32 bytes for each pair in addition to
// its key and value. A call with anything else fails before it begins: with InvalidArgument, or
// with ResourceExhausted if it is too large.
func WithMetadata(ctx context.Context, key, value string) context.Context {
	own, _ := ctx.Value(metadataKey{}).(*contextMetadata)
	next := &contextMetadata{}
	if own != nil {
		*next = *own
	}
	next.metadata = next.metadata.With(key, value)
	if next.err == nil {
		next.err = tunnel.ValidateField(strings.ToLower(key), value)
	}
	return context.WithValue(ctx, metadataKey{}, next)
}

// outgoing is what a call carries along with its request, and the place for what comes back along
// with the response.
type outgoing struct {
	metadata Metadata
	// fromContext is the part of metadata that [WithMetadata] has set.
	fromContext Metadata
	// info is the caller's, from [connect.NewClientContext]; nil if there is none.
	info *connect.CallInfo
}

// outgoingOf returns what a call made with ctx carries, or the error that refuses it. It resets the
// caller's [connect.CallInfo], which an earlier call with the same context may have filled.
func outgoingOf(ctx context.Context, m *Method) (*outgoing, error) {
	own, _ := ctx.Value(metadataKey{}).(*contextMetadata)
	info, _ := connect.CallInfoForClientContext(ctx)
	if own == nil && info == nil {
		return &noMetadata, nil
	}
	return newOutgoing(own, info, m)
}

// nothing is what most calls carry along with their request.
var noMetadata outgoing //nolint:gochecknoglobals // empty and never modified

func newOutgoing(own *contextMetadata, info *connect.CallInfo, m *Method) (*outgoing, error) {
	out := &outgoing{info: info}
	if own != nil {
		out.metadata, out.fromContext = own.metadata, own.metadata
	}
	if info != nil {
		resetInfo(info, m)
		more, err := tunnel.HeaderFrom(info.RequestHeader())
		if err != nil {
			return out, err
		}
		out.metadata.header = append(slices.Clip(out.metadata.header), more...)
	}
	if own == nil {
		return out, nil // HeaderFrom has validated the header
	}
	if own.err != nil {
		return out, own.err
	}
	return out, out.metadata.header.ValidateSize()
}

// infos guards what calls write into their callers' [connect.CallInfo]s: several calls may use one
// context concurrently.
var infos sync.Mutex //nolint:gochecknoglobals // a CallInfo has no place for a lock of its own

// resetInfo clears what a transport has set for an earlier call, as connect's own clients do.
func resetInfo(info *connect.CallInfo, m *Method) {
	infos.Lock()
	defer infos.Unlock()
	*info.ResponseHeader(), *info.ResponseTrailer() = connect.Header{}, connect.Header{}
	info.Spec = m.spec
	info.PeerAddr, info.Protocol, info.Codec, info.RequestEncoding, info.ResponseEncoding = "", "", "", "", ""
	info.TransportInfo = nil
	info.SendStats, info.ReceiveStats = connect.MessageStats{}, connect.MessageStats{}
}

// deliver stores the response's header and trailer for a caller that asked for them with
// [connect.NewClientContext], replacing those of an earlier call. info is nil for other callers.
func deliver(info *connect.CallInfo, header, trailer Metadata) {
	if info != nil {
		deliverHeader(info, header)
		deliverTrailer(info, trailer)
	}
}

// deliverHeader is deliver for a stream's header, which arrives first.
func deliverHeader(info *connect.CallInfo, header Metadata) {
	if info != nil {
		infos.Lock()
		defer infos.Unlock()
		replaceHeader(info.ResponseHeader(), header)
	}
}

// deliverTrailer is deliver for a stream's trailer, which arrives at its end.
func deliverTrailer(info *connect.CallInfo, trailer Metadata) {
	if info != nil {
		infos.Lock()
		defer infos.Unlock()
		replaceHeader(info.ResponseTrailer(), trailer)
	}
}

func replaceHeader(h *connect.Header, by Metadata) {
	*h = connect.Header{}
	by.addTo(h)
}

// addTo copies the metadata into connect's headers.
func (m Metadata) addTo(h *connect.Header) { m.header.CopyTo(h) }

// withoutReserved is the part of a call's metadata that a node's code sees: without the keys that
// belong to the transports, such as the credentials with which a caller authenticates to the
// listener.
func (m Metadata) withoutReserved() Metadata {
	reserved := func(f tunnel.Field) bool { return tunnel.Reserved(f.Key) }
	if !slices.ContainsFunc(m.header, reserved) {
		return m
	}
	return Metadata{header: slices.DeleteFunc(slices.Clone(m.header), reserved)}
}

// outcome is the result of a call that ended with err, nil for success: the response's metadata and
// the error, in a form that every way can carry. Metadata that cannot be sent is left out, and
// fails the call unless it has failed already: the first error is kept.
func (n *Node) outcome(cc *callContext, err error) (header, trailer Metadata, _ error) {
	if e, ok := err.(*connect.Error); ok && e != nil { //nolint:errorlint // an error for the caller is of exactly this type
		err = tunnel.NormalizeError(e)
	}
	header, trailer = cc.call.responseMetadata()
	if header.Len()+trailer.Len() == 0 {
		return header, trailer, err
	}
	wrong := checkReply(header, trailer)
	if wrong == nil {
		return header, trailer, err
	}
	name := cc.call.method.fullName()
	n.logger().Error("a method set metadata that can't be sent", slog.String("node", n.path), slog.String("method", name),
		slog.String("reason", connecterr.Text(wrong)))
	if err == nil {
		err = connect.Errorf(connect.CodeInternal, "the response of %s in %s: %s", n.path, name, connecterr.Text(wrong))
	}
	return Metadata{}, Metadata{}, err
}

// checkReply validates a response's metadata; header and trailer share one size limit.
func checkReply(header, trailer Metadata) error {
	for _, md := range []Metadata{header, trailer} {
		if err := md.header.Validate(); err != nil {
			return err
		}
	}
	return slices.Concat(header.header, trailer.header).ValidateSize()
}
