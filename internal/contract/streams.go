package contract

import (
	"context"
	"fmt"
	"io"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
)

func testCount(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	stream, err := p.Count(patient(t), &contractv1.CountRequest{To: 1000, Payload: 1024})
	require.NoError(t, err)
	for i := range uint32(1000) {
		res, err := stream.Receive()
		require.NoError(t, err)
		require.Equal(t, i+1, res.GetNumber())
		require.Len(t, res.GetPayload(), 1024)
	}
	_, err = stream.Receive()
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, stream.Close())
}

func testCountFails(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	stream, err := p.Count(patient(t), &contractv1.CountRequest{To: 3, Fail: "ran dry"})
	require.NoError(t, err)
	for range 3 {
		_, err := stream.Receive()
		require.NoError(t, err)
	}
	_, err = stream.Receive()
	assert.Equal(t, connect.CodeDataLoss, connect.CodeOf(err), "%v", err)
	assert.Contains(t, fmt.Sprint(err), "ran dry")
}

func testAbandon(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	stream, err := p.Count(patient(t), &contractv1.CountRequest{To: 1 << 30, Payload: 4096})
	require.NoError(t, err)
	_, err = stream.Receive()
	require.NoError(t, err)
	_ = stream.Close() // its error, that the stream was cut off, is expected
	eventually(t, p, "the node continued to send", cancelled("count"))
}

func testSum(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	stream, err := p.Sum(patient(t))
	require.NoError(t, err)
	for i := range int64(500) {
		require.NoError(t, stream.Send(&contractv1.SumRequest{Number: i}))
	}
	res, err := stream.CloseAndReceive()
	require.NoError(t, err)
	assert.Equal(t, int64(499*500/2), res.GetSum())
}

func testAbandonSum(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	stream, err := p.Sum(patient(t))
	require.NoError(t, err)
	require.NoError(t, stream.Send(&contractv1.SumRequest{Number: 1}))
	eventually(t, p, "it did not begin", blocked("sum"))
	_ = stream.Close() // its error, that the stream was cut off, is expected
	eventually(t, p, "the node was not notified", cancelled("sum"))
}

// testTurnsOfStreams has streams and calls change state that only turns may change.
func testTurnsOfStreams(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	ctx := patient(t)
	errs := make(chan error)
	const callers = 8
	for range callers {
		go func() {
			stream, err := p.Sum(ctx)
			if err == nil {
				err = stream.Send(&contractv1.SumRequest{Number: 10})
			}
			if err == nil {
				_, err = stream.CloseAndReceive()
			}
			if err == nil {
				_, err = p.Add(ctx, &contractv1.AddRequest{By: 1})
			}
			errs <- err
		}()
	}
	for range callers {
		require.NoError(t, <-errs)
	}
	res, err := p.Add(ctx, nil)
	require.NoError(t, err)
	assert.Equal(t, int64(11*callers), res.GetSum())
}

func testSumFails(t *testing.T, way Way, p *contractv1raylink.Probe) {
	stream, err := p.Sum(patient(t))
	require.NoError(t, err)
	require.NoError(t, stream.Send(&contractv1.SumRequest{Number: -1}))
	// If the response begins only after the request has ended, sending continues until then.
	for ctx := patient(t); err == nil && !way.HalfDuplex; err = stream.Send(&contractv1.SumRequest{Number: 1}) {
		require.NoError(t, ctx.Err(), "the sender was not notified")
	}
	if !way.HalfDuplex {
		require.ErrorIs(t, err, io.EOF)
	}
	_, err = stream.CloseAndReceive()
	assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v", err)
}

func testChat(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	stream, err := p.Chat(patient(t))
	require.NoError(t, err)
	for i := range 20 {
		text := fmt.Sprint("hello ", i)
		require.NoError(t, stream.Send(&contractv1.ChatRequest{Text: text}))
		res, err := stream.Receive()
		require.NoError(t, err)
		require.Equal(t, "you said "+text, res.GetText())
	}
	require.NoError(t, stream.CloseSend())
	_, err = stream.Receive()
	require.ErrorIs(t, err, io.EOF)
}

func testChatRefused(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	stream, err := p.Chat(patient(t))
	if err == nil {
		_ = stream.Send(&contractv1.ChatRequest{Text: "a"}) // receiving returns the reason
		require.NoError(t, stream.CloseSend())
		_, err = stream.Receive()
	}
	require.Error(t, err)
	require.NotErrorIs(t, err, io.EOF)
	assert.Contains(t, err.Error(), "HTTP Version Not Supported")
}

func testChatCancel(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	ctx, cancel := context.WithCancel(patient(t))
	stream, err := p.Chat(ctx)
	require.NoError(t, err)
	require.NoError(t, stream.Send(&contractv1.ChatRequest{Text: "x"}))
	_, err = stream.Receive()
	require.NoError(t, err)
	cancel()
	_, err = stream.Receive()
	assert.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
	eventually(t, p, "the node was not notified", cancelled("chat"))
}

func testChatCancelWaiting(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	ctx, cancel := context.WithCancel(patient(t))
	_, received := waitingChat(ctx, t, p)
	cancel()
	err := <-received
	assert.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
	require.ErrorIs(t, err, context.Canceled)
	eventually(t, p, "the node was not notified", cancelled("chat"))
}

func testChatCloseWaiting(t *testing.T, way Way, p *contractv1raylink.Probe) {
	stream, received := waitingChat(patient(t), t, p)
	_ = stream.Close() // its error, that the stream was cut off, is expected
	err := <-received
	assert.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
	if !way.EndsOnClose {
		eventually(t, p, "the node was not notified", cancelled("chat"))
	}
}

// waitingChat opens a chat that has begun, with a receive that is blocked.
func waitingChat(ctx context.Context, t *testing.T, p *contractv1raylink.Probe) (contractv1raylink.ProbeChatClientStream, <-chan error) {
	t.Helper()
	stream, err := p.Chat(ctx)
	require.NoError(t, err)
	require.NoError(t, stream.Send(&contractv1.ChatRequest{Text: "x"}))
	_, err = stream.Receive()
	require.NoError(t, err)
	received := make(chan error, 1)
	go func() {
		_, err := stream.Receive()
		received <- err
	}()
	return stream, received
}

func testChatNodeEnds(t *testing.T, _ Way, p *contractv1raylink.Probe) {
	stream, err := p.Chat(patient(t))
	require.NoError(t, err)
	require.NoError(t, stream.Send(&contractv1.ChatRequest{Text: "a"}))
	res, err := stream.Receive()
	require.NoError(t, err)
	require.Equal(t, "you said a", res.GetText())
	require.NoError(t, stream.Send(&contractv1.ChatRequest{Text: "bye"}))
	_, err = stream.Receive()
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, stream.Close())
}
