package replay

import (
	"context"
	"errors"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/runtime/row"
	"github.com/raylink/raylink/services/replay/ring"
)

// call is a call of a client that can fail.
type call struct {
	name  string
	reads bool
	// make makes the call, and checks that a failed one left nothing behind.
	make func(ctx context.Context) error
}

// allCalls returns all calls of a client and of a view of it that can fail.
func allCalls(t *testing.T, p *Typed[pointColumns]) []call {
	t.Helper()
	const large = 300 // more rows than are written together
	c := p.Client()
	h, tw, tr, w := c.Reader(nil), pointWriter(t, p), p.Reader(nil), c.Writer()
	batch := rowsOf(t, c, 1, 2)
	batch.SetSequences([]uint64{90, 91})
	typed, err := p.NewBatch(2)
	require.NoError(t, err)
	// A failed read leaves no rows without sequence numbers that could be taken for those wanted.
	read := func(into *Batch, err error) error {
		if err == nil {
			require.Len(t, into.Sequences(), into.Rows())
		}
		return err
	}
	write := func(rows int, err error) error {
		require.Len(t, batch.Sequences(), rows)
		if err != nil {
			require.Zero(t, rows)
		}
		return err
	}
	inPlace := func(n int, appendRows func(context.Context, int, func(*pointColumns)) error) func(ctx context.Context) error {
		return func(ctx context.Context) error {
			called := 0
			err := appendRows(ctx, n, func(*pointColumns) { called++ })
			if err == nil {
				err = tw.Flush(ctx)
			}
			require.LessOrEqual(t, called, 1)
			if err != nil {
				require.Empty(t, tw.Sequences())
				return err
			}
			require.Equal(t, 1, called)
			require.Len(t, tw.Sequences(), n)
			return nil
		}
	}
	return []call{
		{"Append", false, func(ctx context.Context) error { return write(w.Append(ctx, batch)) }},
		{"TryAppend", false, func(ctx context.Context) error { return write(w.TryAppend(ctx, batch)) }},
		{"Sample", true, func(ctx context.Context) error { return read(batch, h.Sample(ctx, 2, batch)) }},
		{"Newest", true, func(ctx context.Context) error { return read(batch, h.Newest(ctx, 2, batch)) }},
		{"Hold", true, func(ctx context.Context) error {
			area, err := h.Hold(ctx, 2)
			if err != nil {
				require.Nil(t, area)
				return err
			}
			require.Equal(t, 2, area.Len())
			return area.Release()
		}},
		{"TypedWriter.Append", false, inPlace(2, tw.Append)},
		{"TypedWriter.TryAppend", false, inPlace(2, tw.TryAppend)},
		{"TypedWriter.Append of many rows", false, inPlace(large, tw.Append)},
		{"TypedWriter.TryAppend of many rows", false, inPlace(large, tw.TryAppend)},
		{"TypedReader.Sample", true, func(ctx context.Context) error {
			return read(typed.Batch(), tr.Sample(ctx, 2, typed))
		}},
		{"TypedReader.Newest", true, func(ctx context.Context) error {
			return read(typed.Batch(), tr.Newest(ctx, 2, typed))
		}},
		{"TypedReader.Hold", true, func(ctx context.Context) error { return heldOnce(tr.Hold(ctx, 2)) }},
		{"Typed.Newest", true, func(ctx context.Context) error { return heldOnce(p.Newest(ctx, 2)) }},
		{"Inspect", false, func(ctx context.Context) error {
			info, err := c.Inspect(ctx)
			require.Equal(t, err == nil, info.GetRing() != nil)
			return err
		}},
	}
}

func heldOnce(area *TypedArea[pointColumns], err error) error {
	if err != nil {
		return err
	}
	return errors.Join(area.Release(), area.Release())
}

// TestAllCallsSucceedTwice makes each call before and after the others.
func TestAllCallsSucceedTwice(t *testing.T) {
	typedBothWays(t, 1000, func(t *testing.T, p *Typed[pointColumns], _ *Client) {
		calls := allCalls(t, p)
		for range 2 {
			for _, c := range calls {
				require.NoError(t, c.make(t.Context()), c.name)
			}
		}
	})
}

func TestAllCallsOfEndedContexts(t *testing.T) {
	typedBothWays(t, 1000, func(t *testing.T, p *Typed[pointColumns], _ *Client) {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		late, cancel := context.WithDeadline(t.Context(), time.Now())
		defer cancel()
		for _, first := range []bool{true, false} {
			for _, c := range allCalls(t, p) {
				require.ErrorIs(t, c.make(ended), context.Canceled, c.name)
				require.ErrorIs(t, c.make(late), context.DeadlineExceeded, c.name)
			}
			if first {
				write(t, p.Client(), 1, 2, 3)
			}
		}
		require.Equal(t, []int64{1, 2, 3}, allNumbers(t, p.Client()), "nothing was written")
	})
}

// allNumbers returns the numbers of all rows.
func allNumbers(t *testing.T, c *Client) []int64 {
	t.Helper()
	into, err := c.NewBatch(0)
	require.NoError(t, err)
	require.NoError(t, c.Reader(nil).Newest(t.Context(), 1000, into))
	return numbersOf(t, into)
}

func TestAllCallsOfClosedClients(t *testing.T) {
	typedBothWays(t, 1000, func(t *testing.T, p *Typed[pointColumns], _ *Client) {
		write(t, p.Client(), 1, 2, 3)
		calls := allCalls(t, p)
		area, err := p.Client().Reader(nil).Hold(t.Context(), 2)
		require.NoError(t, err)
		typed, err := p.Newest(t.Context(), 2)
		require.NoError(t, err)
		require.NoError(t, p.Close())
		require.NoError(t, p.Close(), "again")
		for _, c := range calls {
			require.ErrorIs(t, c.make(t.Context()), ring.ErrClosed, c.name)
		}
		require.Equal(t, []int64{2, 3}, numbersOf(t, area.Spans()[0]), "areas outlive the client")
		require.Equal(t, []int64{2, 3}, typed.Spans()[0].Columns.N)
		require.NoError(t, errors.Join(area.Release(), area.Release(), typed.Release(), typed.Release()))
		require.Zero(t, area.Len()+typed.Len())
	})
}

// TestAllCallsAfterTheNodeEnded has a node that has stopped, and that still responds. Its clients
// are not closed, so no call may say that they are.
func TestAllCallsAfterTheNodeEnded(t *testing.T) {
	for name, end := range map[string]func(n *node) error{
		"ended": func(n *node) error { return n.ring.End() }, "closed": (*node).close,
	} {
		t.Run(name, func(t *testing.T) {
			n := testNode(t, testConfig(1000))
			clients := map[string]*Client{"mapped": openTunnel(t, n), "remote": openTunnel(t, &remoteReplay{node: n})}
			write(t, clients["mapped"], 1, 2, 3)
			calls := make(map[string][]call)
			for way, c := range clients {
				require.Equal(t, way == "mapped", c.Mapped())
				p, err := As(c, pointRow())
				require.NoError(t, err)
				calls[way] = allCalls(t, p)
			}
			require.NoError(t, end(n))
			for way, calls := range calls {
				for _, c := range calls {
					err := c.make(t.Context())
					require.ErrorIs(t, err, ring.ErrEnded, "%s: %s", way, c.name)
					require.NotErrorIs(t, err, ring.ErrClosed, "%s: %s", way, c.name)
				}
			}
		})
	}
}

func TestAllReadsOfEmptyReplays(t *testing.T) {
	typedBothWays(t, 1000, func(t *testing.T, p *Typed[pointColumns], _ *Client) {
		for _, c := range allCalls(t, p) {
			if c.reads {
				require.ErrorIs(t, c.make(t.Context()), ring.ErrEmpty, c.name)
			}
		}
		into := rowsOf(t, p.Client(), 1, 2)
		h := p.Client().Reader(nil)
		require.ErrorIs(t, h.Sample(t.Context(), 2, into), ring.ErrEmpty)
		require.Zero(t, into.Rows())
		require.NoError(t, into.Resize(2))
		require.ErrorIs(t, h.Newest(t.Context(), 2, into), ring.ErrEmpty)
		require.Zero(t, into.Rows())
	})
}

// TestAllCallsOfOtherColumns uses batches of another replay.
func TestAllCallsOfOtherColumns(t *testing.T) {
	config := testConfig(10)
	config.Columns[2].Name = "flags"
	renamed := pointRow()
	renamed.Generated.Columns[2].Name = "flags"
	other, err := As(open(t, testNode(t, config)), row.Type[pointColumns]{Generated: renamed.Generated})
	require.NoError(t, err)
	typedBothWays(t, 10, func(t *testing.T, p *Typed[pointColumns], _ *Client) {
		write(t, p.Client(), 1, 2, 3)
		into, err := other.NewBatch(2)
		require.NoError(t, err)
		into.Batch().SetSequences([]uint64{7, 8})
		h, w := p.Client().Reader(nil), p.Client().Writer()
		for name, read := range map[string]func() error{
			"Sample":             func() error { return h.Sample(t.Context(), 1, into.Batch()) },
			"Newest":             func() error { return h.Newest(t.Context(), 1, into.Batch()) },
			"TypedReader.Sample": func() error { return p.Reader(nil).Sample(t.Context(), 1, into) },
			"TypedReader.Newest": func() error { return p.Reader(nil).Newest(t.Context(), 1, into) },
		} {
			err := read()
			require.ErrorIs(t, err, ring.ErrBatch, name)
			require.ErrorContains(t, err, "flags", "it names the batch's columns")
			require.ErrorContains(t, err, "{flag ", "and the replay's")
			require.Equal(t, 2, into.Len(), "the batch is unchanged")
			require.Equal(t, []uint64{7, 8}, into.Sequences())
		}
		for name, write := range map[string]func(context.Context, *Batch) (int, error){"Append": w.Append, "TryAppend": w.TryAppend} {
			n, err := write(t.Context(), into.Batch())
			require.ErrorIs(t, err, ring.ErrBatch, name)
			require.ErrorContains(t, err, "flags")
			require.Zero(t, n)
			require.Empty(t, into.Sequences())
		}
		require.Equal(t, []int64{1, 2, 3}, allNumbers(t, p.Client()))
	})
}

// TestPartOfABatchIsWritten has a row in the way that another writer does not finish.
func TestPartOfABatchIsWritten(t *testing.T) {
	typedBothWays(t, 4, func(t *testing.T, p *Typed[pointColumns], holder *Client) {
		write(t, p.Client(), 1, 2, 3, 4)
		other, err := As(holder, pointRow())
		require.NoError(t, err)
		require.NoError(t, pointWriter(t, other).Append(t.Context(), 1, func(rows *pointColumns) {
			points(0)(rows)
			batch := rowsOf(t, p.Client(), 5, 6, 7, 8)
			n, err := p.Client().Writer().TryAppend(t.Context(), batch)
			var room *ring.NoRoomError
			require.ErrorAs(t, err, &room)
			require.Equal(t, []int{3, 3, 4}, []int{n, room.Written, room.Rows})
			require.Len(t, room.Writers, 1)
			require.Len(t, batch.Sequences(), 3)
			into, err := p.Client().NewBatch(0)
			require.NoError(t, err)
			require.NoError(t, p.Client().Reader(nil).Newest(t.Context(), 4, into))
			require.Equal(t, []int64{5, 6, 7}, numbersOf(t, into))
			require.Equal(t, batch.Sequences(), into.Sequences())
		}))
	})
}

// stuck is a replay on another machine whose calls do not return before their contexts end.
type stuck struct {
	remoteReplay

	called chan struct{}
}

func (s *stuck) block(ctx context.Context) error {
	s.called <- struct{}{}
	<-ctx.Done()
	return connect.NewError(connect.CodeUnknown, "the node has its own view of why")
}

func (s *stuck) Write(ctx context.Context, _ *replayv1.WriteRequest) (*replayv1.WriteResponse, error) {
	return nil, s.block(ctx)
}

func (s *stuck) Sample(ctx context.Context, _ *replayv1.SampleRequest) (*replayv1.SampleResponse, error) {
	return nil, s.block(ctx)
}

func (s *stuck) Newest(ctx context.Context, _ *replayv1.NewestRequest) (*replayv1.NewestResponse, error) {
	return nil, s.block(ctx)
}

func (s *stuck) Inspect(ctx context.Context, _ *replayv1.InspectRequest) (*replayv1.InspectResponse, error) {
	return nil, s.block(ctx)
}

func (s *stuck) Feed(ctx context.Context, _ replayv1raylink.ReplayFeedServerStream) error {
	return s.block(ctx)
}

// TestContextsThatEndDuringRemoteCalls is TestReadsEndWithTheirContext of package ring for calls
// that the node has.
func TestContextsThatEndDuringRemoteCalls(t *testing.T) {
	n := &stuck{remoteReplay: remoteReplay{node: testNode(t, testConfig(1000))}, called: make(chan struct{}, 1)}
	p, err := As(openTunnel(t, n), pointRow())
	require.NoError(t, err)
	for _, c := range allCalls(t, p) {
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			select {
			case <-n.called:
			case <-time.After(200 * time.Millisecond): // the writer has its stream already
			}
			cancel()
		}()
		err := c.make(ctx)
		require.ErrorIs(t, err, context.Canceled, c.name)
		cancel()
	}
}
