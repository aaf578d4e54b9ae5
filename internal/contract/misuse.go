package contract

import (
	"context"
	"io"
	"math"
	"runtime"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	raylink "github.com/raylink/raylink/runtime"
)

// Texts that make the probe panic or end its goroutine instead of returning.
const (
	WordPanic  = "panic on purpose"
	WordGoexit = "end the goroutine"
	sumPanics  = math.MinInt64
	sumGoexits = math.MinInt64 + 1
)

func misbehave(word string) {
	switch word {
	case WordPanic:
		panic(word)
	case WordGoexit:
		runtime.Goexit()
	}
}

// testStreamGoexit checks that neither a panic nor a Goexit is a normal end of a stream, whether
// before or after messages.
func testStreamGoexit(t *testing.T, way Way, p *contractv1raylink.Probe) {
	ctx := patient(t)
	failed := func(err error, word string) {
		t.Helper()
		require.NotErrorIs(t, err, io.EOF, word)
		require.Equal(t, connect.CodeInternal, connect.CodeOf(err), "%s: %v", word, err)
		if word == WordPanic {
			require.ErrorContains(t, err, word)
		} else {
			require.ErrorContains(t, err, "ended its goroutine")
		}
	}
	for word, number := range map[string]int64{WordPanic: sumPanics, WordGoexit: sumGoexits} {
		for _, messages := range []uint32{0, 2} {
			count, err := p.Count(ctx, &contractv1.CountRequest{To: messages, Fail: word})
			require.NoError(t, err)
			for range messages {
				_, err := count.Receive()
				require.NoError(t, err)
			}
			_, err = count.Receive()
			failed(err, word)
		}
		sum, err := p.Sum(ctx)
		require.NoError(t, err)
		require.NoError(t, sum.Send(&contractv1.SumRequest{Number: number}))
		_, err = sum.CloseAndReceive()
		failed(err, word)
		if way.HalfDuplex {
			continue
		}
		chat, err := p.Chat(ctx)
		require.NoError(t, err)
		require.NoError(t, chat.Send(&contractv1.ChatRequest{Text: word}))
		_, err = chat.Receive()
		failed(err, word)
	}
	// They have released their places: the schema allows 32 at once.
	for range 40 {
		_, err := p.Echo(ctx, nil)
		require.NoError(t, err)
	}
}

// testMisuse uses streams after their end.
func testMisuse(t *testing.T, way Way, p *contractv1raylink.Probe) {
	closed := func(err error) {
		t.Helper()
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
		require.ErrorContains(t, err, "the stream was closed")
	}
	afterCloseSend := func(err error) {
		t.Helper()
		require.Equal(t, connect.CodeInternal, connect.CodeOf(err), "%v", err)
		require.ErrorContains(t, err, "Send after CloseSend")
	}
	t.Run("client stream", func(t *testing.T) {
		s, err := p.Sum(patient(t))
		require.NoError(t, err)
		require.NoError(t, s.Send(&contractv1.SumRequest{Number: 1}))
		_, err = s.CloseAndReceive()
		require.NoError(t, err)
		_, err = s.CloseAndReceive()
		require.Equal(t, connect.CodeInternal, connect.CodeOf(err), "%v", err)
		require.ErrorContains(t, err, "CloseAndReceive was called before")
		afterCloseSend(s.Send(nil))
		_ = s.Close()
		closed(s.Send(nil))

		s, err = p.Sum(patient(t))
		require.NoError(t, err)
		_ = s.Close()
		closed(s.Send(nil))
		_, err = s.CloseAndReceive()
		closed(err)
		require.NoError(t, s.Close())
	})
	t.Run("server stream", func(t *testing.T) {
		s, err := p.Count(patient(t), &contractv1.CountRequest{To: 1})
		require.NoError(t, err)
		_, err = s.Receive()
		require.NoError(t, err)
		for range 3 {
			_, err = s.Receive()
			require.ErrorIs(t, err, io.EOF)
		}
		require.NoError(t, s.Close())
		_, err = s.Receive()
		require.ErrorIs(t, err, io.EOF)

		s, err = p.Count(patient(t), &contractv1.CountRequest{Fail: "gone"})
		require.NoError(t, err)
		for range 3 {
			_, err = s.Receive()
			require.Equal(t, connect.CodeDataLoss, connect.CodeOf(err), "%v", err)
		}

		s, err = p.Count(patient(t), &contractv1.CountRequest{To: 1})
		require.NoError(t, err)
		_ = s.Close()
		for range 2 {
			_, err = s.Receive()
			closed(err)
		}

		ctx, cancel := context.WithCancel(patient(t))
		s, err = p.Count(ctx, &contractv1.CountRequest{To: 1 << 30})
		require.NoError(t, err)
		cancel()
		for err == nil {
			_, err = s.Receive()
		}
		for range 2 {
			require.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
			_, err = s.Receive()
		}
	})
	if way.HalfDuplex {
		return
	}
	t.Run("bidi stream", func(t *testing.T) {
		s, err := p.Chat(patient(t))
		require.NoError(t, err)
		require.NoError(t, s.Send(&contractv1.ChatRequest{Text: "a"}))
		for range 2 {
			require.NoError(t, s.CloseSend())
			afterCloseSend(s.Send(nil))
		}
		res, err := s.Receive()
		require.NoError(t, err)
		assert.Equal(t, "you said a", res.GetText())
		for range 2 {
			_, err = s.Receive()
			require.ErrorIs(t, err, io.EOF)
			require.NoError(t, s.CloseSend())
		}
		afterCloseSend(s.Send(nil))

		s, err = p.Chat(patient(t))
		require.NoError(t, err)
		require.NoError(t, s.Send(&contractv1.ChatRequest{Text: "bye"}))
		_, err = s.Receive()
		require.ErrorIs(t, err, io.EOF)
		require.ErrorIs(t, s.Send(nil), io.EOF)
		require.NoError(t, s.CloseSend())

		s, err = p.Chat(patient(t))
		require.NoError(t, err)
		_ = s.Close()
		closed(s.Send(nil))
		_, err = s.Receive()
		closed(err)
		require.NoError(t, s.CloseSend())

		ctx, cancel := context.WithCancel(patient(t))
		s, err = p.Chat(ctx)
		require.NoError(t, err)
		require.NoError(t, s.Send(&contractv1.ChatRequest{Text: "a"}))
		_, err = s.Receive() // otherwise the response may still arrive after cancel
		require.NoError(t, err)
		cancel()
		err = s.Send(nil)
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
		require.ErrorIs(t, err, context.Canceled)
		for range 2 {
			_, err = s.Receive()
			require.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
		}
	})
}

// registering is a context that counts the functions that wait for its end by AfterFunc, as every
// context does that is derived from it. Its Done alone registers none.
type registering struct {
	done chan struct{}

	mu sync.Mutex // guards what follows
	n  int
}

func (*registering) Deadline() (time.Time, bool) { return time.Time{}, false }

func (c *registering) Done() <-chan struct{} { return c.done }

func (c *registering) Err() error {
	select {
	case <-c.done:
		return context.Canceled
	default:
		return nil
	}
}

func (*registering) Value(any) any { return nil }

// AfterFunc is used by package context if it exists.
func (c *registering) AfterFunc(func()) func() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	var once sync.Once
	return func() bool {
		first := false
		once.Do(func() {
			first = true
			c.mu.Lock()
			defer c.mu.Unlock()
			c.n--
		})
		return first
	}
}

func (c *registering) registered() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// testLeftBehind makes calls of every kind with one context that does not end, and ends them in
// every way. None may stay registered with it.
func testLeftBehind(t *testing.T, way Way, p *contractv1raylink.Probe) {
	ctx := &registering{done: make(chan struct{})}
	for range 20 {
		for _, f := range []*raylink.Future[*contractv1.AddResponse]{p.AddAsync(ctx, nil), p.AddAsync(ctx, nil)} {
			_, err := f.Get(t.Context())
			require.NoError(t, err)
		}
		_, err := p.EchoAsync(ctx, nil).Get(t.Context())
		require.NoError(t, err)
		_, err = p.FailAsync(ctx, &contractv1.FailRequest{Message: "no"}).Get(t.Context())
		require.Error(t, err)
		f := p.AddAsync(ctx, nil)
		f.Cancel()
		<-f.Done()
		_, err = p.Add(ctx, nil)
		require.NoError(t, err)
		_, err = p.Fail(ctx, &contractv1.FailRequest{Message: "no"})
		require.Error(t, err)

		count, err := p.Count(ctx, &contractv1.CountRequest{To: 1})
		require.NoError(t, err)
		for err == nil {
			_, err = count.Receive()
		}
		require.ErrorIs(t, err, io.EOF)
		count, err = p.Count(ctx, &contractv1.CountRequest{To: 1 << 30})
		require.NoError(t, err)
		_ = count.Close()
		sum, err := p.Sum(ctx)
		require.NoError(t, err)
		_, err = sum.CloseAndReceive()
		require.NoError(t, err)
		if way.HalfDuplex {
			continue
		}
		chat, err := p.Chat(ctx)
		require.NoError(t, err)
		// One message only: every frame for a stream that has ended is answered by a reset, and an
		// HTTP/2 server closes the connection of a client that provokes too many of these.
		require.NoError(t, chat.Send(&contractv1.ChatRequest{Text: "bye"}))
		_, err = chat.Receive()
		require.ErrorIs(t, err, io.EOF)
	}
	require.Eventually(t, func() bool { return ctx.registered() == 0 }, Patience, 2*time.Millisecond,
		"%d of its calls are registered with the context", ctx.registered())
}
