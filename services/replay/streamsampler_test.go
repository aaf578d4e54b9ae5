package replay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/runtime/row"
	"github.com/raylink/raylink/services/replay/ring"
)

// cutSamples is a cutReplay whose streams of samples are lost.
type cutSamples struct{ cutReplay }

func (r *cutSamples) Draw(ctx context.Context, stream replayv1raylink.ReplayDrawServerStream) error {
	return r.remoteReplay.Draw(ctx, &cutDraw{stream, &r.cutReplay})
}

func (*cutSamples) SampleItems(context.Context, *replayv1.SampleItemsRequest) (*replayv1.SampleItemsResponse, error) {
	return nil, errors.New("samples of other machines are streamed")
}

type cutDraw struct {
	replayv1raylink.ReplayDrawServerStream

	replay *cutReplay
}

func (s *cutDraw) Receive() (*replayv1.DrawRequest, error) {
	req, err := s.ReplayDrawServerStream.Receive()
	if err == nil {
		err = s.replay.message()
	}
	return req, err
}

func (s *cutDraw) Send(res *replayv1.DrawResponse) error {
	if err := s.replay.message(); err != nil {
		return err
	}
	return s.ReplayDrawServerStream.Send(res)
}

// TestLostStreamsOfSamplesGoOn loses connections after any message, in both directions. The queue
// shows that no item is drawn twice, and which are lost.
func TestLostStreamsOfSamplesGoOn(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n, err := newNode(t.TempDir(), "the-nid", pointsReplay(2000, Table("queue", FIFO(), Queue(1000))))
		require.NoError(rt, err)
		defer func() { require.NoError(rt, n.close()) }()
		r := &cutSamples{cutReplay{remoteReplay: remoteReplay{node: n}}}
		r.left.Store(-1)
		c, err := OpenClient(t.Context(), replayv1raylink.NewLocalReplay(r))
		require.NoError(rt, err)
		defer func() { require.NoError(rt, c.Close()) }()
		p, err := As(c, pointRow())
		require.NoError(rt, err)
		batch, prefetch := rapid.IntRange(1, 5).Draw(rt, "batch"), rapid.IntRange(0, 4).Draw(rt, "prefetch")
		s, err := p.Sampler("queue", BatchOf(batch), Prefetch(prefetch))
		require.NoError(rt, err)
		local, err := OpenClient(t.Context(), replayv1raylink.NewLocalReplay(n))
		require.NoError(rt, err)
		defer func() { require.NoError(rt, local.Close()) }()
		w := itemWriter(t, typedPoints(t, local), History(3))
		next, last, taken := int64(0), int64(-1), 0
		rt.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) {},
			"insert": func(rt *rapid.T) {
				for range rapid.IntRange(1, 10).Draw(rt, "items") {
					length := rapid.IntRange(1, 3).Draw(rt, "rows")
					if next+3 > 900 {
						return
					}
					writeItems(t, w, "queue", next, length)
					next += int64(length)
				}
			},
			"cut": func(rt *rapid.T) { r.left.Store(int64(rapid.IntRange(0, 12).Draw(rt, "left"))) },
			"next": func(rt *rapid.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
				defer cancel()
				b, err := s.Next(ctx)
				if err != nil {
					if errors.Is(err, context.DeadlineExceeded) {
						require.ErrorIs(rt, err, ErrBlocked)
						return
					}
					require.Equal(rt, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
					require.ErrorContains(rt, err, "the stream of samples has ended after")
					r.left.Store(-1)
					return
				}
				taken += b.Len()
				checkSampled(t, b, batch)
				for _, info := range b.Info {
					require.Greater(rt, int64(info.Sequences[0]), last, "no item is drawn twice, nor out of order")
					last = int64(info.Sequences[0])
				}
			},
		})
		counts := n.tables.byName["queue"].Inspect().Counts
		require.GreaterOrEqual(rt, counts.Sampled, uint64(taken))
		require.LessOrEqual(rt, counts.Sampled, counts.Inserted)
	})
}

// TestStreamsDrawAsManyBatchesAheadAsTheyShould counts what the table says.
func TestStreamsDrawAsManyBatchesAheadAsTheyShould(t *testing.T) {
	for _, prefetch := range []int{0, 1, 2, 5} {
		n := testNode(t, pointsReplay(100, Table("t")))
		p := typedPoints(t, openTunnel(t, &remoteReplay{node: n}))
		writeItems(t, itemWriter(t, p, History(1)), "t", 0, 1)
		s := itemSampler(t, p, "t", BatchOf(3), Prefetch(prefetch))
		for taken := 1; taken <= 4; taken++ {
			b, err := s.Next(t.Context())
			require.NoError(t, err)
			checkSampled(t, b, 3)
			want := uint64(3 * (taken + prefetch))
			require.Eventually(t, func() bool { return n.tables.byName["t"].Inspect().Counts.Sampled == want }, 10*time.Second, time.Millisecond)
			require.Never(t, func() bool { return n.tables.byName["t"].Inspect().Counts.Sampled != want }, 20*time.Millisecond, 5*time.Millisecond)
		}
	}
}

// TestStreamedItemsWithLostRowsAreReplaced loses a row whose item is in the table: in its place a
// writer has panicked.
func TestStreamedItemsWithLostRowsAreReplaced(t *testing.T) {
	n := testNode(t, pointsReplay(8, Table("t", Uniform(), SamplesPerInsert(1000, 1, 100_000))))
	holder, p := typedPoints(t, open(t, n)), typedPoints(t, openTunnel(t, &remoteReplay{node: n}))
	writeItems(t, itemWriter(t, holder, History(2)), "t", 0, 1, 1, 2, 2, 1, 1)
	require.Panics(t, func() { _ = pointWriter(t, holder).Append(t.Context(), 1, func(*pointColumns) { panic("a fault") }) })
	s := itemSampler(t, p, "t", BatchOf(200))
	replaced := 0
	for range 2 {
		b, err := s.Next(t.Context())
		require.NoError(t, err)
		checkSampled(t, b, 200)
		require.Positive(t, b.Replaced)
		replaced += b.Replaced
		for _, info := range b.Info {
			require.Positive(t, info.Sequences[0], "row 0 is lost")
		}
	}
	require.Equal(t, uint64(replaced), n.tables.byName["t"].Inspect().Counts.Returned, "they do not count for the limiter")
}

// wideColumns are rows of 8 KiB.
type wideColumns struct {
	N      []int64
	Pixels []uint8
}

func wideRow() row.Type[wideColumns] {
	return row.Type[wideColumns]{Generated: &row.GeneratedRow[wideColumns]{
		Message: "test.Wide",
		Columns: []row.GeneratedColumn{
			{Name: "n", DType: tensorv1.DataType_DATA_TYPE_INT64, Bytes: 8},
			{Name: "pixels", DType: tensorv1.DataType_DATA_TYPE_UINT8, Shape: []uint64{8192}, Bytes: 8192},
		},
		View: func(c *wideColumns, columns [][]byte) {
			c.N = row.GeneratedView[int64](columns[0])
			c.Pixels = row.GeneratedView[uint8](columns[1])
		},
	}}
}

// TestBatchesOfAnySizeAreStreamed has batches and items of several responses, of equal and of
// different lengths.
func TestBatchesOfAnySizeAreStreamed(t *testing.T) {
	config := &replayv1.ReplayConfig{Capacity: 3000, Columns: wideRow().Columns()}
	config.Tables = []*replayv1.TableConfig{Table("t", FIFO(), Queue(5000))}
	n := testNode(t, config)
	c := openTunnel(t, &remoteReplay{node: n})
	rows, err := c.NewBatch(3000)
	require.NoError(t, err)
	numbers, err := Values[int64](rows, "n")
	require.NoError(t, err)
	for i := range numbers {
		numbers[i] = int64(i)
		rows.Bytes(1)[8192*i+8191] = byte(i)
	}
	_, err = open(t, n).Writer().Append(t.Context(), rows)
	require.NoError(t, err)
	for name, lengths := range map[string][]uint32{
		"one response":         {1, 1, 1, 1},
		"several responses":    {100, 100, 100, 100},
		"of different lengths": {100, 1, 300, 150},
		"long items":           {1, 2000, 1500, 3000},
		"long at first":        {3000, 1, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			req := &replayv1.CreateItemsRequest{Table: "t"}
			longest := 0
			for i, length := range lengths {
				req.Items = append(req.Items, &replayv1.Item{Runs: []*replayv1.Run{{First: uint64(i) % uint64(3001-length), Length: length}}})
				longest = max(longest, int(length))
			}
			_, err := n.CreateItems(t.Context(), req)
			require.NoError(t, err)
			s, err := As(c, wideRow())
			require.NoError(t, err)
			sampler, err := s.Sampler("t", BatchOf(len(lengths)))
			require.NoError(t, err)
			defer func() { require.NoError(t, sampler.Close()) }()
			b, err := sampler.Next(t.Context())
			require.NoError(t, err)
			require.Equal(t, longest, b.Length)
			for i, info := range b.Info {
				require.Len(t, info.Sequences, int(lengths[i]))
				for k := range b.Length {
					row, want := i*b.Length+k, int64(0)
					if k < int(lengths[i]) {
						want = int64(info.Sequences[k])
					}
					require.Equal(t, want, b.Columns.N[row])
					require.Equal(t, byte(want), b.Columns.Pixels[8192*row+8191])
				}
			}
		})
	}
}

// TestLongItemsWithLostRowsAreDropped loses a row of an item of which the node has sent rows: an
// area holds the rows before, so that a writer has panicked in its place.
func TestLongItemsWithLostRowsAreDropped(t *testing.T) {
	config := &replayv1.ReplayConfig{Capacity: 3000, Columns: wideRow().Columns(), Tables: []*replayv1.TableConfig{Table("t", FIFO(), Queue(5))}}
	n := testNode(t, config)
	holder := open(t, n)
	rows, err := holder.NewBatch(1500)
	require.NoError(t, err)
	_, err = holder.Writer().Append(t.Context(), rows)
	require.NoError(t, err)
	area, err := holder.Reader(nil).Hold(t.Context(), 1500)
	require.NoError(t, err)
	_, err = holder.Writer().Append(t.Context(), rows)
	require.NoError(t, err)
	wide, err := As(holder, wideRow())
	require.NoError(t, err)
	w, err := wide.Writer()
	require.NoError(t, err)
	require.Panics(t, func() { _ = w.Append(t.Context(), 1, func(*wideColumns) { panic("a fault") }) })
	require.NoError(t, area.Release())
	_, err = n.CreateItems(t.Context(), &replayv1.CreateItemsRequest{Table: "t", Items: []*replayv1.Item{
		{Runs: []*replayv1.Run{{First: 5, Length: 2}}}, {Runs: []*replayv1.Run{{Length: 3000}}}, {Runs: []*replayv1.Run{{First: 10, Length: 1490}}},
	}})
	require.NoError(t, err)
	remote, err := As(openTunnel(t, &remoteReplay{node: n}), wideRow())
	require.NoError(t, err)
	s, err := remote.Sampler("t", BatchOf(2))
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	b, err := s.Next(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, b.Replaced)
	require.Equal(t, 1490, b.Length)
	require.Equal(t, []int{2, 1490}, []int{len(b.Info[0].Sequences), len(b.Info[1].Sequences)})
	require.Equal(t, uint64(5), b.Info[0].Sequences[0])
	require.Equal(t, uint64(10), b.Info[1].Sequences[0])
}

// TestRowsBeginAtAMultipleOf8Bytes is why the sampler need not copy them.
func TestRowsBeginAtAMultipleOf8Bytes(t *testing.T) {
	data := bytes.Repeat([]byte("a row is"), 2000)
	for n := range 50 {
		for batch := range uint64(9) {
			res := drawnPoints(make([]uint32, n)...)
			res.Batch, res.Data = 1<<(8*batch)>>1, data
			pad(res)
			encoded, err := proto.Marshal(res)
			require.NoError(t, err)
			require.Zero(t, bytes.Index(encoded, data)%8)
			require.Less(t, len(res.GetPadding()), 9)
		}
	}
}

// TestStreamedSamplerMapsTheRingOnceThatIsPossible also has a ring that can't be mapped any more.
func TestStreamedSamplerMapsTheRingOnceThatIsPossible(t *testing.T) {
	for _, prefetch := range []int{0, 3} {
		config := pointsReplay(100, Table("queue", FIFO(), Queue(64)))
		first := &movable{node: testNode(t, config)}
		first.away.Store(true)
		m := &restartable{first}
		c := open(t, m)
		p := typedPoints(t, c)
		w, s := itemWriter(t, p, History(1)), itemSampler(t, p, "queue", BatchOf(2), Prefetch(prefetch))
		rows := int64(0)
		batches := func(n int) {
			for range n {
				b, err := s.Next(t.Context())
				require.NoError(t, err)
				checkSampled(t, b, 2)
				require.Equal(t, []int64{rows, rows + 1}, b.Columns.N, "none is lost")
				rows += 2
			}
		}
		writeItems(t, w, "queue", 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
		batches(2)
		require.False(t, c.Mapped())
		require.NotNil(t, s.stream)
		first.away.Store(false)
		c.mu.Lock()
		c.described = c.described.Add(-remapInterval)
		c.mu.Unlock()
		_, err := c.current(t.Context())
		require.NoError(t, err)
		require.True(t, c.Mapped())
		batches(4)
		if prefetch > 0 {
			continue // draws ahead, while the replay below is exchanged
		}
		require.Nil(t, s.stream)

		second := &movable{node: testNode(t, config)}
		second.away.Store(true)
		m.ReplayNode = second
		require.NoError(t, first.close())
		rows = 0
		require.Eventually(t, func() bool { return appended(w)(t.Context(), 1, points(0)) == nil }, 10*time.Second, time.Millisecond)
		_, err = w.Item(t.Context(), "queue", 1, 1)
		require.NoError(t, err)
		writeItems(t, w, "queue", 1, 1, 1, 1)
		batches(2)
		require.False(t, c.Mapped())
	}
}

// TestStreamedSamplerGoesOnWithTheRestartedReplay checks that no batch has rows of two rings.
func TestStreamedSamplerGoesOnWithTheRestartedReplay(t *testing.T) {
	for _, prefetch := range []int{0, 3} {
		config := pointsReplay(100, Table("t", LIFO()))
		first := testNode(t, config)
		m := &restartable{&remoteReplay{node: first}}
		p := typedPoints(t, open(t, m))
		w, s := itemWriter(t, p, History(3)), itemSampler(t, p, "t", BatchOf(8), Prefetch(prefetch))
		before := writeItems(t, w, "t", 0, 3)
		b, err := s.Next(t.Context())
		require.NoError(t, err)
		checkSampled(t, b, 8)
		m.ReplayNode = &remoteReplay{node: testNode(t, config)}
		require.NoError(t, first.close())
		require.Eventually(t, func() bool { return appended(w)(t.Context(), 1, points(0)) == nil }, 10*time.Second, time.Millisecond)
		key, err := w.Item(t.Context(), "t", 1, 1)
		require.NoError(t, err)
		require.NoError(t, w.Flush(t.Context()))
		after, _ := key.Get()
		for drawn := 0; drawn < 2; {
			b, err := s.Next(t.Context())
			require.NoError(t, err)
			checkSampled(t, b, 8)
			for _, k := range b.Keys() {
				require.Equal(t, b.Info[0].Key, k)
			}
			if b.Info[0].Key == after {
				drawn++
			} else {
				require.Equal(t, before[0], b.Info[0].Key, "it was drawn ahead")
			}
		}
	}
}

// TestSamplersWithoutStreamsMakeCalls has a node without the method, and HTTP/1.
func TestSamplersWithoutStreamsMakeCalls(t *testing.T) {
	for _, way := range []string{"no method", "HTTP/1"} {
		for _, prefetch := range []int{0, 2} {
			t.Run(fmt.Sprint(way, ", prefetch ", prefetch), func(t *testing.T) {
				n := &busy{node: testNode(t, pointsReplay(100, Table("t"))), remote: true, unary: way == "no method", overwrite: func(int64) {}}
				var c *Client
				if way == "no method" {
					c = openTunnel(t, n)
				} else {
					c = openHTTP(t, n, nil, http.DefaultTransport.(*http.Transport).Clone())
				}
				p := typedPoints(t, c)
				writeItems(t, itemWriter(t, typedPoints(t, open(t, n.node)), History(1)), "t", 0, 1)
				s := itemSampler(t, p, "t", BatchOf(3), Prefetch(prefetch))
				for range 4 {
					b, err := s.Next(t.Context())
					require.NoError(t, err)
					checkSampled(t, b, 3)
				}
				require.GreaterOrEqual(t, n.draws.Load(), int64(4), "calls of SampleItems")
			})
		}
	}
}

// openHTTP returns a client whose calls all use one HTTP transport, through a listener.
func openHTTP(t *testing.T, n replayv1raylink.ReplayNode, listen func(net.Listener) net.Listener, transport *http.Transport) *Client {
	t.Helper()
	server, mux := connect.NewServer(), http.NewServeMux()
	replayv1raylink.RegisterReplayTunnel(server, n)
	connecthttp.Mount(mux, server, connecthttp.WithReadMaxBytes(64<<20), connecthttp.WithCompressors())
	web := httptest.NewUnstartedServer(mux)
	web.Config.Protocols = new(http.Protocols)
	web.Config.Protocols.SetHTTP1(true)
	web.Config.Protocols.SetUnencryptedHTTP2(true)
	if listen != nil {
		web.Listener = listen(web.Listener)
	}
	web.Start()
	t.Cleanup(web.Close)
	t.Cleanup(transport.CloseIdleConnections)
	c, err := OpenClient(t.Context(), replayv1raylink.NewReplayTunnel(connect.NewClient(connecthttp.NewTransport(
		&http.Client{Transport: transport}, web.URL, connecthttp.WithReadMaxBytes(64<<20), connecthttp.WithCompressors(),
	))))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

func http2() *http.Transport {
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	return transport
}

// limitedListener limits what its connections send: a number of bytes per second, until silence is
// set. It stops in the middle of a frame then.
type limitedListener struct {
	net.Listener

	perSecond int
	silent    atomic.Bool
	done      chan struct{}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &limitedConn{c, l}, err
}

type limitedConn struct {
	net.Conn

	listener *limitedListener
}

func (c *limitedConn) Write(b []byte) (int, error) {
	written := 0
	for len(b) > 0 {
		some := b[:min(len(b), 16<<10)]
		if c.listener.silent.Load() {
			n, _ := c.Conn.Write(some[:len(some)/2])
			<-c.listener.done
			return written + n, net.ErrClosed
		}
		wait := time.NewTimer(time.Duration(len(some)) * time.Second / time.Duration(c.listener.perSecond))
		<-wait.C
		n, err := c.Conn.Write(some)
		if written += n; err != nil {
			return written, err
		}
		b = b[n:]
	}
	return written, nil
}

// TestSlowAndSilentConnections has a connection of 200 Mbit/s, which is then silent in the middle
// of a frame: Next ends with its context, and Close does not wait.
func TestSlowAndSilentConnections(t *testing.T) {
	for _, prefetch := range []int{0, 2} {
		n := testNode(t, pointsReplay(100_000, Table("t")))
		holder := typedPoints(t, open(t, n))
		w := itemWriter(t, holder, History(1000))
		for i := range 1000 {
			require.NoError(t, w.Append(t.Context(), 1, points(int64(i))))
		}
		_, err := w.Item(t.Context(), "t", 1000, 1)
		require.NoError(t, err)
		require.NoError(t, w.Flush(t.Context()))
		l := &limitedListener{perSecond: 200_000_000 / 8, done: make(chan struct{})}
		c := openHTTP(t, &remoteReplay{node: n}, func(inner net.Listener) net.Listener {
			l.Listener = inner
			return l
		}, http2())
		s := itemSampler(t, typedPoints(t, c), "t", BatchOf(50), Prefetch(prefetch))
		for range 3 {
			b, err := s.Next(t.Context())
			require.NoError(t, err)
			checkSampled(t, b, 50)
		}
		l.silent.Store(true)
		for {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			_, err = s.Next(ctx)
			cancel()
			if err != nil { // otherwise it was drawn ahead
				break
			}
		}
		require.ErrorIs(t, err, context.DeadlineExceeded)
		begin := time.Now()
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}()
		select {
		case <-closed:
		case <-time.After(5 * time.Second):
			require.Fail(t, "Close waits")
		}
		require.Less(t, time.Since(begin), 5*time.Second)
		close(l.done)
	}
}

// TestManyBatchesLeaveNothingBehind counts the memory of both sides, and the buffers of the node.
func TestManyBatchesLeaveNothingBehind(t *testing.T) {
	n := testNode(t, pointsReplay(100, Table("t")))
	p := typedPoints(t, open(t, &remoteReplay{node: n}))
	writeItems(t, itemWriter(t, p, History(1)), "t", 0, 1, 1, 1)
	s := itemSampler(t, p, "t", BatchOf(8), Prefetch(3))
	heap := func() uint64 {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	var before uint64
	for i := range 20_000 {
		b, err := s.Next(t.Context())
		require.NoError(t, err)
		if i%100 == 0 {
			checkSampled(t, b, 8)
		}
		if i == 1000 {
			before = heap()
		}
	}
	require.Less(t, heap(), before+1<<20)
	n.draws.mu.Lock()
	defer n.draws.mu.Unlock()
	require.Len(t, n.draws.ends, 1)
	for d := range n.draws.ends {
		d.mu.Lock()
		require.LessOrEqual(t, len(d.used)+len(d.spare), 6, "the same buffers are used again")
		d.mu.Unlock()
	}
}

// drawOnce sends requests on a stream of their own, and returns the error with which it ends.
func drawOnce(t *testing.T, node *replayv1raylink.Replay, requests ...*replayv1.DrawRequest) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	stream, err := node.Draw(ctx)
	require.NoError(t, err)
	defer func() { require.NoError(t, stream.Close()) }()
	for i, req := range requests {
		if err := stream.Send(req); err != nil {
			break
		}
		if i == 0 {
			if _, err := stream.Receive(); err != nil {
				return ringError(err)
			}
		}
	}
	for {
		if _, err := stream.Receive(); err != nil {
			return ringError(err)
		}
	}
}

// TestNodeEndsStreamsOfSamples has a sampler that wants nothing.
func TestNodeEndsStreamsOfSamples(t *testing.T) {
	n := testNode(t, pointsReplay(10, Table("t")))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	stream, err := openTunnel(t, &remoteReplay{node: n}).Handle().Draw(ctx)
	require.NoError(t, err)
	defer func() { require.NoError(t, stream.Close()) }()
	require.NoError(t, stream.Send(&replayv1.DrawRequest{Open: &replayv1.DrawOpen{Table: "t", Items: 1}}))
	_, err = stream.Receive()
	require.NoError(t, err)
	require.NoError(t, n.close())
	_, err = stream.Receive()
	require.ErrorIs(t, ringError(err), ring.ErrEnded)
}

func TestInvalidRequestsOfSamplersAreRefused(t *testing.T) {
	n := testNode(t, pointsReplay(10, Table("t", FIFO(), Queue(64)), Table("empty")))
	c := openTunnel(t, &remoteReplay{node: n})
	writeItems(t, itemWriter(t, typedPoints(t, c), History(2)), "t", 0, 2)
	open := func(change func(open *replayv1.DrawOpen)) *replayv1.DrawRequest {
		req := &replayv1.DrawRequest{Open: &replayv1.DrawOpen{Table: "t", Items: 1}}
		change(req.GetOpen())
		return req
	}
	good, empty := open(func(*replayv1.DrawOpen) {}), open(func(o *replayv1.DrawOpen) { o.Table = "empty" })
	for name, test := range map[string]struct {
		requests []*replayv1.DrawRequest
		want     error
	}{
		"not opened":       {[]*replayv1.DrawRequest{{Batches: 1}}, ErrArgument},
		"unknown table":    {[]*replayv1.DrawRequest{open(func(o *replayv1.DrawOpen) { o.Table = "none" })}, ErrTable},
		"no items":         {[]*replayv1.DrawRequest{open(func(o *replayv1.DrawOpen) { o.Items = 0 })}, ErrArgument},
		"too many items":   {[]*replayv1.DrawRequest{open(func(o *replayv1.DrawOpen) { o.Items = maxSampledItems + 1 })}, ErrArgument},
		"huge items":       {[]*replayv1.DrawRequest{open(func(o *replayv1.DrawOpen) { o.Items = math.MaxUint32 })}, ErrArgument},
		"negative weights": {[]*replayv1.DrawRequest{open(func(o *replayv1.DrawOpen) { o.Beta = -1 })}, ErrArgument},
		"no weights":       {[]*replayv1.DrawRequest{open(func(o *replayv1.DrawOpen) { o.Beta = math.NaN() })}, ErrArgument},
		"opened again":     {[]*replayv1.DrawRequest{good, good}, ErrArgument},
		"fewer batches":    {[]*replayv1.DrawRequest{empty, {Batches: 2}, {Batches: 1}}, ErrArgument},
		"done with more":   {[]*replayv1.DrawRequest{good, {Done: 1}}, ErrArgument},
	} {
		t.Run(name, func(t *testing.T) {
			err := drawOnce(t, c.Handle(), test.requests...)
			require.ErrorIs(t, err, test.want)
			require.ErrorContains(t, err, "stream samples")
		})
	}
	require.Zero(t, n.tables.byName["t"].Inspect().Counts.Sampled)
	err := drawOnce(t, c.Handle(), open(func(o *replayv1.DrawOpen) { o.Length = 1 }), &replayv1.DrawRequest{Batches: 1})
	require.ErrorIs(t, err, ErrItem)
	require.ErrorContains(t, err, "it has 2 rows")
	require.Equal(t, uint64(1), n.tables.byName["t"].Inspect().Counts.Returned)
	require.Eventually(t, func() bool {
		n.draws.mu.Lock()
		defer n.draws.mu.Unlock()
		return len(n.draws.ends) == 0
	}, 10*time.Second, time.Millisecond)
}

// scripted is a replay on another machine that sends given responses to samplers.
type scripted struct {
	remoteReplay

	responses []*replayv1.DrawResponse
}

func (s *scripted) Draw(ctx context.Context, stream replayv1raylink.ReplayDrawServerStream) error {
	for _, res := range s.responses {
		if err := stream.Send(res); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

// column64 and column32 return columns of sampled items.
func column64(elements ...uint64) []byte {
	c := make([]byte, len(elements)*size64)
	for i, x := range elements {
		put64(c, i, x)
	}
	return c
}

func column32(elements ...uint32) []byte {
	c := make([]byte, len(elements)*size32)
	for i, x := range elements {
		put32(c, i, x)
	}
	return c
}

// drawnPoints are items with some numbers of rows, from number 0 on, without these rows.
func drawnPoints(lengths ...uint32) *replayv1.DrawResponse {
	res := &replayv1.DrawResponse{Items: &replayv1.SampledColumns{Lengths: column32(lengths...)}}
	for i, length := range lengths {
		res.Items.Keys = append(res.GetItems().GetKeys(), column64(uint64(i+1))...)
		res.Items.Firsts = append(res.GetItems().GetFirsts(), column64(res.GetRows())...)
		res.Rows += uint64(length)
	}
	return res
}

func TestHostileResponsesAreRefused(t *testing.T) {
	n := testNode(t, pointsReplay(100, Table("t")))
	begun := &replayv1.DrawResponse{RingId: n.ring.ID().String()}
	shape := shapeOf(n.ring.Layout())
	sized := func(rows int, change func(res *replayv1.DrawResponse), lengths ...uint32) *replayv1.DrawResponse {
		res := drawnPoints(lengths...)
		res.Rows, res.Data = uint64(rows), make([]byte, shape.bytes(rows))
		if change != nil {
			change(res)
		}
		return res
	}
	for name, responses := range map[string][]*replayv1.DrawResponse{
		"no ring":                  {sized(2, nil, 1, 1)},
		"another batch":            {begun, sized(2, func(r *replayv1.DrawResponse) { r.Batch = 1 }, 1, 1)},
		"batch of others":          {begun, sized(2, nil, 1, 1), sized(2, nil, 1, 1)},
		"too many items":           {begun, sized(3, nil, 1, 1, 1)},
		"too many items after one": {begun, sized(1, nil, 1), sized(2, nil, 1, 1)},
		"items without rows":       {begun, sized(0, nil, 1, 1)},
		"item without rows":        {begun, sized(1, nil, 0, 1)},
		"item without runs":        {begun, sized(1, func(r *replayv1.DrawResponse) { r.Items.Runs = column32(0, 2) }, 1, 1)},
		"runs of others":           {begun, sized(2, func(r *replayv1.DrawResponse) { r.Items.Runs = column32(math.MaxUint32, 1) }, 1, 1)},
		"keys without runs":        {begun, sized(2, func(r *replayv1.DrawResponse) { r.Items.Firsts = nil }, 1, 1)},
		"few weights":              {begun, sized(2, func(r *replayv1.DrawResponse) { r.Items.Weights = column64(1) }, 1, 1)},
		"runs in disorder": {begun, sized(2, func(r *replayv1.DrawResponse) {
			r.Items.Keys, r.Items.Runs, r.Items.Firsts = column64(1), column32(2), column64(7, 7)
		}, 1, 1)},
		"huge numbers":              {begun, sized(2, func(r *replayv1.DrawResponse) { put64(r.GetItems().GetFirsts(), 0, math.MaxUint64) }, 1, 1)},
		"item larger than the ring": {begun, sized(101, nil, 101)},
		"huge item":                 {begun, sized(1, nil, math.MaxUint32)},
		"huge items":                {begun, sized(1, nil, 100, 100)},
		"more rows":                 {begun, sized(3, nil, 1, 1)},
		"huge number of rows":       {begun, sized(2, func(r *replayv1.DrawResponse) { r.Rows = math.MaxUint64 }, 1, 1)},
		"short data":                {begun, sized(2, func(r *replayv1.DrawResponse) { r.Data = r.GetData()[1:] }, 1, 1)},
		"long data":                 {begun, sized(2, func(r *replayv1.DrawResponse) { r.Data = append(r.GetData(), 0) }, 1, 1)},
		"no data":                   {begun, sized(2, func(r *replayv1.DrawResponse) { r.Data = nil }, 1, 1)},
		"data without rows":         {begun, sized(0, func(r *replayv1.DrawResponse) { r.Data, r.Items = []byte{1}, nil })},
		"rows without items":        {begun, sized(1, func(r *replayv1.DrawResponse) { r.Items = nil })},
		"items before the rows":     {begun, sized(1, nil, 5), sized(1, nil, 1)},
		"a pause in an item":        {begun, sized(1, nil, 5), {}},
		"nothing to drop":           {begun, {Dropped: true}},
		"dropped twice":             {begun, sized(1, nil, 5), {Dropped: true}, {Dropped: true}},
		"dropped with rows":         {begun, sized(1, nil, 5), sized(1, func(r *replayv1.DrawResponse) { r.Dropped, r.Items = true, nil })},
		"dropped after its rows":    {begun, sized(1, nil, 1), {Dropped: true}},
		"huge replacements":         {begun, {Replaced: math.MaxUint64}},
	} {
		t.Run(name, func(t *testing.T) {
			p := typedPoints(t, open(t, &scripted{remoteReplay{node: n}, responses}))
			// Wanted ahead, so that what follows a batch is never a lost stream of which nothing is
			// owed.
			s := itemSampler(t, p, "t", BatchOf(2), Prefetch(2))
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			var err error
			for range 2 { // some follow a batch
				if _, err = s.Next(ctx); err != nil {
					break
				}
			}
			require.ErrorIs(t, err, ring.ErrBatch)
			require.ErrorContains(t, err, "invalid response from the replay")
		})
	}
	long := sized(4, nil, 4)
	p := typedPoints(t, open(t, &scripted{remoteReplay{node: n}, []*replayv1.DrawResponse{begun, long}}))
	_, err := itemSampler(t, p, "t", BatchOf(2), Length(3)).Next(t.Context())
	require.ErrorIs(t, err, ErrItem)
}

// FuzzDrawnBatches parses responses, which a real node has sent or not.
func FuzzDrawnBatches(f *testing.F) {
	n, err := newNode(f.TempDir(), "the-nid", pointsReplay(100, Table("t")))
	require.NoError(f, err)
	defer func() { require.NoError(f, n.close()) }()
	c, err := OpenClient(f.Context(), replayv1raylink.NewLocalReplay(&remoteReplay{node: n}))
	require.NoError(f, err)
	defer func() { require.NoError(f, c.Close()) }()
	p, err := As(c, pointRow())
	require.NoError(f, err)
	w, err := p.Writer(History(3))
	require.NoError(f, err)
	for i := range 4 {
		require.NoError(f, w.Append(f.Context(), 1, points(int64(i))))
		_, err = w.Item(f.Context(), "t", min(i+1, 3), 1)
		require.NoError(f, err)
	}
	require.NoError(f, w.Flush(f.Context()))
	stream, err := c.Handle().Draw(f.Context())
	require.NoError(f, err)
	require.NoError(f, stream.Send(&replayv1.DrawRequest{Open: &replayv1.DrawOpen{Table: "t", Items: 4}, Batches: 3}))
	for range 4 {
		res, err := stream.Receive()
		require.NoError(f, err)
		seed, err := proto.Marshal(res)
		require.NoError(f, err)
		f.Add(seed, seed, uint8(4))
	}
	require.NoError(f, stream.Close())
	for _, res := range []*replayv1.DrawResponse{drawnPoints(1), drawnPoints(2, 1), {Dropped: true}, {Replaced: 1}} {
		res.Data = make([]byte, shapeOf(n.ring.Layout()).bytes(int(res.GetRows())))
		seed, err := proto.Marshal(res)
		require.NoError(f, err)
		f.Add(seed, seed, uint8(2))
	}
	f.Fuzz(func(t *testing.T, first, second []byte, items uint8) {
		s, err := p.Sampler("t", BatchOf(1+int(items)))
		require.NoError(t, err)
		defer func() { require.NoError(t, s.Close()) }()
		g := &gathering[pointColumns]{sampler: s, shape: shapeOf(c.layout), ring: "ring", columns: make([][]byte, 2+len(c.layout.Columns))[:len(c.layout.Columns)]}
		for _, data := range [][]byte{first, second} {
			var res replayv1.DrawResponse
			if proto.Unmarshal(data, &res) != nil {
				return
			}
			b, err := g.add(&res)
			if err != nil {
				require.True(t, errors.Is(err, ring.ErrBatch) || errors.Is(err, ErrItem), "%v", err)
				return
			}
			if b == nil {
				continue
			}
			require.Len(t, b.Info, 1+int(items))
			require.Len(t, b.Columns.N, b.Len()*b.Length)
			for i, info := range b.Info {
				require.NotEmpty(t, info.Sequences)
				require.Equal(t, bytes.Repeat([]byte{1}, len(info.Sequences)), b.Mask[i*b.Length:][:len(info.Sequences)])
			}
		}
	})
}

// requestsOf is the node's end of a stream with given requests.
type requestsOf struct {
	replayv1raylink.ReplayDrawServerStream

	mu       sync.Mutex
	requests []*replayv1.DrawRequest
	sent     int
}

func (r *requestsOf) Receive() (*replayv1.DrawRequest, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.requests) == 0 {
		return nil, io.EOF
	}
	req := r.requests[0]
	r.requests = r.requests[1:]
	return req, nil
}

func (r *requestsOf) Send(*replayv1.DrawResponse) error {
	if r.sent++; r.sent > 20 {
		return errCut
	}
	return nil
}

// FuzzDrawRequests has a node handle requests.
func FuzzDrawRequests(f *testing.F) {
	n, err := newNode(f.TempDir(), "the-nid", pointsReplay(100, Table("t")))
	require.NoError(f, err)
	defer func() { require.NoError(f, n.close()) }()
	c, err := OpenClient(f.Context(), replayv1raylink.NewLocalReplay(n))
	require.NoError(f, err)
	defer func() { require.NoError(f, c.Close()) }()
	p, err := As(c, pointRow())
	require.NoError(f, err)
	w, err := p.Writer(History(3))
	require.NoError(f, err)
	require.NoError(f, w.Append(f.Context(), 1, points(0)))
	_, err = w.Item(f.Context(), "t", 1, 1)
	require.NoError(f, err)
	require.NoError(f, w.Flush(f.Context()))
	for _, requests := range [][2]*replayv1.DrawRequest{
		{{Open: &replayv1.DrawOpen{Table: "t", Items: 3}, Batches: 1}, {Batches: 2, Done: 1}},
		{{Open: &replayv1.DrawOpen{Table: "t", Items: 1, Length: 1, Beta: 0.5, Caller: "learner-0", Call: 7}}, {Batches: 100}},
		{{Open: &replayv1.DrawOpen{Table: "none", Items: 1}}, {Done: math.MaxUint64}},
	} {
		first, err := proto.Marshal(requests[0])
		require.NoError(f, err)
		second, err := proto.Marshal(requests[1])
		require.NoError(f, err)
		f.Add(first, second)
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		stream := &requestsOf{requests: []*replayv1.DrawRequest{{}, {}}}
		if proto.Unmarshal(first, stream.requests[0]) != nil || proto.Unmarshal(second, stream.requests[1]) != nil {
			return
		}
		if err := n.Draw(t.Context(), stream); err != nil {
			require.Contains(t, []connect.Code{connect.CodeInvalidArgument, connect.CodeUnavailable}, connect.CodeOf(err), "%v", err)
		}
		n.draws.mu.Lock()
		defer n.draws.mu.Unlock()
		require.Empty(t, n.draws.ends)
	})
}
