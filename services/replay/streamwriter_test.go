package replay

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// cutReplay is a replay on another machine whose connections are lost after a number of messages.
type cutReplay struct {
	remoteReplay

	// left is how many messages arrive before the connection is lost; negative for all.
	left atomic.Int64
	// feeds is how many streams of writers there were.
	feeds atomic.Int64
}

var errCut = connect.NewError(connect.CodeUnavailable, "the connection was lost")

// message returns an error if the connection is lost.
func (r *cutReplay) message() error {
	for {
		left := r.left.Load()
		switch {
		case left < 0:
			return nil
		case left == 0:
			return errCut
		case r.left.CompareAndSwap(left, left-1):
			return nil
		}
	}
}

func (r *cutReplay) Feed(ctx context.Context, stream replayv1raylink.ReplayFeedServerStream) error {
	r.feeds.Add(1)
	return r.remoteReplay.Feed(ctx, &cutFeed{stream, r})
}

type cutFeed struct {
	replayv1raylink.ReplayFeedServerStream

	replay *cutReplay
}

func (s *cutFeed) Receive() (*replayv1.FeedRequest, error) {
	req, err := s.ReplayFeedServerStream.Receive()
	if err == nil {
		err = s.replay.message()
	}
	return req, err
}

func (s *cutFeed) Send(res *replayv1.FeedResponse) error {
	if err := s.replay.message(); err != nil {
		return err
	}
	return s.ReplayFeedServerStream.Send(res)
}

// pointsReplay is the configuration of a replay of points with tables.
func pointsReplay(capacity uint64, tables ...*replayv1.TableConfig) *replayv1.ReplayConfig {
	config := testConfig(capacity)
	config.Columns, config.Tables = pointRow().Columns(), tables
	return config
}

// TestLostConnectionsLoseAndDoubleNothing loses connections after any message, in both directions.
func TestLostConnectionsLoseAndDoubleNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n, err := newNode(t.TempDir(), "the-nid", pointsReplay(4000, Table("a", FIFO()), Table("b", FIFO())))
		require.NoError(rt, err)
		defer func() { require.NoError(rt, n.close()) }()
		r := &cutReplay{remoteReplay: remoteReplay{node: n}}
		r.left.Store(-1)
		c, err := OpenClient(t.Context(), replayv1raylink.NewLocalReplay(r))
		require.NoError(rt, err)
		defer func() { require.NoError(rt, c.Close()) }()
		p, err := As(c, pointRow())
		require.NoError(rt, err)
		w, err := p.Writer(History(6), Window(rapid.SampledFrom([]int{1, 100, 1 << 20}).Draw(rt, "window")), Unconfirmed(rapid.SampledFrom([]int{1, 3, 100}).Draw(rt, "unconfirmed")))
		require.NoError(rt, err)

		// again makes a call until it succeeds. An error must say that nothing is lost.
		again := func(call func() error) {
			for range 1000 {
				err := call()
				if err == nil {
					return
				}
				if unconfirmed, ok := errors.AsType[*UnconfirmedError](err); ok {
					require.True(rt, unconfirmed.Kept, "%v", err)
				}
				require.Equal(rt, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
				r.left.Store(int64(rapid.IntRange(-1, 30).Draw(rt, "left")))
			}
			require.Fail(rt, "it never succeeds")
		}
		type item struct {
			rows []int64
			key  *PendingKey
		}
		var next int64
		items := make(map[string][]item)
		rt.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) {},
			"append": func(rt *rapid.T) {
				k := rapid.SampledFrom([]int{1, 1, 1, 2, 5, 300}).Draw(rt, "rows")
				if next+int64(k) > 3500 {
					return
				}
				numbers := make([]int64, k)
				for i := range numbers {
					numbers[i] = next + int64(i)
				}
				again(func() error { return w.Append(t.Context(), k, points(numbers...)) })
				next += int64(k)
				if rapid.IntRange(0, 20).Draw(rt, "sequences") == 0 {
					w.Sequences()
				}
			},
			"item": func(rt *rapid.T) {
				k, name := rapid.IntRange(1, 6).Draw(rt, "length"), rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "table")
				if next < int64(k) {
					return
				}
				var key *PendingKey
				again(func() (err error) {
					key, err = w.Item(t.Context(), name, k, 1)
					return err
				})
				it := item{key: key}
				for i := range k {
					it.rows = append(it.rows, next-int64(k)+int64(i))
				}
				items[name] = append(items[name], it)
			},
			"cut":   func(rt *rapid.T) { r.left.Store(int64(rapid.IntRange(0, 20).Draw(rt, "left"))) },
			"flush": func(*rapid.T) { again(func() error { return w.Flush(t.Context()) }) },
		})
		again(func() error { return w.Flush(t.Context()) })
		require.NoError(rt, w.Flush(t.Context()))

		// All rows are in the ring once, in their order.
		local, err := OpenClient(t.Context(), replayv1raylink.NewLocalReplay(n))
		require.NoError(rt, err)
		defer func() { require.NoError(rt, local.Close()) }()
		b, err := local.NewBatch(0)
		require.NoError(rt, err)
		if err := local.Reader(nil).Newest(t.Context(), 4000, b); next > 0 {
			require.NoError(rt, err)
		}
		numbers, err := Values[int64](b, "n")
		require.NoError(rt, err)
		require.Len(rt, numbers, int(next))
		bySequence := make(map[uint64]int64)
		for i, number := range numbers {
			require.Equal(rt, int64(i), number)
			bySequence[b.Sequences()[i]] = number
		}
		// So are all items, with their keys and rows.
		for name, want := range items {
			info, err := n.Inspect(t.Context(), &replayv1.InspectRequest{Table: name})
			require.NoError(rt, err)
			require.Equal(rt, uint64(len(want)), info.GetTables()[0].GetInserted())
			for i, it := range want {
				key, ok := it.key.Get()
				require.True(rt, ok)
				state, ok := n.tables.byName[name].Get(table.Key(key.Number()))
				require.True(rt, ok, "item %d", i)
				var rows []int64
				for _, run := range append([]table.Run{state.Run}, state.More...) {
					for k := range uint64(run.Length) {
						rows = append(rows, bySequence[run.First+k])
					}
				}
				require.Equal(rt, it.rows, rows)
			}
		}
	})
}

// TestWindowBoundsWhatIsNotConfirmed has a node that does not confirm rows, because there is no
// room.
func TestWindowBoundsWhatIsNotConfirmed(t *testing.T) {
	n := testNode(t, pointsReplay(4, Table("t")))
	holder, p := open(t, n), typedPoints(t, openTunnel(t, &remoteReplay{node: n}))
	w := itemWriter(t, p, History(1), Window(11*17), Unconfirmed(2))
	require.NoError(t, appended(w)(t.Context(), 4, points(1, 2, 3, 4)))
	area, err := holder.Reader(nil).Hold(t.Context(), 4)
	require.NoError(t, err)
	for i := range 11 {
		require.NoError(t, w.Append(t.Context(), 1, points(int64(i))), "the window has room")
	}
	called := false
	waits := func(call func(ctx context.Context) error) (keys []*PendingKey) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		err := call(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		var unconfirmed *UnconfirmedError
		require.ErrorAs(t, err, &unconfirmed)
		require.True(t, unconfirmed.Kept)
		require.Equal(t, []uint64{4, 11}, []uint64{unconfirmed.Confirmed, unconfirmed.Rows})
		var room *ring.NoRoomError
		require.ErrorAs(t, err, &room, "it says what is waited for")
		require.Equal(t, uint64(4), room.Held)
		require.Len(t, room.Holders, 1)
		return unconfirmed.Keys
	}
	_ = waits(func(ctx context.Context) error { return w.Append(ctx, 1, func(*pointColumns) { called = true }) })
	_ = waits(func(ctx context.Context) error { return w.Append(ctx, 4, func(*pointColumns) { called = true }) })
	require.False(t, called)
	first, err := w.Item(t.Context(), "t", 1, 1)
	require.NoError(t, err)
	second, err := w.Item(t.Context(), "t", 1, 1)
	require.NoError(t, err)
	keys := waits(func(ctx context.Context) error {
		_, err := w.Item(ctx, "t", 1, 1)
		return err
	})
	require.Equal(t, []*PendingKey{first, second}, keys)
	_ = waits(w.Flush)
	_, err = w.Item(t.Context(), "t", 2, 1)
	require.ErrorIs(t, err, ErrItem)

	require.NoError(t, area.Release())
	require.NoError(t, w.Flush(t.Context()))
	require.Equal(t, []int64{7, 8, 9, 10}, heldPoints(t, p, 4))
	for _, key := range keys {
		_, ok := key.Get()
		require.True(t, ok)
	}
}

func typedPoints(t *testing.T, c *Client) *Typed[pointColumns] {
	t.Helper()
	p, err := As(c, pointRow())
	require.NoError(t, err)
	return p
}

// TestRowsOfARingThatHasEndedAreDropped restarts the replay while rows are not confirmed.
func TestRowsOfARingThatHasEndedAreDropped(t *testing.T) {
	first := testNode(t, pointsReplay(4, Table("t")))
	m := &restartable{&remoteReplay{node: first}}
	p := typedPoints(t, open(t, m))
	w := itemWriter(t, p, History(2))
	require.NoError(t, appended(w)(t.Context(), 2, points(1, 2)))
	require.NoError(t, w.Append(t.Context(), 1, points(3)))
	key, err := w.Item(t.Context(), "t", 1, 1)
	require.NoError(t, err)
	m.ReplayNode = &remoteReplay{node: testNode(t, pointsReplay(4, Table("t")))}
	require.NoError(t, first.close())
	err = w.Flush(t.Context())
	if err != nil { // otherwise they were confirmed in time
		var unconfirmed *UnconfirmedError
		require.ErrorAs(t, err, &unconfirmed)
		require.ErrorIs(t, err, ring.ErrEnded)
		require.False(t, unconfirmed.Kept)
		require.Equal(t, []*PendingKey{key}, unconfirmed.Keys)
	}
	_, err = w.Item(t.Context(), "t", 1, 1)
	require.Error(t, err, "there is no row in the new ring")
	require.Eventually(t, func() bool { return appended(w)(t.Context(), 1, points(9)) == nil }, 10*time.Second, time.Millisecond)
	_, err = w.Item(t.Context(), "t", 2, 1)
	require.ErrorIs(t, err, ErrItem)
	_, err = w.Item(t.Context(), "t", 1, 1)
	require.NoError(t, err)
	require.NoError(t, w.Flush(t.Context()))
	require.Equal(t, []int64{9}, heldPoints(t, p, 4))
}

// TestStreamedHistorySurvivesTheMapping maps the ring between rows and their item.
func TestStreamedHistorySurvivesTheMapping(t *testing.T) {
	m := &movable{node: testNode(t, pointsReplay(10, Table("t")))}
	m.away.Store(true)
	c := open(t, m)
	p := typedPoints(t, c)
	w := itemWriter(t, p, History(3))
	for i := range 4 {
		require.NoError(t, w.Append(t.Context(), 1, points(int64(i))))
	}
	require.False(t, c.Mapped())
	m.away.Store(false)
	c.mu.Lock()
	c.described = c.described.Add(-remapInterval)
	c.mu.Unlock()
	w.Sequences() // ends the message: the first row of the next one is when a writer looks for the ring
	require.NoError(t, w.Append(t.Context(), 1, points(4)))
	require.True(t, c.Mapped())
	require.Equal(t, []uint64{4}, w.Sequences())
	_, err := w.Item(t.Context(), "t", 3, 1)
	require.NoError(t, err)
	require.NoError(t, w.Flush(t.Context()))
	require.Equal(t, []int64{0, 1, 2, 3, 4}, heldPoints(t, p, 10))
	require.Equal(t, uint64(2), sampled(t, c.Handle(), "t").GetRuns()[0].GetFirst())
}

// feedOnce sends messages on a stream of their own, and returns the error with which it ends.
func feedOnce(t *testing.T, node *replayv1raylink.Replay, requests ...*replayv1.FeedRequest) error {
	t.Helper()
	stream, err := node.Feed(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, stream.Close()) }()
	for _, req := range requests {
		if err := stream.Send(req); err != nil {
			break
		}
	}
	require.NoError(t, stream.CloseSend())
	for {
		if _, err := stream.Receive(); err != nil {
			return ringError(err)
		}
	}
}

func TestInvalidMessagesOfWritersChangeNothing(t *testing.T) {
	n := testNode(t, pointsReplay(10, Table("t", Prioritized(1))))
	c := openTunnel(t, &remoteReplay{node: n})
	row := make([]byte, 17)
	rows := func(first uint64, n int, together ...uint32) *replayv1.FeedRows {
		return &replayv1.FeedRows{First: first, Together: together, Data: make([]byte, shapeOf(c.layout).bytes(n))}
	}
	item := func(name string, number, first uint64, length uint32, priority float64) *replayv1.FeedItem {
		return &replayv1.FeedItem{Table: name, Number: number, First: first, Length: length, Priority: &priority}
	}
	with := func(rows *replayv1.FeedRows, items ...*replayv1.FeedItem) *replayv1.FeedRequest {
		return &replayv1.FeedRequest{Rows: rows, Items: items}
	}
	opened := func(open *replayv1.FeedOpen) *replayv1.FeedRequest {
		open.Writer += fmt.Sprint("writer-", time.Now().UnixNano())
		return &replayv1.FeedRequest{Open: open}
	}
	for name, test := range map[string]struct {
		open *replayv1.FeedRequest
		then *replayv1.FeedRequest
		want error
	}{
		"not opened":             {open: with(rows(0, 1, 1)), want: ErrArgument},
		"no writer":              {open: &replayv1.FeedRequest{Open: &replayv1.FeedOpen{}}, want: ErrArgument},
		"long name of a writer":  {open: opened(&replayv1.FeedOpen{Writer: strings.Repeat("x", 65)}), want: ErrArgument},
		"unknown writer":         {open: opened(&replayv1.FeedOpen{Resume: true}), want: ErrArgument},
		"another ring":           {open: opened(&replayv1.FeedOpen{RingId: "other"}), want: ring.ErrEnded},
		"long history":           {open: opened(&replayv1.FeedOpen{History: 11}), want: ErrArgument},
		"huge number of rows":    {open: opened(&replayv1.FeedOpen{Rows: math.MaxUint64}), want: ErrArgument},
		"more rows than written": {open: opened(&replayv1.FeedOpen{Before: []*replayv1.Run{{Length: 3}}}), want: ErrArgument},
		"many rows before":       {open: opened(&replayv1.FeedOpen{Rows: 100, Before: []*replayv1.Run{{Length: 11}}}), want: ErrArgument},
		"opened again":           {then: opened(&replayv1.FeedOpen{}), want: ErrArgument},
		"rows that are missing":  {then: with(rows(1, 1, 1)), want: ErrArgument},
		"huge number of a row":   {then: with(rows(math.MaxUint64, 1, 1)), want: ErrArgument},
		"rows of other columns":  {then: with(&replayv1.FeedRows{Together: []uint32{1}, Data: row[:16]}), want: ring.ErrBatch},
		"rows without data":      {then: with(&replayv1.FeedRows{Together: []uint32{1}}), want: ring.ErrBatch},
		"data without rows":      {then: with(&replayv1.FeedRows{Data: row}), want: ring.ErrBatch},
		"no rows together":       {then: with(rows(0, 1, 1, 0)), want: ring.ErrBatch},
		"many rows together":     {then: with(rows(0, 11, 11)), want: ring.ErrBatch},
		"many rows":              {then: with(rows(0, 12, 6, 6)), want: ring.ErrBatch},
		"huge count":             {then: with(rows(0, 1, math.MaxUint32, math.MaxUint32)), want: ring.ErrBatch},
		"written with data":      {then: with(&replayv1.FeedRows{Written: []*replayv1.Run{{Length: 1}}, Data: row}), want: ErrArgument},
		"too many written":       {then: with(&replayv1.FeedRows{Written: []*replayv1.Run{{Length: math.MaxUint32}}}), want: ErrArgument},
		"written in disorder":    {then: with(&replayv1.FeedRows{Written: []*replayv1.Run{{First: 5, Length: 1}, {First: 5, Length: 1}}}), want: ErrArgument},
		"unknown table":          {then: with(rows(0, 1, 1), item("none", 0, 0, 1, 1)), want: ErrTable},
		"an item is missing":     {then: with(rows(0, 1, 1), item("t", 1, 0, 1, 1)), want: ErrArgument},
		"an item twice":          {then: with(rows(0, 1, 1), item("t", 0, 0, 1, 1), item("t", 0, 0, 1, 1)), want: ErrArgument},
		"item without rows":      {then: with(rows(0, 1, 1), item("t", 0, 0, 0, 1)), want: ErrItem},
		"item beyond the rows":   {then: with(rows(0, 1, 1), item("t", 0, 0, 2, 1)), want: ErrItem},
		"item of huge rows":      {then: with(rows(0, 1, 1), item("t", 0, math.MaxUint64, math.MaxUint32, 1)), want: ErrItem},
		"item beyond history":    {open: opened(&replayv1.FeedOpen{Rows: 5}), then: with(rows(5, 1, 1), item("t", 0, 4, 1, 1)), want: ErrItem},
		"negative priority":      {then: with(rows(0, 1, 1), item("t", 0, 0, 1, -1)), want: ErrPriority},
		"no priority":            {then: with(rows(0, 1, 1), item("t", 0, 0, 1, math.NaN())), want: ErrPriority},
		"item of invalid runs":   {then: with(rows(0, 1, 1), &replayv1.FeedItem{Table: "t", Runs: []*replayv1.Run{{First: 5, Length: 1}, {First: 1, Length: 1}}}), want: ErrItem},
		"item of both":           {then: with(rows(0, 1, 1), &replayv1.FeedItem{Table: "t", Length: 1, Runs: []*replayv1.Run{{First: 5, Length: 1}}}), want: ErrItem},
	} {
		t.Run(name, func(t *testing.T) {
			requests := []*replayv1.FeedRequest{test.open, test.then}
			if test.open == nil {
				requests[0] = opened(&replayv1.FeedOpen{})
			}
			if test.then == nil {
				requests = requests[:1]
			}
			err := feedOnce(t, c.Handle(), requests...)
			require.ErrorIs(t, err, test.want)
			require.ErrorContains(t, err, "stream rows")
			stats, err := n.ring.Stats()
			require.NoError(t, err)
			require.Zero(t, stats.Written)
			require.Zero(t, n.tables.byName["t"].Inspect().Counts.Inserted)
		})
	}
}

// TestNodeForgetsWriters bounds what the node remembers of streams that were lost.
func TestNodeForgetsWriters(t *testing.T) {
	n := testNode(t, pointsReplay(10))
	end := func(error) {}
	for i := range maxLost + 10 {
		w, err := n.feeds.join(t.Context(), &replayv1.FeedOpen{Writer: strconv.Itoa(i)}, 1, end)
		require.NoError(t, err)
		<-w.owner
		n.feeds.leave(w, false)
	}
	n.feeds.forget(time.Now())
	require.Len(t, n.feeds.writers, maxLost)
	require.NotContains(t, n.feeds.writers, "0", "the oldest")
	n.feeds.forget(time.Now().Add(lostFor + time.Second))
	require.Empty(t, n.feeds.writers)
}

// TestNewStreamReplacesTheOneBefore resumes before the node has noticed that the connection was
// lost.
func TestNewStreamReplacesTheOneBefore(t *testing.T) {
	n := testNode(t, pointsReplay(10))
	node := open(t, &remoteReplay{node: n}).Handle()
	first, err := node.Feed(t.Context())
	require.NoError(t, err)
	require.NoError(t, first.Send(&replayv1.FeedRequest{Open: &replayv1.FeedOpen{Writer: "w"}}))
	_, err = first.Receive()
	require.NoError(t, err)
	second, err := node.Feed(t.Context())
	require.NoError(t, err)
	require.NoError(t, second.Send(&replayv1.FeedRequest{Open: &replayv1.FeedOpen{Writer: "w", Resume: true}}))
	res, err := second.Receive()
	require.NoError(t, err)
	require.NotNil(t, res.GetOpened())
	_, err = first.Receive()
	require.ErrorContains(t, err, "a newer stream of the same writer")
	require.NoError(t, second.Close())
}
