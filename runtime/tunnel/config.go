package tunnel

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/raylink/raylink/runtime/tunnel/internal/sock"
)

// Config limits what a connection may use and how long it waits. A zero field means its default.
// The limits on what a side receives are sent to the peer in the handshake and honoured by the
// peer's [Conn], so the two sides' configurations may differ. [Config.PeerMemory] is the memory
// that a peer can make a connection hold, whether or not it honours the limits.
type Config struct {
	// MaxMessageBytes is the largest encoded message that this side receives. A larger message
	// fails its own call with ResourceExhausted and affects nothing else. Default 64 MiB, at most 1
	// GiB.
	MaxMessageBytes int
	// MaxHeaderBytes limits everything that a call carries besides its messages: names, headers and
	// chain of the request, trailers and error of the response. Default 64 KiB, at most 1 MiB.
	MaxHeaderBytes int
	// MaxFragmentBytes is how much of a large message this side receives in one frame. Larger
	// fragments cost less per byte and delay the frames behind them for longer. Default 257 KiB, at
	// least 65 KiB, at most 8 MiB.
	MaxFragmentBytes int
	// Window is the number of bytes of unary requests that may be in flight, that is sent and not
	// yet answered. When it is full, [Conn.Start] blocks. A single larger request is sent when
	// nothing else is in flight. It also limits the bytes of unary responses too large for one
	// frame that may be in flight at once. Default 16 MiB.
	Window int
	// StreamWindow is the number of bytes of one stream, in one direction, that may be waiting for
	// their reader. A stream starts with a window of 64 KiB and is raised to StreamWindow once it
	// has used a quarter of that, as far as MaxStreamBytes permits. Default 1 MiB, at least 64 KiB.
	StreamWindow int
	// MaxStreamBytes limits the sum by which the windows of all streams exceed the initial 64 KiB
	// each. Streams opened while it is used up are slower but work otherwise. Default
	// MaxMessageBytes, at least 8 MiB.
	MaxStreamBytes int
	// MaxStreamWindow is the size to which the window of a stream grows while its reader keeps up.
	// A larger window needs fewer CREDIT frames and so costs less. Default eight times
	// StreamWindow, at least StreamWindow.
	MaxStreamWindow int
	// MaxCalls limits the number of open calls of every shape. When it is reached, [Conn.Start]
	// blocks. Default 65,536, at most 2^24 - 1.
	MaxCalls int
	// MaxStreams limits how many of the open calls are streams, including streams that have ended
	// but whose handlers still run. A further stream is refused with ResourceExhausted. Default
	// 2,048.
	MaxStreams int
	// MaxBacklog limits the bytes of responses that wait to be written to a peer that reads slowly
	// or not at all. A response that would exceed it is replaced by ResourceExhausted. Default
	// twice MaxMessageBytes, at least 8 MiB.
	MaxBacklog int
	// Keepalive is how long a connection with open calls may be silent before the peer is pinged.
	// If it stays silent for as long again, the connection fails with "no answer for ...". Default
	// 5 s; negative disables it.
	Keepalive time.Duration
	// Token is the shared secret that the two sides prove to each other. It is never sent. A
	// dialler can however test guesses offline against the accepting side's proof, so a token
	// should have 256 random bits. Empty means no token. A side with a token refuses a peer without
	// one, and the reverse.
	Token string
	// HandshakeTimeout limits the duration of the handshake. Default 10 s.
	HandshakeTimeout time.Duration
	// BusyPoll is how long a reader on this side spins on the socket before it blocks. It makes
	// back-to-back calls several times faster and uses CPU time that others may need. At most
	// GOMAXPROCS/2 readers of a process spin at once. Default 50 µs; negative disables it.
	BusyPoll time.Duration
	// Watchdog watches the connection. The connections of one process should share one. By default
	// each connection has its own.
	Watchdog *Watchdog
	// Logger receives what no caller is notified of, such as panics in handlers and protocol
	// violations by peers. Default [slog.Default].
	Logger *slog.Logger

	// nonce replaces the random nonces in tests.
	nonce func() string
}

const (
	defaultMaxMessage       = 64 << 20
	defaultMaxHeader        = 64 << 10
	defaultMaxFragment      = 257 << 10 // fits a payload of 256 KiB together with its encoding
	defaultWindow           = 16 << 20
	defaultStreamWindow     = 1 << 20
	defaultMaxCalls         = 1 << 16
	defaultMaxStreams       = 1 << 11
	defaultKeepalive        = 5 * time.Second
	defaultHandshakeTimeout = 10 * time.Second
	// minSharedBudget is the minimum default of the budgets that calls and streams share, however
	// small the messages are.
	minSharedBudget = 8 << 20

	ceilingMaxMessage = 1 << 30
	ceilingMaxHeader  = 1 << 20
	// The length field of a frame has 24 bits, for fragment and header together.
	ceilingMaxFragment = 8 << 20
	floorMaxHeader     = 1 << 10
	floorStreamWindow  = 64 << 10
)

// WithDefaults returns the configuration with zero fields set to their defaults and the others
// clamped to their valid range.
func (c Config) WithDefaults() Config {
	c.MaxMessageBytes = within(c.MaxMessageBytes, defaultMaxMessage, 1, ceilingMaxMessage)
	c.MaxHeaderBytes = within(c.MaxHeaderBytes, defaultMaxHeader, floorMaxHeader, ceilingMaxHeader)
	c.MaxFragmentBytes = within(c.MaxFragmentBytes, defaultMaxFragment, floorMaxFragment, ceilingMaxFragment)
	c.Window = within(c.Window, defaultWindow, 1, ceilingMaxMessage)
	c.StreamWindow = within(c.StreamWindow, defaultStreamWindow, floorStreamWindow, ceilingMaxMessage)
	c.MaxStreamWindow = within(c.MaxStreamWindow, 8*c.StreamWindow, c.StreamWindow, ceilingMaxMessage)
	c.MaxStreamBytes = within(c.MaxStreamBytes, max(c.MaxMessageBytes, minSharedBudget), 1, ceilingMaxMessage)
	c.MaxCalls = within(c.MaxCalls, defaultMaxCalls, 1, maxCallID)
	c.MaxStreams = within(c.MaxStreams, defaultMaxStreams, 1, maxCallID)
	c.MaxBacklog = within(c.MaxBacklog, max(2*c.MaxMessageBytes, minSharedBudget), 1, 4*ceilingMaxMessage)
	if c.Keepalive == 0 {
		c.Keepalive = defaultKeepalive
	}
	if c.BusyPoll == 0 {
		c.BusyPoll = sock.DefaultBusyPoll
	}
	if c.HandshakeTimeout <= 0 {
		c.HandshakeTimeout = defaultHandshakeTimeout
	}
	if c.Watchdog == nil {
		c.Watchdog = &Watchdog{}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// PeerMemory returns the maximum memory, in bytes, that one connection with this configuration
// holds for its peer, whatever the peer sends and whether or not it reads. It is the sum of the
// limits above with their bookkeeping. With the defaults it is 974 MiB, most of it for messages;
// with MaxMessageBytes of 4 MiB it is 526 MiB, and with MaxStreams of 128 as well 226 MiB.
// docs/tunnel.md lists the parts.
//
// It counts messages in their encoded form. Decoded messages and memory that handlers hold, such as
// the message that a stream's handler is about to send, are not included.
func (c Config) PeerMemory() int {
	c = c.WithDefaults()
	m := c.memory()
	return m.buffers + m.names + m.calls + m.meta + m.messages + m.streams + m.excess + m.backlog
}

// memory is the parts of [Config.PeerMemory].
type memory struct{ buffers, names, calls, meta, messages, streams, excess, backlog int }

// Memory used beyond the bytes that the limits count. Buffers grow by doubling, so a limit on bytes
// means up to twice that much memory.
const (
	slack       = 2
	callBytes   = 1536     // a served call: its state, its queue entry, a short reply
	streamBytes = 32 << 10 // a stream: its goroutine and message queues
	namesBytes  = 8 << 20  // the name table and the state shared by calls with the same names
)

func (c Config) memory() memory {
	return memory{
		buffers:  slack * (2*(c.MaxHeaderBytes+c.MaxFragmentBytes) + 2*fullBytes + batchBytes),
		names:    namesBytes,
		calls:    c.MaxCalls * callBytes,
		meta:     slack * c.Window,
		messages: slack * max(c.Window, c.MaxMessageBytes+c.MaxHeaderBytes),
		streams:  c.MaxStreams*streamBytes + slack*(c.MaxStreams*floorStreamWindow+c.MaxStreamBytes),
		excess:   slack * c.MaxMessageBytes,
		backlog:  c.MaxBacklog + c.MaxHeaderBytes,
	}
}

// String returns the configuration as one line for logs, without the token.
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

// limits are what one side is prepared to receive. They are exchanged in the handshake.
type limits struct {
	maxMessage, maxHeader, window, streamWindow, maxCalls, maxStreams, maxNames, maxNameTableBytes, maxFragment int
}

func (c Config) limits() limits {
	return limits{
		maxMessage: c.MaxMessageBytes, maxHeader: c.MaxHeaderBytes, window: c.Window, streamWindow: floorStreamWindow,
		maxCalls: c.MaxCalls, maxStreams: c.MaxStreams, maxNames: maxNames, maxNameTableBytes: maxNameTableBytes, maxFragment: c.MaxFragmentBytes,
	}
}
