package raylink_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
)

// post sends a Connect call as curl would, and returns status and body.
func post(t *testing.T, url string, edit func(*http.Request)) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(patient(t), http.MethodPost, url, strings.NewReader(`{"by": 1}`))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	if edit != nil {
		edit(req)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	require.NoError(t, err)
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode, string(body)
}

func TestHTTPNamesANodeInManyWays(t *testing.T) {
	t.Parallel()
	rt := system(t)
	p := create(t, rt, runtime.WithAlias("counter"))
	inner, err := p.Spawn(patient(t), &contractv1.SpawnRequest{InProcess: true})
	require.NoError(t, err)
	base := "http://" + rt.Address()
	for _, name := range []string{p.Ref().Path(), "counter", p.Ref().NID(), inner.GetChildren()[0].GetPath()} {
		status, body := post(t, base+"/"+name+"/contract.v1.Probe/Add", nil)
		assert.Equal(t, http.StatusOK, status, "%s: %s", name, body)
		assert.Contains(t, body, `"sum"`)
	}
	status, body := post(t, base+"/contract.v1.Probe/Add", func(r *http.Request) { r.Header.Set("Raylink-Node", "counter") })
	assert.Equal(t, http.StatusOK, status, body)
	for url, says := range map[string]string{
		"/nobody-0/contract.v1.Probe/Add": "nobody-0",
		"/counter/contract.v1.Probe/Sub":  "which has no method contract.v1.Probe/Sub; it has Add, Echo",
		"/counter/contract.v1.Other/Ping": "is a node of contract.v1.Probe",
	} {
		status, body := post(t, base+url, nil)
		assert.GreaterOrEqual(t, status, 400, url)
		assert.Contains(t, body, says, url)
	}
	status, body = post(t, base+"/BRAIN/raylink.node.v1.NodeService/Info", func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("{}")); r.ContentLength = 2 })
	assert.Equal(t, http.StatusOK, status, body)
	assert.Contains(t, body, `"BRAIN"`)
}

func TestLoopbackIsClosedToBrowsers(t *testing.T) {
	t.Parallel()
	rt := system(t, runtime.WithOrigins("https://good.example"))
	create(t, rt)
	url := "http://" + rt.Address() + "/probe-0/contract.v1.Probe/Add"
	status, body := post(t, url, func(r *http.Request) { r.Host = "evil.example" })
	assert.Equal(t, http.StatusForbidden, status, body)
	assert.Contains(t, body, "evil.example")
	status, body = post(t, url, func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") })
	assert.Equal(t, http.StatusForbidden, status, body)
	status, body = post(t, url, func(r *http.Request) { r.Header.Set("Origin", "https://good.example") })
	assert.Equal(t, http.StatusOK, status, body)
	status, _ = post(t, url, func(r *http.Request) { r.Host = "localhost:1234" })
	assert.Equal(t, http.StatusOK, status)
}

func TestTokenIsRequiredEverywhere(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	rt := system(t, runtime.WithToken("s3cret"))
	p := create(t, rt, runtime.OwnProcess())
	_, err := p.Add(ctx, nil)
	require.NoError(t, err, "a node's process got no token")
	for _, token := range []string{"", "wrong"} {
		_, err := join.Start(ctx, runtime.WithBrain(rt.Address()), runtime.WithData(t.TempDir()), runtime.WithToken(token))
		require.Equal(t, connect.CodeUnauthenticated, connect.CodeOf(err), "%v", err)
		assert.Contains(t, err.Error(), "RAYLINK_TOKEN")
		assert.NotContains(t, err.Error(), "s3cret")
	}
	for _, address := range []string{rt.Address(), p.Ref().NodeRef().GetHost().GetAddress()} {
		url := "http://" + address + "/" + p.Ref().Path() + "/contract.v1.Probe/Add"
		status, body := post(t, url, nil)
		assert.Equal(t, http.StatusUnauthorized, status, body)
		status, body = post(t, url, func(r *http.Request) { r.Header.Set("Authorization", "Bearer wrong") })
		assert.Equal(t, http.StatusUnauthorized, status, body)
		status, body = post(t, url, func(r *http.Request) { r.Header.Set("Authorization", "Bearer s3cret") })
		assert.Equal(t, http.StatusOK, status, body)
	}
	info, err := p.Ref().CreateTunnel(ctx, "x")
	require.NoError(t, err)
	assert.NotContains(t, info.String(), "s3cret", "credentials travel in messages")
	_, err = runtime.DialTunnel(ctx, info, "wrong")
	require.Equal(t, connect.CodeUnauthenticated, connect.CodeOf(err), "%v", err)
}

func TestBeyondLoopbackNeedsTokenAndConsent(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]raylink.Option{
		"nothing":      {},
		"token only":   {runtime.WithToken("s")},
		"consent only": {runtime.WithInsecure(), runtime.WithOpen()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opts := append(opts, runtime.WithListen("0.0.0.0:0"), runtime.WithAdvertise("127.0.0.1:1"), runtime.WithData(t.TempDir()))
			_, err := raylink.Start(patient(t), opts...)
			require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err), "%v", err)
			assert.Contains(t, err.Error(), "RAYLINK_TOKEN")
			assert.Contains(t, err.Error(), "--insecure")
		})
	}
	_, err := raylink.Start(patient(t), runtime.WithToken("s"), runtime.WithInsecure(), runtime.WithListen("0.0.0.0:0"), runtime.WithData(t.TempDir()))
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), "--advertise")
}

func TestGarbageOnThePortDoesNotDisturbCalls(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	rt := system(t)
	other := joined(t, rt)
	p, err := contractv1raylink.ProbeFrom(other, create(t, rt).Ref().NodeRef())
	require.NoError(t, err)
	for _, garbage := range []string{"", "\x00\x01\x02\x03", "GET / HTTP/1.1\r\n\r\n", "SSH-2.0-x\r\n", strings.Repeat("\xff", 1<<16), "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", "RAYLINK garbage after something like a preface"} {
		nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", rt.Address())
		require.NoError(t, err)
		_, _ = nc.Write([]byte(garbage)) // the other side may close at once
		require.NoError(t, nc.Close())
		_, err = p.Add(ctx, &contractv1.AddRequest{By: 1})
		require.NoError(t, err)
	}
	// A thousand connections that send nothing.
	var silent []net.Conn
	for range 1000 {
		nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", rt.Address())
		require.NoError(t, err)
		silent = append(silent, nc)
	}
	_, err = p.Add(ctx, &contractv1.AddRequest{By: 1})
	require.NoError(t, err)
	for _, nc := range silent {
		_ = nc.Close()
	}
}

func TestAbsentBrainIsReported(t *testing.T) {
	t.Parallel()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())
	_, err = join.Start(patient(t), runtime.WithBrain(address), runtime.WithData(t.TempDir()))
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), address)
	_, err = join.Start(patient(t), runtime.WithData(t.TempDir()), runtime.WithBrain(""))
	require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), "raylink brain")
}

func TestCreationWithoutWaitingForSetUp(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	p, err := contractv1raylink.CreateProbe(ctx, driver, &contractv1.ProbeConfig{Start: 5}, runtime.NoWait())
	require.NoError(t, err)
	res, err := p.Add(ctx, &contractv1.AddRequest{By: 1})
	require.NoError(t, err, "a call did not wait for the set-up")
	assert.Equal(t, int64(6), res.GetSum())

	p, err = contractv1raylink.CreateProbe(ctx, driver, &contractv1.ProbeConfig{Fail: "not today"}, runtime.NoWait())
	require.NoError(t, err)
	_, err = p.Add(ctx, nil)
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), "not today")
}

func TestSecondInitIsRefused(t *testing.T) {
	t.Parallel()
	_, err := raylink.Init(patient(t))
	require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err), "%v", err)
}

func TestTypesOfOneName(t *testing.T) {
	t.Parallel()
	other := contractv1raylink.OtherType(func(context.Context, *runtime.Node) (contractv1raylink.OtherNode, error) { return nil, nil }) //nolint:nilnil // it is never called
	_, err := raylink.Start(patient(t), other, other, runtime.WithData(t.TempDir()))
	require.Equal(t, connect.CodeAlreadyExists, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), `"other"`)
}

// TestHandlesUseTheTunnelOfTheirReference makes typed handles for a tagged tunnel in three
// processes: the driver, one that has joined, and the node's own, where the tunnel is not used.
func TestHandlesUseTheTunnelOfTheirReference(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	p := create(t, driver)
	info, err := p.Ref().CreateTunnel(ctx, "bulk")
	require.NoError(t, err)
	bulk, err := contractv1raylink.ProbeFrom(driver, info.GetNode())
	require.NoError(t, err)
	again, err := contractv1raylink.ProbeFrom(joined(t, driver), bulk.Ref().NodeRef())
	require.NoError(t, err)
	tagged, err := contractv1raylink.ProbeFrom(driver, p.Ref().Tagged("bulk").NodeRef())
	require.NoError(t, err)
	shared, err := contractv1raylink.ProbeFrom(driver, tagged.Ref().Tagged("").NodeRef())
	require.NoError(t, err)
	for i, handle := range []*contractv1raylink.Probe{bulk, again, tagged, shared, p} {
		sum, err := handle.AddAsync(ctx, &contractv1.AddRequest{By: 1}).Get(ctx)
		require.NoError(t, err)
		assert.Equal(t, int64(i+1), sum.GetSum())
	}
	stats, err := p.Ref().TunnelStats(ctx, "bulk")
	require.NoError(t, err)
	require.Len(t, stats, 1)
	assert.Equal(t, uint64(3), stats[0].GetCalls())
	assert.Equal(t, uint64(2), stats[0].GetConnectionsTotal(), "one for each process")

	missing, err := contractv1raylink.ProbeFrom(driver, p.Ref().Tagged("missing").NodeRef())
	require.NoError(t, err)
	_, err = missing.Add(ctx, nil)
	require.Equal(t, connect.CodeNotFound, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), `has no tunnel "missing"`)

	here := create(t, driver, runtime.ParentProcess())
	_, err = here.Ref().CreateTunnel(ctx, "bulk")
	require.NoError(t, err)
	near, err := contractv1raylink.ProbeFrom(driver, here.Ref().Tagged("bulk").NodeRef())
	require.NoError(t, err)
	_, err = near.Add(ctx, nil)
	require.NoError(t, err)
	far, err := contractv1raylink.ProbeFrom(joined(t, driver), near.Ref().NodeRef())
	require.NoError(t, err)
	_, err = far.Add(ctx, nil)
	require.NoError(t, err)
	stats, err = here.Ref().TunnelStats(ctx, "bulk")
	require.NoError(t, err)
	require.Len(t, stats, 1)
	assert.Equal(t, uint64(1), stats[0].GetCalls())
}

func TestOwnTunnelIsCounted(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	p := create(t, driver)
	_, err := p.Ref().CreateTunnel(ctx, "fast")
	require.NoError(t, err)
	_, err = p.Ref().CreateTunnel(ctx, "fast")
	require.Equal(t, connect.CodeAlreadyExists, connect.CodeOf(err), "%v", err)
	_, err = p.Ref().TunnelStats(ctx, "slow")
	require.Equal(t, connect.CodeNotFound, connect.CodeOf(err), "%v", err)
	info, err := p.Ref().CreateTunnel(ctx, "other")
	require.NoError(t, err)
	tunnel, err := runtime.DialTunnel(ctx, info, "")
	require.NoError(t, err)
	far := contractv1raylink.NewProbeTunnel(tunnel.Client())
	for range 3 {
		_, err := far.Add(ctx, &contractv1.AddRequest{By: 1})
		require.NoError(t, err)
	}
	var stats []*nodev1.TunnelStats
	require.Eventually(t, func() bool { // the first calls may be there before the connection is counted
		stats, err = p.Ref().TunnelStats(ctx, "other")
		return err == nil && len(stats) == 1 && stats[0].GetConnectionsOpen() == 1
	}, patience, 5*time.Millisecond)
	assert.Equal(t, uint64(3), stats[0].GetCalls())
	assert.Positive(t, stats[0].GetBytesReceived())
	assert.Positive(t, stats[0].GetBytesSent())
	require.NoError(t, tunnel.Close())
	require.Eventually(t, func() bool {
		stats, err := p.Ref().TunnelStats(ctx, "")
		return err == nil && len(stats) == 2 && stats[1].GetConnectionsOpen() == 0 && stats[1].GetConnectionsTotal() == 1
	}, patience, 5*time.Millisecond)
}

// TestStartMakesItsOwnSystemWhateverTheEnvironment runs with RAYLINK_BRAIN set to a live system.
func TestStartMakesItsOwnSystemWhateverTheEnvironment(t *testing.T) {
	t.Setenv("RAYLINK_BRAIN", driver.Address())
	rt := system(t)
	assert.NotEqual(t, driver.Address(), rt.Address())
	p := create(t, rt)
	_, err := contractv1raylink.FindProbe(patient(t), driver, runtime.NID(p.Ref().NID()))
	require.Equal(t, connect.CodeNotFound, connect.CodeOf(err), "%v", err)
	asked := system(t, raylink.WithBrainFromEnvironment())
	_, err = contractv1raylink.FindProbe(patient(t), driver, runtime.NID(create(t, asked).Ref().NID()))
	require.NoError(t, err)
}

// TestDriverOfARemoteBrainIsWarnedThatItListensOnLoopback joins as if from another machine.
func TestDriverOfARemoteBrainIsWarnedThatItListensOnLoopback(t *testing.T) {
	rt := system(t)
	log := func() string {
		var text lockedBuffer
		part := joined(t, rt, runtime.WithLogger(slog.New(slog.NewTextHandler(&text, nil))))
		require.NoError(t, part.Close())
		return text.String()
	}
	assert.NotContains(t, log(), "cannot be reached")
	t.Setenv("RAYLINK_MACHINE", "another")
	said := log()
	assert.Contains(t, said, "cannot be reached from there")
	assert.Contains(t, said, "RAYLINK_LISTEN")
}

// lockedBuffer is a buffer that is safe for concurrent use.
type lockedBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
