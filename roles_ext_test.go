package raylink_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/internal/pki"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/tunnel"
)

// roleNode is a node whose methods require roles.
type roleNode struct {
	contractv1raylink.UnimplementedGuardedNode

	watching atomic.Int64 // how many calls of WatchAsAdmin run
}

func (*roleNode) AsAnyone(context.Context, *contractv1.AddRequest) (*contractv1.AddResponse, error) {
	return &contractv1.AddResponse{}, nil
}

func (*roleNode) AsCaller(context.Context, *contractv1.AddRequest) (*contractv1.AddResponse, error) {
	return &contractv1.AddResponse{}, nil
}

func (*roleNode) AsHost(context.Context, *contractv1.AddRequest) (*contractv1.AddResponse, error) {
	return &contractv1.AddResponse{}, nil
}

func (*roleNode) AsAdmin(context.Context, *contractv1.AddRequest) (*contractv1.AddResponse, error) {
	return &contractv1.AddResponse{}, nil
}

// WatchAsAdmin sends as many messages as are asked for, and then nothing until its context ends.
func (g *roleNode) WatchAsAdmin(ctx context.Context, req *contractv1.CountRequest, stream contractv1raylink.GuardedWatchAsAdminServerStream) error {
	g.watching.Add(1)
	defer g.watching.Add(-1)
	for range req.GetTo() {
		if err := stream.Send(&contractv1.CountResponse{}); err != nil {
			return err
		}
	}
	if req.GetPlain() {
		return nil
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

// guardedSystem is a closed system with a guarded node on a host of its own.
type guardedSystem struct {
	*closed

	host  *join.Runtime
	node  *contractv1raylink.Guarded
	impl  *roleNode
	admin string
}

func newGuardedSystem(t *testing.T) *guardedSystem {
	t.Helper()
	g := &guardedSystem{closed: newClosed(t, 0), impl: new(roleNode)}
	g.admin = g.closed.admin(t)
	var err error
	g.host, err = g.joined(t, runtime.WithToken(g.token), contractv1raylink.GuardedType(
		func(context.Context, *runtime.Node) (contractv1raylink.GuardedNode, error) { return g.impl, nil }))
	require.NoError(t, err)
	g.node, err = contractv1raylink.CreateGuarded(t.Context(), g.host, runtime.Here())
	require.NoError(t, err)
	return g
}

// encrypted is the system as its HTTP clients see it.
func (g *guardedSystem) encrypted() *encrypted { return &encrypted{join: g.token} }

// make makes a token that Brain and the host know.
func (g *guardedSystem) make(t *testing.T, role brainv1.Role) (token, id string) {
	t.Helper()
	res, err := g.encrypted().at(t, g.Address(), g.admin).MakeToken(t.Context(), &brainv1.MakeTokenRequest{Role: role})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		_, err := g.byHTTP(t, g.host.Address(), res.GetToken()).AsAnyone(patient(t), nil)
		return err == nil
	}, patience, time.Millisecond)
	return res.GetToken(), res.GetInfo().GetId()
}

func (g *guardedSystem) revoke(t *testing.T, id string) {
	t.Helper()
	_, err := g.encrypted().at(t, g.Address(), g.admin).RevokeToken(t.Context(), &brainv1.RevokeTokenRequest{Id: id})
	require.NoError(t, err)
}

// byHTTP calls the node by HTTP at an address.
func (g *guardedSystem) byHTTP(t *testing.T, address, token string, options ...connecthttp.Option) *contractv1raylink.Guarded {
	t.Helper()
	url := "https://" + address + "/" + g.node.Ref().Path()
	return contractv1raylink.NewGuardedTunnel(connect.NewClient(connecthttp.NewTransport(runtime.HTTPClient(g.encrypted().client(t, token)), url, options...)))
}

// byProof calls the node through Brain, on a connection on which the token was proven instead of
// sent.
func (g *guardedSystem) byProof(t *testing.T, token string) *contractv1raylink.Guarded {
	t.Helper()
	transport := runtime.NewHTTPTransport(token, nil)
	t.Cleanup(transport.CloseIdleConnections)
	url := "http://" + g.Address() + "/" + g.node.Ref().Path()
	return contractv1raylink.NewGuardedTunnel(connect.NewClient(connecthttp.NewTransport(runtime.HTTPClient(&http.Client{Transport: transport}), url)))
}

// byTunnel calls the node as a host whose certificate has a role.
func (g *guardedSystem) byTunnel(t *testing.T, role pki.Role) *contractv1raylink.Guarded {
	t.Helper()
	id := uuid.NewString()
	cert := certificate(t, g.ca, pki.Grant{HostID: id, Role: role})
	config, err := pki.ClientConfig(func() (*tls.Certificate, error) { return cert, nil }, pki.Trust{Roots: g.ca.Roots}, "raylink/1")
	require.NoError(t, err)
	nc, err := new(net.Dialer).DialContext(t.Context(), "tcp", g.host.Address())
	require.NoError(t, err)
	conn, err := tunnel.Dial(patient(t), tls.Client(nc, config), tunnel.Hello{Client: id}, tunnel.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return contractv1raylink.NewGuardedTunnel(connect.NewClient(conn.Transport(g.node.Ref().NID(), "")))
}

// TestMethodsRequireRoles: each method of a node serves the callers that have the role which its
// schema requires, whatever way they call. The error of others has both roles.
func TestMethodsRequireRoles(t *testing.T) {
	t.Parallel()
	g := newGuardedSystem(t)
	methods := []struct {
		name string
		need pki.Role
		call func(context.Context, *contractv1raylink.Guarded) error
	}{
		{"AsAnyone", pki.RoleCall, func(ctx context.Context, n *contractv1raylink.Guarded) error {
			_, err := n.AsAnyone(ctx, nil)
			return err
		}},
		{"AsCaller", pki.RoleCall, func(ctx context.Context, n *contractv1raylink.Guarded) error {
			_, err := n.AsCaller(ctx, nil)
			return err
		}},
		{"AsHost", pki.RoleJoin, func(ctx context.Context, n *contractv1raylink.Guarded) error {
			_, err := n.AsHost(ctx, nil)
			return err
		}},
		{"AsAdmin", pki.RoleAdmin, func(ctx context.Context, n *contractv1raylink.Guarded) error {
			_, err := n.AsAdmin(ctx, nil)
			return err
		}},
		{"WatchAsAdmin", pki.RoleAdmin, func(ctx context.Context, n *contractv1raylink.Guarded) error {
			stream, err := n.WatchAsAdmin(ctx, &contractv1.CountRequest{To: 1, Plain: true})
			if err == nil {
				_, err = stream.Receive()
			}
			return err
		}},
	}
	for role, number := range map[pki.Role]brainv1.Role{
		pki.RoleCall: brainv1.Role_ROLE_CALL, pki.RoleJoin: brainv1.Role_ROLE_JOIN, pki.RoleAdmin: brainv1.Role_ROLE_ADMIN,
	} {
		token, _ := g.make(t, number)
		for way, node := range map[string]*contractv1raylink.Guarded{
			"HTTP at the host": g.byHTTP(t, g.host.Address(), token), "HTTP at Brain": g.byHTTP(t, g.Address(), token),
			"gRPC at the host": g.byHTTP(t, g.host.Address(), token, connecthttp.WithGRPC()),
			"proof at Brain":   g.byProof(t, token), "a tunnel": g.byTunnel(t, role),
		} {
			for _, m := range methods {
				err := m.call(patient(t), node)
				what := fmt.Sprintf("%s by %s with the role %s", m.name, way, role)
				if role.Includes(m.need) {
					assert.NoError(t, err, what)
					continue
				}
				assert.Equal(t, connect.CodePermissionDenied, connect.CodeOf(err), what)
				assert.ErrorContains(t, err, fmt.Sprintf("contract.v1.Guarded/%s requires the role %s, and the caller has the role %q", m.name, m.need, role), what) //nolint:testifylint // all are reported
			}
		}
		forged := g.byHTTP(t, g.host.Address(), token)
		ctx, info := connect.NewClientContext(patient(t))
		info.RequestHeader().Set("Raylink-Role", "admin")
		_, err := forged.AsAdmin(ctx, nil)
		assert.Equal(t, role != pki.RoleAdmin, err != nil, "a caller names its own role")
	}
	_, err := g.node.AsAdmin(t.Context(), nil)
	require.NoError(t, err, "nodes of a process call each other regardless")
}

// TestRevocationEndsStreams: what a token has begun ends with it, also streams that would last for
// ever, and the methods that serve them. Those of other tokens go on.
func TestRevocationEndsStreams(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	g := newGuardedSystem(t)
	kept, _ := g.make(t, brainv1.Role_ROLE_ADMIN)
	token, id := g.make(t, brainv1.Role_ROLE_ADMIN)
	watch := func(node *contractv1raylink.Guarded) (end chan error) {
		stream, err := node.WatchAsAdmin(ctx, &contractv1.CountRequest{To: 1})
		require.NoError(t, err)
		_, err = stream.Receive()
		require.NoError(t, err)
		end = make(chan error, 1)
		go func() {
			_, err := stream.Receive()
			end <- err
		}()
		return end
	}
	others := watch(g.byHTTP(t, g.Address(), kept))
	ends := map[string]chan error{"a proof at Brain": watch(g.byProof(t, token))}
	for place, address := range map[string]string{"the host": g.host.Address(), "the gateway": g.Address()} {
		for protocol, options := range map[string][]connecthttp.Option{"Connect": nil, "gRPC": {connecthttp.WithGRPC()}, "gRPC-Web": {connecthttp.WithGRPCWeb()}} {
			ends[protocol+" at "+place] = watch(g.byHTTP(t, address, token, options...))
		}
	}
	brain := brainv1connect.NewBrainServiceClient(connect.NewClient(connecthttp.NewTransport(g.encrypted().client(t, token), "https://"+g.Address())))
	machines, err := brain.WatchMachines(ctx, &brainv1.WatchMachinesRequest{})
	require.NoError(t, err)
	_, err = machines.Receive()
	require.NoError(t, err)
	own := make(chan error, 1)
	go func() {
		_, err := machines.Receive()
		own <- err
	}()
	ends["Brain's own stream"] = own
	require.Equal(t, int64(len(ends)), g.impl.watching.Load())

	g.revoke(t, id)
	// Less than the patience of a test, so that there is time to report what goes on.
	soon, cancel := context.WithTimeout(ctx, patience/4)
	defer cancel()
	for what, end := range ends {
		select {
		case err := <-end:
			assert.Error(t, err, what) //nolint:testifylint // all are reported
		case <-soon.Done():
			t.Errorf("%s goes on", what)
		}
	}
	if t.Failed() {
		return
	}
	require.Eventually(t, func() bool { return g.impl.watching.Load() == 1 }, patience, time.Millisecond, "methods go on without a caller")
	select {
	case err := <-others:
		t.Errorf("the stream of another token has ended: %v", err)
	default:
	}
	_, err = g.byHTTP(t, g.Address(), token).AsAnyone(ctx, nil)
	require.ErrorContains(t, err, "revoked")
}

// TestDialTunnelByToken: a program without a runtime opens a tunnel by a token. The tunnel has the
// token's role, and ends with it.
func TestDialTunnelByToken(t *testing.T) {
	g := newGuardedSystem(t)
	info, err := g.node.Ref().CreateTunnel(t.Context(), "mine")
	require.NoError(t, err)
	token, id := g.make(t, brainv1.Role_ROLE_JOIN)
	call, _ := g.make(t, brainv1.Role_ROLE_CALL)

	_, err = runtime.DialTunnel(patient(t), info, token)
	require.ErrorContains(t, err, "set RAYLINK_BRAIN to its address", "the host is not Brain's")
	t.Setenv("RAYLINK_BRAIN", g.Address())
	calling, err := runtime.DialTunnel(patient(t), info, call)
	require.NoError(t, err)
	defer calling.Close() //nolint:errcheck // it is not used any more
	caller := contractv1raylink.NewGuardedTunnel(calling.Client())
	_, err = caller.AsCaller(patient(t), nil)
	require.NoError(t, err)
	_, err = caller.AsHost(patient(t), nil)
	require.ErrorContains(t, err, `requires the role join, and the caller has the role "call"`)
	_, err = runtime.DialTunnel(patient(t), info, strings.TrimSuffix(token, token[len(token)-1:]))
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v", err)
	for _, token := range []string{call, token} {
		assert.NotContains(t, fmt.Sprint(err), token[strings.LastIndex(token, ".")+1:])
	}

	open, err := runtime.DialTunnel(patient(t), info, token)
	require.NoError(t, err)
	defer open.Close() //nolint:errcheck // it has ended
	node := contractv1raylink.NewGuardedTunnel(open.Client())
	_, err = node.AsHost(patient(t), nil)
	require.NoError(t, err)
	_, err = node.AsAdmin(patient(t), nil)
	require.ErrorContains(t, err, `requires the role admin, and the caller has the role "join"`)

	blocked := make(chan error, 1)
	administer := contractv1raylink.NewGuardedTunnel(open.Client())
	go func() {
		for {
			if _, err := administer.AsHost(t.Context(), nil); err != nil {
				blocked <- err
				return
			}
		}
	}()
	g.revoke(t, id)
	select {
	case err := <-blocked:
		require.Error(t, err)
	case <-patient(t).Done():
		t.Fatal("the tunnel outlives its token")
	}
	_, err = runtime.DialTunnel(patient(t), info, token)
	require.ErrorContains(t, err, "the token was revoked")
}
