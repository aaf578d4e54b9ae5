package replay

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/internal/leaktest"
	"github.com/raylink/raylink/services/replay/ring"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(taskVariable); text != "" {
		runCopying(text)
	}
	code := leaktest.Process()
	goleak.VerifyTestMain(m, goleak.Cleanup(func(c int) { os.Exit(code(c)) }))
}

func testConfig(capacity uint64) *replayv1.ReplayConfig {
	return &replayv1.ReplayConfig{Capacity: capacity, Columns: []*tensorv1.Column{
		Column[int64]("n"), Column[float32]("xy", 2), Column[uint8]("flag"),
	}}
}

func testNode(t *testing.T, config *replayv1.ReplayConfig) *node {
	t.Helper()
	leaktest.Check(t)
	n, err := newNode(t.TempDir(), "the-nid", config)
	if errors.Is(err, ring.ErrUnsupported) {
		t.Skip(err)
	}
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := n.close(); !errors.Is(err, ring.ErrClosed) {
			require.NoError(t, err)
		}
	})
	return n
}

// remoteReplay simulates a replay on another machine: the file that it names does not exist.
type remoteReplay struct {
	*node

	writes atomic.Int64
}

func (f *remoteReplay) Describe(ctx context.Context, req *replayv1.DescribeRequest) (*replayv1.DescribeResponse, error) {
	res, err := f.node.Describe(ctx, req)
	if res != nil {
		res.File += ".remote"
	}
	return res, err
}

func (f *remoteReplay) Write(ctx context.Context, req *replayv1.WriteRequest) (*replayv1.WriteResponse, error) {
	f.writes.Add(1)
	return f.node.Write(ctx, req)
}

// test is a test, or a property test.
type test interface {
	require.TestingT
	Helper()
	Cleanup(f func())
	Context() context.Context
}

func open(t test, n replayv1raylink.ReplayNode) *Client {
	t.Helper()
	return openHandle(t, replayv1raylink.NewLocalReplay(n))
}

func openHandle(t test, handle *replayv1raylink.Replay) *Client {
	t.Helper()
	c, err := OpenClient(t.Context(), handle)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// rowsOf returns a batch of rows with the given numbers.
func rowsOf(t *testing.T, c *Client, numbers ...int64) *Batch {
	t.Helper()
	b, err := c.NewBatch(len(numbers))
	require.NoError(t, err)
	n, err := Values[int64](b, "n")
	require.NoError(t, err)
	xy, err := Values[float32](b, "xy")
	require.NoError(t, err)
	for i, v := range numbers {
		n[i], xy[2*i], xy[2*i+1] = v, float32(v), -float32(v)
	}
	return b
}

// numbersOf returns the numbers, and checks the other columns of the rows.
func numbersOf(t *testing.T, rows Rows) []int64 {
	t.Helper()
	n, err := Values[int64](rows, "n")
	require.NoError(t, err)
	xy, err := Values[float32](rows, "xy")
	require.NoError(t, err)
	for i, v := range n {
		require.Equal(t, []float32{float32(v), -float32(v)}, xy[2*i:2*i+2])
	}
	return n
}

func write(t *testing.T, c *Client, numbers ...int64) []uint64 {
	t.Helper()
	b := rowsOf(t, c, numbers...)
	n, err := c.Writer().Append(t.Context(), b)
	require.NoError(t, err)
	require.Equal(t, len(numbers), n)
	return b.Sequences()
}

// mappedAndRemote runs a test with a mapped ring and through the node.
func mappedAndRemote(t *testing.T, capacity uint64, test func(t *testing.T, c *Client)) {
	t.Helper()
	t.Run("mapped", func(t *testing.T) {
		c := open(t, testNode(t, testConfig(capacity)))
		require.True(t, c.Mapped())
		test(t, c)
	})
	t.Run("remote", func(t *testing.T) {
		c := open(t, &remoteReplay{node: testNode(t, testConfig(capacity))})
		require.False(t, c.Mapped())
		test(t, c)
	})
}

func TestRowsRoundTrip(t *testing.T) {
	mappedAndRemote(t, 4, func(t *testing.T, c *Client) {
		ctx := t.Context()
		into, err := c.NewBatch(0)
		require.NoError(t, err)
		h := c.Reader(rand.New(rand.NewPCG(1, 2)))
		require.ErrorIs(t, h.Sample(ctx, 3, into), ring.ErrEmpty)
		require.ErrorIs(t, h.Newest(ctx, 3, into), ring.ErrEmpty)
		_, err = h.Hold(ctx, 3)
		require.ErrorIs(t, err, ring.ErrEmpty)

		require.Equal(t, []uint64{0, 1, 2}, write(t, c, 10, 11, 12))
		require.Equal(t, []uint64{3, 4}, write(t, c, 13, 14))
		require.NoError(t, h.Newest(ctx, 3, into))
		require.Equal(t, []int64{12, 13, 14}, numbersOf(t, into))
		require.Equal(t, []uint64{2, 3, 4}, into.Sequences())
		require.NoError(t, h.Newest(ctx, 100, into))
		require.Equal(t, []int64{11, 12, 13, 14}, numbersOf(t, into))

		require.NoError(t, h.Sample(ctx, 100, into))
		numbers := numbersOf(t, into)
		require.Len(t, numbers, 100)
		require.Subset(t, []int64{11, 12, 13, 14}, numbers)
		require.Subset(t, numbers, []int64{11, 12, 13, 14})
		for i, n := range numbers {
			require.Equal(t, uint64(n-10), into.Sequences()[i])
		}

		area, err := h.Hold(ctx, 3)
		require.NoError(t, err)
		require.Equal(t, 3, area.Len())
		write(t, c, 15)
		write(t, c, 16)
		var held []int64
		var sequences []uint64
		for _, s := range area.Spans() {
			held = append(held, numbersOf(t, s)...)
			sequences = append(sequences, s.Sequences()...)
		}
		require.Equal(t, []int64{12, 13, 14}, held)
		require.Equal(t, []uint64{2, 3, 4}, sequences)
		require.NoError(t, area.Release())
		require.NoError(t, area.Release())
	})
}

func TestInvalidUseReturnsSameErrorMappedAndRemote(t *testing.T) {
	mappedAndRemote(t, 4, func(t *testing.T, c *Client) {
		ctx := t.Context()
		other, err := ring.NewBatch(ring.Layout{Columns: []ring.Column{{Name: "n", DType: ring.Int32}}}, 1)
		require.NoError(t, err)
		_, err = c.Writer().Append(ctx, other)
		require.ErrorIs(t, err, ring.ErrBatch)
		h := c.Reader(nil)
		require.ErrorIs(t, h.Sample(ctx, 1, other), ring.ErrBatch)
		require.ErrorIs(t, h.Newest(ctx, 1, other), ring.ErrBatch)
		_, err = c.Writer().Append(ctx, rowsOf(t, c, 1, 2, 3, 4, 5))
		require.Error(t, err)
		require.ErrorContains(t, err, "5 rows")

		require.NoError(t, c.Close())
		_, err = c.Writer().Append(ctx, rowsOf(t, c, 1))
		require.ErrorIs(t, err, ring.ErrClosed)
	})
}

func TestFailedWriteExplainsItselfAndLeavesNothingLocked(t *testing.T) {
	for _, way := range []string{"mapped", "remote"} {
		t.Run(way, func(t *testing.T) {
			n := testNode(t, testConfig(4))
			holder := open(t, n)
			c := holder
			if way != "mapped" {
				c = open(t, &remoteReplay{node: n})
			}
			write(t, c, 1, 2, 3, 4)
			area, err := holder.Reader(nil).Hold(t.Context(), 4)
			require.NoError(t, err)
			for range 3 {
				_, err = c.Writer().TryAppend(t.Context(), rowsOf(t, c, 5))
				require.ErrorIs(t, err, ring.ErrNoRoom)
				var room *ring.NoRoomError
				require.ErrorAs(t, err, &room)
				require.Equal(t, uint64(4), room.Held)
				require.Len(t, room.Holders, 1)
				require.Equal(t, os.Getpid(), room.Holders[0].PID)
			}
			require.NoError(t, area.Release())
			write(t, c, 5)
			into, err := c.NewBatch(0)
			require.NoError(t, err)
			require.NoError(t, c.Reader(nil).Newest(t.Context(), 4, into))
			require.Equal(t, []int64{2, 3, 4, 5}, numbersOf(t, into))
		})
	}
}

func TestLargeBatchesAreSplit(t *testing.T) {
	const wide = 1 << 20
	config := &replayv1.ReplayConfig{Capacity: 40, Columns: []*tensorv1.Column{Column[uint8]("b", wide)}}
	f := &remoteReplay{node: testNode(t, config)}
	c := open(t, f)
	b, err := c.NewBatch(20)
	require.NoError(t, err)
	for i := range 20 {
		b.Bytes(0)[i*wide] = byte(i)
	}
	n, err := c.Writer().Append(t.Context(), b)
	require.NoError(t, err)
	require.Equal(t, 20, n)
	require.Equal(t, int64(3), f.writes.Load())
	require.Len(t, b.Sequences(), 20)
	require.NoError(t, c.Reader(nil).Sample(t.Context(), 19, b))
	require.Equal(t, 19, b.Rows())
	require.Len(t, b.Sequences(), 19)
	for i, s := range b.Sequences() {
		require.Equal(t, byte(s), b.Bytes(0)[i*wide])
	}
	require.NoError(t, c.Reader(nil).Newest(t.Context(), 40, b))
	require.Equal(t, 20, b.Rows())
	for i, s := range b.Sequences() {
		require.Equal(t, uint64(i), s)
		require.Equal(t, byte(i), b.Bytes(0)[i*wide])
	}
}

// restartable is a replay that can be replaced by another incarnation.
type restartable struct {
	replayv1raylink.ReplayNode
}

func TestClientSwitchesToRingOfRestartedReplay(t *testing.T) {
	first := testNode(t, testConfig(4))
	n := &restartable{first}
	c := open(t, n)
	w, h := c.Writer(), c.Reader(nil)
	_, err := w.Append(t.Context(), rowsOf(t, c, 1))
	require.NoError(t, err)
	into, err := c.NewBatch(0)
	require.NoError(t, err)

	second := testNode(t, testConfig(8))
	n.ReplayNode = second
	require.NoError(t, first.close()) // graceful: heads notice immediately
	require.ErrorIs(t, h.Newest(t.Context(), 1, into), ring.ErrEmpty)
	_, err = w.Append(t.Context(), rowsOf(t, c, 2))
	require.NoError(t, err)
	require.NoError(t, h.Newest(t.Context(), 1, into))
	require.Equal(t, []int64{2}, numbersOf(t, into))
	require.True(t, c.Mapped())

	third := testNode(t, testConfig(4))
	n.ReplayNode = third
	require.NoError(t, second.ring.Close()) // as if killed: heads notice at their next check
	c.mapping.Load().seen.Add(-int64(recheckInterval))
	_, err = w.Append(t.Context(), rowsOf(t, c, 3))
	require.NoError(t, err)
	require.NoError(t, h.Newest(t.Context(), 2, into))
	require.Equal(t, []int64{3}, numbersOf(t, into))

	fourth := testNode(t, &replayv1.ReplayConfig{Capacity: 1, Columns: []*tensorv1.Column{Column[int8]("other")}})
	n.ReplayNode = fourth
	require.NoError(t, third.close())
	require.ErrorIs(t, h.Newest(t.Context(), 2, into), ring.ErrLayout)
}

// unavailable is a replay that has stopped responding.
type unavailable struct {
	replayv1raylink.UnimplementedReplayNode
}

func TestDeadReplayFailsImmediately(t *testing.T) {
	first := testNode(t, testConfig(4))
	n := &restartable{first}
	c := open(t, n)
	n.ReplayNode = unavailable{}
	require.NoError(t, first.close())
	_, err := c.Writer().Append(t.Context(), rowsOf(t, c, 1))
	require.ErrorContains(t, err, "no longer served")
}

func TestInvalidConfigurationsAreRejected(t *testing.T) {
	for name, config := range map[string]*replayv1.ReplayConfig{
		"nil config":     nil,
		"no capacity":    {Columns: []*tensorv1.Column{Column[int8]("x")}},
		"no columns":     {Capacity: 1},
		"duplicate name": {Capacity: 1, Columns: []*tensorv1.Column{Column[int8]("x"), Column[int16]("x")}},
		"no dtype":       {Capacity: 1, Columns: []*tensorv1.Column{{Name: "x"}}},
		"unknown dtype":  {Capacity: 1, Columns: []*tensorv1.Column{{Name: "x", Dtype: 256 + 1}}},
		"negative":       {Capacity: 1, Columns: []*tensorv1.Column{{Name: "x", Dtype: -1}}},
	} {
		_, err := newNode(t.TempDir(), "nid", config)
		require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%s: %v", name, err)
	}
	_, err := newNode(filepath.Join(t.TempDir(), "not there"), "nid", testConfig(1))
	require.Error(t, err)
}

func TestNextIncarnationRemovesStaleRing(t *testing.T) {
	testNode(t, testConfig(1)) // skips the test where rings are unsupported
	directory := filepath.Join(t.TempDir(), "odd [name]*")
	require.NoError(t, os.Mkdir(directory, 0o700))
	first, err := newNode(directory, "a", testConfig(1))
	require.NoError(t, err)
	other, err := newNode(directory, "b", testConfig(1))
	require.NoError(t, err)
	require.NoError(t, first.ring.Close()) // as if killed: the file remains
	again, err := newNode(directory, "a", testConfig(1))
	require.NoError(t, err)
	require.NoFileExists(t, first.ring.Path())
	require.FileExists(t, other.ring.Path())
	require.NoError(t, other.close())
	require.NoError(t, again.close())
	left, err := os.ReadDir(directory)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestSamplingWithSeedIsRepeatable(t *testing.T) {
	n := testNode(t, testConfig(50))
	c := open(t, n)
	for i := range 50 {
		write(t, c, int64(i))
	}
	draw := func(seed uint64) []uint64 {
		res, err := c.Handle().Sample(t.Context(), &replayv1.SampleRequest{Rows: 20, Seed: seed})
		require.NoError(t, err)
		return res.GetBatch().GetSequence()
	}
	seven, zero := draw(7), draw(0)
	require.Equal(t, seven, draw(7))
	require.NotEqual(t, seven, draw(8))
	require.NotEqual(t, zero, draw(0))
}

func FuzzBatchOf(f *testing.F) {
	layout := layoutOf(testConfig(4).GetColumns(), 4)
	good, err := ring.NewBatch(layout, 2)
	require.NoError(f, err)
	for _, m := range []*replayv1.Batch{nil, {}, messageOf(good), {Rows: 1 << 63, Columns: messageOf(good).GetColumns()}} {
		b, err := proto.Marshal(m)
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var message replayv1.Batch
		if proto.Unmarshal(b, &message) != nil {
			return
		}
		batch, err := batchOf(layout, &message)
		if err != nil {
			require.ErrorIs(t, err, ring.ErrBatch)
			return
		}
		require.Equal(t, message.GetRows(), uint64(batch.Rows()))
		numbers, err := Values[int64](batch, "n")
		require.NoError(t, err)
		require.Len(t, numbers, batch.Rows())
	})
}

func TestColumnDerivesDTypeFromGoType(t *testing.T) {
	require.Equal(t, tensorv1.DataType_DATA_TYPE_UINT8, Column[uint8]("x").GetDtype())
	require.Equal(t, tensorv1.DataType_DATA_TYPE_INT16, Column[int16]("x").GetDtype())
	require.Equal(t, tensorv1.DataType_DATA_TYPE_FLOAT64, Column[float64]("x", 3).GetDtype())
	require.Equal(t, []uint64{3}, Column[float64]("x", 3).GetShape())
}
