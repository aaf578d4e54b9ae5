package tunnel

import (
	"encoding/binary"
	"fmt"
	"math"
)

// frameHeader is the header of a frame. A frame is a header of eight bytes and a body. The header
// is one little-endian 64-bit number: from the lowest bits, 24 bits of body length, 8 bits of kind,
// 8 bits of flags and 24 bits of call id. docs/tunnel.md specifies the body of every kind.
type frameHeader uint64

const (
	headerBytes = 8
	// floorMaxFragment is the largest fragment sent to a receiver that has not announced a larger
	// limit. It fits a payload of 64 KiB together with its encoding.
	floorMaxFragment = 65 << 10
	// wholeBytes is the largest message sent in one frame. For a larger message the first frame
	// carries the size only, so that the receiver can read the fragments straight into place.
	wholeBytes = 32 << 10
	maxCallID  = 1<<24 - 1

	maxHandshakeBytes = 4 << 10
	maxRefusalBytes   = 2 << 10
	maxGoAwayBytes    = 4 << 10
	pingBytes         = 8
	// maxNames and maxNameTableBytes limit a connection's table of interned names, and
	// maxNameLength the bytes of one. Names that do not fit are sent in full.
	maxNames          = 16 << 10
	maxNameTableBytes = 1 << 20
	maxNameLength     = 1 << 10
	// messageCost is charged for a message in addition to its bytes, so that empty messages are not
	// free.
	messageCost = 32
	// callCost is charged for a call in the same way.
	callCost = 256
)

type kind uint8

const (
	kindHello   kind = 0x01
	kindWelcome kind = 0x02
	kindRefuse  kind = 0x03
	kindProof   kind = 0x04
	kindAdmit   kind = 0x05

	kindName      kind = 0x10
	kindCall      kind = 0x11
	kindData      kind = 0x12
	kindCloseSend kind = 0x13
	kindCancel    kind = 0x14
	kindHead      kind = 0x15
	kindReply     kind = 0x16
	kindCredit    kind = 0x17

	kindPing   kind = 0x20
	kindPong   kind = 0x21
	kindGoAway kind = 0x22
)

// Flags. flagSized is shared by the three kinds that carry a message: it marks the first frame of
// several, in which the total size of the message precedes its first fragment.
const (
	flagSized uint8 = 0x20

	callShape    uint8 = 0x03
	callDeadline uint8 = 0x04
	callHeader   uint8 = 0x08
	callChain    uint8 = 0x10

	replyError   uint8 = 0x01
	replyHeader  uint8 = 0x02
	replyTrailer uint8 = 0x04
	replyMessage uint8 = 0x08
	replyNotRun  uint8 = 0x10

	goAwayFatal uint8 = 0x01
)

func makeHeader(k kind, flags uint8, id uint32, length int) frameHeader {
	//nolint:gosec // a length is not negative
	return frameHeader(uint64(length)&0xffffff | uint64(k)<<24 | uint64(flags)<<32 | uint64(id)<<40)
}

func (h frameHeader) length() int  { return int(h & 0xffffff) }
func (h frameHeader) kind() kind   { return kind(h >> 24 & 0xff) }
func (h frameHeader) flags() uint8 { return uint8(h >> 32 & 0xff) }
func (h frameHeader) id() uint32   { return uint32(h >> 40) }

// sameExceptLength reports whether the headers are equal except for the length.
func (h frameHeader) sameExceptLength(other frameHeader) bool { return (h^other)>>24 == 0 }

func (h frameHeader) append(b []byte) []byte {
	return binary.LittleEndian.AppendUint64(b, uint64(h))
}

func readHeader(b []byte) frameHeader { return frameHeader(binary.LittleEndian.Uint64(b)) }

func (k kind) String() string {
	switch k {
	case kindHello:
		return "HELLO"
	case kindWelcome:
		return "WELCOME"
	case kindRefuse:
		return "REFUSE"
	case kindProof:
		return "PROOF"
	case kindAdmit:
		return "ADMIT"
	case kindName:
		return "NAME"
	case kindCall:
		return "CALL"
	case kindData:
		return "DATA"
	case kindCloseSend:
		return "CLOSE_SEND"
	case kindCancel:
		return "CANCEL"
	case kindHead:
		return "HEAD"
	case kindReply:
		return "REPLY"
	case kindCredit:
		return "CREDIT"
	case kindPing:
		return "PING"
	case kindPong:
		return "PONG"
	case kindGoAway:
		return "GOAWAY"
	}
	return fmt.Sprintf("0x%02x", uint8(k))
}

// rule is what a frame of one kind may look like, regardless of the state of its call.
type rule struct {
	known   bool
	flags   uint8
	min     int
	max     int
	ofCall  bool
	ofConn  bool
	dialler bool
	accept  bool
}

// ruleOf returns the rule for kind k, for a receiver with these limits.
func ruleOf(k kind, l *limits) rule {
	switch k {
	case kindName:
		return rule{known: true, max: maxNameLength, ofCall: true, dialler: true}
	case kindCall:
		return rule{
			known: true, flags: callShape | callDeadline | callHeader | callChain | flagSized, min: 3,
			max: l.maxHeader + l.maxFragment, ofCall: true, dialler: true,
		}
	case kindData:
		return rule{known: true, flags: flagSized, max: l.maxFragment + binary.MaxVarintLen32, ofCall: true, dialler: true, accept: true}
	case kindCloseSend, kindCancel:
		return rule{known: true, ofCall: true, dialler: true}
	case kindHead:
		return rule{known: true, max: l.maxHeader, ofCall: true, accept: true}
	case kindReply:
		return rule{
			known: true, flags: replyError | replyHeader | replyTrailer | replyMessage | replyNotRun | flagSized,
			max: l.maxHeader + l.maxFragment, ofCall: true, accept: true,
		}
	case kindCredit:
		return rule{known: true, min: 1, max: binary.MaxVarintLen32, ofCall: true, ofConn: true, dialler: true, accept: true}
	case kindPing, kindPong:
		return rule{known: true, min: pingBytes, max: pingBytes, ofConn: true, dialler: true, accept: true}
	case kindGoAway:
		return rule{known: true, flags: goAwayFatal, max: maxGoAwayBytes, ofConn: true, dialler: true, accept: true}
	case kindHello, kindWelcome, kindRefuse, kindProof, kindAdmit:
	}
	return rule{}
}

// check validates a frame header before the body is read. An error is a protocol violation.
func (h frameHeader) check(fromDialler bool, l *limits) error {
	r := ruleOf(h.kind(), l)
	switch {
	case !r.known:
		return violation("a frame of unknown kind %v", h.kind())
	case fromDialler && !r.dialler, !fromDialler && !r.accept:
		return violation("a %v frame from the wrong side", h.kind())
	case h.length() < r.min || h.length() > r.max:
		return violation("a %v frame of %d bytes, allowed are %d to %d", h.kind(), h.length(), r.min, r.max)
	case h.flags()&^r.flags != 0:
		return violation("a %v frame with unknown flags 0x%02x", h.kind(), h.flags())
	case h.id() == 0 && !r.ofConn, h.id() != 0 && !r.ofCall:
		return violation("a %v frame with id %d", h.kind(), h.id())
	}
	return nil
}

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
		p.failf("an unterminated varint")
		return 0
	}
	p.rest = p.rest[used:]
	return n
}

// int reads a size or a count, which must fit 31 bits.
func (p *parser) int() int {
	n := p.uint64()
	if n > math.MaxInt32 {
		p.failf("a size of %d", n)
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
