package runtime_test

import (
	"context"
	"net"
	"net/http"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/stretchr/testify/require"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
)

// TestLostConnectionIsUnavailable checks that a call whose connection ends before its response is
// Unavailable, as over a tunnel, whatever error the transport returns, and that the error names the
// method. If the call's own context has ended, it is not.
func TestLostConnectionIsUnavailable(t *testing.T) {
	t.Parallel()
	for protocol, opts := range map[string][]connecthttp.Option{"connect": nil, "grpc": {connecthttp.WithGRPC()}} {
		for _, h2 := range []bool{false, true} {
			if !h2 && protocol == "grpc" {
				continue
			}
			for how, end := range map[string]func(rw http.ResponseWriter, nc net.Conn){
				"closed":  func(_ http.ResponseWriter, nc net.Conn) { _ = nc.Close() },
				"aborted": func(http.ResponseWriter, net.Conn) { panic(http.ErrAbortHandler) },
				"reset": func(_ http.ResponseWriter, nc net.Conn) {
					_ = nc.(*net.TCPConn).SetLinger(0)
					_ = nc.Close()
				},
			} {
				if h2 && how == "aborted" {
					continue // the server resets only the stream
				}
				name := protocol + " http/1 " + how
				if h2 {
					name = protocol + " http/2 " + how
				}
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					type key struct{}
					var p http.Protocols
					p.SetHTTP1(!h2)
					p.SetUnencryptedHTTP2(h2)
					server := &http.Server{
						Protocols: &p, ReadHeaderTimeout: time.Minute,
						ConnContext: func(ctx context.Context, nc net.Conn) context.Context { return context.WithValue(ctx, key{}, nc) },
						Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
							end(rw, r.Context().Value(key{}).(net.Conn))
						}),
					}
					l, err := net.Listen("tcp", "127.0.0.1:0")
					require.NoError(t, err)
					served := make(chan struct{})
					go func() {
						defer close(served)
						_ = server.Serve(l)
					}()
					transport := &http.Transport{Protocols: &p}
					defer func() {
						transport.CloseIdleConnections()
						_ = server.Close()
						<-served
					}()
					probe := contractv1raylink.NewProbeTunnel(connect.NewClient(connecthttp.NewTransport(
						&http.Client{Transport: transport}, "http://"+l.Addr().String(), opts...)))
					_, err = probe.Add(t.Context(), &contractv1.AddRequest{})
					require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
					_, err = probe.AddAsync(t.Context(), &contractv1.AddRequest{}).Get(t.Context())
					require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
					stream, err := probe.Count(t.Context(), &contractv1.CountRequest{})
					if err == nil {
						_, err = stream.Receive()
					}
					require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
				})
			}
		}
	}
}
