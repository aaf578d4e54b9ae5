package tunnel

import "connectrpc.com/connect/v2"

// assembly is a message of several fragments in the making. It belongs to the reading goroutine.
type assembly struct {
	buf   *buffer
	total int
	got   int
	// discard: the message is not wanted any more, its fragments are counted and thrown away.
	discard bool
}

// How much is allocated for a message on the word of its first frame, before its bytes come. The
// sizes of unary messages that are announced are bounded together, by the window; those of streams
// are not.
const (
	claimOfUnary  = 4 << 20
	claimOfStream = 64 << 10
)

func newAssembly(total, claim int) *assembly {
	return &assembly{total: total, buf: newBuffer(min(total, claim))}
}

// newUnaryAssembly makes an assembly for a unary message. keeps says that the message will probably
// keep the buffer.
func newUnaryAssembly(total int, keeps bool) *assembly {
	if keeps {
		// The message will keep the buffer, which therefore is no larger than it need be.
		return &assembly{total: total, buf: &buffer{b: recycled.lend(min(total, claimOfUnary))}}
	}
	return newAssembly(total, claimOfUnary)
}

// kept notes whether the response of a procedure has kept the buffer that it was assembled in; if
// not, that goes back. Procedures are remembered within bounds: what is forgotten costs a copy.
func (c *Conn) kept(procedure string, buf *buffer, kept bool) {
	switch {
	case !kept:
		delete(c.keeps, procedure)
		buf.free()
	case len(procedure) <= maxNameBytes && len(c.keeps) < maxKeeps:
		if c.keeps == nil {
			c.keeps = make(map[string]bool)
		}
		c.keeps[procedure] = true
	}
}

// maxKeeps bounds the procedures of which a dialling side remembers that their responses keep their
// buffers.
const maxKeeps = 1 << 10

// room makes place for the next n bytes.
func (a *assembly) room(n int) ([]byte, error) {
	if n > a.total-a.got {
		return nil, violation("a fragment of %d bytes where %d of %d are due", n, a.total-a.got, a.total)
	}
	a.got += n
	return a.buf.extend(n, a.total), nil
}

// add takes the next fragment.
func (a *assembly) add(fragment []byte) error {
	if a.discard {
		if len(fragment) > a.total-a.got {
			return violation("a fragment of %d bytes where %d of %d are due", len(fragment), a.total-a.got, a.total)
		}
		a.got += len(fragment)
		return nil
	}
	dst, err := a.room(len(fragment))
	if err != nil {
		return err
	}
	copy(dst, fragment)
	return nil
}

func (a *assembly) complete() bool { return a.got == a.total }

// sized reads the total that stands before the first of several fragments. A message that fits one
// frame is not announced so.
func (p *parser) sized() int {
	total := p.int()
	if p.err == nil && total <= len(p.rest) {
		p.failf("a message of %d bytes in fragments, the first of %d", total, len(p.rest))
	}
	return total
}

// outcome is what a REPLY said beside its message.
type outcome struct {
	fault           error
	header, trailer Header
}

// partialReply is a response of several frames in the making.
type partialReply struct {
	assembly
	outcome
}

func responseTooLarge(procedure string, size, limit int) *connect.Error {
	return MessageTooLarge(procedure, false, size, limit)
}
