package replay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// recordedReplay records the messages of streams of writers.
type recordedReplay struct {
	cutReplay

	mu                  sync.Mutex
	requests, responses []proto.Message
}

func (r *recordedReplay) Feed(ctx context.Context, stream replayv1raylink.ReplayFeedServerStream) error {
	return r.cutReplay.Feed(ctx, &recordedFeed{stream, r})
}

type recordedFeed struct {
	replayv1raylink.ReplayFeedServerStream

	replay *recordedReplay
}

func (s *recordedFeed) Receive() (*replayv1.FeedRequest, error) {
	req, err := s.ReplayFeedServerStream.Receive()
	if err == nil {
		s.replay.mu.Lock()
		defer s.replay.mu.Unlock()
		s.replay.requests = append(s.replay.requests, proto.CloneOf(req))
	}
	return req, err
}

func (s *recordedFeed) Send(res *replayv1.FeedResponse) error {
	s.replay.mu.Lock()
	s.replay.responses = append(s.replay.responses, proto.CloneOf(res))
	s.replay.mu.Unlock()
	return s.ReplayFeedServerStream.Send(res)
}

// fuzzedReplay is the configuration of a replay with a table whose inserts wait.
func fuzzedReplay() *replayv1.ReplayConfig {
	return pointsReplay(32, Table("t", Prioritized(1)), Table("q", FIFO(), Queue(2)))
}

// recordFeeds records the messages of a writer whose stream is lost once.
func recordFeeds(f *testing.F) (requests, responses []proto.Message) {
	f.Helper()
	n, err := newNode(f.TempDir(), "the-nid", fuzzedReplay())
	require.NoError(f, err)
	r := &recordedReplay{cutReplay: cutReplay{remoteReplay: remoteReplay{node: n}}}
	r.left.Store(-1)
	c, err := OpenClient(f.Context(), replayv1raylink.NewLocalReplay(r))
	require.NoError(f, err)
	p, err := As(c, pointRow())
	require.NoError(f, err)
	w, err := p.Writer(History(3))
	require.NoError(f, err)
	for i := range 20 {
		err := w.Append(f.Context(), 1+i%3, points(make([]int64, 1+i%3)...))
		if err == nil {
			_, err = w.Item(f.Context(), []string{"t", "t", "t", "t", "q"}[i%5], 1, float64(i))
		}
		if err == nil && i%4 == 3 {
			w.Sequences()
		}
		if i == 9 {
			r.left.Store(1)
		}
		if err != nil {
			require.ErrorContains(f, err, "the connection was lost")
			r.left.Store(-1)
		}
	}
	require.NoError(f, c.Close())
	require.NoError(f, n.close())
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests, r.responses
}

// sequenceOf encodes messages, each after its length.
func sequenceOf(t testing.TB, messages ...proto.Message) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, m := range messages {
		_, err := protodelim.MarshalTo(&b, m)
		require.NoError(t, err)
	}
	return b.Bytes()
}

// messagesIn decodes at most 64 messages, as far as they are valid.
func messagesIn[M proto.Message](b []byte, newMessage func() M) []M {
	var messages []M
	for r := bytes.NewReader(b); len(messages) < 64; {
		m := newMessage()
		if protodelim.UnmarshalFrom(r, m) != nil {
			return messages
		}
		messages = append(messages, m)
	}
	return messages
}

// scriptedFeed is a stream on which a writer sends messages and then nothing more.
type scriptedFeed struct {
	replayv1raylink.ReplayFeedServerStream

	requests  []*replayv1.FeedRequest
	responses []*replayv1.FeedResponse
}

func (s *scriptedFeed) Receive() (*replayv1.FeedRequest, error) {
	if len(s.requests) == 0 {
		return nil, io.EOF
	}
	req := s.requests[0]
	s.requests = s.requests[1:]
	return req, nil
}

func (s *scriptedFeed) Send(res *replayv1.FeedResponse) error {
	s.responses = append(s.responses, proto.CloneOf(res))
	return nil
}

// FuzzFeedRequests sends messages of writers to a node: a stream for each that opens one.
func FuzzFeedRequests(f *testing.F) {
	requests, _ := recordFeeds(f)
	f.Add(sequenceOf(f, requests...))
	for i := range requests {
		f.Add(sequenceOf(f, requests[:i]...))
		f.Add(sequenceOf(f, append([]proto.Message{requests[0]}, requests[i:]...)...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := newNode(t.TempDir(), "the-nid", fuzzedReplay())
		require.NoError(t, err)
		defer func() { require.NoError(t, n.close()) }()
		messages := messagesIn(b, func() *replayv1.FeedRequest { return new(replayv1.FeedRequest) })
		var rows, items, confirmed, keys uint64
		for len(messages) > 0 {
			end := 1
			for end < len(messages) && messages[end].GetOpen() == nil {
				end++
			}
			for _, m := range messages[:end] {
				if m.GetOpen() != nil && m.GetOpen().GetRingId() != "" {
					m.Open.RingId = n.ring.ID().String() // that of a recorded node is another one
				}
				for _, k := range m.GetRows().GetTogether() {
					rows += uint64(k)
				}
				items += uint64(len(m.GetItems()))
			}
			s := &scriptedFeed{requests: messages[:end]}
			messages = messages[end:]
			err := n.Feed(t.Context(), s)
			if err != nil {
				err = ringError(err)
				known := false
				for _, reason := range []error{ErrArgument, ErrTable, ErrItem, ErrPriority, ring.ErrBatch, ring.ErrEnded} {
					known = known || errors.Is(err, reason)
				}
				require.True(t, known, "%v", err)
			}
			var serial uint64
			for _, res := range s.responses {
				if res.GetSerial() != 0 {
					require.Greater(t, res.GetSerial(), serial)
					serial = res.GetSerial()
				}
				n, err := countRows(res.GetRows(), 1<<62)
				require.NoError(t, err)
				confirmed += n
				keys += uint64(len(res.GetKeys()))
			}
		}
		stats, err := n.ring.Stats()
		require.NoError(t, err)
		require.LessOrEqual(t, stats.Written, rows)
		require.GreaterOrEqual(t, confirmed, stats.Written, "what is written is confirmed")
		var inserted uint64
		for _, t := range n.tables.byName {
			c := t.Inspect().Counts
			inserted += c.Inserted + c.Late
		}
		require.LessOrEqual(t, inserted, items)
		n.feeds.mu.Lock()
		defer n.feeds.mu.Unlock()
		for _, w := range n.feeds.writers {
			require.LessOrEqual(t, len(w.history.rows), 2*w.history.most)
		}
	})
}

// fedOutbox returns an outbox that has sent nine rows and three items of table "t", and has two
// more rows that are not sent.
func fedOutbox(t testing.TB, client *Client) *outbox {
	t.Helper()
	o := newOutbox(client, writerOptions{history: 3, window: 1 << 20, unconfirmed: 100})
	o.id, o.ring, o.running, o.opened = "w", "the-ring", true, true
	columns := make([][]byte, len(o.shape.sizes))
	write := func(n int) {
		require.NoError(t, o.reserve(context.Background(), n, columns))
		require.NoError(t, o.commit(n))
	}
	for i := range 3 {
		write(1 + i)
		_, err := o.item(context.Background(), table.Config{Name: "t"}, &replayv1.FeedItem{Table: "t", First: o.lastFrom, Length: 1})
		require.NoError(t, err)
	}
	write(3)
	o.mu.Lock()
	o.hurry()
	o.mu.Unlock()
	for {
		if req, _ := o.take(time.Now()); req == nil {
			break
		}
	}
	write(2)
	require.Equal(t, uint64(9), o.sentRows)
	return o
}

// checkOutbox checks that what an outbox has fits together.
func checkOutbox(t testing.TB, o *outbox) {
	t.Helper()
	require.LessOrEqual(t, o.confirmed, o.next)
	bytes, first := 0, o.confirmed
	for i, c := range o.chunks {
		require.NotZero(t, c.rows)
		require.Greater(t, c.end(), first)
		require.True(t, i == 0 || c.first == first)
		first = c.end()
		if c.sealed {
			bytes += c.rows * o.shape.row
		}
	}
	require.Equal(t, bytes, o.bytes)
	require.LessOrEqual(t, o.sent, len(o.chunks))
	for _, q := range o.tables {
		require.LessOrEqual(t, max(q.sent, q.resolved), len(q.items))
		require.Equal(t, uint64(3), q.confirmed+uint64(len(q.items)))
	}
	require.LessOrEqual(t, len(o.recent.rows), 2*o.recent.most)
}

// invalidResponses are those that do not fit what fedOutbox has sent.
func invalidResponses() map[string]*replayv1.FeedResponse {
	return map[string]*replayv1.FeedResponse{
		"more rows than there are":   {Serial: 1, Rows: []*replayv1.Run{{Length: 10}}},
		"rows in disorder":           {Serial: 1, Rows: []*replayv1.Run{{First: 3, Length: 1}, {First: 3, Length: 1}}},
		"rows of a huge number":      {Serial: 1, Rows: []*replayv1.Run{{First: 1<<64 - 1, Length: 2}}},
		"more items than there are":  {Serial: 1, Table: "t", Keys: []uint64{1, 2, 3, 4}},
		"items of an unknown table":  {Serial: 1, Table: "other", Keys: []uint64{1}},
		"opened with fewer rows":     {Serial: 1, Rows: []*replayv1.Run{{Length: 5}}, Opened: &replayv1.FeedOpened{Rows: 4}},
		"opened with more rows":      {Opened: &replayv1.FeedOpened{Rows: 1}},
		"opened in a group of rows":  {Serial: 1, Rows: []*replayv1.Run{{Length: 2}}, Opened: &replayv1.FeedOpened{Rows: 2}},
		"opened in the middle again": {Serial: 1, Rows: []*replayv1.Run{{Length: 7}}, Opened: &replayv1.FeedOpened{Rows: 7}},
	}
}

func TestInvalidResponsesEndTheStream(t *testing.T) {
	c := open(t, testNode(t, pointsReplay(10)))
	for name, res := range invalidResponses() {
		o := fedOutbox(t, c)
		err := o.handle(res)
		require.ErrorIs(t, err, errResponse, name)
		require.False(t, resumable(err))
	}
}

func TestResponsesCountOnce(t *testing.T) {
	o := fedOutbox(t, open(t, testNode(t, pointsReplay(10))))
	for range 2 {
		require.NoError(t, o.handle(&replayv1.FeedResponse{Serial: 1, Rows: []*replayv1.Run{{Length: 1}}, Table: "t", Keys: []uint64{5}}))
		require.Equal(t, uint64(1), o.confirmed)
		require.Equal(t, uint64(1), o.tables["t"].confirmed)
	}
}

// FuzzFeedResponses sends responses to a writer.
func FuzzFeedResponses(f *testing.F) {
	_, responses := recordFeeds(f)
	f.Add(sequenceOf(f, responses...))
	for i := range responses {
		f.Add(sequenceOf(f, responses[i]))
	}
	for _, res := range invalidResponses() {
		f.Add(sequenceOf(f, res))
	}
	f.Add(sequenceOf(f,
		&replayv1.FeedResponse{Serial: 1, Rows: []*replayv1.Run{{First: 5, Length: 3}, {First: 10, Length: 3}}},
		&replayv1.FeedResponse{Serial: 2, Table: "t", Keys: []uint64{1, 0}},
		&replayv1.FeedResponse{Table: "t", Blocked: &replayv1.Blocked{Text: "waits"}},
		&replayv1.FeedResponse{NoRoom: &replayv1.NoRoom{Rows: 1, HeldBy: []*replayv1.Holder{{Pid: 1}}}},
		&replayv1.FeedResponse{Opened: &replayv1.FeedOpened{RingId: "the-ring", Rows: 6}},
		&replayv1.FeedResponse{Serial: 3, Rows: []*replayv1.Run{{First: 20, Length: 3}}, Table: "t", Keys: []uint64{7}},
	))
	n, err := newNode(f.TempDir(), "the-nid", pointsReplay(10))
	require.NoError(f, err)
	c, err := OpenClient(f.Context(), replayv1raylink.NewLocalReplay(n))
	require.NoError(f, err)
	f.Cleanup(func() { require.NoError(f, errors.Join(c.Close(), n.close())) })
	f.Fuzz(func(t *testing.T, b []byte) {
		o := fedOutbox(t, c)
		for _, res := range messagesIn(b, func() *replayv1.FeedResponse { return new(replayv1.FeedResponse) }) {
			confirmed := o.confirmed
			if err := o.handle(res); err != nil {
				require.ErrorIs(t, err, errResponse)
				return
			}
			require.GreaterOrEqual(t, o.confirmed, confirmed)
			checkOutbox(t, o)
		}
	})
}

// TestWritersGoOnAfterManyCuts writes 20,000 rows and as many items, over connections that are lost
// after a few messages.
func TestWritersGoOnAfterManyCuts(t *testing.T) {
	const rows = 20_000
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	n := testNode(t, pointsReplay(1<<18, Table("t", FIFO(), MaxItems(rows)))) // each stream leaves numbers unused
	r := &cutReplay{remoteReplay: remoteReplay{node: n}}
	r.left.Store(-1)
	w := itemWriter(t, typedPoints(t, open(t, r)), History(3), Window(200*17))
	again := func(call func() error) {
		for {
			err := call()
			if err == nil {
				return
			}
			if unconfirmed, ok := errors.AsType[*UnconfirmedError](err); ok {
				require.True(t, unconfirmed.Kept, "%v", err)
			}
			require.ErrorContains(t, err, "the connection was lost")
			r.left.Store(int64(rng.IntN(60)))
		}
	}
	r.left.Store(20)
	keys := make([]*PendingKey, rows)
	for i := range rows {
		again(func() error { return w.Append(t.Context(), 1, points(int64(i))) })
		again(func() (err error) {
			keys[i], err = w.Item(t.Context(), "t", min(i+1, 3), 1)
			return err
		})
	}
	again(func() error { return w.Flush(t.Context()) })
	require.Greater(t, r.feeds.Load(), int64(30))
	local := open(t, n)
	b, err := local.NewBatch(0)
	require.NoError(t, err)
	require.NoError(t, local.Reader(nil).Newest(t.Context(), rows, b))
	numbers, bySequence := numbersOf(t, b), make(map[uint64]int64, rows)
	require.Len(t, numbers, rows)
	for i, number := range numbers {
		require.Equal(t, int64(i), number)
		bySequence[b.Sequences()[i]] = number
	}
	for i, pending := range keys {
		key, ok := pending.Get()
		require.True(t, ok)
		state, ok := n.tables.byName["t"].Get(table.Key(key.Number()))
		require.True(t, ok)
		next := int64(max(0, i-2))
		for _, run := range append([]table.Run{state.Run}, state.More...) {
			for k := range uint64(run.Length) {
				require.Equal(t, next, bySequence[run.First+k])
				next++
			}
		}
		require.Equal(t, int64(i+1), next)
	}
	require.Equal(t, uint64(rows), n.tables.byName["t"].Inspect().Counts.Inserted)
}

// TestRowsThatAreBeingFilledAreNotSent fills rows for longer than a message waits for others.
func TestRowsThatAreBeingFilledAreNotSent(t *testing.T) {
	n := testNode(t, pointsReplay(10))
	w := itemWriter(t, typedPoints(t, open(t, &remoteReplay{node: n})))
	require.NoError(t, w.Append(t.Context(), 1, points(1)))
	require.NoError(t, w.Append(t.Context(), 1, func(rows *pointColumns) {
		eventually(t, func() bool { return w.outbox.state.Load()&taken != 0 })
		points(2)(rows)
	}))
	require.Eventually(t, func() bool { // without a further call
		stats, err := n.ring.Stats()
		require.NoError(t, err)
		return stats.Written == 2
	}, idleStream/2, time.Millisecond)
	require.NoError(t, w.Append(t.Context(), 1, points(3)))
	require.NoError(t, w.Flush(t.Context()))
	p := typedPoints(t, open(t, n))
	require.Equal(t, []int64{1, 2, 3}, heldPoints(t, p, 10))
}

// TestNextWriteReportsALostStream loses the stream while rows are filled.
func TestNextWriteReportsALostStream(t *testing.T) { synctest.Test(t, testNextWrite) }

func testNextWrite(t *testing.T) {
	n := testNode(t, pointsReplay(10, Table("t")))
	r := &cutReplay{remoteReplay: remoteReplay{node: n}}
	r.left.Store(-1)
	p := typedPoints(t, open(t, r))
	w := itemWriter(t, p, History(1))
	require.NoError(t, w.Append(t.Context(), 1, points(1)))
	require.NoError(t, w.Flush(t.Context()))
	key, err := w.Item(t.Context(), "t", 1, 1)
	require.NoError(t, err)
	require.NoError(t, w.Append(t.Context(), 1, func(rows *pointColumns) {
		r.left.Store(0)
		<-time.After(linger * 3 / 2) // of fake time: the item has been sent
		w.outbox.mu.Lock()
		require.False(t, w.outbox.running)
		w.outbox.mu.Unlock()
		points(2)(rows)
	}))
	err = w.Append(t.Context(), 1, points(3))
	unconfirmed := unconfirmedIn(t, err)
	require.Equal(t, []uint64{1, 1}, []uint64{unconfirmed.Confirmed, unconfirmed.Rows})
	require.Equal(t, []*PendingKey{key}, unconfirmed.Keys)
	require.True(t, unconfirmed.Kept)
	r.left.Store(-1)
	require.NoError(t, w.Flush(t.Context()))
	require.Equal(t, []int64{1, 2}, heldPoints(t, p, 10))
}

// TestNodeBoundsWhatItHoldsForAStream sends more items than may wait for a limiter, and never says
// that confirmations were received.
func TestNodeBoundsWhatItHoldsForAStream(t *testing.T) {
	n := testNode(t, pointsReplay(10, Table("q", FIFO(), Queue(1))))
	one := 1.0
	row := &replayv1.FeedRows{Together: []uint32{1}, Data: make([]byte, shapeOf(n.ring.Layout()).bytes(1))}
	s := &scriptedFeed{requests: []*replayv1.FeedRequest{{Open: &replayv1.FeedOpen{Writer: "w", History: 1}}, {Rows: row}}}
	const together = 1000
	for i := range maxQueuedItems/together + 2 {
		req := &replayv1.FeedRequest{}
		for k := range together {
			req.Items = append(req.Items, &replayv1.FeedItem{Table: "q", Number: uint64(i*together + k), Length: 1, Priority: &one})
		}
		s.requests = append(s.requests, req)
	}
	err := ringError(n.Feed(t.Context(), s))
	require.ErrorIs(t, err, ErrArgument)
	require.ErrorContains(t, err, "items wait to be inserted")

	s = &scriptedFeed{requests: []*replayv1.FeedRequest{{Open: &replayv1.FeedOpen{Writer: "w"}}}}
	err = ringError(n.Feed(t.Context(), s))
	require.ErrorIs(t, err, ErrArgument)
	require.ErrorContains(t, err, `a writer "w" exists`)

	n.feeds.mu.Lock()
	n.feeds.writers["w"].size = maxUnseen + 1
	n.feeds.mu.Unlock()
	s = &scriptedFeed{requests: []*replayv1.FeedRequest{{Open: &replayv1.FeedOpen{Writer: "w", Resume: true}}, {}}}
	err = ringError(n.Feed(t.Context(), s))
	require.ErrorIs(t, err, ErrArgument)
	require.ErrorContains(t, err, "has not seen")
}
