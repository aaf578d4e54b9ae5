package raylink_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/runtime"
)

// dial opens a TCP connection, which ends with the test.
func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	nc, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = nc.Close() })
	return nc
}

// endsSoon waits until the peer has closed the connection, and returns what it sent before.
func endsSoon(t *testing.T, nc net.Conn) string {
	t.Helper()
	require.NoError(t, nc.SetReadDeadline(time.Now().Add(8*time.Second)))
	all, err := io.ReadAll(nc)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the connection is still open")
	return string(all)
}

// guarded makes a system with a token. It returns Brain's address, which is the gateway, and a
// host's.
func guarded(t *testing.T, opts ...runtime.Option) (addresses map[string]string, node string) {
	t.Helper()
	opts = append(opts, runtime.WithToken("s3cret"))
	brain := system(t, opts...)
	host := joined(t, brain, runtime.WithToken("s3cret"))
	return map[string]string{"Brain": brain.Address(), "a host": host.Address()}, create(t, host).Ref().Path()
}

// TestRefusedConnectionEndsAtOnce sends requests without a token whose bodies never end.
func TestRefusedConnectionEndsAtOnce(t *testing.T) {
	t.Parallel()
	addresses, node := guarded(t)
	head := "POST /" + node + "/contract.v1.Probe/Echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/proto\r\n"
	for name, request := range map[string]string{
		"no body":              head + "Content-Length: 0\r\n\r\n",
		"a body that stalls":   head + "Content-Length: 1000\r\n\r\nonly this",
		"a large body":         head + "Content-Length: 41943040\r\n\r\n" + strings.Repeat("x", 1<<20),
		"chunks that stall":    head + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"expects 100-continue": head + "Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n",
		"a foreign page":       head + "Origin: https://evil.example\r\nContent-Length: 1000\r\n\r\n",
	} {
		for at, address := range addresses {
			t.Run(name+" at "+at, func(t *testing.T) {
				t.Parallel()
				nc := dial(t, address)
				_, err := nc.Write([]byte(request))
				require.NoError(t, err)
				answer := endsSoon(t, nc)
				code := "unauthenticated"
				if name == "a foreign page" {
					code = "permission_denied"
				}
				assert.Contains(t, answer, code)
			})
		}
	}
}

// TestRefusalLeavesAnAdmittedConnection mixes good and bad requests on one connection.
func TestRefusalLeavesAnAdmittedConnection(t *testing.T) {
	t.Parallel()
	addresses, node := guarded(t)
	for at, address := range addresses {
		nc := dial(t, address)
		in := bufio.NewReader(nc)
		for i, token := range []string{"s3cret", "wrong", "s3cret"} {
			_, err := fmt.Fprintf(nc, "GET /%s/raylink.node.v1.NodeService/Nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\n\r\n", node, token)
			require.NoError(t, err)
			res, err := http.ReadResponse(in, nil)
			require.NoError(t, err, "%s, request %d", at, i)
			_, _ = io.Copy(io.Discard, res.Body)
			require.NoError(t, res.Body.Close())
			assert.Equal(t, token == "wrong", res.StatusCode == http.StatusUnauthorized, at)
		}
	}
}

// TestFloodOfSilentConnectionsDoesNotExcludeCallers opens far more connections than a host keeps
// unadmitted: silent ones, ones that begin a request, and ones that begin HTTP/2.
func TestFloodOfSilentConnectionsDoesNotExcludeCallers(t *testing.T) {
	t.Parallel()
	const flood = 5000
	for name, first := range map[string]string{
		"nothing": "", "half a header": "POST / HTTP/1.1\r\nHost: ", "HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := patient(t)
			rt := system(t, runtime.WithToken("s3cret"))
			other := joined(t, rt, runtime.WithToken("s3cret"))
			p, err := contractv1raylink.ProbeFrom(other, create(t, rt).Ref().NodeRef())
			require.NoError(t, err)
			var ended sync.WaitGroup
			closed := make(chan struct{}, flood)
			for range flood {
				nc := dial(t, rt.Address())
				_, _ = nc.Write([]byte(first)) // it may be closed already
				ended.Go(func() {
					_, _ = io.Copy(io.Discard, nc)
					_ = nc.Close() // so that the process needs no more file descriptors than the host keeps
					closed <- struct{}{}
				})
			}
			t.Cleanup(ended.Wait)
			_, err = p.Add(ctx, &contractv1.AddRequest{By: 1})
			require.NoError(t, err, "an admitted connection failed")
			status, body := post(t, "http://"+rt.Address()+"/"+p.Ref().Path()+"/contract.v1.Probe/Add", func(r *http.Request) {
				r.Header.Set("Authorization", "Bearer s3cret")
			})
			assert.Equal(t, http.StatusOK, status, "a new caller was excluded: %s", body)
			for range flood - 512 {
				select {
				case <-closed:
				case <-ctx.Done():
					require.FailNow(t, "more connections than the bound stay open")
				}
			}
		})
	}
}

// watchHealth opens a health watch and waits for its first message.
func watchHealth(ctx context.Context, t *testing.T, address string) (next func() (string, error)) {
	t.Helper()
	const message = `{}`
	envelope := string(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))) + message
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+"/grpc.health.v1.Health/Watch", strings.NewReader(envelope))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/connect+json")
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	res, err := transport.RoundTrip(req)
	require.NoError(t, err)
	t.Cleanup(func() { _ = res.Body.Close() })
	next = func() (string, error) {
		head := make([]byte, 5)
		if _, err := io.ReadFull(res.Body, head); err != nil {
			return "", err
		}
		text := make([]byte, binary.BigEndian.Uint32(head[1:]))
		_, err := io.ReadFull(res.Body, text)
		return string(text), err
	}
	first, err := next()
	require.NoError(t, err)
	require.JSONEq(t, `{"status":"SERVING"}`, first)
	return next
}

// TestWatcherOfHealthDoesNotDelayClose has health watches, reflection streams, half a request and a
// stalled upload open when a host closes.
func TestWatcherOfHealthDoesNotDelayClose(t *testing.T) {
	t.Parallel()
	rt := system(t)
	node := create(t, rt).Ref().Path()
	next := watchHealth(patient(t), t, rt.Address())
	for _, request := range []string{
		"POST /x", // half a header
		"POST /grpc.health.v1.Health/Watch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/connect+json\r\nContent-Length: 7\r\n\r\n\x00\x00\x00\x00\x02{}",
		"POST /" + node + "/contract.v1.Probe/Add HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
		"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n", // it is refused, and its body never arrives
		"POST /grpc.reflection.v1.ServerReflection/ServerReflectionInfo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/connect+json\r\nTransfer-Encoding: chunked\r\n\r\n",
	} {
		_, err := dial(t, rt.Address()).Write([]byte(request))
		require.NoError(t, err)
	}
	closing := time.Now()
	require.NoError(t, rt.Close())
	// The drain is ten seconds and Close's bound twenty: a delayed Close takes one of them.
	assert.Less(t, time.Since(closing), 8*time.Second)
	last, err := next()
	require.NoError(t, err)
	assert.JSONEq(t, `{"status":"NOT_SERVING"}`, last)
	end, err := next()
	if !errors.Is(err, io.EOF) {
		require.NoError(t, err)
		assert.JSONEq(t, `{}`, end, "the stream ended with an error")
	}
}

// TestHealthNeedsNoToken sends requests without a token, as probes do.
func TestHealthNeedsNoToken(t *testing.T) {
	t.Parallel()
	addresses, node := guarded(t)
	for at, address := range addresses {
		base := "http://" + address
		for _, path := range []string{"/healthz", "/readyz", "/livez"} {
			for method, want := range map[string]int{http.MethodGet: 200, http.MethodHead: 200, http.MethodPost: 405} {
				req, err := http.NewRequestWithContext(patient(t), method, base+path, nil)
				require.NoError(t, err)
				res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
				require.NoError(t, err)
				body, err := io.ReadAll(res.Body)
				require.NoError(t, err)
				require.NoError(t, res.Body.Close())
				assert.Equal(t, want, res.StatusCode, "%s %s at %s", method, path, at)
				if method == http.MethodGet {
					assert.Equal(t, "ok\n", string(body))
				}
			}
		}
		ask := func(path, body string) (int, string) {
			return post(t, base+path, func(r *http.Request) {
				r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
			})
		}
		status, body := ask("/grpc.health.v1.Health/Check", "{}")
		assert.Equal(t, http.StatusOK, status, body)
		assert.JSONEq(t, `{"status":"SERVING"}`, body)
		status, body = ask("/grpc.health.v1.Health/List", "{}")
		assert.Equal(t, http.StatusOK, status, body)
		assert.JSONEq(t, `{"statuses":{"":{"status":"SERVING"}}}`, body, "it names a service")
		watchHealth(patient(t), t, address)
		// Requests that would reveal more are refused, such as for the services or the nodes.
		for _, service := range []string{"contract.v1.Probe", "demo.v1.Nobody"} {
			status, body = ask("/grpc.health.v1.Health/Check", `{"service":"`+service+`"}`)
			assert.Equal(t, http.StatusNotFound, status, body)
		}
		for _, path := range []string{
			"/" + node + "/grpc.health.v1.Health/Check", "/nobody-0/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Other",
			"/raylink.brain.v1.BrainService/List", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/", "/healthz/x",
			"/" + node + "/contract.v1.Probe/Add",
		} {
			status, body = ask(path, "{}")
			assert.Equal(t, http.StatusUnauthorized, status, "%s at %s: %s", path, at, body)
		}
		status, body = ask("/grpc.health.v1.Health/Check", `{"service":"`+strings.Repeat("x", 8<<10)+`"}`)
		assert.Equal(t, http.StatusTooManyRequests, status, body)
	}
}

// TestHealthListNamesTheServices checks what a caller with a token gets.
func TestHealthListNamesTheServices(t *testing.T) {
	t.Parallel()
	rt := system(t)
	status, body := post(t, "http://"+rt.Address()+"/grpc.health.v1.Health/List", func(r *http.Request) {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader("{}")), 2
	})
	assert.Equal(t, http.StatusOK, status, body)
	for _, service := range []string{`""`, `"contract.v1.Probe"`, `"grpc.health.v1.Health"`, `"raylink.node.v1.NodeService"`} {
		assert.Contains(t, body, service+":")
	}
}
