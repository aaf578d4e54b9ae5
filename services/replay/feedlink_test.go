package replay

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/runtime/row"
	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/memnet"
	"github.com/raylink/raylink/services/replay/ring"
)

// linkedReplay returns a client whose calls travel through a tunnel over a link in memory.
func linkedReplay(t *testing.T, n replayv1raylink.ReplayNode) (*Client, *memnet.Link) {
	t.Helper()
	server := connect.NewServer()
	replayv1raylink.RegisterReplayTunnel(server, n)
	near, far := memnet.Pipe()
	type accepted struct {
		conn *tunnel.Conn
		err  error
	}
	other := make(chan accepted, 1)
	silent := tunnel.Config{Keepalive: -1}
	go func() {
		conn, err := tunnel.Accept(context.Background(), far, silent, tunnel.Welcome{Host: "server"},
			func(tunnel.Hello) (tunnel.Handler, error) { return tunnel.ServerHandler(server), nil })
		other <- accepted{conn, err}
	}()
	conn, err := tunnel.Dial(t.Context(), near, tunnel.Hello{Client: "client", Host: "server"}, silent)
	require.NoError(t, err)
	accepting := <-other
	require.NoError(t, accepting.err)
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		require.NoError(t, accepting.conn.Close())
	})
	c, err := OpenClient(t.Context(), replayv1raylink.NewReplayTunnel(connect.NewClient(conn.Transport("", ""))))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c, near.Link()
}

// bigReplay is the configuration of a replay of points that have a lot of data.
func bigReplay(capacity uint64, rowBytes int, tables ...*replayv1.TableConfig) *replayv1.ReplayConfig {
	return &replayv1.ReplayConfig{
		Capacity: capacity, Tables: tables, Columns: []*tensorv1.Column{Column[uint8]("data", uint64(rowBytes))},
	}
}

// unconfirmedIn returns an error that says what was not confirmed.
func unconfirmedIn(t *testing.T, err error) *UnconfirmedError {
	t.Helper()
	unconfirmed, ok := errors.AsType[*UnconfirmedError](err)
	require.True(t, ok, "%v", err)
	return unconfirmed
}

// TestSlowLinksAreUsedWell writes over a link of 200 Mbit/s. It takes about as long as the link
// needs, and memory is bounded by the window.
func TestSlowLinksAreUsedWell(t *testing.T) { synctest.Test(t, testSlowLink) }

func testSlowLink(t *testing.T) {
	const (
		rate, rowBytes, rows = 25_000_000, 1024, 40_000
		window               = 4 << 20
	)
	n := testNode(t, bigReplay(rows, rowBytes))
	c, link := linkedReplay(t, &remoteReplay{node: n})
	p, err := As(c, dataRow(rowBytes))
	require.NoError(t, err)
	w, err := p.Writer(Window(window))
	require.NoError(t, err)
	fill := func(rows *dataColumns) { rows.Data[0]++ }
	require.NoError(t, w.Append(t.Context(), 1, fill))
	require.NoError(t, w.Flush(t.Context()))
	link.Rate(rate)
	var before, during runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	begin := time.Now()
	for i := range rows - 1 {
		require.NoError(t, w.Append(t.Context(), 1, fill))
		if i == rows/2 {
			o := w.outbox
			o.mu.Lock()
			require.LessOrEqual(t, o.bytes, window)
			held := 0
			for _, chunk := range slices.Concat(o.chunks, o.spare) {
				held += cap(chunk.data)
			}
			o.mu.Unlock()
			require.LessOrEqual(t, held, 2*window)
			runtime.GC()
			runtime.ReadMemStats(&during)
			require.Less(t, int64(during.HeapAlloc)-int64(before.HeapAlloc), int64(4*window), "both sides together")
		}
	}
	require.NoError(t, w.Flush(t.Context()))
	took := time.Since(begin)
	least := time.Duration(float64(rows*rowBytes) / rate * float64(time.Second))
	t.Logf("%d rows took %v, and the link needs %v", rows, took.Round(time.Millisecond), least.Round(time.Millisecond))
	require.Less(t, took, least*21/20)
	stats, err := n.ring.Stats()
	require.NoError(t, err)
	require.Equal(t, uint64(rows), stats.Written)
}

// inBubbles runs a subtest with fake time.
func inBubbles(t *testing.T, name string, test func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

// TestSilentNodes stops a link in the middle of a message or of its confirmation, as a node that is
// stopped does. Calls end with their contexts and say what was confirmed. Afterwards nothing is
// lost.
func TestSilentNodes(t *testing.T) {
	const rows, rowBytes = 2000, 1024
	for name, stall := range map[string]func(*memnet.Link){
		"requests": func(link *memnet.Link) { link.StallRequestsAfter(300_000) },
		"replies":  func(link *memnet.Link) { link.StallRepliesAfter(150) },
	} {
		inBubbles(t, name, func(t *testing.T) {
			n := testNode(t, bigReplay(2*rows, rowBytes, Table("t")))
			c, link := linkedReplay(t, &remoteReplay{node: n})
			p, err := As(c, dataRow(rowBytes))
			require.NoError(t, err)
			w, err := p.Writer(Window(1<<20), History(1), Unconfirmed(10))
			require.NoError(t, err)
			fill := func(*dataColumns) {}
			require.NoError(t, w.Append(t.Context(), 1, fill))
			require.NoError(t, w.Flush(t.Context()))
			stall(link)
			ends := func(call func(ctx context.Context) error) *UnconfirmedError {
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				defer cancel()
				begin := time.Now()
				for range rows {
					if err := call(ctx); err != nil {
						require.ErrorIs(t, err, context.DeadlineExceeded)
						require.Less(t, time.Since(begin), 5*time.Second)
						unconfirmed := unconfirmedIn(t, err)
						require.True(t, unconfirmed.Kept)
						require.Less(t, unconfirmed.Confirmed, uint64(rows))
						require.Positive(t, unconfirmed.Confirmed)
						return unconfirmed
					}
				}
				require.Fail(t, "nothing blocks")
				return nil
			}
			full := ends(func(ctx context.Context) error { return w.Append(ctx, 1, fill) })
			require.InDelta(t, 1<<20, full.Rows*rowBytes, 256<<10, "as much as the window has is on its way")
			added := 0
			ofItems := ends(func(ctx context.Context) error {
				_, err := w.Item(ctx, "t", 1, 1)
				if err == nil {
					added++
				}
				return err
			})
			require.Equal(t, 10, added)
			require.Equal(t, 10, ofItems.Items)
			require.Len(t, ofItems.Keys, 10)
			require.Equal(t, full.Confirmed+full.Rows, ofItems.Confirmed+ofItems.Rows)
			flushed := ends(w.Flush)
			require.Equal(t, 10, flushed.Items)

			link.Resume()
			require.NoError(t, w.Flush(t.Context()))
			for _, key := range ofItems.Keys {
				_, ok := key.Get()
				require.True(t, ok)
			}
			stats, err := n.ring.Stats()
			require.NoError(t, err)
			require.Equal(t, full.Confirmed+full.Rows, stats.Written)
			require.Equal(t, uint64(10), n.tables.byName["t"].Inspect().Counts.Inserted)
		})
	}
}

// TestSilentWriters has a writer that does not read what the node confirms. The node holds a
// bounded amount of memory, goes on with others, and closes.
func TestSilentWriters(t *testing.T) { synctest.Test(t, testSilentWriter) }

func testSilentWriter(t *testing.T) {
	const rowBytes = 64
	n := testNode(t, bigReplay(1000, rowBytes, Table("t")))
	c, link := linkedReplay(t, &remoteReplay{node: n})
	p, err := As(c, dataRow(rowBytes))
	require.NoError(t, err)
	w, err := p.Writer(History(1), Window(64<<20), Unconfirmed(1<<20))
	require.NoError(t, err)
	fill := func(*dataColumns) {}
	require.NoError(t, w.Append(t.Context(), 1, fill))
	require.NoError(t, w.Flush(t.Context()))
	link.StallReplies()
	// The node goes on until its confirmations fill the link, and then reads no more.
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		for {
			if err := w.Append(ctx, 1, fill); err != nil {
				ended <- err
				return
			}
			if _, err := w.Item(ctx, "t", 1, 1); err != nil {
				ended <- err
				return
			}
		}
	}()
	synctest.Wait()
	<-time.After(time.Minute) // of fake time
	synctest.Wait()
	stats, err := n.ring.Stats()
	require.NoError(t, err)
	require.Greater(t, stats.Written, uint64(1))
	n.feeds.mu.Lock()
	require.Len(t, n.feeds.writers, 1)
	for _, fed := range n.feeds.writers {
		require.Less(t, fed.size, maxUnseen)
	}
	n.feeds.mu.Unlock()
	cancel()
	unconfirmed := unconfirmedIn(t, <-ended)
	require.Positive(t, unconfirmed.Rows)
	require.Equal(t, uint64(1), unconfirmed.Confirmed)

	other := open(t, n)
	b, err := other.NewBatch(1)
	require.NoError(t, err)
	_, err = other.Writer().Append(t.Context(), b)
	require.NoError(t, err, "others go on")
	_, err = n.Inspect(t.Context(), &replayv1.InspectRequest{})
	require.NoError(t, err)
}

// dataColumns are those of bigReplay.
type dataColumns struct{ Data []uint8 }

func dataRow(rowBytes int) row.Type[dataColumns] {
	return row.Type[dataColumns]{Generated: &row.GeneratedRow[dataColumns]{
		Message: "test.Data",
		Columns: []row.GeneratedColumn{
			{Name: "data", DType: tensorv1.DataType_DATA_TYPE_UINT8, Shape: []uint64{uint64(rowBytes)}, Bytes: uint64(rowBytes)},
		},
		View: func(c *dataColumns, columns [][]byte) { c.Data = row.GeneratedView[uint8](columns[0]) },
	}}
}

// TestRowsOfTheMaximumSize writes and reads rows of 63 MiB. Larger ones are refused on creation.
func TestRowsOfTheMaximumSize(t *testing.T) {
	_, err := newNode(t.TempDir(), "the-nid", bigReplay(2, maxRowBytes+1))
	require.ErrorIs(t, ringError(err), ring.ErrLayout)
	require.ErrorContains(t, err, strconv.Itoa(maxRowBytes))

	bothWays(t, bigReplay(2, maxRowBytes), func(t *testing.T, c, holder *Client) {
		p, err := As(c, dataRow(maxRowBytes))
		require.NoError(t, err)
		w, err := p.Writer()
		require.NoError(t, err)
		check := func(rows *Batch, last byte) {
			data := rows.Bytes(0)
			require.Len(t, data, maxRowBytes)
			require.Equal(t, []byte{last - 1, last}, []byte{data[0], data[maxRowBytes-1]})
		}
		for _, last := range []byte{2, 4} {
			require.NoError(t, w.Append(t.Context(), 1, func(rows *dataColumns) {
				rows.Data[0], rows.Data[maxRowBytes-1] = last-1, last
			}))
			require.NoError(t, w.Flush(t.Context()))
			b, err := holder.NewBatch(0)
			require.NoError(t, err)
			require.NoError(t, holder.Reader(nil).Newest(t.Context(), 1, b))
			check(b, last)
		}
		b, err := c.NewBatch(0)
		require.NoError(t, err)
		require.NoError(t, c.Reader(nil).Newest(t.Context(), 1, b))
		check(b, 4)
		require.NoError(t, c.Reader(nil).Sample(t.Context(), 1, b))
		check(b, b.Bytes(0)[maxRowBytes-1])
		require.NoError(t, c.Reader(nil).Newest(t.Context(), 1, b))
		b.Bytes(0)[maxRowBytes-1], b.Bytes(0)[0] = 6, 5
		n, err := c.Writer().Append(t.Context(), b) // a batch of the untyped client
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.NoError(t, c.Reader(nil).Newest(t.Context(), 1, b))
		check(b, 6)
	})
}
