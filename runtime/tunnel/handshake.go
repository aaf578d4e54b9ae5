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

// Preface is what both sides of a tunnel connection send first. No HTTP/1 request, HTTP/2 preface
// or TLS record starts with its first byte.
const Preface = "\x8dRAYLINK"

// The versions of the protocol that this package speaks. Version 1 sent the token in clear; it is
// refused.
const (
	MinVersion = 2
	MaxVersion = 2
)

// ProtocolHTTP is the [Hello].Protocol of a connection that carries HTTP once both sides are
// proven.
const ProtocolHTTP = "http"

// Hello is the dialler's part of the handshake.
type Hello struct {
	// Host is the id of the host that the dialler expects. Any other host is refused. Empty means
	// any.
	Host string
	// Client is the id of the caller's host.
	Client string
	// Tag names an extra tunnel to one node; empty for the common connection of two hosts.
	Tag string
	// Target is, for a tagged tunnel, the node it leads to.
	Target string
	// Build is the build of the dialler's executable.
	Build string
	// Protocol is what the connection carries after the handshake. Empty means the tunnel's frames;
	// see [DialRaw].
	Protocol string
}

// Welcome is the accepting side's part of the handshake.
type Welcome struct {
	// Host is the accepting host's id.
	Host string
	// Build is the build of its executable.
	Build string
}

// HandshakeFault says why a handshake failed.
type HandshakeFault int

// What can go wrong in a handshake.
const (
	// FaultLost: the connection ended, or nothing came in time.
	FaultLost HandshakeFault = iota + 1
	// FaultNotAPeer: what came was not a tunnel's.
	FaultNotAPeer
	// FaultVersion: the two sides speak no common version.
	FaultVersion
	// FaultWrongHost: the server is another host than the expected one.
	FaultWrongHost
	// FaultRefused: the server did not admit the dialler, for the reason that the code and the text
	// say.
	FaultRefused
	// FaultUnproven: the server did not prove that it knows the token. It learned nothing about it.
	FaultUnproven
)

// HandshakeError is why a connection did not come to be. It unwraps to a [connect.Error] with its
// code.
type HandshakeError struct {
	Fault HandshakeFault
	// Code is what the failure is to a caller.
	Code connect.Code
	// Message says what happened.
	Message string
	// Remote says that it is the other side's verdict.
	Remote bool
	// Answer is, for FaultNotAPeer, what the other side began with, up to 64 bytes of it; empty
	// where it began as a tunnel does.
	Answer string
	cause  error
}

// Error is the message, with its code.
func (e *HandshakeError) Error() string {
	return "tunnel handshake: " + e.Code.String() + ": " + e.Message
}

// Unwrap is the same as an error that connect's inspectors understand.
func (e *HandshakeError) Unwrap() error {
	return notRun(connect.NewError(e.Code, "tunnel handshake: "+e.Message).WithCause(e.cause))
}

func handshakeError(fault HandshakeFault, code connect.Code, cause error, format string, args ...any) *HandshakeError {
	return &HandshakeError{Fault: fault, Code: code, Message: fmt.Sprintf(format, args...), cause: cause}
}

// The handshake's bodies are protobuf messages; docs/tunnel.md has their schema. Unknown fields are
// skipped, so that fields can be added.
const (
	fieldMinVersion = iota + 1
	fieldVersion
	_ // the token in version 1; never sent any more
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
	fieldFault
	fieldLineEnd
	fieldMaxFragment
	fieldNonce
	fieldAuth
	fieldProtocol
	fieldCount // one more than the last
)

// lineEnd ends HELLO. A server that waits for a line, as those of HTTP do, then has one that makes
// no sense to it, and says so at once instead of waiting for more until somebody loses patience.
const lineEnd = "\r\n\r\n"

// greeting is the union of the bodies' fields. What it takes does not depend on what the peer
// sends, beyond the bytes of the frame itself.
type greeting struct {
	text    [fieldCount]string
	numbers [fieldCount]uint64
}

func (g *greeting) setLimits(l limits) {
	for field, value := range l.fields() {
		g.numbers[field] = uint64(*value) //nolint:gosec // limits are positive
	}
	if l.maxFragment == floorMaxFragment {
		g.numbers[fieldMaxFragment] = 0 // the meaning of a missing field
	}
}

func (l *limits) fields() map[protowire.Number]*int {
	return map[protowire.Number]*int{
		fieldMaxMessage: &l.maxMessage, fieldMaxHeader: &l.maxHeader, fieldWindow: &l.window, fieldStreamWindow: &l.streamWindow,
		fieldMaxCalls: &l.maxCalls, fieldMaxStreams: &l.maxStreams, fieldMaxNames: &l.maxNames, fieldMaxNameBytes: &l.maxNameBytes,
		fieldMaxFragment: &l.maxFragment,
	}
}

// limits are what the peer receives, brought within what this package ever sends. A limit that is
// missing is nothing.
func (g *greeting) limits() (limits, error) {
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

// append writes the fields in the order of their numbers, but for the one that ends the line.
func (g *greeting) append(b []byte) []byte {
	for field := protowire.Number(fieldMinVersion); field < fieldCount; field++ {
		if field != fieldLineEnd {
			b = g.appendField(b, field)
		}
	}
	return g.appendField(b, fieldLineEnd)
}

func (g *greeting) appendField(b []byte, field protowire.Number) []byte {
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

func parseGreeting(b []byte) (*greeting, error) {
	g := &greeting{}
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

// bounded runs a handshake within the configured time and ctx; what it reads and writes ends with
// either.
func bounded(ctx context.Context, nc net.Conn, cfg Config, run func() error) error {
	deadline := time.Now().Add(cfg.HandshakeTimeout)
	if err := nc.SetDeadline(deadline); err != nil {
		return handshakeError(FaultLost, connect.CodeUnavailable, err, "setting a deadline: %v", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) }) // fails only when the connection is closed
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
		return handshakeError(FaultLost, ended.Code(), ended, "%v", ctx.Err())
	case errors.Is(err, ErrProtocol):
		return handshakeError(FaultNotAPeer, connect.CodeFailedPrecondition, err, "%v", err)
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return handshakeError(FaultLost, connect.CodeUnavailable, err, "no answer from %v within %v", nc.RemoteAddr(), cfg.HandshakeTimeout)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return handshakeError(FaultLost, connect.CodeUnavailable, err, "%v closed the connection", nc.RemoteAddr())
	}
	return handshakeError(FaultLost, connect.CodeUnavailable, err, "%v", err)
}

// readPreface reads the peer's first bytes. One wrong byte is enough to know that this is not a
// peer: it may send no more.
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

// notAPeer says what the other side is instead, as far as its first bytes show.
func notAPeer(answer string) error {
	what := "the other side is not a tunnel"
	if line, _, _ := strings.Cut(answer, "\r\n"); strings.HasPrefix(line, "HTTP/") {
		what, answer = "the other side is a web server, not a tunnel", line
	}
	err := handshakeError(FaultNotAPeer, connect.CodeFailedPrecondition, ErrProtocol, "%s: it began with %q", what, answer)
	err.Answer = answer
	return err
}

// readHandshakeFrame reads one frame of the handshake, as it came: the proofs cover it in full.
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

// handshakeLimit is the longest body of a frame of the handshake.
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

// handshakeFrame makes a frame of the handshake.
func handshakeFrame(k kind, body []byte) ([]byte, error) {
	if len(body) > maxHandshakeBytes {
		return nil, handshakeError(FaultRefused, connect.CodeInvalidArgument, nil,
			"a %v of %d bytes, the limit is %d: host ids, build, tag and target together are too long",
			k, len(body), maxHandshakeBytes)
	}
	return append(makeHeader(k, 0, 0, len(body)).append(nil), body...), nil
}
