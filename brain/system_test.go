package brain_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/raylink/raylink/brain"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

func TestMain(m *testing.M) {
	runChild() // never returns in a child process
	goleak.VerifyTestMain(m)
}

// patience bounds how long a test waits for an event; no result depends on how soon it occurs.
const patience = time.Minute

// system is a Brain behind a listener, and a client of it.
type system struct {
	*brain.Brain

	client brainv1connect.BrainServiceClient
	server *httptest.Server
	http   *http.Client
}

func start(t *testing.T, opts brain.Options) *system {
	t.Helper()
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	b, err := brain.Open(opts)
	require.NoError(t, err)
	server := connect.NewServer()
	b.Register(server)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server)
	s := &system{Brain: b, http: h2c(t)}
	s.server = serve(t, b.Gateway(mux, nil))
	s.client = brainv1connect.NewBrainServiceClient(connect.NewClient(connecthttp.NewTransport(s.http, s.server.URL)))
	t.Cleanup(func() {
		if err := b.Close(); b.Err() == nil {
			require.NoError(t, err)
		}
	})
	return s
}

// serve serves HTTP/1.1 and HTTP/2 without TLS on a loopback port.
func serve(t *testing.T, handler http.Handler) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server
}

// h2c is a client that speaks HTTP/2 without TLS.
func h2c(t *testing.T) *http.Client {
	t.Helper()
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func host(pid int32, address string) *nodev1.HostInfo {
	id := []byte("00000000-0000-4000-8000-000000000000")
	for i, n := len(id)-1, pid; n > 0; i, n = i-1, n/10 {
		id[i] = byte('0' + n%10)
	}
	return &nodev1.HostInfo{Id: string(id), Pid: pid, Machine: "m1", Address: address}
}

// register registers one node. If at is not nil, the node runs on that host.
func (s *system) register(t *testing.T, parent, kind string, at *nodev1.HostInfo) *nodev1.NodeRecord {
	t.Helper()
	res, err := s.client.Register(t.Context(), &brainv1.RegisterRequest{Parent: parent, Type: kind, Service: "test.v1.Test"})
	require.NoError(t, err)
	require.Len(t, res.GetNodes(), 1)
	if at == nil {
		return res.GetNodes()[0]
	}
	updated, err := s.client.Update(t.Context(), &brainv1.UpdateRequest{Changes: []*brainv1.Change{{
		Nid: res.GetNodes()[0].GetNid(), Incarnation: 1, State: nodev1.NodeState_NODE_STATE_RUNNING, Host: at,
	}}})
	require.NoError(t, err)
	return updated.GetNodes()[0]
}

func (s *system) lookup(ctx context.Context, where string) (*nodev1.NodeRecord, error) {
	res, err := s.client.Lookup(ctx, &brainv1.LookupRequest{Where: &brainv1.Where{By: &brainv1.Where_Any{Any: where}}})
	return res.GetNode(), err
}

// attach opens a host's lease stream and returns Brain's first response.
func (s *system) attach(t *testing.T, host *nodev1.HostInfo, nodes ...*nodev1.NodeRecord) (brainv1connect.BrainServiceAttachClientStream, *brainv1.AttachResponse) {
	t.Helper()
	stream, err := s.client.Attach(t.Context())
	require.NoError(t, err)
	req := &brainv1.AttachRequest{Host: host}
	for _, n := range nodes {
		req.Nodes = append(req.Nodes, &nodev1.NodeRef{Nid: n.GetNid(), Incarnation: n.GetIncarnation()})
	}
	require.NoError(t, stream.Send(req))
	res, err := stream.Receive()
	require.NoError(t, err)
	return stream, res
}

// gone waits until a lookup fails, and returns its error.
func (s *system) gone(t *testing.T, where string) error {
	t.Helper()
	var err error
	require.Eventually(t, func() bool {
		_, err = s.lookup(t.Context(), where)
		return err != nil
	}, patience, 5*time.Millisecond, "%s is still registered", where)
	require.Equal(t, connect.CodeNotFound, connect.CodeOf(err), "%v", err)
	return err
}
