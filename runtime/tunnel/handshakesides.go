package tunnel

import (
	"errors"
	"unicode/utf8"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/internal/connecterr"
)

// The error texts for a failed proof, with what either side can do about it.
const (
	needsToken = "this side admits only peers that know its token, and the dialler has none: " +
		"give it the system's (`raylink token` prints it to the user who started the system; RAYLINK_TOKEN takes it)"
	wrongToken = "the dialler has another token than this side: " +
		"give it this system's (`raylink token` prints it to the user who started the system; RAYLINK_TOKEN takes it)"
	peerIsOpen = "this side has a token, and what answers has none, so it can't prove that it belongs to the same system: " +
		"check the address; to use a system that is open on purpose, give no token and RAYLINK_OPEN=1"
	peerUnproven = "what answers did not prove that it knows this side's token, of which it has learned nothing: " +
		"either this side's token is wrong for this system (RAYLINK_TOKEN; `raylink token` prints the right one " +
		"to the user who started it), or another process has taken the address"
)

// dialHandshake performs the dialling side of the handshake. It sets c.version, c.welcome and
// c.peer.
func (c *Conn) dialHandshake() error {
	g := &handshakeMessage{}
	g.numbers[fieldMinVersion], g.numbers[fieldVersion] = MinVersion, MaxVersion
	g.text[fieldHost], g.text[fieldClient] = c.hello.Host, c.hello.Client
	g.text[fieldTag], g.text[fieldTarget], g.text[fieldBuild] = c.hello.Tag, c.hello.Target, c.hello.Build
	g.text[fieldNonce], g.numbers[fieldAuth], g.text[fieldProtocol] = newNonce(c.cfg.nonce), authOf(c.cfg.Token), c.hello.Protocol
	g.setLimits(c.own)
	g.text[fieldLineEnd] = lineEnd
	hello, err := handshakeFrame(kindHello, g.append(nil))
	if err != nil {
		return err
	}
	if _, err := c.nc.Write(append([]byte(Preface), hello...)); err != nil {
		return err
	}
	if err := readPreface(&c.in); err != nil {
		return err
	}
	welcome, err := c.expectHandshakeFrame(kindWelcome)
	if err != nil {
		return err
	}
	if err := c.onWelcome(welcome[headerBytes:]); err != nil {
		return c.refuse(err)
	}
	proof, err := c.verifyAcceptor(hello, welcome)
	if err != nil {
		return c.refuse(err)
	}
	frame, err := handshakeFrame(kindProof, proof)
	if err != nil {
		return err
	}
	if _, err := c.nc.Write(frame); err != nil {
		return err
	}
	_, err = c.expectHandshakeFrame(kindAdmit)
	return err
}

// onWelcome processes the WELCOME of the accepting side.
func (c *Conn) onWelcome(body []byte) error {
	answer, err := parseHandshakeMessage(body)
	if err != nil {
		return err
	}
	version := answer.numbers[fieldVersion]
	if version < MinVersion || version > MaxVersion {
		return handshakeError(ReasonVersion, connect.CodeFailedPrecondition, nil,
			"the server chose version %d, this side speaks %d to %d", version, MinVersion, MaxVersion)
	}
	c.version = int(version)
	if len(answer.text[fieldNonce]) != nonceBytes {
		return violation("a nonce of %d bytes", len(answer.text[fieldNonce]))
	}
	c.welcome = Welcome{Host: answer.text[fieldHost], Build: answer.text[fieldBuild]}
	switch {
	case c.hello.Host != "" && c.hello.Host != c.welcome.Host:
		return wrongHost(c.hello.Host, c.welcome.Host)
	case c.hello.Host == "" && c.hello.Client != "" && c.hello.Client == c.welcome.Host:
		return handshakeError(ReasonWrongHost, connect.CodeFailedPrecondition, nil,
			"the address leads back to this very host, %s: check it", c.hello.Client)
	case c.cfg.Token != "" && answer.numbers[fieldAuth] != authToken:
		return handshakeError(ReasonUnproven, connect.CodeUnauthenticated, nil, peerIsOpen)
	case c.cfg.Token == "" && answer.numbers[fieldAuth] != authOpen:
		// The accepting side should have refused the connection itself.
		return handshakeError(ReasonRefused, connect.CodeUnauthenticated, nil, needsToken)
	}
	c.peer, err = answer.limits()
	return err
}

// verifyAcceptor reads and verifies the accepting side's proof, and returns this side's. Without a
// token both are empty.
func (c *Conn) verifyAcceptor(hello, welcome []byte) (proof []byte, err error) {
	frame, err := c.expectHandshakeFrame(kindProof)
	if err != nil {
		return nil, err
	}
	theirs := frame[headerBytes:]
	if c.cfg.Token == "" {
		if len(theirs) != 0 {
			return nil, violation("a proof where there is no token")
		}
		return nil, nil
	}
	if !proven(theirs, c.cfg.Token, acceptLabel, hello, welcome) {
		return nil, handshakeError(ReasonUnproven, connect.CodeUnauthenticated, nil, peerUnproven)
	}
	return prove(c.cfg.Token, dialLabel, hello, welcome, theirs), nil
}

// expectHandshakeFrame reads the next frame, which must be of kind due. If it is a REFUSE, it
// returns the refusal as an error.
func (c *Conn) expectHandshakeFrame(due kind) ([]byte, error) {
	h, frame, err := readHandshakeFrame(&c.in)
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
		return nil, refusal.refusal(c.dialled && c.cfg.Token != "" && due == kindWelcome)
	}
	return nil, violation("a %v frame where %v is due", h.kind(), due)
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
		text = "what answers, which has not proven that it knows the token, refuses: " + text
	}
	return &HandshakeError{Reason: reason, Code: code, Message: text, Remote: true}
}

// acceptHandshake performs the accepting side of the handshake. admit is called after the dialler
// has proven that it knows the token.
func (c *Conn) acceptHandshake(self Welcome, admit func(Hello) (Handler, error)) error {
	if err := readPreface(&c.in); err != nil {
		return err
	}
	h, hello, err := readHandshakeFrame(&c.in)
	if err == nil && h.kind() != kindHello {
		err = violation("a %v frame where HELLO is due", h.kind())
	}
	var g *handshakeMessage
	if err == nil {
		g, err = parseHandshakeMessage(hello[headerBytes:])
	}
	if err == nil {
		err = c.onHello(g, self)
	}
	if err != nil {
		return c.refuseWithPreface(err)
	}
	c.welcome = self
	reply := &handshakeMessage{}
	reply.numbers[fieldVersion] = uint64(c.version) //nolint:gosec // small
	reply.text[fieldHost], reply.text[fieldBuild] = self.Host, self.Build
	reply.text[fieldNonce], reply.numbers[fieldAuth] = newNonce(c.cfg.nonce), authOf(c.cfg.Token)
	reply.setLimits(c.own)
	welcome, err := handshakeFrame(kindWelcome, reply.append(nil))
	if err != nil {
		return err
	}
	var ownProof []byte
	if c.cfg.Token != "" {
		ownProof = prove(c.cfg.Token, acceptLabel, hello, welcome)
	}
	proof, err := handshakeFrame(kindProof, ownProof)
	if err != nil {
		return err
	}
	if _, err := c.nc.Write(append(append([]byte(Preface), welcome...), proof...)); err != nil {
		return err
	}
	if err := c.verifyDialler(hello, welcome, ownProof); err != nil {
		return c.refuse(err)
	}
	if c.handler, err = c.callAdmit(admit); err != nil {
		return c.refuse(err)
	}
	admission, err := handshakeFrame(kindAdmit, nil)
	if err != nil {
		return err
	}
	_, err = c.nc.Write(admission)
	return err
}

// onHello processes the HELLO of the dialler.
func (c *Conn) onHello(g *handshakeMessage, self Welcome) (err error) {
	theirMin, theirMax := g.numbers[fieldMinVersion], g.numbers[fieldVersion]
	if theirMin > MaxVersion || theirMax < MinVersion || theirMin > theirMax {
		return handshakeError(ReasonVersion, connect.CodeFailedPrecondition, nil,
			"no common version: the dialler speaks %d to %d, this side %d to %d; use the same release of RayLink on both sides",
			theirMin, theirMax, MinVersion, MaxVersion)
	}
	c.version = int(min(theirMax, MaxVersion))
	if len(g.text[fieldNonce]) != nonceBytes {
		return violation("a nonce of %d bytes", len(g.text[fieldNonce]))
	}
	c.hello = Hello{
		Host: g.text[fieldHost], Client: g.text[fieldClient], Tag: g.text[fieldTag], Target: g.text[fieldTarget],
		Build: g.text[fieldBuild], Protocol: g.text[fieldProtocol],
	}
	switch {
	case c.cfg.Token != "" && g.numbers[fieldAuth] != authToken:
		return connect.NewError(connect.CodeUnauthenticated, needsToken)
	case c.hello.Host != "" && c.hello.Host != self.Host:
		return wrongHost(c.hello.Host, self.Host)
	}
	c.peer, err = g.limits()
	return err
}

// verifyDialler reads and verifies the dialler's proof.
func (c *Conn) verifyDialler(hello, welcome, ownProof []byte) error {
	frame, err := c.expectHandshakeFrame(kindProof)
	if err != nil {
		return err
	}
	theirs := frame[headerBytes:]
	switch {
	case c.cfg.Token == "" && len(theirs) != 0:
		return violation("a proof where there is no token")
	case c.cfg.Token != "" && !proven(theirs, c.cfg.Token, dialLabel, hello, welcome, ownProof):
		return connect.NewError(connect.CodeUnauthenticated, wrongToken)
	}
	return nil
}

// callAdmit calls admit to get the handler for a verified dialler.
func (c *Conn) callAdmit(admit func(Hello) (Handler, error)) (Handler, error) {
	handler, err := admit(c.hello)
	switch {
	case err != nil:
		if _, typed := errors.AsType[*HandshakeError](err); !typed {
			err = connecterr.From(err)
		}
		return nil, err
	case handler == nil && c.hello.Protocol == "":
		return nil, connect.NewError(connect.CodeInternal, "the server has no handler for this connection")
	}
	return handler, nil
}

func wrongHost(expected, found string) *HandshakeError {
	return handshakeError(ReasonWrongHost, connect.CodeFailedPrecondition, nil, "expected host %s, this is %s", expected, found)
}

// refuseWithPreface sends the preface and a REFUSE frame, and returns err as a [*HandshakeError].
func (c *Conn) refuseWithPreface(err error) error { return c.sendRefusal([]byte(Preface), err) }

// refuse is refuseWithPreface for a side that has already sent its preface. It sends nothing if the
// peer itself refused or the connection failed.
func (c *Conn) refuse(err error) error {
	if typed, ok := errors.AsType[*HandshakeError](err); ok && typed.Remote {
		return err
	}
	return c.sendRefusal(nil, err)
}

func (c *Conn) sendRefusal(before []byte, err error) error {
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
		_, _ = c.nc.Write(append(before, frame...)) // best effort: the refusal is the error to report
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
