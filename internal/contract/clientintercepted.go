package contract

import (
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
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

// passOn is a client interceptor that changes nothing.
func passOn(next raylink.ClientInvoke) raylink.ClientInvoke {
	return func(ctx context.Context, in *raylink.ClientInvocation) error {
		in.OnEnd(func(error) {})
		return next(ctx, in)
	}
}

// PassedOn is the way, with client interceptors that change nothing: all that [Run] checks of a
// call must hold with them too.
func PassedOn(way Way) Way {
	open := way.Open
	way.Open = func(t *testing.T) Peer {
		t.Helper()
		peer := open(t)
		peer.Probe = peer.Intercepted(passOn, passOn)
		if again := peer.Again; again != nil {
			peer.Again = func(t *testing.T) *contractv1raylink.Probe {
				t.Helper()
				return again(t).Intercepted(passOn)
			}
		}
		return peer
	}
	return way
}

// clientLog records what client interceptors see.
type clientLog struct {
	mu      sync.Mutex // guards entries
	entries []string
}

func (l *clientLog) add(entry string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, entry)
}

// take returns the entries and forgets them.
func (l *clientLog) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	entries := l.entries
	l.entries = nil
	return entries
}

// named records that the interceptor was there, before and after the call, and when it was over.
func (l *clientLog) named(name string) raylink.ClientInterceptor {
	return func(next raylink.ClientInvoke) raylink.ClientInvoke {
		return func(ctx context.Context, in *raylink.ClientInvocation) error {
			l.add(name + " " + in.Method.Name())
			in.OnEnd(func(err error) { l.add(name + " ended " + outcomeName(err)) })
			err := next(raylink.WithMetadata(ctx, "tenant", name), in)
			l.add(name + " returned " + outcomeName(err))
			return err
		}
	}
}

func outcomeName(err error) string {
	if err == nil {
		return "ok"
	}
	return connect.CodeOf(err).String()
}

// by makes an interceptor of a function.
func by(fn func(ctx context.Context, in *raylink.ClientInvocation, next raylink.ClientInvoke) error) raylink.ClientInterceptor {
	return func(next raylink.ClientInvoke) raylink.ClientInvoke {
		return func(ctx context.Context, in *raylink.ClientInvocation) error { return fn(ctx, in, next) }
	}
}

// RunClientIntercepted checks that client interceptors wrap every kind of call of one way.
func RunClientIntercepted(t *testing.T, way Way) {
	t.Helper()
	tests := []struct {
		name string
		run  func(t *testing.T, way Way, p Peer)
	}{
		{"they run in order and see the call", testClientOrder},
		{"they change what goes and comes", testClientChanges},
		{"they repeat and answer calls", testClientRepeats},
		{"their mistakes fail the call", testClientMistakes},
		{"async calls stay in order", testClientAsyncOrder},
		{"async calls are canceled", testClientAsyncCancel},
		{"they wrap streams", testClientStreams},
		{"they see how a stream ends", testClientStreamEnds},
		{"built-in methods are not intercepted", testClientBuiltin},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, way, way.Open(t)) })
	}
}

// unaryCalls are the two ways to call Add.
func unaryCalls(p *contractv1raylink.Probe) map[string]func(context.Context, *contractv1.AddRequest) (*contractv1.AddResponse, error) {
	return map[string]func(context.Context, *contractv1.AddRequest) (*contractv1.AddResponse, error){
		"sync": p.Add,
		"async": func(ctx context.Context, req *contractv1.AddRequest) (*contractv1.AddResponse, error) {
			return p.AddAsync(ctx, req).Get(ctx)
		},
	}
}

func testClientOrder(t *testing.T, _ Way, p Peer) {
	var log clientLog
	h := p.Intercepted(log.named("a"), log.named("b")).Intercepted(log.named("c"))
	for name, call := range unaryCalls(h) {
		_, err := call(patient(t), &contractv1.AddRequest{By: 1})
		require.NoError(t, err, name)
		require.Equal(t, []string{
			"a Add", "b Add", "c Add", "c returned ok", "b returned ok", "a returned ok", "a ended ok", "b ended ok", "c ended ok",
		}, log.take(), name)
	}
	who, err := h.Who(raylink.WithMetadata(patient(t), "tenant", "caller"), &contractv1.WhoRequest{Key: "tenant"})
	require.NoError(t, err)
	assert.Equal(t, []string{"caller", "a", "b", "c"}, who.GetMetadata())
	log.take()
	_, err = h.Fail(patient(t), &contractv1.FailRequest{Code: uint32(connect.CodeDataLoss), Message: "gone"})
	require.ErrorContains(t, err, "gone")
	assert.Contains(t, log.take(), "b ended data_loss")

	seen := h.Intercepted(by(func(ctx context.Context, in *raylink.ClientInvocation, next raylink.ClientInvoke) error {
		assert.Equal(t, []string{"a", "b", "c"}, raylink.OutgoingMetadata(ctx).Values("tenant"))
		assert.Equal(t, h.Ref().Path(), in.Node.Path())
		assert.Equal(t, h.Ref().NID(), in.Node.NID())
		assert.Equal(t, int64(5), in.Request.(*contractv1.AddRequest).GetBy())
		err := next(ctx, in)
		assert.NotZero(t, in.Response.(*contractv1.AddResponse).GetSum())
		return err
	}))
	for name, call := range unaryCalls(seen) {
		_, err := call(patient(t), &contractv1.AddRequest{By: 5})
		require.NoError(t, err, name)
	}
}

func testClientChanges(t *testing.T, _ Way, p Peer) {
	h := p.Intercepted(by(func(ctx context.Context, in *raylink.ClientInvocation, next raylink.ClientInvoke) error {
		in.Request = &contractv1.AddRequest{By: 40}
		if err := next(ctx, in); err != nil {
			return err
		}
		in.Response = &contractv1.AddResponse{Sum: in.Response.(*contractv1.AddResponse).GetSum() + 1000}
		return nil
	}))
	want := int64(1000)
	for name, call := range unaryCalls(h) {
		res, err := call(patient(t), nil)
		require.NoError(t, err, name)
		want += 40
		require.Equal(t, want, res.GetSum(), name)
	}
	h = p.Intercepted(by(func(ctx context.Context, in *raylink.ClientInvocation, next raylink.ClientInvoke) error {
		return connect.Errorf(connect.CodeAborted, "it was %v", connect.CodeOf(next(ctx, in)))
	}))
	fail := &contractv1.FailRequest{Code: uint32(connect.CodeDataLoss)}
	_, err := h.Fail(patient(t), fail)
	require.Equal(t, connect.CodeAborted, connect.CodeOf(err))
	_, err = h.FailAsync(patient(t), fail).Get(patient(t))
	require.Equal(t, connect.CodeAborted, connect.CodeOf(err))
	require.ErrorContains(t, err, "it was data_loss")
}

func testClientRepeats(t *testing.T, _ Way, p Peer) {
	thrice := p.Intercepted(by(func(ctx context.Context, in *raylink.ClientInvocation, next raylink.ClientInvoke) error {
		return errors.Join(next(ctx, in), next(ctx, in), next(ctx, in))
	}))
	want := int64(0)
	for name, call := range unaryCalls(thrice) {
		res, err := call(patient(t), &contractv1.AddRequest{By: 1})
		require.NoError(t, err, name)
		want += 3
		require.Equal(t, want, res.GetSum(), name)
	}
	for answer, sum := range map[*contractv1.AddResponse]int64{nil: 0, {Sum: 77}: 77} {
		never := p.Intercepted(by(func(_ context.Context, in *raylink.ClientInvocation, _ raylink.ClientInvoke) error {
			in.Response = answer
			return nil
		}))
		for name, call := range unaryCalls(never) {
			res, err := call(patient(t), nil)
			require.NoError(t, err, name)
			require.Equal(t, sum, res.GetSum(), name)
		}
	}
	log, err := p.Log(patient(t), nil)
	require.NoError(t, err)
	assert.Len(t, log.GetAdded(), 6)
}

func testClientMistakes(t *testing.T, _ Way, p Peer) {
	mistakes := map[string]func(context.Context, *raylink.ClientInvocation, raylink.ClientInvoke) error{
		"a client interceptor panicked: oh": func(context.Context, *raylink.ClientInvocation, raylink.ClientInvoke) error { panic("oh") },
		"made a *contractv1.EchoRequest the request": func(ctx context.Context, in *raylink.ClientInvocation, next raylink.ClientInvoke) error {
			in.Request = &contractv1.EchoRequest{}
			return next(ctx, in)
		},
		"made a *contractv1.EchoResponse the response": func(ctx context.Context, in *raylink.ClientInvocation, next raylink.ClientInvoke) error {
			err := next(ctx, in)
			in.Response = &contractv1.EchoResponse{}
			return err
		},
	}
	for text, mistake := range mistakes {
		for name, call := range unaryCalls(p.Intercepted(by(mistake))) {
			_, err := call(patient(t), nil)
			require.Equal(t, connect.CodeInternal, connect.CodeOf(err), name)
			require.ErrorContains(t, err, text, name)
		}
	}
	exits := p.Intercepted(by(func(context.Context, *raylink.ClientInvocation, raylink.ClientInvoke) error {
		runtime.Goexit()
		return nil
	}))
	_, err := exits.AddAsync(patient(t), nil).Get(patient(t))
	require.ErrorContains(t, err, "ended its goroutine")
	nothing := p.Intercepted(by(func(context.Context, *raylink.ClientInvocation, raylink.ClientInvoke) error { return nil }))
	_, err = nothing.Count(patient(t), nil)
	require.ErrorContains(t, err, "neither a stream")
	// An OnEnd function that panics fails nothing.
	late := p.Intercepted(by(func(ctx context.Context, in *raylink.ClientInvocation, next raylink.ClientInvoke) error {
		in.OnEnd(func(error) { panic("too late") })
		return next(ctx, in)
	}))
	for name, call := range unaryCalls(late) {
		_, err := call(patient(t), nil)
		require.NoError(t, err, name)
	}
}

func testClientAsyncOrder(t *testing.T, way Way, p Peer) {
	testAsyncOrder(t, way, p.Intercepted(passOn, passOn))
}

func testClientAsyncCancel(t *testing.T, _ Way, p Peer) {
	var log clientLog
	h := p.Intercepted(log.named("a"))
	f := h.BlockAsync(patient(t), &contractv1.BlockRequest{Name: "x"})
	eventually(t, p.Probe, "it did not begin", blocked("x"))
	f.Cancel()
	_, err := f.Get(patient(t))
	require.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
	eventually(t, p.Probe, "the method's context did not end", cancelled("x"))

	// An interceptor that has not called next yet delays its call, which can be canceled.
	release := make(chan struct{})
	slow := p.Intercepted(by(func(ctx context.Context, in *raylink.ClientInvocation, next raylink.ClientInvoke) error {
		<-release
		return next(ctx, in)
	}))
	ctx, cancel := context.WithCancel(patient(t))
	cancel()
	f2 := slow.AddAsync(ctx, &contractv1.AddRequest{By: 1})
	f2.Cancel()
	_, err = f2.Get(patient(t))
	require.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
	require.ErrorContains(t, err, "it has not run")
	close(release)
	calls, err := p.Log(patient(t), nil)
	require.NoError(t, err)
	assert.Empty(t, calls.GetAdded())
}

// loud is a stream that changes what is received.
type loud struct{ connect.ClientStream }

// Receive implements connect.ClientStream.
func (l loud) Receive(msg any) error {
	err := l.ClientStream.Receive(msg)
	switch m := msg.(type) {
	case *contractv1.CountResponse:
		m.Number += 100
	case *contractv1.ChatResponse:
		m.Text = strings.ToUpper(m.GetText())
	case *contractv1.SumResponse:
		m.Sum *= 2
	}
	return err
}

func testClientStreams(t *testing.T, way Way, p Peer) {
	h := p.Intercepted(by(func(ctx context.Context, in *raylink.ClientInvocation, next raylink.ClientInvoke) error {
		if err := next(ctx, in); err != nil {
			return err
		}
		in.Stream = loud{in.Stream}
		return nil
	}))
	count, err := h.Count(patient(t), &contractv1.CountRequest{To: 2})
	require.NoError(t, err)
	for want := range uint32(2) {
		res, err := count.Receive()
		require.NoError(t, err)
		assert.Equal(t, want+101, res.GetNumber())
	}
	require.NoError(t, count.Close())
	sum, err := h.Sum(patient(t))
	require.NoError(t, err)
	require.NoError(t, sum.Send(&contractv1.SumRequest{Number: 21}))
	res, err := sum.CloseAndReceive()
	require.NoError(t, err)
	assert.Equal(t, int64(42), res.GetSum())
	if way.HalfDuplex {
		return
	}
	chat, err := h.Chat(patient(t))
	require.NoError(t, err)
	require.NoError(t, chat.Send(&contractv1.ChatRequest{Text: "hello"}))
	said, err := chat.Receive()
	require.NoError(t, err)
	assert.Equal(t, "YOU SAID HELLO", said.GetText())
	require.NoError(t, chat.Close())
}

func testClientStreamEnds(t *testing.T, _ Way, p Peer) {
	var log clientLog
	h := p.Intercepted(log.named("a"))
	ended := func(how string) {
		t.Helper()
		assert.Equal(t, []string{"a " + how[:strings.IndexByte(how, ' ')], "a returned ok", "a ended" + how[strings.IndexByte(how, ' '):]}, log.take())
	}
	count, err := h.Count(patient(t), &contractv1.CountRequest{To: 1})
	require.NoError(t, err)
	_, err = count.Receive()
	require.NoError(t, err)
	_, err = count.Receive()
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, count.Close())
	ended("Count ok")

	count, err = h.Count(patient(t), &contractv1.CountRequest{Fail: "ran dry"})
	require.NoError(t, err)
	_, err = count.Receive()
	require.Error(t, err)
	ended("Count data_loss")

	count, err = h.Count(patient(t), &contractv1.CountRequest{To: 1 << 30, Payload: 1 << 10})
	require.NoError(t, err)
	_, err = count.Receive()
	require.NoError(t, err)
	_ = count.Close()
	ended("Count canceled")

	sum, err := h.Sum(patient(t))
	require.NoError(t, err)
	require.NoError(t, sum.Send(&contractv1.SumRequest{Number: 1}))
	_, err = sum.CloseAndReceive()
	require.NoError(t, err)
	ended("Sum ok")

	ctx, cancel := context.WithCancel(patient(t))
	abandoned, err := h.Count(ctx, &contractv1.CountRequest{To: 1 << 30, Payload: 1 << 10})
	require.NoError(t, err)
	cancel() // its caller does nothing more with the stream
	require.Eventually(t, func() bool {
		log.mu.Lock()
		defer log.mu.Unlock()
		return len(log.entries) == 3
	}, Patience, 2*time.Millisecond)
	ended("Count canceled")
	_ = abandoned.Close()
}

func testClientBuiltin(t *testing.T, _ Way, p Peer) {
	if p.Near == nil {
		t.Skip("a stub has no built-in methods")
	}
	var log clientLog
	_, err := p.Near.Intercepted(log.named("a")).Ref().Ping(patient(t))
	require.NoError(t, err)
	assert.Empty(t, log.take())
}
