package tunnel_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/puppet"
)

// heap is what the process holds, when all that can be collected has been.
func heap() int {
	for range 3 { // finalizers give memory back, and pools keep it through one collection
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapInuse + m.StackInuse)
}

// write sends b to a side that may stop reading, again and again until n bytes are sent or it takes nothing more.
func write(t *testing.T, nc net.Conn, b []byte, n int) (sent int) {
	t.Helper()
	const stuck = 300 * time.Millisecond
	for sent < n {
		require.NoError(t, nc.SetWriteDeadline(time.Now().Add(stuck)))
		k, err := nc.Write(b)
		sent += k
		if err != nil {
			return sent // it reads no more, or has ended the connection
		}
	}
	return sent
}

// hostility is what a peer does, and what it may cost the other side.
type hostility struct {
	name string
	// reads: the peer reads what comes, and does nothing with it.
	reads bool
	// send is written until total bytes are out; first, once before.
	first, send []byte
	total       int
	// most is what may be held of it.
	most int
	// ended: it breaks the protocol, so the connection ends.
	ended bool
}

const mib = 1 << 20

// unguardedHostility is the one that shows, where an accepting side does not stop reading, that this is noticed.
const unguardedHostility = "CALL that fails, unread"

func concat(list ...[]byte) []byte {
	var b []byte
	for _, f := range list {
		b = append(b, f...)
	}
	return b
}

// each makes a frame for every id from 1 to n.
func each(n int, of func(id uint32) []byte) []byte {
	var b []byte
	for id := range n {
		b = append(b, of(uint32(id+1))...)
	}
	return b
}

func call(flags byte, id uint32, parts ...[]byte) []byte {
	return puppet.Frame(puppet.Call, flags, id, concat(parts...)...)
}

// hostilities are what a caller may do to a side that serves: every type of frame.
func hostilities() []hostility {
	ping := puppet.Repeated(puppet.Frame(puppet.Ping, 0, 0, make([]byte, 8)...), 64<<10)
	hold, refuse := puppet.Names("hold", "/p/P"), puppet.Names("refuse", "/p/P")
	named := puppet.Names("hold", "/"+strings.Repeat("n", 60<<10))
	open := func(n int) []byte { return each(n, func(id uint32) []byte { return call(puppet.Bidi, id, hold) }) }
	numbers := func(from, n int, name string) []byte {
		var b []byte
		for i := range n {
			b = append(b, puppet.Frame(puppet.Name, 0, uint32(from+i+1), []byte(name)...)...)
		}
		return b
	}
	return []hostility{
		{name: "PING, unread", send: ping, total: 64 * mib, most: 8 * mib},
		{name: "PING, read", reads: true, send: ping, total: 32 * mib, most: 8 * mib},
		{name: "PONG", send: puppet.Repeated(puppet.Frame(puppet.Pong, 0, 0, make([]byte, 8)...), 64<<10), total: 16 * mib, most: mib},
		{name: "NAME", first: numbers(0, 16<<10, ""), send: numbers(16<<10, 1, "x"), total: 100, most: 4 * mib, ended: true},
		{name: "NAME, long", send: numbers(0, 1100, strings.Repeat("n", 1000)), total: 1, most: 4 * mib, ended: true},
		{
			name: unguardedHostility, first: concat(numbers(0, 1, "refuse"), numbers(1, 1, "c"), numbers(2, 1, "/p/P")),
			send: puppet.Repeated(call(0, 1, []byte{1, 2, 3}), 64<<10), total: 16 * mib, most: 8 * mib,
		},
		{
			name: "CALL that fails with a long name, unread", send: call(0, 1, puppet.Names("refuse", "/"+strings.Repeat("n", 60<<10))),
			total: 64 * mib, most: 8 * mib,
		},
		{name: "CALL that fails, read", reads: true, send: puppet.Repeated(call(0, 1, refuse), 64<<10), total: 4 * mib, most: 8 * mib},
		{name: "CALL that is not run", first: open(2048), send: each(1000, func(id uint32) []byte { return call(puppet.Bidi, 3000+id, hold) }), total: 16 * mib, most: 80 * mib},
		{name: "CALL of a name of its own", reads: true, send: each(1000, func(id uint32) []byte {
			name := puppet.Names("refuse", fmt.Sprintf("/%08d%s", id, strings.Repeat("x", 60<<10)))
			return concat(call(puppet.Sized, id, name, []byte{1}), puppet.Frame(puppet.Data, 0, id, 0))
		}), total: 1, most: 8 * mib},
		{name: "CALL that stays open", send: each(60_000, func(id uint32) []byte { return call(0, id, []byte{0, 4}, []byte("hold"), []byte{0, 0, 0, 0}) }), total: 1, most: 64 * mib},
		{name: "CALL with a name that stays open", send: each(250, func(id uint32) []byte { return call(0, id, named) }), total: 1, most: 40 * mib},
		{name: "CALL with empty fields", send: each(1000, func(id uint32) []byte {
			return call(puppet.WithHeader, id, hold, puppet.EmptyHeader(2000))
		}), total: 1, most: 24 * mib},
		{name: "CALL with too many empty fields", reads: true, send: each(200, func(id uint32) []byte {
			return call(puppet.WithHeader, id, hold, puppet.EmptyHeader(32_000))
		}), total: 1, most: 4 * mib},
		{name: "CALL of a stream with empty fields", send: each(1000, func(id uint32) []byte {
			return call(puppet.Bidi|puppet.WithHeader, id, hold, puppet.EmptyHeader(2000))
		}), total: 1, most: 60 * mib},
		{name: "CALL that announces much", send: each(3, func(id uint32) []byte { return call(puppet.Sized, id, hold, puppet.Number(5<<20)) }), total: 1, most: 17 * mib},
		{name: "CALL that is never complete", send: each(60_000, func(id uint32) []byte {
			return call(puppet.Sized, id, []byte{0, 4}, []byte("hold"), []byte{0, 0, 0, 0}, puppet.Number(1))
		}), total: 1, most: 100 * mib},
		{name: "CALL with ids out of range", send: call(0, 1<<24-1, hold), total: 1, most: mib, ended: true},
		{name: "DATA of small messages", first: open(100), send: each(100, func(id uint32) []byte {
			return puppet.Repeated(puppet.Frame(puppet.Data, 0, id, 0), 64<<10/33*9)
		}), total: 1, most: 40 * mib},
		{name: "DATA of empty messages, in turn", first: open(100), send: puppet.Repeated(each(100, func(id uint32) []byte {
			return puppet.Frame(puppet.Data, 0, id)
		}), 1900*100*8), total: 1, most: 40 * mib},
		{name: "DATA past the window", first: open(1), send: puppet.Frame(puppet.Data, 0, 1, make([]byte, 60<<10)...), total: 16 * mib, most: 4 * mib, ended: true},
		{
			name: "DATA for canceled streams", first: concat(open(50), each(50, func(id uint32) []byte { return puppet.Frame(puppet.Cancel, 0, id) })),
			send: each(50, func(id uint32) []byte {
				return concat(puppet.Frame(puppet.Data, puppet.Sized, id, puppet.Number(4<<20)...), puppet.Frame(puppet.Data, 0, id, make([]byte, 250<<10)...))
			}), total: 50 * mib, most: 8 * mib,
		},
		{name: "DATA for canceled streams, begun before", first: concat(open(50), each(50, func(id uint32) []byte {
			return concat(puppet.Frame(puppet.Data, puppet.Sized, id, puppet.Number(4<<20)...), puppet.Frame(puppet.Cancel, 0, id))
		})), send: each(50, func(id uint32) []byte { return puppet.Frame(puppet.Data, 0, id, make([]byte, 250<<10)...) }), total: 50 * mib, most: 12 * mib},
		{name: "streams of too large messages whose handlers run on", reads: true, send: each(3000, func(id uint32) []byte {
			return concat(call(puppet.Bidi, id, hold), puppet.Frame(puppet.Data, puppet.Sized, id, puppet.Number(1<<30)...))
		}), total: 1, most: 80 * mib},
		{name: "CLOSE_SEND", first: open(1), send: puppet.Repeated(puppet.Frame(puppet.CloseSend, 0, 1), 64<<10), total: 8 * mib, most: mib},
		{name: "CANCEL", first: open(1), send: puppet.Repeated(puppet.Frame(puppet.Cancel, 0, 1), 64<<10), total: 8 * mib, most: mib},
		{name: "CREDIT", first: open(1), send: puppet.Repeated(puppet.Frame(puppet.Credit, 0, 1, 1), 64<<10), total: 8 * mib, most: mib},
		{name: "GOAWAY", send: puppet.Repeated(puppet.Frame(puppet.GoAway, 0, 0, 14, 0, 0), 64<<10), total: 8 * mib, most: mib},
		{name: "half a frame", send: puppet.Frame(puppet.Call, 0, 1, make([]byte, 300<<10)...)[:299<<10], total: 1, most: 2 * mib},
	}
}

// TestWhatACallerMakesAHostHold sends frames of each type, as many as a peer can, and looks at the memory that is held then.
func TestWhatACallerMakesAHostHold(t *testing.T) {
	for _, h := range hostilities() {
		if !tunnel.Guarded && h.name != unguardedHostility {
			continue
		}
		t.Run(h.name, func(t *testing.T) {
			release := make(chan struct{})
			near, far := sockets(t)
			strings := puppet.New(near)
			client, server := join(t, strings, far, tunnel.Config{Keepalive: -1}, tunnel.Config{Keepalive: -1, Logger: silent()}, handlers{
				unary: func(in *tunnel.Incoming) {
					if in.Target == "refuse" {
						in.Reply(nil, connect.Errorf(connect.CodeUnavailable, "no node %s lives here, which has %s", in.Target, in.Procedure))
					}
				},
				stream: func(context.Context, *tunnel.Incoming, connect.ServerStream) error {
					<-release
					return nil
				},
			})
			defer func() {
				close(release)
				_ = client.Close()
				_ = server.Close()
				require.Eventually(t, func() bool { return runtime.NumGoroutine() < 20 }, time.Minute, time.Millisecond)
			}()
			require.NoError(t, strings.Seize())
			if h.reads {
				go func() { _, _ = io.Copy(io.Discard, near) }()
			}
			before := heap()
			if len(h.first) > 0 {
				require.Equal(t, len(h.first), write(t, near, h.first, 1))
			}
			sent := len(h.first) + write(t, near, h.send, h.total)
			settled(t, server)
			held := heap() - before
			t.Logf("%d KiB sent, %d KiB held", sent>>10, held>>10)
			runtime.KeepAlive(h)
			if !tunnel.Guarded {
				require.Greater(t, held, h.most, "the guard is gone, and the test has not noticed")
				return
			}
			assert.LessOrEqual(t, held, h.most)
			assert.LessOrEqual(t, h.most, tunnel.Config{}.PeerMemory())
			if h.ended {
				require.Eventually(t, func() bool { return server.Err() != nil }, time.Minute, time.Millisecond)
				require.ErrorIs(t, server.Err(), tunnel.ErrProtocol)
			} else {
				require.NoError(t, server.Err())
			}
		})
	}
}

// settled waits until a connection has read what there is to read.
func settled(t *testing.T, c *tunnel.Conn) {
	t.Helper()
	last, since := c.Stats().BytesReceived, time.Now()
	require.Eventually(t, func() bool {
		if now := c.Stats().BytesReceived; now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 50*time.Millisecond
	}, time.Minute, time.Millisecond)
}

// TestWhatAServerMakesACallerHold has a caller with one unary call and one stream open, and a server that sends what it likes.
func TestWhatAServerMakesACallerHold(t *testing.T) {
	needsGuards(t)
	empty := puppet.EmptyHeader(1000)
	for _, h := range []hostility{
		{name: "PING, unread", send: puppet.Repeated(puppet.Frame(puppet.Ping, 0, 0, make([]byte, 8)...), 64<<10), total: 16 * mib, most: 2 * mib, ended: true},
		{name: "HEAD with too many fields", send: puppet.Frame(puppet.Head, 0, 2, puppet.EmptyHeader(32_000)...), total: 1, most: mib},
		{name: "HEAD again and again", send: concat(puppet.Frame(puppet.Head, 0, 2, empty...), puppet.Frame(puppet.Data, 0, 2)), total: 16 * mib, most: 2 * mib, ended: true},
		{name: "REPLY with too many fields", send: puppet.Frame(puppet.Reply, 0x02|0x08, 1, puppet.EmptyHeader(32_000)...), total: 1, most: mib},
		{name: "REPLY with many details", send: puppet.Frame(puppet.Reply, 0x01, 1, append([]byte{2, 0}, puppet.EmptyHeader(30_000)...)...), total: 1, most: mib},
		{name: "REPLY that is not complete", send: concat(puppet.Frame(puppet.Reply, 0x08|puppet.Sized, 1, puppet.Number(60<<20)...),
			puppet.Repeated(puppet.Frame(puppet.Data, 0, 1, make([]byte, 250<<10)...), 30*mib)), total: 1, most: 130 * mib},
		{name: "REPLY of a call that is not open", send: puppet.Frame(puppet.Reply, 0x08, 9), total: 1, most: mib, ended: true},
		{name: "DATA past the window", send: puppet.Frame(puppet.Data, 0, 2, make([]byte, 60<<10)...), total: 16 * mib, most: 20 * mib, ended: true},
		{name: "CREDIT", send: puppet.Repeated(puppet.Frame(puppet.Credit, 0, 2, 1), 64<<10), total: 8 * mib, most: mib},
		{name: "GOAWAY", send: puppet.Repeated(puppet.Frame(puppet.GoAway, 0, 0, 14, 0, 0), 64<<10), total: 8 * mib, most: mib},
	} {
		t.Run(h.name, func(t *testing.T) {
			near, far := sockets(t)
			strings := puppet.New(far)
			client, server := join(t, near, strings, tunnel.Config{Keepalive: -1, Logger: silent()}, tunnel.Config{Keepalive: -1}, echo())
			defer func() {
				_ = client.Close()
				_ = server.Close()
			}()
			require.NoError(t, strings.Seize())
			_, done, err := start(t.Context(), client, "/p/P", 1)
			require.NoError(t, err)
			stream := bidi(t.Context(), t, client)
			require.NoError(t, stream.Send(nil))
			before := heap()
			sent := write(t, far, h.send, h.total)
			settled(t, client)
			held := heap() - before
			t.Logf("%d KiB sent, %d KiB held", sent>>10, held>>10)
			runtime.KeepAlive(h)
			assert.LessOrEqual(t, held, h.most)
			if h.ended {
				require.Eventually(t, func() bool { return client.Err() != nil }, time.Minute, time.Millisecond)
				require.ErrorIs(t, client.Err(), tunnel.ErrProtocol)
			}
			_ = client.Close()
			err = <-done // any outcome will do, but there must be one
			t.Log(err)
		})
	}
}

// TestAPeerThatReadsLateIsAnsweredAll floods a side with calls whose answers are read late: it stops reading
// until they are, and goes on then.
func TestAPeerThatReadsLateIsAnsweredAll(t *testing.T) {
	needsGuards(t)
	near, far := sockets(t)
	strings := puppet.New(near)
	client, server := join(t, strings, far, tunnel.Config{}, tunnel.Config{}, handlers{unary: func(in *tunnel.Incoming) {
		in.Reply(wrapperspb.Bytes(make([]byte, 4<<10)), nil)
	}})
	defer func() {
		_ = client.Close()
		_ = server.Close()
	}()
	require.NoError(t, strings.Seize())
	const calls = 20_000
	sent := make(chan error, 1)
	go func() {
		for range calls {
			if _, err := near.Write(call(0, 1, puppet.Names("t", "/p/P"))); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	settled(t, server) // it has stopped reading
	require.Less(t, server.Stats().Calls, uint64(calls))
	total, b := 0, make([]byte, 64<<10)
	for total < calls*(4<<10) {
		n, err := near.Read(b)
		require.NoError(t, err)
		total += n
	}
	require.NoError(t, <-sent)
	require.Equal(t, uint64(calls), server.Stats().Calls)
}
