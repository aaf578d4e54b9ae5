package raylink_test

import (
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/raylink/raylink"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/internal/pki"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
)

// encrypted is a system with TLS, which has a CA of its own.
type encrypted struct {
	*raylink.Runtime

	join, admin string
}

func newEncrypted(t *testing.T, opts ...raylink.Option) *encrypted {
	t.Helper()
	rt := system(t, append([]raylink.Option{raylink.WithTLS()}, opts...)...)
	read := func(path string) string {
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		return strings.TrimSpace(string(b))
	}
	file, err := os.Readlink(rt.TokenFile())
	require.NoError(t, err)
	dir := rt.TokenFile()[:strings.LastIndex(rt.TokenFile(), "/")+1] + strings.TrimSuffix(file, "token")
	return &encrypted{Runtime: rt, join: read(rt.TokenFile()), admin: read(dir + "admin-token")}
}

// joined joins the system by a token.
func (e *encrypted) joined(t *testing.T, token string, opts ...join.Option) *join.Runtime {
	t.Helper()
	return joined(t, e.Runtime, append(opts, runtime.WithToken(token))...)
}

// client is an HTTP client that trusts the system's CA.
func (e *encrypted) client(t *testing.T, token string) *http.Client {
	t.Helper()
	parsed, err := pki.ParseToken(e.join)
	require.NoError(t, err)
	config, err := pki.ClientConfig(nil, pki.Trust{Fingerprint: parsed.Fingerprint()}, "h2", "http/1.1")
	require.NoError(t, err)
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: tokenSender{token, transport}}
}

type tokenSender struct {
	token string
	next  http.RoundTripper
}

// RoundTrip implements [http.RoundTripper].
func (b tokenSender) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	if b.token != "" {
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.next.RoundTrip(r)
}

func (e *encrypted) tokens(t *testing.T, token string) brainv1connect.TokenServiceClient {
	t.Helper()
	return e.at(t, e.Address(), token)
}

// at returns a client of the service that administers tokens, at Brain's address.
func (e *encrypted) at(t *testing.T, address, token string) brainv1connect.TokenServiceClient {
	t.Helper()
	return brainv1connect.NewTokenServiceClient(connect.NewClient(connecthttp.NewTransport(e.client(t, token), "https://"+address)))
}

// admin returns the token with the role admin.
func (s *closed) admin(t *testing.T) string {
	t.Helper()
	token, err := s.store.KeepToken("admin", pki.RoleAdmin, "")
	require.NoError(t, err)
	return token.Reveal()
}

func timestamp(t time.Time) *timestamppb.Timestamp { return timestamppb.New(t) }

// make makes a token, and returns its text and its id.
func (e *encrypted) make(t *testing.T, role brainv1.Role) (token, id string) {
	t.Helper()
	res, err := e.tokens(t, e.admin).MakeToken(patient(t), &brainv1.MakeTokenRequest{Role: role})
	require.NoError(t, err)
	return res.GetToken(), res.GetInfo().GetId()
}

func (e *encrypted) echo(t *testing.T, token, node string) error {
	t.Helper()
	transport := connecthttp.NewTransport(runtime.HTTPClient(e.client(t, token)), "https://"+e.Address()+"/"+node)
	_, err := contractv1raylink.NewProbeTunnel(connect.NewClient(transport)).Echo(patient(t), &contractv1.EchoRequest{Payload: []byte("x")})
	return err
}

// TestEncryptedSystem: hosts join by a token, call each other by TCP and Unix sockets, launch
// processes, and serve HTTP clients that trust the CA.
func TestEncryptedSystem(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	e := newEncrypted(t)
	a, b := e.joined(t, e.join), e.joined(t, e.join)
	here := create(t, a, runtime.Here())
	apart := create(t, a, runtime.OwnProcess())
	for _, node := range []*contractv1raylink.Probe{here, apart} {
		found, err := contractv1raylink.FindProbe(ctx, b, runtime.Path(node.Ref().Path()))
		require.NoError(t, err)
		_, err = found.Echo(ctx, &contractv1.EchoRequest{Payload: []byte("x")})
		require.NoError(t, err)
		call, _ := e.make(t, brainv1.Role_ROLE_CALL)
		require.NoError(t, e.echo(t, call, node.Ref().Path()))
		require.Equal(t, connect.CodeUnauthenticated, connect.CodeOf(e.echo(t, "", node.Ref().Path())))
	}
	res, err := e.client(t, "").Get("https://" + e.Address() + "/healthz")
	require.NoError(t, err)
	defer res.Body.Close() //nolint:errcheck // read to its end
	require.Equal(t, "HTTP/2.0", res.Proto)
}
