package tunnel

import (
	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/runtime/tunnel/internal/codec"
)

// assembly is a partially received message of several fragments. It is owned by the connection's
// reader.
type assembly struct {
	buf   *codec.Buffer
	total int
	got   int
	// discard is set if the message is no longer needed: its fragments are counted and dropped.
	discard bool
}

// How much is allocated for a message when its size is announced, before its bytes arrive. The
// announced sizes of unary messages together are limited by the window; those of streams are not.
const (
	initialUnaryBytes  = 4 << 20
	initialStreamBytes = 64 << 10
)

func newAssembly(total, initial int) *assembly {
	return &assembly{total: total, buf: codec.NewBuffer(min(total, initial))}
}

// newUnaryAssembly returns an assembly for a unary message. aliases predicts that the decoded
// message will alias the buffer.
func newUnaryAssembly(total int, aliases bool) *assembly {
	if aliases {
		// The message will own the buffer, so it should be no larger than necessary.
		return &assembly{total: total, buf: codec.NewAliasable(min(total, initialUnaryBytes))}
	}
	return newAssembly(total, initialUnaryBytes)
}

// recordAliasing records whether the response of a procedure aliased the buffer in which it was
// received. If not, the buffer is freed. The number of procedures recorded is limited; the
// prediction for others costs a copy.
func (c *Conn) recordAliasing(procedure string, buf *codec.Buffer, aliased bool) {
	switch {
	case !aliased:
		delete(c.aliasing, procedure)
		buf.Free()
	case len(procedure) <= maxNameBytes && len(c.aliasing) < maxAliasing:
		if c.aliasing == nil {
			c.aliasing = make(map[string]bool)
		}
		c.aliasing[procedure] = true
	}
}

// maxAliasing limits the number of procedures recorded by recordAliasing.
const maxAliasing = 1 << 10

// extend appends n bytes to the message and returns them for the caller to fill.
func (a *assembly) extend(n int) ([]byte, error) {
	if n > a.total-a.got {
		return nil, violation("a fragment of %d bytes where %d of %d are due", n, a.total-a.got, a.total)
	}
	a.got += n
	return a.buf.Extend(n, a.total), nil
}

// add appends a fragment.
func (a *assembly) add(fragment []byte) error {
	if a.discard {
		if len(fragment) > a.total-a.got {
			return violation("a fragment of %d bytes where %d of %d are due", len(fragment), a.total-a.got, a.total)
		}
		a.got += len(fragment)
		return nil
	}
	dst, err := a.extend(len(fragment))
	if err != nil {
		return err
	}
	copy(dst, fragment)
	return nil
}

func (a *assembly) complete() bool { return a.got == a.total }

// totalSize reads the total size that precedes the first of several fragments. It must exceed what
// that frame carries.
func (p *parser) totalSize() int {
	total := p.int()
	if p.err == nil && total <= len(p.rest) {
		p.failf("a message of %d bytes in fragments, the first of %d", total, len(p.rest))
	}
	return total
}

// outcome is the content of a REPLY without its message.
type outcome struct {
	err             error
	header, trailer Header
}

// partialReply is a partially received response of several frames.
type partialReply struct {
	assembly
	outcome
}

func responseTooLarge(procedure string, size, limit int) *connect.Error {
	return MessageTooLarge(procedure, false, size, limit)
}
