package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/encoding/protowire"
)

// Preface is the first data that both sides of a tunnel connection send. Its first byte begins no
// HTTP/1 request, HTTP/2 preface or TLS record.
const Preface = "\x8dRAYLINK"

// The protocol versions that this package supports. Version 1 sent the token in the clear and is
// refused.
const (
	MinVersion = 2
	MaxVersion = 2
)

// ProtocolHTTP is the [Hello].Protocol of a connection that carries HTTP after the handshake.
const ProtocolHTTP = "http"

// Hello is the dialler's part of the handshake.
type Hello struct {
	// Host is the id of the host that the dialler expects. Any other host refuses the connection.
	// Empty means any host.
	Host string
	// Client is the id of the dialler's host.
	Client string
	// Tag names a tagged tunnel, an additional one that leads to a single node. It is empty for the
	// connection that two hosts share.
	Tag string
	// Target is the node that a tagged tunnel leads to.
	Target string
	// Build identifies the build of the dialler's executable.
	Build string
	// Protocol is the protocol of the connection after the handshake. Empty means the tunnel's
	// frames, see [DialRaw].
	Protocol string
}

// Welcome is the accepting side's part of the handshake.
type Welcome struct {
	// Host is the id of the accepting host.
	Host string
	// Build identifies the build of its executable.
	Build string
}

// HandshakeReason classifies the failure of a handshake.
type HandshakeReason int

// The reasons why a handshake fails.
const (
	// ReasonLost: the connection ended, or the handshake timed out.
	ReasonLost HandshakeReason = iota + 1
	// ReasonNotAPeer: the other side does not speak the tunnel protocol.
	ReasonNotAPeer
	// ReasonVersion: the two sides support no common protocol version.
	ReasonVersion
	// ReasonWrongHost: the accepting host is not the expected one.
	ReasonWrongHost
	// ReasonRefused: the accepting side did not admit the dialler. Code and Message give the
	// reason.
	ReasonRefused
	// ReasonUnproven: the accepting side did not prove that it knows the token. It has learned
	// nothing about the token.
	ReasonUnproven
)

// HandshakeError is a failed handshake. It unwraps to a [connect.Error] with its code.
type HandshakeError struct {
	Reason HandshakeReason
	// Code is the connect code of calls that fail because of it.
	Code connect.Code
	// Message describes the failure.
	Message string
	// Remote reports that the other side detected the failure.
	Remote bool
	// Answer is, for ReasonNotAPeer, the beginning of what the other side sent, up to 64 bytes. It
	// is empty if the other side began with the preface.
	Answer string
	cause  error
}

// Error returns the code and the message.
func (e *HandshakeError) Error() string {
	return "tunnel handshake: " + e.Code.String() + ": " + e.Message
}

// Unwrap returns the failure as a [connect.Error] that matches [ErrNotRun].
func (e *HandshakeError) Unwrap() error {
	return notRun(connect.NewError(e.Code, "tunnel handshake: "+e.Message).WithCause(e.cause))
}

func handshakeError(reason HandshakeReason, code connect.Code, cause error, format string, args ...any) *HandshakeError {
	return &HandshakeError{Reason: reason, Code: code, Message: fmt.Sprintf(format, args...), cause: cause}
}

// The bodies of handshake frames are protobuf messages; docs/tunnel.md has their schema. Unknown
// fields are skipped, so fields may be added.
const (
	fieldMinVersion = iota + 1
	fieldVersion
	_ // the token in version 1; no longer used
	fieldHost
	fieldClient
	fieldTag
	fieldTarget
	fieldBuild
	fieldMaxMessage
	fieldMaxHeader
	fieldWindow
	fieldStreamWindow
	fieldMaxCalls
	fieldMaxStreams
	fieldMaxNames
	fieldMaxNameBytes
	fieldCode
	fieldMessage
	fieldReason
	fieldLineEnd
	fieldMaxFragment
	fieldNonce
	fieldAuth
	fieldProtocol
	fieldCount // one more than the last field
)

// lineEnd terminates HELLO. A server of a line-based protocol such as HTTP then sees a malformed
// line and answers at once, instead of waiting for more input until a timeout.
const lineEnd = "\r\n\r\n"

// handshakeMessage is the union of the fields of all handshake bodies. Its size is fixed, apart
// from the strings, which are bounded by the frame.
type handshakeMessage struct {
	text    [fieldCount]string
	numbers [fieldCount]uint64
}

func (g *handshakeMessage) setLimits(l limits) {
	for field, value := range l.fields() {
		g.numbers[field] = uint64(*value) //nolint:gosec // limits are positive
	}
	if l.maxFragment == floorMaxFragment {
		g.numbers[fieldMaxFragment] = 0 // a missing field means floorMaxFragment
	}
}

func (l *limits) fields() map[protowire.Number]*int {
	return map[protowire.Number]*int{
		fieldMaxMessage: &l.maxMessage, fieldMaxHeader: &l.maxHeader, fieldWindow: &l.window, fieldStreamWindow: &l.streamWindow,
		fieldMaxCalls: &l.maxCalls, fieldMaxStreams: &l.maxStreams, fieldMaxNames: &l.maxNames, fieldMaxNameBytes: &l.maxNameBytes,
		fieldMaxFragment: &l.maxFragment,
	}
}

// limits returns what the peer is prepared to receive, clamped to what this package ever sends. A
// missing limit counts as 0.
func (g *handshakeMessage) limits() (limits, error) {
	var l limits
	for field, value := range l.fields() {
		*value = int(min(g.numbers[field], ceilingMaxMessage))
	}
	l.maxHeader = min(l.maxHeader, ceilingMaxHeader)
	l.maxFragment = min(max(l.maxFragment, floorMaxFragment), ceilingMaxFragment)
	l.maxCalls = min(l.maxCalls, maxCallID)
	if l.maxHeader < floorMaxHeader || l.streamWindow < floorStreamWindow || l.maxCalls == 0 {
		return l, violation("limits too small to work with: header %d, stream window %d, calls %d", l.maxHeader, l.streamWindow, l.maxCalls)
	}
	return l, nil
}

// append encodes the fields in numerical order, with fieldLineEnd last.
func (g *handshakeMessage) append(b []byte) []byte {
	for field := protowire.Number(fieldMinVersion); field < fieldCount; field++ {
		if field != fieldLineEnd {
			b = g.appendField(b, field)
		}
	}
	return g.appendField(b, fieldLineEnd)
}

func (g *handshakeMessage) appendField(b []byte, field protowire.Number) []byte {
	if n := g.numbers[field]; n != 0 {
		b = protowire.AppendTag(b, field, protowire.VarintType)
		b = protowire.AppendVarint(b, n)
	}
	if s := g.text[field]; s != "" {
		b = protowire.AppendTag(b, field, protowire.BytesType)
		b = protowire.AppendString(b, s)
	}
	return b
}

func parseHandshakeMessage(b []byte) (*handshakeMessage, error) {
	g := &handshakeMessage{}
	for len(b) > 0 {
		field, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, violation("handshake: %v", protowire.ParseError(n))
		}
		b = b[n:]
		known := field < fieldCount
		switch {
		case known && wire == protowire.VarintType:
			g.numbers[field], n = protowire.ConsumeVarint(b)
		case known && wire == protowire.BytesType:
			g.text[field], n = protowire.ConsumeString(b)
		default:
			n = protowire.ConsumeFieldValue(field, wire, b)
		}
		if n < 0 {
			return nil, violation("handshake: %v", protowire.ParseError(n))
		}
		b = b[n:]
	}
	return g, nil
}

// bounded runs a handshake with the configured timeout. Its reads and writes fail when the timeout
// expires or ctx ends.
func bounded(ctx context.Context, nc net.Conn, cfg Config, run func() error) error {
	deadline := time.Now().Add(cfg.HandshakeTimeout)
	if err := nc.SetDeadline(deadline); err != nil {
		return handshakeError(ReasonLost, connect.CodeUnavailable, err, "setting a deadline: %v", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) }) // fails only on a closed connection
	err := run()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	var typed *HandshakeError
	switch {
	case err == nil:
		if err = nc.SetDeadline(time.Time{}); err == nil {
			return nil
		}
	case errors.As(err, &typed):
		return err
	case ctx.Err() != nil:
		ended := contextError(ctx.Err(), "")
		return handshakeError(ReasonLost, ended.Code(), ended, "%v", ctx.Err())
	case errors.Is(err, ErrProtocol):
		return handshakeError(ReasonNotAPeer, connect.CodeFailedPrecondition, err, "%v", err)
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return handshakeError(ReasonLost, connect.CodeUnavailable, err, "no answer from %v within %v", nc.RemoteAddr(), cfg.HandshakeTimeout)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return handshakeError(ReasonLost, connect.CodeUnavailable, err, "%v closed the connection", nc.RemoteAddr())
	}
	return handshakeError(ReasonLost, connect.CodeUnavailable, err, "%v", err)
}

// readPreface reads the peer's preface. It fails at the first wrong byte, since a foreign peer may
// send no more.
func readPreface(in *frameReader) error {
	for i := 1; i <= len(Preface); i++ {
		b, err := in.peek(i)
		if err != nil {
			return err
		}
		if string(b) != Preface[:i] {
			return notAPeer(string(in.buffered(64)))
		}
	}
	in.skip(len(Preface))
	return nil
}

// notAPeer returns the error for a peer that did not send the preface, and describes what it is as
// far as its first bytes show.
func notAPeer(answer string) error {
	what := "the other side is not a tunnel"
	if line, _, _ := strings.Cut(answer, "\r\n"); strings.HasPrefix(line, "HTTP/") {
		what, answer = "the other side is a web server, not a tunnel", line
	}
	err := handshakeError(ReasonNotAPeer, connect.CodeFailedPrecondition, ErrProtocol, "%s: it began with %q", what, answer)
	err.Answer = answer
	return err
}

// readHandshakeFrame reads one handshake frame and returns it as received, since the proofs cover
// the whole frame.
func readHandshakeFrame(in *frameReader) (frameHeader, []byte, error) {
	b, err := in.peek(headerBytes)
	if err != nil {
		return 0, nil, err
	}
	h := readHeader(b)
	switch {
	case h.kind() < kindHello, h.kind() > kindAdmit, h.flags() != 0, h.id() != 0:
		return 0, nil, violation("a %v frame in the handshake", h.kind())
	case h.length() > handshakeLimit(h.kind()):
		return 0, nil, violation("a %v frame of %d bytes, the limit is %d", h.kind(), h.length(), handshakeLimit(h.kind()))
	}
	if b, err = in.peek(headerBytes + h.length()); err != nil {
		return 0, nil, err
	}
	frame := slices.Clone(b)
	in.skip(len(b))
	return h, frame, nil
}

// handshakeLimit returns the maximum body length of a handshake frame.
func handshakeLimit(k kind) int {
	switch k {
	case kindProof:
		return proofBytes
	case kindAdmit:
		return 0
	default:
		return maxHandshakeBytes
	}
}

// handshakeFrame encodes a handshake frame.
func handshakeFrame(k kind, body []byte) ([]byte, error) {
	if len(body) > maxHandshakeBytes {
		return nil, handshakeError(ReasonRefused, connect.CodeInvalidArgument, nil,
			"a %v of %d bytes, the limit is %d: host ids, build, tag and target together are too long",
			k, len(body), maxHandshakeBytes)
	}
	return append(makeHeader(k, 0, 0, len(body)).append(nil), body...), nil
}
