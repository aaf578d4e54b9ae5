package tunnel_test

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"iter"
	"net"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/memnet"
	"github.com/raylink/raylink/runtime/tunnel/puppet"
)

// liveMemory returns the heap in use at the last collection, plus stacks. It excludes garbage and
// partly free spans, whose amount depends on what ran before.
func liveMemory() int {
	runtime.GC()
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(samples)
	return int(samples[0].Value.Uint64() + samples[1].Value.Uint64())
}

// leastMemory collects garbage until enough or less is in use, or until several consecutive
// collections have freed nothing: pools and the recycler keep memory through one or two, and
// finalizers run after them. All other goroutines of the bubble are blocked meanwhile, so memory in
// use can only decrease.
func leastMemory(enough int) int {
	const patience = 50 // on a busy machine some goroutine of the runtime may be late
	least := liveMemory()
	for vain := 0; least > enough && vain < patience; {
		runtime.Gosched()
		if now := liveMemory(); now < least {
			least, vain = now, 0
		} else {
			vain++
		}
	}
	return least
}

// largestInUse describes what holds the most memory, as far as the profile has samples of it.
func largestInUse() string {
	records := make([]runtime.MemProfileRecord, 10_000)
	n, _ := runtime.MemProfile(records, false)
	slices.SortFunc(records[:n], func(a, b runtime.MemProfileRecord) int { return cmp.Compare(b.InUseBytes(), a.InUseBytes()) })
	var text strings.Builder
	for _, r := range records[:min(n, 8)] {
		fmt.Fprintf(&text, "%d bytes:", r.InUseBytes())
		for frames := runtime.CallersFrames(r.Stack()); ; {
			frame, more := frames.Next()
			text.WriteString(" " + frame.Function)
			if !more {
				break
			}
		}
		text.WriteByte('\n')
	}
	return text.String()
}

// inTransit is the number of bytes that memnet buffers in both directions.
const inTransit = 2 * 256 << 10

// flood writes first once, and then send until total bytes are written. It returns the maximum
// memory in use, which it measures several times on the way: at those points every goroutine of the
// bubble is blocked, so the receiver has processed its input. stopped reports that the receiver has
// stopped reading before the end.
func (h *attack) flood(t *testing.T, nc net.Conn, victim *tunnel.Conn) (held int, stopped bool) {
	t.Helper()
	const samples = 8
	synctest.Wait()
	before, received := leastMemory(0), victim.Stats().BytesReceived
	enough := before + h.most + inTransit
	written := make(chan error, 1)
	push := func(bytes iter.Seq[[]byte]) (blocked bool, err error) {
		go func() {
			for b := range bytes {
				if _, err := nc.Write(b); err != nil {
					written <- err
					return
				}
			}
			written <- nil
		}()
		synctest.Wait()
		held = max(held, leastMemory(enough)-before)
		select {
		case err := <-written:
			return false, err
		default:
			return true, nil
		}
	}
	blocked, err := push(slices.Values([][]byte{h.first}))
	require.False(t, blocked)
	require.NoError(t, err)
	size := (h.total + len(h.send) - 1) / len(h.send) * len(h.send)
	for i := range samples {
		blocked, err = push(h.part(size/samples*i, size/samples*(i+1)+size%samples*(i/(samples-1))))
		if blocked || err != nil {
			break
		}
	}
	if held > enough-before {
		t.Log("the largest allocations in use:\n" + largestInUse())
	}
	got := victim.Stats().BytesReceived - received
	t.Logf("%d KiB to send, %d KiB received, %d KiB held", (len(h.first)+size)>>10, got>>10, held>>10)
	switch {
	case blocked:
		require.True(t, tunnel.Paused(victim), "it takes nothing more, but has not stopped reading")
	case err != nil:
		require.Error(t, victim.Err(), "the victim has not ended the connection: %v", err)
	case victim.Err() == nil:
		require.EqualValues(t, len(h.first)+size, got)
	}
	return held, blocked
}

// part is a portion of the repetitions of send.
func (h *attack) part(from, to int) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for from < to {
			b := h.send[from%len(h.send):]
			b = b[:min(len(b), to-from)]
			if from += len(b); !yield(b) {
				return
			}
		}
	}
}

// attack is what a hostile peer does, and the memory that it may cost the other side.
type attack struct {
	name string
	// reads: the peer reads and discards what it receives.
	reads bool
	// first is written once, and then send until total bytes are written.
	first, send []byte
	total       int
	// most is the memory that may be held for it, in addition to inTransit.
	most int
	// stops: the receiver stops reading.
	stops bool
	// ended: the connection ends because of a protocol violation.
	ended bool
}

const mib = 1 << 20

// buffers is the memory that docs/tunnel.md allows for buffers. A side that stops reading may have
// that much to write: the size of its buffers depends on how much the writer took before it
// blocked.
const buffers = 6 * mib

func concat(list ...[]byte) []byte {
	var b []byte
	for _, f := range list {
		b = append(b, f...)
	}
	return b
}

// each returns a frame for each id from 1 to n.
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

// attacks are what a caller may send to a serving side: frames of every kind.
func attacks() []attack {
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
	return []attack{
		{name: "PING, unread", send: ping, total: 16 * mib, most: buffers, stops: true},
		{name: "PING, read", reads: true, send: ping, total: 8 * mib, most: 2 * mib},
		{name: "PONG", send: puppet.Repeated(puppet.Frame(puppet.Pong, 0, 0, make([]byte, 8)...), 64<<10), total: 4 * mib, most: mib},
		{name: "NAME", first: numbers(0, 16<<10, ""), send: numbers(16<<10, 1, "x"), total: 100, most: mib, ended: true},
		{name: "NAME, long", send: numbers(0, 1100, strings.Repeat("n", 1000)), total: 1, most: 2 * mib, ended: true},
		{
			name: "CALL that fails, unread", first: concat(numbers(0, 1, "refuse"), numbers(1, 1, "c"), numbers(2, 1, "/p/P")),
			send: puppet.Repeated(call(0, 1, []byte{1, 2, 3}), 64<<10), total: 16 * mib, most: buffers, stops: true,
		},
		{
			name: "CALL that fails with a long name, unread", send: call(0, 1, puppet.Names("refuse", "/"+strings.Repeat("n", 60<<10))),
			total: 16 * mib, most: buffers, stops: true,
		},
		{name: "CALL that fails, read", reads: true, send: puppet.Repeated(call(0, 1, refuse), 64<<10), total: 2 * mib, most: 2 * mib},
		{name: "CALL that is not run", first: open(2048), send: each(1000, func(id uint32) []byte { return call(puppet.Bidi, 3000+id, hold) }), total: 16 * mib, most: 24 * mib, stops: true},
		{name: "CALL of a name of its own", reads: true, send: each(1000, func(id uint32) []byte {
			name := puppet.Names("refuse", fmt.Sprintf("/%08d%s", id, strings.Repeat("x", 60<<10)))
			return concat(call(puppet.Sized, id, name, []byte{1}), puppet.Frame(puppet.Data, 0, id, 0))
		}), total: 1, most: 2 * mib},
		{name: "CALL that stays open", send: each(60_000, func(id uint32) []byte { return call(0, id, []byte{0, 4}, []byte("hold"), []byte{0, 0, 0, 0}) }), total: 1, most: 28 * mib},
		{name: "CALL with a name that stays open", send: each(250, func(id uint32) []byte { return call(0, id, named) }), total: 1, most: 24 * mib},
		{name: "CALL with empty fields", send: each(1000, func(id uint32) []byte {
			return call(puppet.WithHeader, id, hold, puppet.EmptyHeader(1900))
		}), total: 1, most: 24 * mib},
		{name: "CALL with too many empty fields", reads: true, send: each(200, func(id uint32) []byte {
			return call(puppet.WithHeader, id, hold, puppet.EmptyHeader(32_000))
		}), total: 1, most: mib},
		{name: "CALL of a stream with empty fields", send: each(1000, func(id uint32) []byte {
			return call(puppet.Bidi|puppet.WithHeader, id, hold, puppet.EmptyHeader(1900))
		}), total: 1, most: 32 * mib},
		{name: "CALL that announces much", send: each(3, func(id uint32) []byte { return call(puppet.Sized, id, hold, puppet.Number(5<<20)) }), total: 1, most: 16 * mib},
		{name: "CALL that is never complete", send: each(60_000, func(id uint32) []byte {
			return call(puppet.Sized, id, []byte{0, 4}, []byte("hold"), []byte{0, 0, 0, 0}, puppet.Number(1))
		}), total: 1, most: 60_000 * 1536},
		{name: "CALL with ids out of range", send: call(0, 1<<24-1, hold), total: 1, most: mib, ended: true},
		{name: "DATA of small messages", first: open(100), send: each(100, func(id uint32) []byte {
			return puppet.Repeated(puppet.Frame(puppet.Data, 0, id, 0), 64<<10/33*9)
		}), total: 1, most: 100 * (32 + 2*64) << 10},
		{name: "DATA of empty messages, in turn", first: open(100), send: puppet.Repeated(each(100, func(id uint32) []byte {
			return puppet.Frame(puppet.Data, 0, id)
		}), 1900*100*8), total: 1, most: 100 * (32 + 2*64) << 10},
		{name: "DATA past the window", first: open(1), send: puppet.Frame(puppet.Data, 0, 1, make([]byte, 60<<10)...), total: 16 * mib, most: mib, ended: true},
		{
			name: "DATA for canceled streams", first: concat(open(50), each(50, func(id uint32) []byte { return puppet.Frame(puppet.Cancel, 0, id) })),
			send: each(50, func(id uint32) []byte {
				return concat(puppet.Frame(puppet.Data, puppet.Sized, id, puppet.Number(4<<20)...), puppet.Frame(puppet.Data, 0, id, make([]byte, 250<<10)...))
			}), total: 50 * mib, most: 2 * mib,
		},
		{name: "DATA for canceled streams, begun before", first: concat(open(50), each(50, func(id uint32) []byte {
			return concat(puppet.Frame(puppet.Data, puppet.Sized, id, puppet.Number(4<<20)...), puppet.Frame(puppet.Cancel, 0, id))
		})), send: each(50, func(id uint32) []byte { return puppet.Frame(puppet.Data, 0, id, make([]byte, 250<<10)...) }), total: 50 * mib, most: 6 * mib},
		{name: "streams of too large messages whose handlers run on", reads: true, send: each(3000, func(id uint32) []byte {
			return concat(call(puppet.Bidi, id, hold), puppet.Frame(puppet.Data, puppet.Sized, id, puppet.Number(1<<30)...))
		}), total: 1, most: 20 * mib},
		{name: "CLOSE_SEND", first: open(1), send: puppet.Repeated(puppet.Frame(puppet.CloseSend, 0, 1), 64<<10), total: 2 * mib, most: mib},
		{name: "CANCEL", first: open(1), send: puppet.Repeated(puppet.Frame(puppet.Cancel, 0, 1), 64<<10), total: 2 * mib, most: mib},
		{name: "CREDIT", first: open(1), send: puppet.Repeated(puppet.Frame(puppet.Credit, 0, 1, 1), 64<<10), total: 2 * mib, most: mib},
		{name: "GOAWAY", send: puppet.Repeated(puppet.Frame(puppet.GoAway, 0, 0, 14, 0, 0), 64<<10), total: 2 * mib, most: mib},
		{name: "half a frame", send: puppet.Frame(puppet.Call, 0, 1, make([]byte, 300<<10)...)[:299<<10], total: 1, most: mib},
	}
}

// TestMemoryHeldForHostileCaller sends frames of each kind, as many as a peer can, and measures the
// memory that is held then. The limits are within those of docs/tunnel.md and
// [tunnel.Config.PeerMemory], and at most about twice the measured memory.
func TestMemoryHeldForHostileCaller(t *testing.T) {
	all := attacks()
	for _, h := range all {
		t.Run(h.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { holdsForACaller(t, &h) })
		})
	}
	runtime.KeepAlive(all) // it is part of every measurement
}

func holdsForACaller(t *testing.T, h *attack) {
	t.Helper()
	release := make(chan struct{})
	near, far := memnet.Pipe()
	seized := puppet.New(near)
	client, server := join(t, seized, far, tunnel.Config{Keepalive: -1}, tunnel.Config{Keepalive: -1, Logger: silent()}, handlers{
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
		require.NoError(t, client.Close())
		require.NoError(t, server.Close())
	}()
	require.NoError(t, seized.Seize())
	if h.reads {
		go func() { _, _ = io.Copy(io.Discard, near) }()
	}
	held, stopped := h.flood(t, near, server)
	assert.LessOrEqual(t, held, h.most+inTransit)
	assert.LessOrEqual(t, h.most, tunnel.Config{}.PeerMemory())
	assert.Equal(t, h.stops, stopped)
	if h.ended {
		require.ErrorIs(t, server.Err(), tunnel.ErrProtocol)
	} else {
		require.NoError(t, server.Err())
	}
}

// TestMemoryHeldForHostileServer has a caller with one unary call and one stream open, and a server
// that sends arbitrary frames.
func TestMemoryHeldForHostileServer(t *testing.T) {
	empty := puppet.EmptyHeader(1000)
	all := []attack{
		{name: "PING, unread", send: puppet.Repeated(puppet.Frame(puppet.Ping, 0, 0, make([]byte, 8)...), 64<<10), total: 16 * mib, most: mib, ended: true},
		{name: "HEAD with too many fields", send: puppet.Frame(puppet.Head, 0, 2, puppet.EmptyHeader(32_000)...), total: 1, most: mib},
		{name: "HEAD again and again", send: concat(puppet.Frame(puppet.Head, 0, 2, empty...), puppet.Frame(puppet.Data, 0, 2)), total: 16 * mib, most: mib, ended: true},
		{name: "REPLY with too many fields", send: puppet.Frame(puppet.Reply, 0x02|0x08, 1, puppet.EmptyHeader(32_000)...), total: 1, most: mib},
		{name: "REPLY with many details", send: puppet.Frame(puppet.Reply, 0x01, 1, append([]byte{2, 0}, puppet.EmptyHeader(30_000)...)...), total: 1, most: mib},
		{name: "REPLY that is not complete", send: concat(puppet.Frame(puppet.Reply, 0x08|puppet.Sized, 1, puppet.Number(60<<20)...),
			puppet.Repeated(puppet.Frame(puppet.Data, 0, 1, make([]byte, 250<<10)...), 30*mib)), total: 1, most: 48 * mib},
		{name: "REPLY of a call that is not open", send: puppet.Frame(puppet.Reply, 0x08, 9), total: 1, most: mib, ended: true},
		{name: "DATA past the window", send: puppet.Frame(puppet.Data, 0, 2, make([]byte, 60<<10)...), total: 16 * mib, most: 3 * mib, ended: true},
		{name: "CREDIT", send: puppet.Repeated(puppet.Frame(puppet.Credit, 0, 2, 1), 64<<10), total: 2 * mib, most: mib},
		{name: "GOAWAY", send: puppet.Repeated(puppet.Frame(puppet.GoAway, 0, 0, 14, 0, 0), 64<<10), total: 2 * mib, most: mib},
	}
	for _, h := range all {
		t.Run(h.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { holdsForAServer(t, &h) })
		})
	}
	runtime.KeepAlive(all) // as above
}

func holdsForAServer(t *testing.T, h *attack) {
	t.Helper()
	near, far := memnet.Pipe()
	seized := puppet.New(far)
	client, server := join(t, near, seized, tunnel.Config{Keepalive: -1, Logger: silent()}, tunnel.Config{Keepalive: -1}, echo())
	defer func() {
		require.NoError(t, client.Close())
		require.NoError(t, server.Close())
	}()
	synctest.Wait()
	require.NoError(t, seized.Seize())
	_, done, err := start(t.Context(), client, "/p/P", 1)
	require.NoError(t, err)
	stream := bidi(t.Context(), t, client)
	require.NoError(t, stream.Send(nil))
	synctest.Wait()
	held, stopped := h.flood(t, far, client)
	assert.LessOrEqual(t, held, h.most+inTransit)
	assert.False(t, stopped, "a dialling side never stops reading")
	if h.ended {
		require.ErrorIs(t, client.Err(), tunnel.ErrProtocol)
	} else {
		require.NoError(t, client.Err())
	}
	require.NoError(t, client.Close())
	err = <-done // any outcome, but exactly one
	t.Log(err)
}

// TestPeerThatReadsLateGetsAllAnswers floods a side with calls whose answers are read late: it
// stops reading until they are, and then continues.
func TestPeerThatReadsLateGetsAllAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := memnet.Pipe()
		seized := puppet.New(near)
		client, server := join(t, seized, far, tunnel.Config{}, tunnel.Config{}, handlers{unary: func(in *tunnel.Incoming) {
			in.Reply(wrapperspb.Bytes(make([]byte, 4<<10)), nil)
		}})
		defer func() {
			require.NoError(t, client.Close())
			require.NoError(t, server.Close())
		}()
		require.NoError(t, seized.Seize())
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
		synctest.Wait()
		require.True(t, tunnel.Paused(server))
		require.Less(t, server.Stats().Calls, uint64(calls))
		total, b := 0, make([]byte, 64<<10)
		for total < calls*(4<<10) {
			n, err := near.Read(b)
			require.NoError(t, err)
			total += n
		}
		require.NoError(t, <-sent)
		// The last calls may still be unread: the test waits for the bytes of messages only, and
		// the answers are larger.
		go func() { _, _ = io.Copy(io.Discard, near) }()
		synctest.Wait()
		require.Equal(t, uint64(calls), server.Stats().Calls)
	})
}
