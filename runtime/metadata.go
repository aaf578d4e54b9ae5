package runtime

import (
	"context"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/runtime/tunnel"
)

// Metadata is what travels beside a message: pairs of a key and a value, in order. Keys are
// compared without regard to case and written in lower case. A Metadata is immutable; the zero
// value is empty.
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

// saidMetadata is what [WithMetadata] has put in a context.
type saidMetadata struct {
	metadata Metadata
	// err is why a call can't carry it.
	err error
}

// WithMetadata makes the calls that are made with the returned context carry one more pair. A node
// reads it from [CallFrom]; it does not go further by itself: the calls that the node makes carry
// their own.
//
// What can be carried is the same whatever way a call goes. Keys consist of letters, digits, `-`,
// `_` and `.`. The value of a key that ends in `-bin` is any octets; other values are printable
// ASCII without spaces at the ends. Keys that begin with `raylink-`, and those that HTTP, connect
// and gRPC reserve (`authorization` and `user-agent` among them), are the transport's. A call's
// metadata is at most 32 KiB, counting 32 bytes for each pair beside its key and value. A call that
// is made with anything else is refused before it begins: with InvalidArgument, or
// ResourceExhausted for too much.
func WithMetadata(ctx context.Context, key, value string) context.Context {
	said, _ := ctx.Value(metadataKey{}).(*saidMetadata)
	next := &saidMetadata{}
	if said != nil {
		*next = *said
	}
	next.metadata = next.metadata.With(key, value)
	if next.err == nil {
		next.err = tunnel.ValidateField(strings.ToLower(key), value)
	}
	return context.WithValue(ctx, metadataKey{}, next)
}

// outgoing is what a call carries beside its request, and where its caller looks for what comes
// back beside the response.
type outgoing struct {
	metadata Metadata
	// said is the part of metadata that [WithMetadata] has put there.
	said Metadata
	// info is the caller's own, by [connect.NewClientContext]; nil for none.
	info *connect.CallInfo
}

// outgoingOf returns what a call carries that is made with ctx, or why that can't be. What an
// earlier call with the same context has left in the caller's [connect.CallInfo] is forgotten.
func outgoingOf(ctx context.Context, m *Method) (*outgoing, error) {
	said, _ := ctx.Value(metadataKey{}).(*saidMetadata)
	info, _ := connect.CallInfoForClientContext(ctx)
	if said == nil && info == nil {
		return &nothing, nil
	}
	return outgoingWith(said, info, m)
}

// nothing is what most calls carry beside their request.
var nothing outgoing //nolint:gochecknoglobals // it is empty, and stays so

func outgoingWith(said *saidMetadata, info *connect.CallInfo, m *Method) (*outgoing, error) {
	out := &outgoing{info: info}
	if said != nil {
		out.metadata, out.said = said.metadata, said.metadata
	}
	if info != nil {
		resetInfo(info, m)
		more, err := tunnel.HeaderFrom(info.RequestHeader())
		if err != nil {
			return out, err
		}
		out.metadata.header = append(slices.Clip(out.metadata.header), more...)
	}
	if said == nil {
		return out, nil // HeaderFrom has looked at the rest
	}
	if said.err != nil {
		return out, said.err
	}
	return out, out.metadata.header.ValidateSize()
}

// infos guards what calls write into their callers' [connect.CallInfo]s: a context may be used by
// several calls at once.
var infos sync.Mutex //nolint:gochecknoglobals // nothing that a CallInfo belongs to is known

// resetInfo forgets what a transport has set for an earlier call, as connect's own clients do.
func resetInfo(info *connect.CallInfo, m *Method) {
	infos.Lock()
	defer infos.Unlock()
	*info.ResponseHeader(), *info.ResponseTrailer() = connect.Header{}, connect.Header{}
	info.Spec = m.spec
	info.PeerAddr, info.Protocol, info.Codec, info.RequestEncoding, info.ResponseEncoding = "", "", "", "", ""
	info.TransportInfo = nil
	info.SendStats, info.ReceiveStats = connect.MessageStats{}, connect.MessageStats{}
}

// deliver shows a caller that asked for them, by [connect.NewClientContext], the response's header
// and trailer, in place of those of any call before. info is nil for one that did not.
func deliver(info *connect.CallInfo, header, trailer Metadata) {
	if info != nil {
		deliverHeader(info, header)
		deliverTrailer(info, trailer)
	}
}

// deliverHeader is deliver for the header of a stream, which comes first.
func deliverHeader(info *connect.CallInfo, header Metadata) {
	if info != nil {
		infos.Lock()
		defer infos.Unlock()
		replaceHeader(info.ResponseHeader(), header)
	}
}

// deliverTrailer is deliver for the trailer of a stream, which comes with its end.
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

// addTo copies the metadata to connect's headers.
func (m Metadata) addTo(h *connect.Header) { m.header.CopyTo(h) }

// withoutReserved is what a node's code sees of the metadata that came with a call: the transports'
// own keys are none of it, not least the credentials between a caller and the listener that it
// reaches.
func (m Metadata) withoutReserved() Metadata {
	reserved := func(f tunnel.Field) bool { return tunnel.Reserved(f.Key) }
	if !slices.ContainsFunc(m.header, reserved) {
		return m
	}
	return Metadata{header: slices.DeleteFunc(slices.Clone(m.header), reserved)}
}

// outcome is what goes back from a call that ended with err, nil for success, as every way can
// carry it: the response's metadata and the error. Metadata that no call can carry is left out; it
// fails the call, unless that has failed already: the reason is worth more.
func (n *Node) outcome(cc *callContext, err error) (header, trailer Metadata, _ error) {
	if e, ok := err.(*connect.Error); ok && e != nil { //nolint:errorlint // an authored error is this very type
		err = tunnel.NormalizeError(e)
	}
	header, trailer = cc.call.sent()
	if header.Len()+trailer.Len() == 0 {
		return header, trailer, err
	}
	wrong := checkReply(header, trailer)
	if wrong == nil {
		return header, trailer, err
	}
	name := cc.call.method.fullName()
	n.logger().Error("a method set metadata that can't be sent", slog.String("node", n.path), slog.String("method", name),
		slog.String("reason", messageOf(wrong)))
	if err == nil {
		err = connect.Errorf(connect.CodeInternal, "the response of %s in %s: %s", n.path, name, messageOf(wrong))
	}
	return Metadata{}, Metadata{}, err
}

// checkReply checks a response's metadata, of which header and trailer share one limit.
func checkReply(header, trailer Metadata) error {
	for _, md := range []Metadata{header, trailer} {
		if err := md.header.Validate(); err != nil {
			return err
		}
	}
	return slices.Concat(header.header, trailer.header).ValidateSize()
}
