package replay

import (
	"context"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/runtime/row"
	"github.com/raylink/raylink/services/replay/ring"
)

// pointColumns are the columns of testConfig, as the plugin would write them.
type pointColumns struct {
	N    []int64
	XY   []float32
	Flag []uint8
}

func pointRow() row.Type[pointColumns] {
	return row.Type[pointColumns]{Generated: &row.GeneratedRow[pointColumns]{
		Message: "test.Point",
		Columns: []row.GeneratedColumn{
			{Name: "n", DType: tensorv1.DataType_DATA_TYPE_INT64, Bytes: 8},
			{Name: "xy", DType: tensorv1.DataType_DATA_TYPE_FLOAT32, Shape: []uint64{2}, Bytes: 8},
			{Name: "flag", DType: tensorv1.DataType_DATA_TYPE_UINT8, Bytes: 1, Initial: "\x07"},
		},
		View: func(c *pointColumns, columns [][]byte) {
			c.N = row.GeneratedView[int64](columns[0])
			c.XY = row.GeneratedView[float32](columns[1])
			c.Flag = row.GeneratedView[uint8](columns[2])
		},
	}}
}

// typedBothWays is bothWays with a writer of points.
func typedBothWays(t *testing.T, capacity uint64, test func(t *testing.T, p *Typed[pointColumns], holder *Client)) {
	t.Helper()
	config := testConfig(capacity)
	config.Columns = pointRow().Columns()
	bothWays(t, config, func(t *testing.T, c, holder *Client) {
		p, err := As(c, pointRow())
		require.NoError(t, err)
		test(t, p, holder)
	})
}

func pointWriter(t *testing.T, p *Typed[pointColumns]) *TypedWriter[pointColumns] {
	t.Helper()
	w, err := p.Writer()
	require.NoError(t, err)
	return w
}

// appended returns a function that appends rows and waits until they are in the ring.
func appended(w *TypedWriter[pointColumns]) func(context.Context, int, func(*pointColumns)) error {
	return func(ctx context.Context, n int, fill func(*pointColumns)) error {
		if err := w.Append(ctx, n, fill); err != nil {
			return err
		}
		return w.Flush(ctx)
	}
}

// points returns a function that writes points with the given numbers.
func points(numbers ...int64) func(rows *pointColumns) {
	return func(rows *pointColumns) {
		copy(rows.N, numbers)
		for i, v := range numbers {
			rows.XY[2*i], rows.XY[2*i+1] = float32(v), -float32(v)
		}
	}
}

// checkPoints checks the columns of points, and returns their numbers.
func checkPoints(t *testing.T, c *pointColumns) []int64 {
	t.Helper()
	for i, v := range c.N {
		require.Equal(t, []float32{float32(v), -float32(v)}, c.XY[2*i:2*i+2])
		require.Equal(t, uint8(7), c.Flag[i], "the initial value")
	}
	return c.N
}

// heldPoints returns the numbers of the newest n points, oldest first.
func heldPoints(t *testing.T, p *Typed[pointColumns], n int) []int64 {
	t.Helper()
	area, err := p.Newest(t.Context(), n)
	require.NoError(t, err)
	var numbers []int64
	for _, s := range area.Spans() {
		require.Len(t, s.Sequences(), s.Len())
		numbers = append(numbers, checkPoints(t, &s.Columns)...)
	}
	require.Len(t, numbers, area.Len())
	require.NoError(t, area.Release())
	return numbers
}

func TestTypedRowsRoundTrip(t *testing.T) {
	typedBothWays(t, 7, func(t *testing.T, p *Typed[pointColumns], _ *Client) {
		ctx, w := t.Context(), pointWriter(t, p)
		into, err := p.NewBatch(2)
		require.NoError(t, err)
		require.Equal(t, []uint8{7, 7}, into.Columns.Flag)
		h := p.Reader(rand.New(rand.NewPCG(1, 2)))
		require.ErrorIs(t, h.Sample(ctx, 3, into), ring.ErrEmpty)
		require.Empty(t, into.Columns.N)
		_, err = p.Newest(ctx, 3)
		require.ErrorIs(t, err, ring.ErrEmpty)

		// The third write goes around the ring's end.
		require.NoError(t, w.Append(ctx, 3, points(10, 11, 12)))
		require.Equal(t, []uint64{0, 1, 2}, w.Sequences())
		require.NoError(t, w.TryAppend(ctx, 2, points(13, 14)))
		require.NoError(t, w.Append(ctx, 4, points(15, 16, 17, 18)))
		require.Equal(t, []uint64{5, 6, 7, 8}, w.Sequences())
		require.Equal(t, []int64{12, 13, 14, 15, 16, 17, 18}, heldPoints(t, p, 20))
		require.NoError(t, h.Newest(ctx, 3, into))
		require.Equal(t, []int64{16, 17, 18}, checkPoints(t, &into.Columns))
		require.Equal(t, []uint64{6, 7, 8}, into.Sequences())
		require.NoError(t, h.Sample(ctx, 50, into))
		for i, n := range checkPoints(t, &into.Columns) {
			require.Equal(t, n, int64(into.Sequences()[i])+10)
		}
		require.NoError(t, into.Reset(1))
		require.Equal(t, []uint8{7}, into.Columns.Flag)

		called := false
		require.NoError(t, w.Append(ctx, 0, func(*pointColumns) { called = true }))
		require.ErrorIs(t, w.Append(ctx, -1, func(*pointColumns) { called = true }), ring.ErrBatch)
		require.ErrorIs(t, w.Append(ctx, 8, func(*pointColumns) { called = true }), ring.ErrBatch)
		require.Empty(t, w.Sequences())
		require.False(t, called)
	})
}

func TestMoreRowsThanAreWrittenTogether(t *testing.T) {
	typedBothWays(t, 1000, func(t *testing.T, p *Typed[pointColumns], _ *Client) {
		w := pointWriter(t, p)
		for round := range 3 {
			require.NoError(t, w.Append(t.Context(), 700, func(rows *pointColumns) {
				for i := range 700 {
					v := int64(i + 1000*round)
					rows.N[i], rows.XY[2*i], rows.XY[2*i+1] = v, float32(v), -float32(v)
				}
			}))
			require.Len(t, w.Sequences(), 700)
			require.Equal(t, int64(699+1000*round), heldPoints(t, p, 700)[699])
		}
	})
}

func TestNothingBecomesVisibleIfWriteDoesNotReturn(t *testing.T) {
	typedBothWays(t, 20, func(t *testing.T, p *Typed[pointColumns], holder *Client) {
		w, ctx := pointWriter(t, p), t.Context()
		require.NoError(t, w.Append(ctx, 5, points(0, 1, 2, 3, 4)))
		require.NoError(t, w.Flush(ctx))
		seen := func() []int64 {
			b, err := holder.NewBatch(0)
			require.NoError(t, err)
			require.NoError(t, holder.Reader(nil).Newest(ctx, 20, b))
			return numbersOf(t, b)
		}
		require.PanicsWithValue(t, "boom", func() {
			_ = w.Append(ctx, 2, func(rows *pointColumns) {
				points(90, 91)(rows)
				require.Equal(t, []int64{0, 1, 2, 3, 4}, seen(), "no row is visible before the function has returned")
				panic("boom")
			})
		})
		require.Empty(t, w.Sequences())
		require.Equal(t, []int64{0, 1, 2, 3, 4}, seen())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = w.Append(ctx, 2, func(*pointColumns) { runtime.Goexit() })
		}()
		<-done
		require.Equal(t, []int64{0, 1, 2, 3, 4}, seen())

		require.NoError(t, w.Append(ctx, 2, func(rows *pointColumns) {
			require.ErrorIs(t, w.Append(ctx, 1, points(1)), ring.ErrBatch, "the same writer")
			require.NoError(t, appended(pointWriter(t, p))(ctx, 1, points(5)), "another one")
			points(6, 7)(rows)
		}))
		require.NoError(t, w.Flush(ctx))
		require.Len(t, seen(), 8)
		// All rows can be written again.
		all := make([]int64, 20)
		for i := range all {
			all[i] = int64(i)
		}
		require.NoError(t, w.Append(ctx, 20, points(all...)))
		require.NoError(t, w.Flush(ctx))
		require.Equal(t, all, seen())
	})
}

func TestTypedAppendWaitsForRoom(t *testing.T) {
	typedBothWays(t, 4, func(t *testing.T, p *Typed[pointColumns], holder *Client) {
		w := pointWriter(t, p)
		write := appended(w)
		require.NoError(t, write(t.Context(), 4, points(1, 2, 3, 4)))
		area, err := holder.Reader(nil).Hold(t.Context(), 3)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		var room *ring.NoRoomError
		require.ErrorAs(t, w.TryAppend(t.Context(), 2, points(5, 6)), &room)
		require.Equal(t, []int{2, 0}, []int{room.Rows, room.Written}, "all rows or none")
		require.NoError(t, room.Cause)
		err = write(ctx, 2, points(5, 6))
		require.ErrorAs(t, err, &room)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, []int{2, 0}, []int{room.Rows, room.Written})
		require.Len(t, room.Holders, 1)
		require.Empty(t, w.Sequences())

		done := make(chan error, 1)
		go func() {
			if p.Client().Mapped() {
				done <- w.Append(t.Context(), 2, points(5, 6))
			} else {
				done <- w.Flush(t.Context()) // the rows are on their way
			}
		}()
		require.Never(t, func() bool { return len(done) > 0 }, 30*time.Millisecond, 5*time.Millisecond)
		require.NoError(t, area.Release())
		select {
		case err := <-done:
			require.NoError(t, err)
		case <-time.After(20 * time.Second):
			require.Fail(t, "Append still waits")
		}
		require.Equal(t, []int64{5, 6}, heldPoints(t, p, 2))
	})
}

// TestNodeWritesTogether has a row in the way of a write that goes through the node.
func TestNodeWritesTogether(t *testing.T) {
	n := testNode(t, testConfig(4))
	c := open(t, &remoteReplay{node: n})
	p, err := As(c, pointRow())
	require.NoError(t, err)
	w := pointWriter(t, p)
	require.NoError(t, appended(w)(t.Context(), 4, points(1, 2, 3, 4)))
	// A writer of this machine is in the middle of row 5, so that three others can be written.
	other, err := n.ring.InPlace()
	require.NoError(t, err)
	require.NoError(t, other.TryAppend(1, func([][]byte) {
		var room *ring.NoRoomError
		require.ErrorAs(t, w.TryAppend(t.Context(), 4, points(6, 7, 8, 9)), &room)
		require.Zero(t, room.Written)
		require.Empty(t, w.Sequences())
		require.Equal(t, []int64{2, 3, 4}, heldPoints(t, p, 4))
	}))
}

func TestTypedCallsOfClosedClient(t *testing.T) {
	typedBothWays(t, 4, func(t *testing.T, p *Typed[pointColumns], _ *Client) {
		ctx, w := t.Context(), pointWriter(t, p)
		into, err := p.NewBatch(0)
		require.NoError(t, err)
		mapped := p.Client().Mapped()
		err = w.Append(ctx, 2, func(rows *pointColumns) {
			require.NoError(t, p.Close()) // the rows stay valid
			points(1, 2)(rows)
		})
		if mapped {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, ring.ErrClosed, "they were not sent")
		}
		require.ErrorIs(t, w.Append(ctx, 1, points(1)), ring.ErrClosed)
		_, err = p.Writer()
		require.ErrorIs(t, err, ring.ErrClosed)
		require.ErrorIs(t, p.Reader(nil).Sample(ctx, 1, into), ring.ErrClosed)
		_, err = p.Newest(ctx, 1)
		require.ErrorIs(t, err, ring.ErrClosed)
	})
}

func TestTypedWriterFollowsRestartedReplay(t *testing.T) {
	m := &movable{node: testNode(t, testConfig(4))}
	c := open(t, m)
	p, err := As(c, pointRow())
	require.NoError(t, err)
	w := pointWriter(t, p)
	require.NoError(t, w.Append(t.Context(), 1, points(1)))
	require.NoError(t, m.close())
	m.node = testNode(t, testConfig(4))
	calls := 0
	require.NoError(t, w.Append(t.Context(), 1, func(rows *pointColumns) {
		calls++
		points(2)(rows)
	}))
	require.Equal(t, 1, calls)
	require.Equal(t, []int64{2}, heldPoints(t, p, 4))
}

func TestFewWritesAreAcknowledgedAfterTheNodesDeath(t *testing.T) {
	for name, slow := range map[string]bool{"in quick succession": false, "seldom": true} {
		t.Run(name, func(t *testing.T) {
			first := testNode(t, testConfig(1000))
			m := &restartable{first}
			c := open(t, m)
			p, err := As(c, pointRow())
			require.NoError(t, err)
			w := pointWriter(t, p)
			for range 200 {
				require.NoError(t, w.Append(t.Context(), 1, points(1)))
				if slow {
					w.trust.checked -= int64(recheckInterval)
				}
			}
			require.NoError(t, first.ring.Close()) // as if killed
			m.ReplayNode = unavailable{}
			written := 0
			for ; ; written++ {
				c.mapping.Load().seen.Add(-int64(recheckInterval))
				if err = w.Append(t.Context(), 1, points(1)); err != nil {
					break
				}
				require.Less(t, written, trustedWrites)
			}
			require.ErrorContains(t, err, "no longer served")
			if slow {
				require.Zero(t, written)
			}
		})
	}
}

func TestTypedWriterFollowsReplayKilledAmongWrites(t *testing.T) {
	first, second := testNode(t, testConfig(1000)), testNode(t, testConfig(1000))
	m := &restartable{first}
	c := open(t, m)
	p, err := As(c, pointRow())
	require.NoError(t, err)
	w := pointWriter(t, p)
	for range 100 {
		require.NoError(t, w.Append(t.Context(), 1, points(1)))
	}
	m.ReplayNode = second
	require.NoError(t, first.close())
	require.NoError(t, w.Append(t.Context(), 1, points(2)))
	require.Equal(t, []int64{2}, heldPoints(t, p, 4))
}

func TestOpenRefusesOtherColumns(t *testing.T) {
	change := func(f func(c []*tensorv1.Column) []*tensorv1.Column) []*tensorv1.Column {
		return f(pointRow().Columns())
	}
	for want, columns := range map[string][]*tensorv1.Column{
		`column 1, "xy", is xy float32[2] in the row test.Point, and xy float32[3] in the replay`: change(func(c []*tensorv1.Column) []*tensorv1.Column {
			c[1].Shape[0] = 3
			return c
		}),
		`column 0, "n", is n int64 in the row test.Point, and n uint64 in the replay`: change(func(c []*tensorv1.Column) []*tensorv1.Column {
			c[0].Dtype = tensorv1.DataType_DATA_TYPE_UINT64
			return c
		}),
		`column 2, "flag", is flag uint8 in the row test.Point, and missing in the replay`: change(func(c []*tensorv1.Column) []*tensorv1.Column {
			return c[:2]
		}),
		`column 3, "more", is missing in the row test.Point, and more bfloat16 in the replay`: change(func(c []*tensorv1.Column) []*tensorv1.Column {
			return append(c, &tensorv1.Column{Name: "more", Dtype: tensorv1.DataType_DATA_TYPE_BFLOAT16})
		}),
	} {
		n := testNode(t, &replayv1.ReplayConfig{Columns: columns, Capacity: 4})
		_, err := Open(t.Context(), replayv1raylink.NewLocalReplay(n), pointRow())
		require.ErrorContains(t, err, "open replay: the columns do not match: "+want+": create the replay with")
		require.ErrorIs(t, err, ring.ErrLayout)
		var schema *SchemaError
		require.ErrorAs(t, err, &schema)
		require.Equal(t, "test.Point", schema.Row)
	}
}

func TestDescriptionHasInitialValues(t *testing.T) {
	n := testNode(t, &replayv1.ReplayConfig{Columns: pointRow().Columns(), Capacity: 4})
	p, err := Open(t.Context(), replayv1raylink.NewLocalReplay(n), pointRow())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	res, err := p.Client().Handle().Describe(t.Context(), &replayv1.DescribeRequest{})
	require.NoError(t, err)
	require.Equal(t, []byte{7}, res.GetColumns()[2].GetInitial())
	columns := pointRow().Columns()
	columns[0].Initial = []byte{1, 2}
	_, err = newNode(t.TempDir(), "the-nid", &replayv1.ReplayConfig{Columns: columns, Capacity: 4})
	require.ErrorContains(t, err, `column "n" has an initial value of 2 bytes, and its elements have 8`)
}

func TestCapacityInBytes(t *testing.T) {
	config := &replayv1.ReplayConfig{Columns: pointRow().Columns(), CapacityBytes: 1 << 20}
	n := testNode(t, config)
	res, err := n.Describe(t.Context(), nil)
	require.NoError(t, err)
	require.Greater(t, res.GetCapacity(), uint64(20_000))
	require.Less(t, res.GetCapacity()*25, uint64(1<<20))
	for want, config := range map[string]*replayv1.ReplayConfig{
		"its capacity is both 4 rows and 8 bytes: set one of them": {Columns: config.GetColumns(), Capacity: 4, CapacityBytes: 8},
		"a ring of at most 8 bytes: one with a single row has":     {Columns: config.GetColumns(), CapacityBytes: 8},
		"no columns": {CapacityBytes: 1 << 20},
	} {
		_, err := newNode(t.TempDir(), "the-nid", config)
		require.ErrorContains(t, err, want)
	}
}

// TestAllElementTypes reads back a column of each type.
func TestAllElementTypes(t *testing.T) {
	config := &replayv1.ReplayConfig{Capacity: 4}
	for number, name := range tensorv1.DataType_name {
		if number != 0 {
			config.Columns = append(config.Columns, &tensorv1.Column{Name: name, Dtype: tensorv1.DataType(number)})
		}
	}
	bothWays(t, config, func(t *testing.T, c, _ *Client) {
		b, err := c.NewBatch(1)
		require.NoError(t, err)
		for i := range config.GetColumns() {
			b.Bytes(i)[0] = byte(i + 1)
		}
		_, err = c.Writer().Append(t.Context(), b)
		require.NoError(t, err)
		into, err := c.NewBatch(0)
		require.NoError(t, err)
		require.NoError(t, c.Reader(nil).Sample(t.Context(), 1, into))
		for i := range config.GetColumns() {
			require.Equal(t, b.Bytes(i), into.Bytes(i))
		}
		checkElements[uint16](t, into, "DATA_TYPE_UINT16", "DATA_TYPE_FLOAT16", "DATA_TYPE_BFLOAT16")
		checkElements[uint32](t, into, "DATA_TYPE_UINT32")
		checkElements[uint64](t, into, "DATA_TYPE_UINT64")
		checkElements[uint8](t, into, "DATA_TYPE_UINT8", "DATA_TYPE_BOOL")
		_, err = Values[uint16](into, "DATA_TYPE_INT16")
		require.ErrorIs(t, err, ring.ErrLayout)
	})
	require.Equal(t, tensorv1.DataType_DATA_TYPE_UINT16, Column[uint16]("x").GetDtype())
	require.Equal(t, tensorv1.DataType_DATA_TYPE_UINT32, Column[uint32]("x").GetDtype())
	require.Equal(t, tensorv1.DataType_DATA_TYPE_UINT64, Column[uint64]("x").GetDtype())
}

func checkElements[T ring.Element](t *testing.T, rows Rows, names ...string) {
	t.Helper()
	for _, name := range names {
		values, err := Values[T](rows, name)
		require.NoError(t, err)
		require.Len(t, values, 1)
	}
}

// Sequence numbers of a writer increase, and so its items can have rows of writes of any size.
func TestSequenceNumbersOfAWriterIncrease(t *testing.T) {
	typedBothWays(t, 10_000, func(t *testing.T, p *Typed[pointColumns], _ *Client) {
		w := pointWriter(t, p)
		last := int64(-1)
		for i := range 200 {
			n := 1 + i%3
			if i%17 == 16 {
				n = p.client.layout.MaxTogether() + 1
			}
			require.NoError(t, w.Append(t.Context(), n, func(rows *pointColumns) { clear(rows.N) }))
			for _, s := range w.Sequences() {
				require.Greater(t, int64(s), last, "write %d, of %d rows", i, n)
				last = int64(s)
			}
		}
	})
}
