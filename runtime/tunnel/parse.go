package tunnel

import (
	"encoding/binary"
	"math"
)

// varintBytes is the maximum length of a number in a body. All numbers but the deadline are below
// 2^32.
const varintBytes = binary.MaxVarintLen32

func appendInt(b []byte, n int) []byte { return binary.AppendUvarint(b, uint64(n)) } //nolint:gosec // lengths and counts are never negative

func appendString(b []byte, s string) []byte { return append(appendInt(b, len(s)), s...) }

func appendBytes(b, s []byte) []byte { return append(appendInt(b, len(s)), s...) }

// parser decodes the body of a frame. After the first error it returns zero values, and err is that
// error.
type parser struct {
	rest []byte
	err  error
}

func (p *parser) failf(format string, args ...any) {
	if p.err == nil {
		p.err = violation(format, args...)
	}
	p.rest = nil
}

func (p *parser) uint64() uint64 {
	if len(p.rest) > 0 && p.rest[0] < 0x80 { // fast path: most numbers are small
		n := p.rest[0]
		p.rest = p.rest[1:]
		return uint64(n)
	}
	n, used := binary.Uvarint(p.rest)
	if used <= 0 {
		p.failf("a number that does not end")
		return 0
	}
	p.rest = p.rest[used:]
	return n
}

// int reads a size or a count, which must fit 31 bits.
func (p *parser) int() int {
	n := p.uint64()
	if n > math.MaxInt32 {
		p.failf("the size %d", n)
		return 0
	}
	return int(n)
}

// bytes reads a length and that many bytes. The result aliases the body.
func (p *parser) bytes() []byte {
	n := p.int()
	if n > len(p.rest) {
		p.failf("%d bytes where %d are left", n, len(p.rest))
		return nil
	}
	b := p.rest[:n:n]
	p.rest = p.rest[n:]
	return b
}

func (p *parser) string() string { return string(p.bytes()) }

func (p *parser) end() {
	if len(p.rest) != 0 {
		p.failf("%d bytes too many", len(p.rest))
	}
}
