package tunnel

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/raylink/raylink/internal/connecterr"
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
		fieldMaxCalls: &l.maxCalls, fieldMaxStreams: &l.maxStreams, fieldMaxNames: &l.maxNames, fieldMaxNameBytes: &l.maxNameTableBytes,
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

// The error texts for a failed proof, with what either side can do about it.
const (
	needsToken = "this side admits only peers that know its token, and the dialler has none: " +
		"give it the system's (`raylink token` prints it to the user who started the system; set RAYLINK_TOKEN to it)"
	wrongToken = "the dialler's token is not this side's: " +
		"give it this system's (`raylink token` prints it to the user who started the system; set RAYLINK_TOKEN to it)"
	peerIsOpen = "this side has a token and the peer has none, so the peer can't prove that it belongs to the same system: " +
		"check the address; to use a system that is open on purpose, give no token and RAYLINK_OPEN=1"
	peerUnproven = "the peer did not prove that it knows this side's token, and has learned nothing about the token: " +
		"either this side's token is wrong for this system (RAYLINK_TOKEN; `raylink token` prints the right one " +
		"to the user who started it), or another process has taken the address"
)

// handshake performs the handshake of a connection and holds its result, which is constant
// afterwards.
type handshake struct {
	cfg     Config
	nc      net.Conn
	frames  *frameReader
	dialled bool
	// own and peer are the limits of the two sides as receivers.
	own  limits
	peer limits

	version int
	hello   Hello
	welcome Welcome
	handler Handler
}

// dialHandshake performs the dialling side of the handshake. It sets s.version, s.welcome and
// s.peer.
func (s *handshake) dialHandshake() error {
	g := &handshakeMessage{}
	g.numbers[fieldMinVersion], g.numbers[fieldVersion] = MinVersion, MaxVersion
	g.text[fieldHost], g.text[fieldClient] = s.hello.Host, s.hello.Client
	g.text[fieldTag], g.text[fieldTarget], g.text[fieldBuild] = s.hello.Tag, s.hello.Target, s.hello.Build
	g.text[fieldNonce], g.numbers[fieldAuth], g.text[fieldProtocol] = newNonce(s.cfg.nonce), authOf(s.cfg.Token), s.hello.Protocol
	g.setLimits(s.own)
	g.text[fieldLineEnd] = lineEnd
	hello, err := handshakeFrame(kindHello, g.append(nil))
	if err != nil {
		return err
	}
	if _, err := s.nc.Write(append([]byte(Preface), hello...)); err != nil {
		return err
	}
	if err := readPreface(s.frames); err != nil {
		return err
	}
	welcome, err := s.expectHandshakeFrame(kindWelcome)
	if err != nil {
		return err
	}
	if err := s.onWelcome(welcome[headerBytes:]); err != nil {
		return s.refuse(err)
	}
	proof, err := s.verifyAcceptor(hello, welcome)
	if err != nil {
		return s.refuse(err)
	}
	frame, err := handshakeFrame(kindProof, proof)
	if err != nil {
		return err
	}
	if _, err := s.nc.Write(frame); err != nil {
		return err
	}
	_, err = s.expectHandshakeFrame(kindAdmit)
	return err
}

// onWelcome processes the WELCOME of the accepting side.
func (s *handshake) onWelcome(body []byte) error {
	answer, err := parseHandshakeMessage(body)
	if err != nil {
		return err
	}
	version := answer.numbers[fieldVersion]
	if version < MinVersion || version > MaxVersion {
		return handshakeError(ReasonVersion, connect.CodeFailedPrecondition, nil,
			"the server chose version %d, this side speaks %d to %d", version, MinVersion, MaxVersion)
	}
	s.version = int(version)
	if len(answer.text[fieldNonce]) != nonceBytes {
		return violation("a nonce of %d bytes", len(answer.text[fieldNonce]))
	}
	s.welcome = Welcome{Host: answer.text[fieldHost], Build: answer.text[fieldBuild]}
	switch {
	case s.hello.Host != "" && s.hello.Host != s.welcome.Host:
		return wrongHost(s.hello.Host, s.welcome.Host)
	case s.hello.Host == "" && s.hello.Client != "" && s.hello.Client == s.welcome.Host:
		return handshakeError(ReasonWrongHost, connect.CodeFailedPrecondition, nil,
			"the address leads to this host itself, %s: check it", s.hello.Client)
	case s.cfg.Token != "" && answer.numbers[fieldAuth] != authToken:
		return handshakeError(ReasonUnproven, connect.CodeUnauthenticated, nil, peerIsOpen)
	case s.cfg.Token == "" && answer.numbers[fieldAuth] != authOpen:
		// The accepting side should have refused the connection itself.
		return handshakeError(ReasonRefused, connect.CodeUnauthenticated, nil, needsToken)
	}
	s.peer, err = answer.limits()
	return err
}

// verifyAcceptor reads and verifies the accepting side's proof, and returns this side's. Without a
// token both are empty.
func (s *handshake) verifyAcceptor(hello, welcome []byte) (proof []byte, err error) {
	frame, err := s.expectHandshakeFrame(kindProof)
	if err != nil {
		return nil, err
	}
	theirs := frame[headerBytes:]
	if s.cfg.Token == "" {
		if len(theirs) != 0 {
			return nil, violation("a proof where there is no token")
		}
		return nil, nil
	}
	if !verifyProof(theirs, s.cfg.Token, acceptLabel, hello, welcome) {
		return nil, handshakeError(ReasonUnproven, connect.CodeUnauthenticated, nil, peerUnproven)
	}
	return computeProof(s.cfg.Token, dialLabel, hello, welcome, theirs), nil
}

// expectHandshakeFrame reads the next frame, which must be of kind due. If it is a REFUSE, it
// returns the refusal as an error.
func (s *handshake) expectHandshakeFrame(due kind) ([]byte, error) {
	h, frame, err := readHandshakeFrame(s.frames)
	switch {
	case err != nil:
		return nil, err
	case h.kind() == due:
		return frame, nil
	case h.kind() == kindRefuse:
		refusal, err := parseHandshakeMessage(frame[headerBytes:])
		if err != nil {
			return nil, err
		}
		return nil, refusal.refusal(s.dialled && s.cfg.Token != "" && due == kindWelcome)
	}
	return nil, violation("a %v frame instead of %v", h.kind(), due)
}

// refusal converts a REFUSE frame to an error. unproven is set if the peer has not yet proven that
// it knows the token.
func (g *handshakeMessage) refusal(unproven bool) error {
	code := connect.Code(g.numbers[fieldCode]) //nolint:gosec // checked below
	if code < connect.CodeCanceled || code > connect.CodeUnauthenticated {
		code = connect.CodeUnknown
	}
	reason := HandshakeReason(g.numbers[fieldReason]) //nolint:gosec // checked below
	if reason < ReasonLost || reason > ReasonUnproven {
		reason = ReasonRefused
	}
	text := g.text[fieldMessage]
	if unproven {
		text = "the peer, which has not proven that it knows the token, refuses: " + text
	}
	return &HandshakeError{Reason: reason, Code: code, Message: text, Remote: true}
}

// acceptHandshake performs the accepting side of the handshake. admit is called after the dialler
// has proven that it knows the token.
func (s *handshake) acceptHandshake(self Welcome, admit func(Hello) (Handler, error)) error {
	if err := readPreface(s.frames); err != nil {
		return err
	}
	h, hello, err := readHandshakeFrame(s.frames)
	if err == nil && h.kind() != kindHello {
		err = violation("a %v frame instead of HELLO", h.kind())
	}
	var g *handshakeMessage
	if err == nil {
		g, err = parseHandshakeMessage(hello[headerBytes:])
	}
	if err == nil {
		err = s.onHello(g, self)
	}
	if err != nil {
		return s.refuseWithPreface(err)
	}
	s.welcome = self
	reply := &handshakeMessage{}
	reply.numbers[fieldVersion] = uint64(s.version) //nolint:gosec // small
	reply.text[fieldHost], reply.text[fieldBuild] = self.Host, self.Build
	reply.text[fieldNonce], reply.numbers[fieldAuth] = newNonce(s.cfg.nonce), authOf(s.cfg.Token)
	reply.setLimits(s.own)
	welcome, err := handshakeFrame(kindWelcome, reply.append(nil))
	if err != nil {
		return err
	}
	var ownProof []byte
	if s.cfg.Token != "" {
		ownProof = computeProof(s.cfg.Token, acceptLabel, hello, welcome)
	}
	proof, err := handshakeFrame(kindProof, ownProof)
	if err != nil {
		return err
	}
	if _, err := s.nc.Write(append(append([]byte(Preface), welcome...), proof...)); err != nil {
		return err
	}
	if err := s.verifyDialler(hello, welcome, ownProof); err != nil {
		return s.refuse(err)
	}
	if s.handler, err = s.callAdmit(admit); err != nil {
		return s.refuse(err)
	}
	admission, err := handshakeFrame(kindAdmit, nil)
	if err != nil {
		return err
	}
	_, err = s.nc.Write(admission)
	return err
}

// onHello processes the HELLO of the dialler.
func (s *handshake) onHello(g *handshakeMessage, self Welcome) (err error) {
	theirMin, theirMax := g.numbers[fieldMinVersion], g.numbers[fieldVersion]
	if theirMin > MaxVersion || theirMax < MinVersion || theirMin > theirMax {
		return handshakeError(ReasonVersion, connect.CodeFailedPrecondition, nil,
			"no common version: the dialler speaks %d to %d, this side %d to %d; use the same release of RayLink on both sides",
			theirMin, theirMax, MinVersion, MaxVersion)
	}
	s.version = int(min(theirMax, MaxVersion))
	if len(g.text[fieldNonce]) != nonceBytes {
		return violation("a nonce of %d bytes", len(g.text[fieldNonce]))
	}
	s.hello = Hello{
		Host: g.text[fieldHost], Client: g.text[fieldClient], Tag: g.text[fieldTag], Target: g.text[fieldTarget],
		Build: g.text[fieldBuild], Protocol: g.text[fieldProtocol],
	}
	switch {
	case s.cfg.Token != "" && g.numbers[fieldAuth] != authToken:
		return connect.NewError(connect.CodeUnauthenticated, needsToken)
	case s.hello.Host != "" && s.hello.Host != self.Host:
		return wrongHost(s.hello.Host, self.Host)
	}
	s.peer, err = g.limits()
	return err
}

// verifyDialler reads and verifies the dialler's proof.
func (s *handshake) verifyDialler(hello, welcome, ownProof []byte) error {
	frame, err := s.expectHandshakeFrame(kindProof)
	if err != nil {
		return err
	}
	theirs := frame[headerBytes:]
	switch {
	case s.cfg.Token == "" && len(theirs) != 0:
		return violation("a proof where there is no token")
	case s.cfg.Token != "" && !verifyProof(theirs, s.cfg.Token, dialLabel, hello, welcome, ownProof):
		return connect.NewError(connect.CodeUnauthenticated, wrongToken)
	}
	return nil
}

// callAdmit calls admit to get the handler for a verified dialler.
func (s *handshake) callAdmit(admit func(Hello) (Handler, error)) (Handler, error) {
	handler, err := admit(s.hello)
	switch {
	case err != nil:
		if _, typed := errors.AsType[*HandshakeError](err); !typed {
			err = connecterr.From(err)
		}
		return nil, err
	case handler == nil && s.hello.Protocol == "":
		return nil, connect.NewError(connect.CodeInternal, "the server has no handler for this connection")
	}
	return handler, nil
}

func wrongHost(expected, found string) *HandshakeError {
	return handshakeError(ReasonWrongHost, connect.CodeFailedPrecondition, nil, "expected host %s, this is %s", expected, found)
}

// refuseWithPreface sends the preface and a REFUSE frame, and returns err as a [*HandshakeError].
func (s *handshake) refuseWithPreface(err error) error { return s.sendRefusal([]byte(Preface), err) }

// refuse is refuseWithPreface for a side that has already sent its preface. It sends nothing if the
// peer itself refused or the connection failed.
func (s *handshake) refuse(err error) error {
	if typed, ok := errors.AsType[*HandshakeError](err); ok && typed.Remote {
		return err
	}
	return s.sendRefusal(nil, err)
}

func (s *handshake) sendRefusal(before []byte, err error) error {
	var typed *HandshakeError
	var known *connect.Error
	switch {
	case errors.As(err, &typed):
	case errors.Is(err, ErrProtocol):
		typed = handshakeError(ReasonNotAPeer, connect.CodeFailedPrecondition, err, "%v", err)
	case errors.As(err, &known):
		typed = handshakeError(ReasonRefused, known.Code(), err, "%s", known.Message())
	default:
		return err
	}
	g := &handshakeMessage{}
	g.numbers[fieldCode], g.numbers[fieldReason] = uint64(typed.Code), uint64(typed.Reason) //nolint:gosec // small
	g.text[fieldMessage] = shorten(typed.Message, maxRefusalBytes)
	if frame, ferr := handshakeFrame(kindRefuse, g.append(nil)); ferr == nil {
		_, _ = s.nc.Write(append(before, frame...)) // best effort: the refusal is the error to report
	}
	return typed
}

// shorten truncates a text to at most limit bytes, at a rune boundary.
func shorten(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	for limit > 0 && !utf8.RuneStart(text[limit]) {
		limit--
	}
	return text[:limit]
}

// The token itself is never sent. Each side proves that it knows the token by an HMAC-SHA-256 over
//
//   - a label that differs between the two directions, so that a reflected proof is worthless;
//   - HELLO and WELCOME as sent, header and body, with nonces, host ids, versions and limits. A
//     frame that was modified in transit invalidates the proof, and a recorded proof does not
//     match the nonces of another connection;
//   - for the dialler's proof, the accepting side's proof.
//
// The accepting side proves first. A dialler that has reached a wrong address thus reveals nothing
// derived from the token.
const (
	acceptLabel = "raylink tunnel 2: accepting side"
	dialLabel   = "raylink tunnel 2: dialling side"

	nonceBytes = 32
	proofBytes = sha256.Size

	// authOpen and authToken are the values of fieldAuth: whether the sender has a token.
	authOpen  = 0
	authToken = 1
)

// computeProof returns the proof for one direction. Each part is preceded by its length, so the
// encoding is unambiguous.
func computeProof(token, label string, parts ...[]byte) []byte {
	mac := hmac.New(sha256.New, []byte(token))
	for _, part := range append([][]byte{[]byte(label)}, parts...) {
		_, _ = mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part)))) // writing to a hash never fails
		_, _ = mac.Write(part)
	}
	return mac.Sum(nil)
}

// verifyProof verifies a proof in constant time.
func verifyProof(proof []byte, token, label string, parts ...[]byte) bool {
	return hmac.Equal(proof, computeProof(token, label, parts...))
}

// newNonce returns a new nonce for a handshake. fixed, if not nil, replaces it in tests.
func newNonce(fixed func() string) string {
	if fixed != nil {
		return fixed()
	}
	b := make([]byte, nonceBytes)
	_, _ = rand.Read(b) // never fails
	return string(b)
}

// authOf returns the value of fieldAuth for a token, which may be empty.
func authOf(token string) uint64 {
	if token == "" {
		return authOpen
	}
	return authToken
}
