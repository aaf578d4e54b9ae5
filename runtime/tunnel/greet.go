package tunnel

import (
	"errors"

	"connectrpc.com/connect/v2"
)

// greet is the dialling side of the handshake. It leaves the answer and the peer's limits in c.
func (c *Conn) greet() error {
	g := newGreeting()
	g.numbers[fieldMinVersion], g.numbers[fieldVersion] = MinVersion, MaxVersion
	g.text[fieldToken], g.text[fieldHost], g.text[fieldClient] = c.hello.Token, c.hello.Host, c.hello.Client
	g.text[fieldTag], g.text[fieldTarget], g.text[fieldBuild] = c.hello.Tag, c.hello.Target, c.hello.Build
	g.setLimits(c.own)
	g.text[fieldLineEnd] = lineEnd
	if err := writeHandshakeFrame(c.nc, kindHello, g); err != nil {
		return err
	}
	if err := readPreface(&c.in); err != nil {
		return err
	}
	k, answer, err := readHandshakeFrame(&c.in)
	switch {
	case err != nil:
		return err
	case k == kindRefuse:
		code := connect.Code(answer.numbers[fieldCode]) //nolint:gosec // checked below
		if code < connect.CodeCanceled || code > connect.CodeUnauthenticated {
			code = connect.CodeUnknown
		}
		fault := HandshakeFault(answer.numbers[fieldFault]) //nolint:gosec // checked below
		if fault < FaultLost || fault > FaultRefused {
			fault = FaultRefused
		}
		return &HandshakeError{Fault: fault, Code: code, Message: answer.text[fieldMessage], Remote: true}
	case k != kindWelcome:
		return violation("a %v frame in answer to HELLO", k)
	}
	c.version = int(answer.numbers[fieldVersion]) //nolint:gosec // checked below
	if c.version < MinVersion || c.version > MaxVersion {
		return handshakeError(FaultVersion, connect.CodeFailedPrecondition, nil,
			"the server chose version %d, this side speaks %d to %d", c.version, MinVersion, MaxVersion)
	}
	c.welcome = Welcome{Host: answer.text[fieldHost], Build: answer.text[fieldBuild]}
	if c.hello.Host != "" && c.hello.Host != c.welcome.Host {
		return wrongHost(c.hello.Host, c.welcome.Host)
	}
	c.peer, err = answer.limits()
	return err
}

// answer is the accepting side of the handshake.
func (c *Conn) answer(admit func(Hello) (Welcome, Handler, error)) error {
	if err := readPreface(&c.in); err != nil {
		return err
	}
	k, g, err := readHandshakeFrame(&c.in)
	if err == nil && k != kindHello {
		err = violation("a %v frame where HELLO is due", k)
	}
	if err != nil {
		return c.refuse(err)
	}
	theirMin, theirMax := g.numbers[fieldMinVersion], g.numbers[fieldVersion]
	if theirMin > MaxVersion || theirMax < MinVersion || theirMin > theirMax {
		return c.refuse(handshakeError(FaultVersion, connect.CodeFailedPrecondition, nil,
			"no common version: the dialler speaks %d to %d, this side %d to %d", theirMin, theirMax, MinVersion, MaxVersion))
	}
	c.version = int(min(theirMax, MaxVersion))
	if c.peer, err = g.limits(); err != nil {
		return c.refuse(err)
	}
	c.hello = Hello{
		Token: g.text[fieldToken], Host: g.text[fieldHost], Client: g.text[fieldClient],
		Tag: g.text[fieldTag], Target: g.text[fieldTarget], Build: g.text[fieldBuild],
	}
	welcome, handler, err := admit(c.hello)
	c.hello.Token = "" // it has served; a dump of the connection need not show it
	switch {
	case err != nil:
		if _, typed := errors.AsType[*HandshakeError](err); !typed {
			err = authored(err)
		}
		return c.refuse(err)
	case handler == nil:
		return c.refuse(connect.NewError(connect.CodeInternal, "the server has no handler for this connection"))
	case c.hello.Host != "" && c.hello.Host != welcome.Host:
		return c.refuse(wrongHost(c.hello.Host, welcome.Host))
	}
	c.welcome, c.handler = welcome, handler
	reply := newGreeting()
	reply.numbers[fieldVersion] = uint64(c.version) //nolint:gosec // small
	reply.text[fieldHost], reply.text[fieldBuild] = welcome.Host, welcome.Build
	reply.setLimits(c.own)
	return writeHandshakeFrame(c.nc, kindWelcome, reply)
}

func wrongHost(expected, found string) *HandshakeError {
	return handshakeError(FaultWrongHost, connect.CodeFailedPrecondition, nil, "expected host %s, this is %s", expected, found)
}

// refuse tells the dialler why it is not admitted, and returns that as an error.
func (c *Conn) refuse(err error) error {
	var typed *HandshakeError
	var known *connect.Error
	switch {
	case errors.As(err, &typed):
	case errors.Is(err, ErrProtocol):
		typed = handshakeError(FaultNotAPeer, connect.CodeFailedPrecondition, err, "%v", err)
	case errors.As(err, &known):
		typed = handshakeError(FaultRefused, known.Code(), err, "%s", known.Message())
	default:
		return err
	}
	g := newGreeting()
	g.numbers[fieldCode], g.numbers[fieldFault] = uint64(typed.Code), uint64(typed.Fault) //nolint:gosec // small
	g.text[fieldMessage] = typed.Message[:min(len(typed.Message), maxGoAwayBytes)]
	_ = writeHandshakeFrame(c.nc, kindRefuse, g) // the refusal itself is what went wrong
	return typed
}
