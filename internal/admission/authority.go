package admission

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	"github.com/raylink/raylink/internal/pki"
)

// Authority is the CA of a system, with its tokens. It is in the process of Brain. Its methods may
// be called concurrently.
type Authority struct {
	ca       *pki.CA
	tokens   *pki.TokenStore
	secret   string
	join     pki.Token
	admin    pki.Token
	lifetime time.Duration
	// address is where other machines reach Brain.
	address atomic.Pointer[string]
}

// Open opens the authority in a directory, and makes it on the first start: the CA, the secret of
// the system, and one token each for the roles join and admin, which are kept. Certificates have
// the given lifetime; 0 is the default. Only one process at a time may have the directory open.
func Open(dir string, lifetime time.Duration) (*Authority, error) {
	ca, err := pki.OpenCA(dir)
	if err != nil {
		return nil, err
	}
	a := &Authority{ca: ca, lifetime: lifetime}
	if a.secret, err = ca.Secret(); err != nil {
		return nil, err
	}
	if a.tokens, err = pki.OpenTokenStore(ca); err != nil {
		return nil, err
	}
	const label = "kept by Brain"
	if a.join, err = a.tokens.KeepToken("join", pki.RoleJoin, label); err != nil {
		return nil, err
	}
	if a.admin, err = a.tokens.KeepToken("admin", pki.RoleAdmin, label); err != nil {
		return nil, err
	}
	return a, nil
}

// Fingerprint is that of the CA.
func (a *Authority) Fingerprint() string { return a.ca.Fingerprint() }

// Trust is what verifies certificates of the CA.
func (a *Authority) Trust() pki.Trust { return pki.Trust{Roots: a.ca.Roots} }

// Secret is that by which processes of the system that share a machine know each other.
func (a *Authority) Secret() string { return a.secret }

// JoinToken is the token with the role join that is kept, for other machines.
func (a *Authority) JoinToken() pki.Token { return a.join }

// AdminToken is the token with the role admin that is kept, for the user who runs Brain.
func (a *Authority) AdminToken() pki.Token { return a.admin }

// PEM is the certificate of the CA.
func (a *Authority) PEM() []byte { return a.ca.PEM() }

// SetAddress sets where other machines reach Brain, HOST:PORT.
func (a *Authority) SetAddress(address string) { a.address.Store(&address) }

// Own makes the certificate of Brain's own host, whose role is admin, for the given names and IP
// addresses.
func (a *Authority) Own(hostID string, hosts []string) (*tls.Certificate, error) {
	request, err := pki.NewRequest(hostID)
	if err != nil {
		return nil, err
	}
	chain, err := a.SignOwn(hostID, request.CSR(), hosts)
	if err != nil {
		return nil, err
	}
	return request.Accept(chain, a.Trust())
}

// SignOwn signs a request of Brain's own host.
func (a *Authority) SignOwn(hostID string, csr []byte, hosts []string) ([][]byte, error) {
	grant := pki.Grant{HostID: hostID, Role: pki.RoleAdmin, Lifetime: a.lifetime}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			grant.IPs = append(grant.IPs, ip)
		} else {
			grant.Names = append(grant.Names, host)
		}
	}
	return a.ca.Sign(csr, grant)
}

// Policy returns what hosts need to know, and a channel that is closed when that has changed. A
// token that expires is no change.
func (a *Authority) Policy() (*brainv1.AccessPolicy, <-chan struct{}) {
	changed := a.tokens.Changed()
	verifiers, revoked := a.tokens.Verifiers()
	policy := &brainv1.AccessPolicy{Revoked: revoked}
	for _, v := range verifiers {
		policy.Tokens = append(policy.Tokens, &brainv1.TokenVerifier{Id: v.ID, Role: RoleMessage(v.Role), Expires: timeMessage(v.Expires), Hash: v.Hash[:]})
	}
	return policy, changed
}

// Known converts a policy for the hosts of the CA with this fingerprint.
func Known(fingerprint string, policy *brainv1.AccessPolicy) *pki.Known {
	verifiers := make([]pki.Verifier, 0, len(policy.GetTokens()))
	for _, t := range policy.GetTokens() {
		v := pki.Verifier{ID: t.GetId(), Role: RoleOf(t.GetRole())}
		if t.GetExpires() != nil {
			v.Expires = t.GetExpires().AsTime()
		}
		if v.Role != "" && copy(v.Hash[:], t.GetHash()) == len(v.Hash) {
			verifiers = append(verifiers, v)
		}
	}
	return pki.NewKnown(fingerprint, verifiers, policy.GetRevoked())
}

// Revoked reports whether what joined by a token must be refused, for [pki.Trust].
func (a *Authority) Revoked(tokenID string) bool { return a.tokens.Revoked(tokenID) }

// Serve is the server's side of an exchange, on a connection whose client certificate, if any, was
// verified. If the client has proven a token and got no certificate, the connection continues with
// the identity that is returned. Else the exchange is over, and the identity is that for which a
// certificate was signed. The caller bounds the time.
func (a *Authority) Serve(conn *tls.Conn) (peer pki.Peer, continues bool, err error) {
	e := newExchange(conn)
	peer, res, err := a.serve(e)
	if err != nil {
		if res != nil {
			_ = e.send(res) // the refusal is the error to report
		}
		return pki.Peer{}, false, err
	}
	if err := e.send(res); err != nil {
		return pki.Peer{}, false, err
	}
	return peer, len(res.GetChain()) == 0, nil
}

func (a *Authority) serve(e *exchange) (pki.Peer, *brainv1.JoinResponse, error) {
	req := &brainv1.JoinRequest{}
	if err := e.receive(req); err != nil {
		return pki.Peer{}, nil, err
	}
	if peer, ok := pki.PeerOf(e.conn.ConnectionState()); ok && req.GetToken() == "" {
		return a.renew(e, req, peer)
	}
	challenge := &brainv1.JoinChallenge{Nonce: pki.NewNonce()}
	if err := e.send(challenge); err != nil {
		return pki.Peer{}, nil, err
	}
	proof := &brainv1.JoinProof{}
	if err := e.receive(proof); err != nil {
		return pki.Peer{}, nil, err
	}
	transcript, err := e.transcript(req, challenge)
	if err != nil {
		return pki.Peer{}, refusal(err), err
	}
	info, own, err := a.tokens.Admit(req.GetToken(), transcript, proof.GetProof())
	if err != nil {
		return pki.Peer{}, refusal(err), err
	}
	peer := pki.Peer{Role: info.Role, TokenID: info.ID}
	res := &brainv1.JoinResponse{Proof: own}
	if len(req.GetCsr()) == 0 {
		return peer, res, nil
	}
	return a.sign(e, req, peer, res)
}

// renew signs a request of a client that has a certificate.
func (a *Authority) renew(e *exchange, req *brainv1.JoinRequest, peer pki.Peer) (pki.Peer, *brainv1.JoinResponse, error) {
	if a.Revoked(peer.TokenID) {
		// This includes certificates without a token: those of Brain's own host, which signs them
		// itself.
		err := connect.Errorf(connect.CodeUnauthenticated, "the certificate of host %s is not renewed: %v", peer.HostID, pki.ErrRevoked)
		return pki.Peer{}, refusal(err), err
	}
	return a.sign(e, req, peer, &brainv1.JoinResponse{})
}

func (a *Authority) sign(e *exchange, req *brainv1.JoinRequest, peer pki.Peer, res *brainv1.JoinResponse) (pki.Peer, *brainv1.JoinResponse, error) {
	hostID, err := pki.RequestedHost(req.GetCsr())
	if err == nil && peer.HostID != "" && hostID != peer.HostID {
		err = connect.Errorf(connect.CodePermissionDenied, "host %s asks for a certificate of host %s", peer.HostID, hostID)
	}
	if err != nil {
		return pki.Peer{}, refusal(err), err
	}
	peer.HostID = hostID
	grant := pki.Grant{HostID: hostID, Role: peer.Role, TokenID: peer.TokenID, Lifetime: a.lifetime}
	// Clients in other languages verify the address that they connect to. A client is believed no
	// other address than the one that it has.
	if tcp, ok := e.conn.RemoteAddr().(*net.TCPAddr); ok {
		if grant.IPs = []net.IP{tcp.IP}; tcp.IP.IsLoopback() {
			grant.Names = []string{"localhost"}
		}
	}
	if res.Chain, err = a.ca.Sign(req.GetCsr(), grant); err != nil {
		return pki.Peer{}, refusal(err), err
	}
	if peer.Role.Includes(pki.RoleJoin) {
		res.Secret = a.secret
	}
	if address := a.address.Load(); address != nil {
		res.Address = *address
	}
	return peer, res, nil
}

// Register registers the service that administers tokens. The server authorizes its calls.
func (a *Authority) Register(server *connect.Server) {
	brainv1connect.RegisterTokenServiceHandler(server, &service{a})
}

type service struct{ *Authority }

var _ brainv1connect.TokenServiceHandler = (*service)(nil)

// MakeToken implements brainv1connect.TokenServiceHandler.
func (s *service) MakeToken(_ context.Context, req *brainv1.MakeTokenRequest) (*brainv1.MakeTokenResponse, error) {
	role := RoleOf(req.GetRole())
	if role == "" {
		return nil, connect.NewError(connect.CodeInvalidArgument, "a token needs a role: call, join or admin")
	}
	var expires time.Time
	if req.GetExpires() != nil {
		expires = req.GetExpires().AsTime()
	}
	token, info, err := s.tokens.Make(role, req.GetLabel(), expires)
	if err != nil {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "%v", err).WithCause(err)
	}
	return &brainv1.MakeTokenResponse{Info: infoMessage(info), Token: token.Reveal()}, nil
}

// ListTokens implements brainv1connect.TokenServiceHandler.
func (s *service) ListTokens(context.Context, *brainv1.ListTokensRequest) (*brainv1.ListTokensResponse, error) {
	res := &brainv1.ListTokensResponse{}
	for _, info := range s.tokens.List() {
		res.Tokens = append(res.Tokens, infoMessage(info))
	}
	return res, nil
}

// RevokeToken implements brainv1connect.TokenServiceHandler.
func (s *service) RevokeToken(_ context.Context, req *brainv1.RevokeTokenRequest) (*brainv1.RevokeTokenResponse, error) {
	info, err := s.tokens.Revoke(req.GetId())
	switch {
	case errors.Is(err, pki.ErrTokenUnknown):
		return nil, connect.Errorf(connect.CodeNotFound, "%v: `raylink token list` shows the ids", err).WithCause(err)
	case err != nil:
		return nil, connect.Errorf(connect.CodeInternal, "%v", err).WithCause(err)
	}
	return &brainv1.RevokeTokenResponse{Info: infoMessage(info)}, nil
}

// GetCA implements brainv1connect.TokenServiceHandler.
func (s *service) GetCA(context.Context, *brainv1.GetCARequest) (*brainv1.GetCAResponse, error) {
	return &brainv1.GetCAResponse{Certificate: string(s.PEM())}, nil
}

func infoMessage(info pki.TokenInfo) *brainv1.TokenInfo {
	return &brainv1.TokenInfo{
		Id: info.ID, Role: RoleMessage(info.Role), Label: info.Label, Created: timeMessage(info.Created),
		Expires: timeMessage(info.Expires), Revoked: timeMessage(info.Revoked),
	}
}

// timeMessage is nil for the zero time.
func timeMessage(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
