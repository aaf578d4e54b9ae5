package tunnel_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
)

func silent() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestMessageOverLimitFailsItsCallOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := echo()
		answer := 2000
		h.unary = func(in *tunnel.Incoming) { in.Reply(wrapperspb.Bytes(make([]byte, answer)), nil) }
		s := overMemory(t, tunnel.Config{MaxMessageBytes: 5000}, tunnel.Config{MaxMessageBytes: 1000}, h)

		_, _, err := start(t.Context(), s.client, "/p/P", 1500)
		require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
		require.ErrorContains(t, err, "a request of p/P is 1503 bytes, the receiver's limit is 1000")

		_, done, err := start(t.Context(), s.client, "/p/P", 500)
		require.NoError(t, err)
		require.NoError(t, <-done)
		answer = 6000
		_, done, err = start(t.Context(), s.client, "/p/P", 500)
		require.NoError(t, err)
		err = <-done
		require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
		require.ErrorContains(t, err, "limit is 5000")

		stream := bidi(t.Context(), t, s.client)
		err = stream.Send(wrapperspb.Bytes(make([]byte, 1500)))
		require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
		require.NoError(t, stream.Send(wrapperspb.Bytes(make([]byte, 900))))
		require.NoError(t, stream.Receive(&wrapperspb.BytesValue{}))
		require.NoError(t, stream.Close())
	})
}

func TestHeaderOverLimitFailsItsCallOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		large := strings.Repeat("x", 5000)
		h := echo()
		h.unary = func(in *tunnel.Incoming) {
			in.SetHeader(header("k", large))
			in.Reply(nil, nil)
		}
		cfg := tunnel.Config{MaxHeaderBytes: 4000}
		s := overMemory(t, cfg, cfg, h)
		err := s.client.Start(t.Context(), &tunnel.Call{Procedure: "/p/P", Header: tunnel.Header{{Key: "k", Value: large}}})
		require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
		_, done, err := start(t.Context(), s.client, "/p/P", 1)
		require.NoError(t, err)
		err = <-done
		require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
		require.ErrorContains(t, err, "limit is 4000")
		require.NoError(t, s.client.Err())
	})
}

func TestUnreadResponsesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := echo()
		h.unary = func(in *tunnel.Incoming) { in.Reply(wrapperspb.Bytes(make([]byte, 1<<20)), nil) }
		s := overMemory(t, tunnel.Config{}, tunnel.Config{MaxBacklog: 5 << 20}, h)
		s.link.StallReplies()
		var ends []<-chan error
		for range 12 {
			_, done, err := start(t.Context(), s.client, "/p/P", 1)
			require.NoError(t, err)
			ends = append(ends, done)
		}
		synctest.Wait()
		s.link.Resume()
		refused := 0
		for _, done := range ends {
			if err := <-done; err != nil {
				require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
				require.ErrorContains(t, err, "the limit of 5242880")
				refused++
			}
		}
		require.InDelta(t, 7, refused, 1)
	})
}

func TestNamesBeyondTableAreSentInFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen := make(map[string]bool)
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, handlers{unary: func(in *tunnel.Incoming) {
			seen[in.Target] = true
			in.Reply(nil, nil)
		}})
		long := strings.Repeat("n", 1000)
		done := make(chan error, 1)
		for i := range 3000 {
			target := long + string(rune('a'+i/100)) + string(rune('a'+i%100))
			require.NoError(t, s.client.Start(context.Background(), &tunnel.Call{
				Target: target, Procedure: "/p/P", Done: func(c *tunnel.Call) { done <- c.Err },
			}))
			require.NoError(t, <-done)
			require.True(t, seen[target])
		}
	})
}
