package tunnel

import (
	"fmt"

	"connectrpc.com/connect/v2"
)

// HeaderBytes is the size of a frame header.
const HeaderBytes = headerBytes

// FrameBytes returns the size of the frame at the start of b, which must contain at least the
// header.
func FrameBytes(b []byte) int { return headerBytes + readHeader(b).length() }

// DescribeFrame describes the header of the frame at the start of b.
func DescribeFrame(b []byte) string {
	h := readHeader(b)
	return fmt.Sprintf("%v id=%d flags=0x%02x length=%d", h.kind(), h.id(), h.flags(), h.length())
}

// Leaks describes what a connection without open calls still holds. It returns "" if that is
// nothing.
func Leaks(c *Conn) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return ""
	}
	if n := len(c.out.requests) + len(c.out.replies) + len(c.out.ring) + c.out.replyBytes; n > 0 {
		return fmt.Sprintf("outbox: %d requests, %d replies, %d send queues, %d bytes",
			len(c.out.requests), len(c.out.replies), len(c.out.ring), c.out.replyBytes)
	}
	if c.out.replyWindow != 0 || c.replyBytes != 0 {
		return fmt.Sprintf("response window: %d out, %d in", c.out.replyWindow, c.replyBytes)
	}
	if c.excess.used != 0 || len(c.excess.waiting) != 0 {
		return fmt.Sprintf("excess credit: %d used, %d waiting", c.excess.used, len(c.excess.waiting))
	}
	if c.windows.used.Load() != 0 || c.served.metaBytes != 0 {
		return fmt.Sprintf("window growth: %d; names and headers: %d", c.windows.used.Load(), c.served.metaBytes)
	}
	if c.served.requestBytes != 0 || c.sendWindow.used != 0 || c.pending() != 0 || c.served.streams != 0 || c.sendWindow.waiters.Len() != 0 {
		return fmt.Sprintf("calls: %d request bytes in, %d out, %d pending, %d streams, %d waiters",
			c.served.requestBytes, c.sendWindow.used, c.pending(), c.served.streams, c.sendWindow.waiters.Len())
	}
	return ""
}

// NonceBytes is the length of a nonce.
const NonceBytes = nonceBytes

// WithNonce returns cfg with a fixed nonce, which makes the handshake deterministic.
func WithNonce(nonce string, cfg Config) Config {
	cfg.nonce = func() string { return nonce }
	return cfg
}

// ParseHandshakeMessage parses the body of a handshake frame.
func ParseHandshakeMessage(b []byte) error {
	_, err := parseHandshakeMessage(b)
	return err
}

// Slots returns the number of call slots that the connection keeps.
func Slots(c *Conn) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open.slots)
}

// Paused reports whether the connection has stopped reading until its output is written.
func Paused(c *Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.paused
}

// ParseHeader parses a header that may be charged at most room bytes, and returns what it is
// charged.
func ParseHeader(b []byte, room int) (h Header, cost int, err error) {
	p := parser{rest: b}
	h, cost = p.header(room)
	p.end()
	return h, cost, p.err
}

// AppendHeader encodes a header.
func AppendHeader(b []byte, h Header) []byte { return h.append(b) }

// ParseErrorBlock parses an error block.
func ParseErrorBlock(b []byte) (*connect.Error, error) {
	p := parser{rest: b}
	got := p.errorBlock()
	p.end()
	return got, p.err
}

// AppendErrorBlock encodes an error block of at most limit bytes.
func AppendErrorBlock(b []byte, err *connect.Error, limit int) []byte {
	return appendErrorBlock(b, err, limit)
}
