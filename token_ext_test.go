package raylink_test

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/internal/contract"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
)

// closedByDefault removes all settings from the environment, and sets a runtime directory of the
// test's own.
func closedByDefault(t *testing.T) {
	t.Helper()
	t.Setenv("RAYLINK_OPEN", "")
	t.Setenv("RAYLINK_TOKEN", "")
	elsewhere(t)
}

// elsewhere returns an empty runtime directory, like that of another user.
func elsewhere(t *testing.T) {
	t.Helper()
	dir, err := os.MkdirTemp("", "rl") //nolint:usetesting // a socket's path must be short
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	t.Setenv("RAYLINK_RUNTIME_DIR", dir)
}

func bearer(token string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
}

// tokenOf reads the token that a system has generated.
func tokenOf(t *testing.T, rt *raylink.Runtime) string {
	t.Helper()
	token, err := os.ReadFile(rt.TokenFile())
	require.NoError(t, err)
	require.True(t, bytes.HasSuffix(token, []byte("\n")))
	return string(token[:len(token)-1])
}

// TestSystemIsClosedByDefault checks that a system without settings has a generated token, which
// programs of the same user find by themselves.
func TestSystemIsClosedByDefault(t *testing.T) {
	closedByDefault(t)
	ctx := patient(t)
	rt := system(t)
	token := tokenOf(t, rt)
	require.Len(t, token, 64)

	p := create(t, rt, runtime.OwnProcess())
	_, err := p.Add(ctx, nil)
	require.NoError(t, err)
	other := joined(t, rt)
	far := create(t, other)
	seen, err := contractv1raylink.ProbeFrom(rt, far.Ref().NodeRef())
	require.NoError(t, err)
	_, err = seen.Add(ctx, nil)
	require.NoError(t, err)

	host := p.Ref().NodeRef().GetHost().GetAddress()
	for _, address := range []string{rt.Address(), host} {
		url := "http://" + address + "/" + p.Ref().Path() + "/contract.v1.Probe/Add"
		for _, wrong := range []func(*http.Request){nil, bearer("wrong"), bearer(""), bearer(token[1:]), bearer(token + "0")} {
			status, body := post(t, url, wrong)
			assert.Equal(t, http.StatusUnauthorized, status, body)
			assert.Contains(t, body, "raylink token")
		}
		status, body := post(t, url, bearer(token))
		assert.Equal(t, http.StatusOK, status, body)
	}
	info, err := p.Ref().CreateTunnel(ctx, "x")
	require.NoError(t, err)
	tunnel, err := runtime.DialTunnel(ctx, info, "")
	require.NoError(t, err, "a program of the same user")
	_, err = contractv1raylink.NewProbeTunnel(tunnel.Client()).Add(ctx, nil)
	require.NoError(t, err)
	require.NoError(t, tunnel.Close())

	elsewhere(t)
	_, err = runtime.DialTunnel(ctx, info, "")
	require.Equal(t, connect.CodeUnauthenticated, connect.CodeOf(err), "%v", err)
	_, err = join.Start(ctx, runtime.WithBrain(rt.Address()), runtime.WithData(t.TempDir()))
	require.Equal(t, connect.CodeUnauthenticated, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), "RAYLINK_TOKEN")
	assert.Contains(t, err.Error(), "this user has started no Brain there")
	assert.NotContains(t, err.Error(), token)
}

// TestPrintingShowsNoToken prints what holds a token, each way that a log or a debugger's habit
// does.
func TestPrintingShowsNoToken(t *testing.T) {
	closedByDefault(t)
	rt := system(t)
	token := tokenOf(t, rt)
	for _, v := range []any{rt, *rt} {
		for _, verb := range []string{"%v", "%+v", "%s"} {
			assert.NotContains(t, fmt.Sprintf(verb, v), token, "%T by %s", v, verb)
		}
	}
	assert.Contains(t, fmt.Sprint(rt), rt.Address())
	var options raylink.Options
	options.Token, options.Listen = token, "127.0.0.1:0"
	assert.Equal(t, "listen=127.0.0.1:0 token=(set)", fmt.Sprint(options))
	assert.Equal(t, "listen=127.0.0.1:0 token=(set)", fmt.Sprint(&options))
}

func TestTokenIsNewForEachSystemAndGoneWithIt(t *testing.T) {
	closedByDefault(t)
	one, err := raylink.Start(patient(t), runtime.WithData(t.TempDir()))
	require.NoError(t, err)
	two := system(t)
	assert.NotEqual(t, tokenOf(t, one), tokenOf(t, two))
	require.NotEqual(t, one.TokenFile(), two.TokenFile())
	_, err = join.Start(patient(t), runtime.WithBrain(one.Address()), runtime.WithData(t.TempDir()), runtime.WithToken(tokenOf(t, two)))
	require.Equal(t, connect.CodeUnauthenticated, connect.CodeOf(err), "%v", err)
	file := one.TokenFile()
	require.NoError(t, one.Close())
	_, err = os.Stat(file)
	require.ErrorIs(t, err, os.ErrNotExist)
}

// TestOpenSystemMustBeJoinedExplicitly ensures that a process which has taken the address of a
// closed system can't make others join without a token.
func TestOpenSystemMustBeJoinedExplicitly(t *testing.T) {
	closedByDefault(t)
	rt := system(t, runtime.WithOpen())
	assert.Empty(t, rt.TokenFile())
	create(t, rt)
	status, body := post(t, "http://"+rt.Address()+"/probe-0/contract.v1.Probe/Add", nil)
	assert.Equal(t, http.StatusOK, status, body)
	_, err := join.Start(patient(t), runtime.WithBrain(rt.Address()), runtime.WithData(t.TempDir()))
	require.Equal(t, connect.CodeUnauthenticated, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), "RAYLINK_OPEN=1")
	_, err = join.Start(patient(t), runtime.WithBrain(rt.Address()), runtime.WithData(t.TempDir()), runtime.WithToken("t"))
	require.Equal(t, connect.CodeUnauthenticated, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), "RAYLINK_OPEN=1")
	joined(t, rt, runtime.WithOpen())
}

func TestInvalidSettingsAreRefused(t *testing.T) {
	closedByDefault(t)
	_, err := raylink.Start(patient(t), runtime.WithToken("t"), runtime.WithOpen(), runtime.WithData(t.TempDir()))
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v", err)
	for name, value := range map[string]string{
		"RAYLINK_OPEN": "maybe", "RAYLINK_INSECURE": "sure", "RAYLINK_BUSY_POLL": "20", "RAYLINK_HEAP_FLOOR": "16MB",
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, value)
			_, err := raylink.Start(patient(t), runtime.WithData(t.TempDir()))
			require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v", err)
			assert.Contains(t, err.Error(), name+` is "`+value+`"`)
		})
	}
}

// squatter has taken the address of another process. It responds with a given text, and records
// what it reads.
type squatter struct {
	net.Listener

	mu       sync.Mutex
	received bytes.Buffer
	conns    int
	done     sync.WaitGroup
}

func newSquatter(t *testing.T, address, answer string) *squatter {
	t.Helper()
	s := &squatter{}
	require.Eventually(t, func() (free bool) {
		var err error
		s.Listener, err = new(net.ListenConfig).Listen(t.Context(), "tcp", address)
		return err == nil
	}, patience, 10*time.Millisecond)
	s.done.Go(func() {
		for {
			nc, err := s.Accept()
			if err != nil {
				return
			}
			s.done.Go(func() {
				defer func() { _ = nc.Close() }()
				_ = nc.SetDeadline(time.Now().Add(time.Second))
				_, _ = nc.Write([]byte(answer))
				buf := make([]byte, 4096)
				for {
					n, err := nc.Read(buf)
					s.mu.Lock()
					s.received.Write(buf[:n])
					if err != nil {
						s.conns++
					}
					s.mu.Unlock()
					if err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = s.Close()
		s.done.Wait()
	})
	return s
}

func (s *squatter) served() (int, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns, s.received.String()
}

// TestSquatterLearnsNothing takes the address of a Brain that has ended, while a host tries to
// reconnect, and the address of a host, to which the gateway, a handle and a program with a
// transport of RayLink send requests.
func TestSquatterLearnsNothing(t *testing.T) {
	closedByDefault(t)
	const secret, private = "s3cret-s3cret-s3cret", "a private request"
	ctx := patient(t)
	brain, err := raylink.Start(ctx, append(contract.Types(), runtime.WithData(t.TempDir()), runtime.WithToken(secret))...)
	require.NoError(t, err)
	address := brain.Address()
	host := newSquatter(t, "127.0.0.1:0", "HTTP/1.1 200 OK\r\n\r\n")
	// The host's record has the squatter's address; its socket, by which it could still be reached,
	// is removed.
	far, err := join.Start(ctx, append(contract.Types(), runtime.WithBrain(address), runtime.WithData(t.TempDir()), runtime.WithToken(secret),
		runtime.WithAdvertise(host.Addr().String()))...)
	require.NoError(t, err)
	p := create(t, far)
	require.NoError(t, os.Remove(p.Ref().NodeRef().GetHost().GetSocket()))

	status, body := post(t, "http://"+address+"/"+p.Ref().Path()+"/contract.v1.Probe/Echo", func(r *http.Request) {
		bearer(secret)(r)
		r.Header.Set("X-Private", private)
	})
	assert.Equal(t, http.StatusServiceUnavailable, status, body)
	seen, err := contractv1raylink.ProbeFrom(brain, p.Ref().NodeRef())
	require.NoError(t, err)
	_, err = seen.Add(runtime.WithMetadata(ctx, "x-private", private), nil)
	require.Error(t, err)
	client := connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: runtime.NewHTTPTransport(secret, nil)}, "http://"+host.Addr().String()+"/probe-0"))
	_, err = contractv1raylink.NewProbeTunnel(client).Add(ctx, &contractv1.AddRequest{})
	require.Error(t, err)
	require.Eventually(t, func() bool { n, _ := host.served(); return n >= 3 }, patience, 10*time.Millisecond)
	_, received := host.served()
	assert.NotContains(t, received, secret)
	assert.NotContains(t, received, private)
	assert.NotContains(t, received, "Bearer")

	require.NoError(t, brain.Close())
	for _, answer := range []string{"", "HTTP/1.1 200 OK\r\n\r\n", "\x8dRAYLINK"} {
		s := newSquatter(t, address, answer)
		require.Eventually(t, func() bool { n, _ := s.served(); return n > 0 }, patience, 10*time.Millisecond, "no host tried to reconnect to Brain")
		_, received := s.served()
		assert.NotContains(t, received, secret)
		require.NoError(t, s.Close())
		s.done.Wait()
	}
	require.NoError(t, far.Close())
}
