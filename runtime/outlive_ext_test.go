package runtime_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/stretchr/testify/require"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
)

// outliving is a node whose streams are used by other goroutines after their methods return.
type outliving struct {
	contractv1raylink.UnimplementedProbeNode

	others sync.WaitGroup
}

func (o *outliving) Chat(_ context.Context, stream contractv1raylink.ProbeChatServerStream) error {
	sent := make(chan struct{}, 1)
	o.others.Go(func() {
		for stream.Send(&contractv1.ChatResponse{Text: "on and on"}) == nil {
			select {
			case sent <- struct{}{}:
			default:
			}
		}
	})
	o.others.Go(func() {
		for {
			if _, err := stream.Receive(); err != nil {
				return
			}
		}
	})
	<-sent
	return nil
}

// TestStreamIsNotUsedOnceItsHandlerHasReturned has methods return while other goroutines send and
// receive. The race detector reports a ResponseWriter that is used after its handler's end.
func TestStreamIsNotUsedOnceItsHandlerHasReturned(t *testing.T) {
	t.Parallel()
	node := &outliving{}
	server, mux := connect.NewServer(), http.NewServeMux()
	contractv1raylink.RegisterProbeTunnel(server, node)
	connecthttp.Mount(mux, server)
	web := httptest.NewUnstartedServer(mux)
	web.Config.Protocols = new(http.Protocols)
	web.Config.Protocols.SetUnencryptedHTTP2(true)
	web.Start()
	t.Cleanup(web.Close)
	transport := &http.Transport{Protocols: web.Config.Protocols}
	t.Cleanup(transport.CloseIdleConnections)
	for _, options := range [][]connecthttp.Option{nil, {connecthttp.WithGRPC()}} {
		p := contractv1raylink.NewProbeTunnel(connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: transport}, web.URL, options...)))
		for range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			chat, err := p.Chat(ctx)
			require.NoError(t, err)
			if err := chat.Send(&contractv1.ChatRequest{}); !errors.Is(err, io.EOF) { // the method may have returned
				require.NoError(t, err)
			}
			for err == nil {
				_, err = chat.Receive()
			}
			require.ErrorIs(t, err, io.EOF)
			require.NoError(t, chat.Close())
			cancel()
		}
	}
	node.others.Wait()
}
