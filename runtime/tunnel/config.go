package tunnel

import (
	"fmt"
	"log/slog"
	"time"
)

// Config bounds what a connection may take and how long it waits. The zero value of a field means
// its default. What a side is ready to receive it tells the other in the handshake, and the other's
// [Conn] keeps to it, so the two need not be equal. What a peer can make a connection hold, whether
// it keeps to anything or not, is one number: [Config.PeerMemory].
type Config struct {
	// MaxMessageBytes is the largest message, encoded, that this side receives. A larger one fails
	// its own call with ResourceExhausted and disturbs nothing else. Default 64 MiB, at most 1 GiB.
	MaxMessageBytes int
	// MaxHeaderBytes bounds all that goes with a call beside its messages: names, headers, chain;
	// and its trailers and error. Default 64 KiB, at most 1 MiB.
	MaxHeaderBytes int
	// MaxFragmentBytes is how much of a large message one frame may bring. Larger ones cost less,
	// and hold up what is behind them for longer. Default 257 KiB, at least 65 KiB, at most 8 MiB.
	MaxFragmentBytes int
	// Window is how many bytes of unary requests may be on their way or being served: sent, but not
	// answered. When it is full, [Conn.Start] blocks. A single request that is larger goes when
	// nothing else is out. It is also how many bytes of unary responses that are too large for one
	// frame may be on their way at once. Default 16 MiB.
	Window int
	// StreamWindow is how many bytes of one stream, in one direction, may wait for their reader. A
	// stream begins with 64 KiB, and has this window as soon as it has used a quarter of that, as
	// far as MaxStreamBytes goes. Default 1 MiB, at least 64 KiB.
	StreamWindow int
	// MaxStreamBytes is what the windows of all streams together may take beyond the 64 KiB that
	// each has. Streams that are opened when it is used up are slower, and end no other way.
	// Default MaxMessageBytes, at least 8 MiB.
	MaxStreamBytes int
	// MaxStreamWindow is what a stream's window grows to while its reader takes it in quickly: the
	// fewer the times that a sender is told to go on, the less that costs. Default eight times
	// StreamWindow, at least StreamWindow.
	MaxStreamWindow int
	// MaxCalls bounds the calls of every shape that are open on the connection. When it is reached,
	// [Conn.Start] blocks. Default 65,536, at most 2^24 - 1.
	MaxCalls int
	// MaxStreams bounds how many of the open calls are streams, those included that have ended but
	// whose handlers still run. One more is refused with ResourceExhausted. Default 2,048.
	MaxStreams int
	// MaxBacklog bounds the bytes of responses that wait to be written to a peer that does not
	// read, or not as fast as they are made. A response that would go past it is replaced by
	// ResourceExhausted. Default twice MaxMessageBytes, at least 8 MiB.
	MaxBacklog int
	// Keepalive is how long a connection with open calls may be silent before it is pinged. If the
	// peer is silent for as long again, the connection fails with "no answer for ...". Default 5 s;
	// negative means never.
	Keepalive time.Duration
	// Token is the secret that both sides prove to each other that they know. It is not sent; but
	// who may dial can try guesses against the accepting side's proof, away from it, so a token
	// should be random: 256 bits. Empty means that neither side has one; a side with a token never
	// talks to one without.
	Token string
	// HandshakeTimeout bounds the handshake. Default 10 s.
	HandshakeTimeout time.Duration
	// BusyPoll is how long a reader of this side looks for what may come at once, before it lets
	// itself be put to sleep. It makes calls that follow each other several times faster, and takes
	// processor time that others may want; a process never has more than half of its processors
	// looking. Default 50 µs; negative means never.
	BusyPoll time.Duration
	// Overseer sweeps the connections. Those of one process should share one. Default: each has its
	// own.
	Overseer *Overseer
	// Logger gets what no caller is told: a handler's panic, a peer that breaks the protocol.
	// Default [slog.Default].
	Logger *slog.Logger

	// nonce replaces the random nonces in tests.
	nonce func() string
}

const (
	defaultMaxMessage       = 64 << 20
	defaultMaxHeader        = 64 << 10
	defaultMaxFragment      = 257 << 10 // so that a round 256 KiB with what encodes it goes in one
	defaultWindow           = 16 << 20
	defaultStreamWindow     = 1 << 20
	defaultMaxCalls         = 1 << 16
	defaultMaxStreams       = 1 << 11
	defaultKeepalive        = 5 * time.Second
	defaultHandshakeTimeout = 10 * time.Second
	// leastShared is the least that is the default of what calls and streams share, however small
	// their messages.
	leastShared = 8 << 20

	ceilingMaxMessage = 1 << 30
	ceilingMaxHeader  = 1 << 20
	// A frame's length has 24 bits, for fragment and header together.
	ceilingMaxFragment = 8 << 20
	floorMaxHeader     = 1 << 10
	floorStreamWindow  = 64 << 10
)

// WithDefaults returns the configuration with its zero fields filled in and the others brought
// within their bounds.
func (c Config) WithDefaults() Config {
	c.MaxMessageBytes = within(c.MaxMessageBytes, defaultMaxMessage, 1, ceilingMaxMessage)
	c.MaxHeaderBytes = within(c.MaxHeaderBytes, defaultMaxHeader, floorMaxHeader, ceilingMaxHeader)
	c.MaxFragmentBytes = within(c.MaxFragmentBytes, defaultMaxFragment, floorMaxFragment, ceilingMaxFragment)
	c.Window = within(c.Window, defaultWindow, 1, ceilingMaxMessage)
	c.StreamWindow = within(c.StreamWindow, defaultStreamWindow, floorStreamWindow, ceilingMaxMessage)
	c.MaxStreamWindow = within(c.MaxStreamWindow, 8*c.StreamWindow, c.StreamWindow, ceilingMaxMessage)
	c.MaxStreamBytes = within(c.MaxStreamBytes, max(c.MaxMessageBytes, leastShared), 1, ceilingMaxMessage)
	c.MaxCalls = within(c.MaxCalls, defaultMaxCalls, 1, maxCallID)
	c.MaxStreams = within(c.MaxStreams, defaultMaxStreams, 1, maxCallID)
	c.MaxBacklog = within(c.MaxBacklog, max(2*c.MaxMessageBytes, leastShared), 1, 4*ceilingMaxMessage)
	if c.Keepalive == 0 {
		c.Keepalive = defaultKeepalive
	}
	if c.BusyPoll == 0 {
		c.BusyPoll = defaultBusyPoll
	}
	if c.HandshakeTimeout <= 0 {
		c.HandshakeTimeout = defaultHandshakeTimeout
	}
	if c.Overseer == nil {
		c.Overseer = &Overseer{}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// PeerMemory is the most that one connection with this configuration holds in memory for its peer,
// in bytes, whatever the peer sends, and whether it reads or not. It is a sum of the bounds above,
// each with what its bookkeeping takes; by default it is 974 MiB, most of it for messages: with
// MaxMessageBytes of 4 MiB it is 526 MiB, with MaxStreams of 128 as well 226 MiB. docs/tunnel.md
// has the parts.
//
// It counts messages as they are encoded. What they take when they have been decoded, and what
// handlers keep for themselves, such as the message that a stream's handler is about to send, is
// theirs.
func (c Config) PeerMemory() int {
	c = c.WithDefaults()
	m := c.memory()
	return m.buffers + m.names + m.calls + m.meta + m.messages + m.streams + m.beyond + m.backlog
}

// memory is [Config.PeerMemory] by its parts.
type memory struct{ buffers, names, calls, meta, messages, streams, beyond, backlog int }

// What the parts take beyond the bytes that they have bounds for. Buffers grow by doubling, so that
// a bound on bytes is one of twice as much memory.
const (
	slack       = 2
	callBytes   = 1536     // a call that is served: what is known of it, its place in line, a brief answer
	streamBytes = 32 << 10 // a stream: its goroutine, its lists of messages
	namesBytes  = 8 << 20  // the table of names, and what is known of calls by their names
)

func (c Config) memory() memory {
	return memory{
		buffers:  slack * (2*(c.MaxHeaderBytes+c.MaxFragmentBytes) + 2*fullBytes + batchBytes),
		names:    namesBytes,
		calls:    c.MaxCalls * callBytes,
		meta:     slack * c.Window,
		messages: slack * max(c.Window, c.MaxMessageBytes+c.MaxHeaderBytes),
		streams:  c.MaxStreams*streamBytes + slack*(c.MaxStreams*floorStreamWindow+c.MaxStreamBytes),
		beyond:   slack * c.MaxMessageBytes,
		backlog:  c.MaxBacklog + c.MaxHeaderBytes,
	}
}

// String is the configuration in one line, for logs, without the token.
func (c Config) String() string {
	return fmt.Sprintf("message=%d header=%d fragment=%d window=%d stream-window=%d to %d, %d beyond, calls=%d streams=%d backlog=%d "+
		"keepalive=%v handshake=%v busy-poll=%v",
		c.MaxMessageBytes, c.MaxHeaderBytes, c.MaxFragmentBytes, c.Window, c.StreamWindow, c.MaxStreamWindow, c.MaxStreamBytes,
		c.MaxCalls, c.MaxStreams, c.MaxBacklog,
		c.Keepalive, c.HandshakeTimeout, c.BusyPoll)
}

func within(value, standard, low, high int) int {
	if value == 0 {
		value = standard
	}
	return min(max(value, low), high)
}

// limits are what one side is ready to receive; the handshake carries them.
type limits struct {
	maxMessage, maxHeader, window, streamWindow, maxCalls, maxStreams, maxNames, maxNameBytes, maxFragment int
}

func (c Config) limits() limits {
	return limits{
		maxMessage: c.MaxMessageBytes, maxHeader: c.MaxHeaderBytes, window: c.Window, streamWindow: floorStreamWindow,
		maxCalls: c.MaxCalls, maxStreams: c.MaxStreams, maxNames: maxNames, maxNameBytes: maxNamesBytes, maxFragment: c.MaxFragmentBytes,
	}
}
