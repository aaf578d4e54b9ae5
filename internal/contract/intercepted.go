package contract

import (
	"context"
	"errors"
	"strings"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	raylink "github.com/raylink/raylink/runtime"
)

// interceptKey is the metadata that selects what the innermost interceptor does.
const interceptKey = "probe-intercept"

// Intercepted returns the interceptors that [RunIntercepted] expects.
func Intercepted() raylink.Option {
	return raylink.WithInterceptor(named("outer"), named("inner"), scripted)
}

// named reports its name and the call in the response's headers.
func named(name string) raylink.Interceptor {
	return func(next raylink.Invoke) raylink.Invoke {
		return func(ctx context.Context, in *raylink.Invocation) error {
			raylink.CallFrom(ctx).SetHeader("probe-interceptor", name+" "+in.Node.Path()+" "+in.Method.Name())
			return next(ctx, in)
		}
	}
}

// scripted does what the call's metadata selects.
func scripted(next raylink.Invoke) raylink.Invoke {
	return func(ctx context.Context, in *raylink.Invocation) error {
		call := raylink.CallFrom(ctx)
		if call.Metadata().Get(refusalKey) != "" {
			return refuseForged(call)
		}
		switch call.Metadata().Get(interceptKey) {
		case "refuse":
			return connect.NewError(connect.CodePermissionDenied, "not today")
		case "break":
			return ErrPlain
		case "panic":
			panic("the interceptor is on fire")
		case "answer":
			in.Response = &contractv1.AddResponse{Sum: 4242}
			return nil
		case "no response":
			return nil
		case "request":
			in.Request = &contractv1.AddRequest{By: 1000}
		case "wrong request":
			in.Request = &contractv1.EchoRequest{}
		case "response":
			err := next(ctx, in)
			in.Response = &contractv1.AddResponse{Sum: -1}
			return err
		case "wrong response":
			err := next(ctx, in)
			in.Response = &contractv1.EchoResponse{}
			return err
		case "error":
			err := next(ctx, in)
			return connect.Errorf(connect.CodeAborted, "it was %v", connect.CodeOf(err))
		case "stream":
			in.Stream = louder{in.Stream}
		}
		return next(ctx, in)
	}
}

// louder changes the messages of a stream in both directions.
type louder struct{ connect.ServerStream }

// Send implements connect.ServerStream.
func (l louder) Send(msg any) error {
	switch m := msg.(type) {
	case *contractv1.CountResponse:
		msg = &contractv1.CountResponse{Number: m.GetNumber() + 100}
	case *contractv1.ChatResponse:
		msg = &contractv1.ChatResponse{Text: strings.ToUpper(m.GetText())}
	}
	return l.ServerStream.Send(msg)
}

// Receive implements connect.ServerStream.
func (l louder) Receive(msg any) error {
	err := l.ServerStream.Receive(msg)
	if m, ok := msg.(*contractv1.SumRequest); ok {
		m.Number *= 2
	}
	return err
}

// RunIntercepted checks that interceptors wrap every call of one way. Its nodes live in hosts with
// the option [Intercepted].
func RunIntercepted(t *testing.T, way Way) {
	t.Helper()
	p := way.Open(t)
	with := func(what string) context.Context { return raylink.WithMetadata(patient(t), interceptKey, what) }
	t.Run("they run in order and know node and method", func(t *testing.T) {
		ctx, info := connect.NewClientContext(patient(t))
		_, err := p.Add(ctx, nil)
		require.NoError(t, err)
		assert.Equal(t, []string{"outer " + p.Path + " Add", "inner " + p.Path + " Add"}, info.ResponseHeader().Values("probe-interceptor"))
	})
	t.Run("they refuse", func(t *testing.T) {
		for what, code := range map[string]connect.Code{
			"refuse": connect.CodePermissionDenied, "break": connect.CodeUnknown, "panic": connect.CodeInternal,
			"wrong request": connect.CodeInternal, "wrong response": connect.CodeInternal,
		} {
			for _, call := range []func(context.Context) error{
				func(ctx context.Context) error { _, err := p.Add(ctx, &contractv1.AddRequest{}); return err },
				func(ctx context.Context) error { _, err := p.AddAsync(ctx, nil).Get(ctx); return err },
			} {
				require.Equal(t, code, connect.CodeOf(call(with(what))), what)
			}
		}
		_, err := p.Echo(with("refuse"), nil)
		require.ErrorContains(t, err, "not today")
		_, err = p.Near.Ref().Ping(with("refuse"))
		require.NoError(t, err, "built-in methods are not intercepted")
	})
	t.Run("they respond, change messages and convert errors", func(t *testing.T) {
		for _, order := range []struct {
			what string
			want int64
		}{{"answer", 4242}, {"no response", 0}, {"response", -1}, {"request", 1000}} {
			res, err := p.Add(with(order.what), nil)
			require.NoError(t, err, order.what)
			require.Equal(t, order.want, res.GetSum(), order.what)
		}
		_, err := p.Fail(with("error"), &contractv1.FailRequest{Code: uint32(connect.CodeDataLoss), Message: "gone"})
		require.Equal(t, connect.CodeAborted, connect.CodeOf(err))
		require.ErrorContains(t, err, "it was data_loss")
	})
	t.Run("they refuse once", func(t *testing.T) { testRefusedOnce(t, p, with) })
	t.Run("they wrap streams", func(t *testing.T) { testInterceptedStreams(t, way, p, with) })
	t.Run("they wrap calls of the second hop", func(t *testing.T) {
		_, err := p.Relay(patient(t), &contractv1.RelayRequest{Next: way.Open(t).Reach, What: "add"})
		require.NoError(t, err)
	})
}

func testInterceptedStreams(t *testing.T, way Way, p Peer, with func(string) context.Context) {
	count, err := p.Count(with("stream"), &contractv1.CountRequest{To: 2})
	require.NoError(t, err)
	for want := range uint32(2) {
		res, err := count.Receive()
		require.NoError(t, err)
		assert.Equal(t, want+101, res.GetNumber())
	}
	require.NoError(t, count.Close())
	sum, err := p.Sum(with("stream"))
	require.NoError(t, err)
	require.NoError(t, sum.Send(&contractv1.SumRequest{Number: 21}))
	res, err := sum.CloseAndReceive()
	require.NoError(t, err)
	assert.Equal(t, int64(42), res.GetSum())
	refused, err := p.Count(with("refuse"), &contractv1.CountRequest{To: 2})
	if err == nil {
		_, err = refused.Receive()
	}
	assert.Equal(t, connect.CodePermissionDenied, connect.CodeOf(err), "%v", err)
	if way.HalfDuplex {
		return
	}
	chat, err := p.Chat(with("stream"))
	require.NoError(t, err)
	require.NoError(t, chat.Send(&contractv1.ChatRequest{Text: "hello"}))
	said, err := chat.Receive()
	require.NoError(t, err)
	assert.Equal(t, "YOU SAID HELLO", said.GetText())
	require.NoError(t, chat.CloseSend())
}

// RunHidden checks that texts which were not written for callers do not reach them, over one way
// whose nodes live in hosts that hide errors.
func RunHidden(t *testing.T, way Way) {
	t.Helper()
	p := way.Open(t)
	ctx := patient(t)
	hidden := func(err error, code connect.Code, secrets ...string) {
		t.Helper()
		require.Equal(t, code, connect.CodeOf(err), "%v", err)
		for _, secret := range append(secrets, ErrPlain.Error()) {
			assert.NotContains(t, err.Error(), secret)
		}
		assert.Contains(t, err.Error(), p.Path, "the node's path must be in the error")
		// Where ways may differ: inside one process nothing has to be hidden.
		assert.Equal(t, way.Local && code == connect.CodeUnknown, errors.Is(err, ErrPlain))
	}
	_, err := p.Fail(ctx, &contractv1.FailRequest{Message: "the password is 1234"})
	hidden(err, connect.CodeUnknown, "1234")
	_, err = p.FailAsync(ctx, &contractv1.FailRequest{Panic: true, Message: "the password is 1234"}).Get(ctx)
	hidden(err, connect.CodeInternal, "1234")
	count, err := p.Count(ctx, &contractv1.CountRequest{To: 1, Fail: "the password is 1234", Plain: true})
	require.NoError(t, err)
	_, err = count.Receive()
	require.NoError(t, err)
	_, err = count.Receive()
	hidden(err, connect.CodeUnknown, "1234")

	// Texts that were written for callers reach them, without the wrappers around them.
	fail := &contractv1.FailRequest{Code: uint32(connect.CodeOutOfRange), Message: "too far", Detail: "by a mile"}
	for _, call := range []func() error{
		func() error { _, err := p.Fail(ctx, fail); return err },
		func() error {
			_, err := p.Relay(ctx, &contractv1.RelayRequest{Next: way.Open(t).Reach, What: "wrap", Fail: fail})
			return err
		},
	} {
		e, ok := errors.AsType[*connect.Error](call())
		require.True(t, ok)
		assert.Equal(t, connect.CodeOutOfRange, e.Code())
		assert.Equal(t, "too far", e.Message())
		require.NotEmpty(t, e.Details())
		assert.Equal(t, detailName, e.Details()[0].Type)
	}
}
