package launch

// conversation is the parent's state machine for the frames of the child: which one may come next,
// and what it means. It uses neither processes nor pipes, so that it can be tested and fuzzed
// without them.
type conversation struct {
	// build is the one that the child must have; empty for any.
	build string

	greeted   bool
	setupDone bool // ready or failed was received
	failed    bool
	payload   []byte
	goodbye   bool
	// reported is the value in the goodbye, see [Exit].
	reported bool
}

// receive processes the child's next frame. For a line it returns the line. After an error, which
// is a violation of the protocol, the child must be killed.
func (c *conversation) receive(k kind, body []byte) (*Line, error) {
	if !c.greeted && k != kindHello {
		return nil, protocolErrorf("it sent a %s before hello", k)
	}
	switch k {
	case kindHello:
		if c.greeted {
			return nil, protocolErrorf("it said hello twice")
		}
		return nil, c.greet(body)
	case kindReady, kindFailed:
		if c.setupDone {
			return nil, protocolErrorf("it sent a %s after it had already said how its set-up went", k)
		}
		c.setupDone, c.failed, c.payload = true, k == kindFailed, body
		return nil, nil //nolint:nilnil // neither line nor error
	case kindGoodbye:
		if !c.setupDone || c.failed || c.goodbye {
			return nil, protocolErrorf("it said goodbye, but not once and as a process that was set up")
		}
		c.goodbye, c.reported = true, len(body) > 0
		return nil, nil //nolint:nilnil // neither line nor error
	case kindLine:
		line, err := decodeLine(body)
		if err != nil {
			return nil, err
		}
		return &line, nil
	case kindStart, kindStop:
	}
	return nil, protocolErrorf("it sent a %s, which only a parent may send", k)
}

func (c *conversation) greet(body []byte) error {
	build, err := unversioned(kindHello, body)
	if err != nil {
		return err
	}
	if c.build != "" && string(build) != c.build {
		return protocolErrorf("it is another build: this process is %s, it is %s", c.build, build)
	}
	c.greeted = true
	return nil
}
