package replay

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/services/replay/ring"
)

// bothWays runs a test with a mapped ring and through the node. The holder has always mapped the
// ring.
func bothWays(t *testing.T, config *replayv1.ReplayConfig, test func(t *testing.T, c, holder *Client)) {
	t.Helper()
	for _, way := range []string{"mapped", "remote"} {
		t.Run(way, func(t *testing.T) {
			n := testNode(t, config)
			holder := open(t, n)
			c := holder
			if way == "remote" {
				c = openTunnel(t, &remoteReplay{node: n})
			}
			require.Equal(t, way == "mapped", c.Mapped())
			test(t, c, holder)
		})
	}
}

// openTunnel returns a client whose calls are encoded, as those between machines are: of an error
// it gets the code, the text and the details, but not the node's Go value. Messages have at most
// the 64 MiB of the tunnel.
func openTunnel(t *testing.T, n replayv1raylink.ReplayNode) *Client {
	t.Helper()
	return openHandle(t, tunnelTo(t, n))
}

// tunnelTo returns a handle for openTunnel. As with a host, messages are not compressed.
func tunnelTo(t *testing.T, n replayv1raylink.ReplayNode) *replayv1raylink.Replay {
	t.Helper()
	server, mux := connect.NewServer(), http.NewServeMux()
	replayv1raylink.RegisterReplayTunnel(server, n)
	connecthttp.Mount(mux, server, connecthttp.WithReadMaxBytes(64<<20), connecthttp.WithCompressors())
	web := httptest.NewUnstartedServer(mux)
	web.Config.Protocols = new(http.Protocols)
	web.Config.Protocols.SetHTTP1(true)
	web.Config.Protocols.SetUnencryptedHTTP2(true)
	web.Start()
	t.Cleanup(web.Close)
	streams := &http.Transport{Protocols: new(http.Protocols)}
	streams.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(streams.CloseIdleConnections)
	transport := byShape{calls: web.Client().Transport, streams: streams}
	return replayv1raylink.NewReplayTunnel(connect.NewClient(connecthttp.NewTransport(
		&http.Client{Transport: transport}, web.URL, connecthttp.WithReadMaxBytes(64<<20), connecthttp.WithCompressors(),
	)))
}

// byShape sends bidirectional streams by HTTP/2, because HTTP/1 has none.
type byShape struct{ calls, streams http.RoundTripper }

func (b byShape) RoundTrip(req *http.Request) (*http.Response, error) {
	switch path.Base(req.URL.Path) {
	case "Feed", "Draw":
		return b.streams.RoundTrip(req)
	default:
		return b.calls.RoundTrip(req)
	}
}

func TestReadsOfNoRows(t *testing.T) {
	bothWays(t, testConfig(4), func(t *testing.T, c, _ *Client) {
		ctx, h := t.Context(), c.Reader(nil)
		for _, full := range []bool{false, true} {
			if full {
				write(t, c, 1, 2)
			}
			into := rowsOf(t, c, 7, 8, 9)
			require.NoError(t, h.Sample(ctx, 0, into))
			require.Zero(t, into.Rows())
			require.NoError(t, h.Newest(ctx, 0, into))
			require.Zero(t, into.Rows())
			require.ErrorIs(t, h.Sample(ctx, -1, into), ring.ErrBatch)
			require.ErrorIs(t, h.Newest(ctx, -1, into), ring.ErrBatch)
			for _, n := range []int{0, -1} {
				_, err := h.Hold(ctx, n)
				require.ErrorIs(t, err, ring.ErrBatch)
			}
		}
		empty := rowsOf(t, c)
		n, err := c.Writer().Append(ctx, empty)
		require.NoError(t, err)
		require.Zero(t, n)
	})
}

func TestReadsAreNotBoundedInBytes(t *testing.T) {
	config := &replayv1.ReplayConfig{Capacity: 50_000, Columns: []*tensorv1.Column{Column[uint8]("x", 1024)}}
	bothWays(t, config, func(t *testing.T, c, _ *Client) {
		const rows = 40_000 // more than fits into one message
		ctx := t.Context()
		b, err := c.NewBatch(rows)
		require.NoError(t, err)
		for i := range rows {
			b.Bytes(0)[1024*i] = byte(i)
		}
		_, err = c.Writer().Append(ctx, b)
		require.NoError(t, err)
		check := func(rows Rows, sequences []uint64) {
			for i, s := range sequences {
				require.Equal(t, byte(s), rows.Bytes(0)[1024*i])
			}
		}
		into, err := c.NewBatch(0)
		require.NoError(t, err)
		h := c.Reader(nil)
		require.NoError(t, h.Sample(ctx, rows, into))
		require.Len(t, into.Sequences(), rows)
		check(into, into.Sequences())
		for _, n := range []int{rows - 5, 1 << 40} {
			require.NoError(t, h.Newest(ctx, n, into))
			require.Len(t, into.Sequences(), min(n, rows))
			require.Equal(t, uint64(rows-1), into.Sequences()[into.Rows()-1])
			check(into, into.Sequences())
		}
		area, err := h.Hold(ctx, rows)
		require.NoError(t, err)
		require.Equal(t, rows, area.Len())
		for _, s := range area.Spans() {
			check(s, s.Sequences())
		}
		require.NoError(t, area.Release())
	})
}

// sizedReplay is a replay on another machine that knows the size of the largest messages.
type sizedReplay struct {
	remoteReplay

	largest atomic.Int64
}

func (r *sizedReplay) saw(message proto.Message) {
	r.largest.Store(max(r.largest.Load(), int64(proto.Size(message))))
}

func (r *sizedReplay) Read(ctx context.Context, req *replayv1.ReadRequest) (*replayv1.ReadResponse, error) {
	res, err := r.remoteReplay.Read(ctx, req)
	r.saw(req)
	r.saw(res)
	return res, err
}

func (r *sizedReplay) Newest(ctx context.Context, req *replayv1.NewestRequest) (*replayv1.NewestResponse, error) {
	res, err := r.remoteReplay.Newest(ctx, req)
	r.saw(res)
	return res, err
}

func (r *sizedReplay) Sample(ctx context.Context, req *replayv1.SampleRequest) (*replayv1.SampleResponse, error) {
	res, err := r.remoteReplay.Sample(ctx, req)
	r.saw(res)
	return res, err
}

// TestMessagesOfSmallRowsAreBounded reads rows that are smaller than their sequence numbers.
func TestMessagesOfSmallRowsAreBounded(t *testing.T) {
	const rows = 3_000_000
	n := testNode(t, &replayv1.ReplayConfig{Capacity: rows, Columns: []*tensorv1.Column{Column[uint8]("x")}})
	r := &sizedReplay{remoteReplay: remoteReplay{node: n}}
	holder, c := open(t, n), open(t, r)
	b, err := c.NewBatch(rows)
	require.NoError(t, err)
	for i := range rows {
		b.Bytes(0)[i] = byte(i)
	}
	_, err = holder.Writer().Append(t.Context(), b)
	require.NoError(t, err)
	h := c.Reader(nil)
	apart := make([]uint64, rows/2)
	for i := range apart {
		apart[i] = uint64(2 * i)
	}
	lost, err := h.at(t.Context(), n.ring.ID().String(), apart, b)
	require.NoError(t, err)
	require.Empty(t, lost)
	require.NoError(t, h.Newest(t.Context(), rows, b))
	require.Len(t, b.Sequences(), rows)
	for i, s := range b.Sequences() {
		if uint64(i) != s || b.Bytes(0)[i] != byte(s) {
			require.Fail(t, "another row", "%d: %d", i, s)
		}
	}
	require.NoError(t, h.Sample(t.Context(), rows/2, b))
	require.Positive(t, r.largest.Load())
	require.LessOrEqual(t, r.largest.Load(), int64(maxChunk))
}

func TestRefusedWriteLeavesNoSequenceNumbers(t *testing.T) {
	bothWays(t, testConfig(10), func(t *testing.T, c, holder *Client) {
		w, ctx := c.Writer(), t.Context()
		batch := rowsOf(t, c, 1, 2, 3)
		_, err := w.Append(ctx, batch)
		require.NoError(t, err)
		require.Len(t, batch.Sequences(), 3)
		write(t, c, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
		area, err := holder.Reader(nil).Hold(ctx, 10)
		require.NoError(t, err)
		n, err := w.TryAppend(ctx, batch)
		require.ErrorIs(t, err, ring.ErrNoRoom)
		require.Zero(t, n)
		require.Empty(t, batch.Sequences())
		require.NoError(t, area.Release())

		n, err = w.Append(ctx, rowsOf(t, c, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11))
		require.ErrorIs(t, err, ring.ErrBatch)
		require.Zero(t, n)

		ended, cancel := context.WithCancel(ctx)
		cancel()
		_, err = w.Append(ended, batch)
		require.ErrorIs(t, err, context.Canceled)
	})
}

func TestAppendWaitsForRoom(t *testing.T) {
	bothWays(t, testConfig(4), func(t *testing.T, c, holder *Client) {
		write(t, c, 1, 2, 3, 4)
		area, err := holder.Reader(nil).Hold(t.Context(), 4)
		require.NoError(t, err)

		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		batch := rowsOf(t, c, 5, 6)
		n, err := c.Writer().Append(ctx, batch)
		require.Zero(t, n)
		require.ErrorIs(t, err, ring.ErrNoRoom)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		var room *ring.NoRoomError
		require.ErrorAs(t, err, &room)
		require.Len(t, room.Holders, 1)
		require.Equal(t, os.Getpid(), room.Holders[0].PID)
		require.Equal(t, uint64(4), room.Holders[0].Rows)
		require.GreaterOrEqual(t, room.Waited, 100*time.Millisecond)
		require.Equal(t, []int{2, 0}, []int{room.Rows, room.Written})

		done := make(chan error, 1)
		go func() {
			_, err := c.Writer().Append(t.Context(), batch)
			done <- err
		}()
		require.Never(t, func() bool { return len(done) > 0 }, 30*time.Millisecond, 5*time.Millisecond)
		require.NoError(t, area.Release())
		select {
		case err := <-done:
			require.NoError(t, err)
		case <-time.After(20 * time.Second):
			require.Fail(t, "Append still waits")
		}
		require.Len(t, batch.Sequences(), 2)
	})
}

// earlyNode is a node whose calls that wait end at once, as if their deadline had passed there, but
// not yet at the caller.
type earlyNode struct{ remoteReplay }

func (e *earlyNode) Write(ctx context.Context, req *replayv1.WriteRequest) (*replayv1.WriteResponse, error) {
	if req.GetWaitMs() > 0 {
		return nil, connect.NewError(connect.CodeDeadlineExceeded, "the deadline passed")
	}
	return e.remoteReplay.Write(ctx, req)
}

func TestAppendNamesHoldersIfItsDeadlinePassesAtTheNode(t *testing.T) {
	n := testNode(t, testConfig(4))
	c, holder := openTunnel(t, &earlyNode{remoteReplay{node: n}}), open(t, n)
	write(t, c, 1, 2, 3, 4)
	area, err := holder.Reader(nil).Hold(t.Context(), 4)
	require.NoError(t, err)
	defer area.Release() //nolint:errcheck // the test is over
	_, err = c.Writer().Append(t.Context(), rowsOf(t, c, 5))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	var room *ring.NoRoomError
	require.ErrorAs(t, err, &room)
	require.Len(t, room.Holders, 1)
}

// movable is a replay whose file can be opened or not.
type movable struct {
	*node

	away atomic.Bool
}

func (m *movable) Describe(ctx context.Context, req *replayv1.DescribeRequest) (*replayv1.DescribeResponse, error) {
	if m.away.Load() {
		return (&remoteReplay{node: m.node}).Describe(ctx, req)
	}
	return m.node.Describe(ctx, req)
}

func TestClientMapsRingOnceThatIsPossible(t *testing.T) {
	m := &movable{node: testNode(t, testConfig(4))}
	m.away.Store(true)
	c := open(t, m)
	write(t, c, 1)
	require.False(t, c.Mapped())
	m.away.Store(false)
	write(t, c, 2)
	require.False(t, c.Mapped(), "it asks again at intervals only")
	c.described = c.described.Add(-remapInterval)
	write(t, c, 3)
	require.True(t, c.Mapped())
}
