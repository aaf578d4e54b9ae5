package pki

import (
	"bytes"
	"crypto/tls"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// joining is a connection of a process that joins, and what both sides have agreed on.
type joining struct {
	client, server           tls.ConnectionState
	clientNonce, serverNonce []byte
	csr                      []byte
}

func newJoining(t *testing.T, ca *CA, brain *tls.Certificate, request *Request) joining {
	t.Helper()
	c, s := connect(t,
		clientConfig(t, nil, Trust{Fingerprint: ca.Fingerprint()}),
		serverConfig(t, fixed(brain), Trust{Roots: ca.Roots, Optional: true}))
	require.NoError(t, c.err)
	require.NoError(t, s.err)
	return joining{client: c.state, server: s.state, clientNonce: NewNonce(), serverNonce: NewNonce(), csr: request.CSR()}
}

func (j joining) transcripts(t *testing.T) (client, server Transcript) {
	t.Helper()
	client, err := NewTranscript(j.client, j.clientNonce, j.serverNonce, j.csr)
	require.NoError(t, err)
	server, err = NewTranscript(j.server, j.clientNonce, j.serverNonce, j.csr)
	require.NoError(t, err)
	return client, server
}

// TestHostJoins is a first join from the token's text to mutual TLS.
func TestHostJoins(t *testing.T) {
	ca := newCA(t)
	store, err := OpenTokenStore(ca)
	require.NoError(t, err)
	brain := issue(t, ca, Grant{HostID: "brain", Role: RoleAdmin})
	made, _, err := store.Make(RoleJoin, "agents", time.Time{})
	require.NoError(t, err)
	token, err := ParseToken(made.Reveal())
	require.NoError(t, err)
	request, err := NewRequest("host-1")
	require.NoError(t, err)

	client, server := newJoining(t, ca, brain, request).transcripts(t)
	info, proof, err := store.Admit(token.ID(), server, token.Prove(client))
	require.NoError(t, err)
	require.Equal(t, RoleJoin, info.Role)
	require.NoError(t, token.Verify(client, proof))
	chain, err := ca.Sign(request.CSR(), Grant{HostID: "host-1", Role: info.Role, TokenID: info.ID})
	require.NoError(t, err)
	cert, err := request.Accept(chain, Trust{Fingerprint: token.Fingerprint()})
	require.NoError(t, err)

	c, s := connect(t,
		clientConfig(t, fixed(cert), Trust{Fingerprint: token.Fingerprint(), HostID: "brain", Role: RoleAdmin}),
		serverConfig(t, fixed(brain), Trust{Roots: ca.Roots, Revoked: store.Revoked}))
	require.NoError(t, c.err)
	require.NoError(t, s.err)
	peer, ok := PeerOf(s.state)
	require.True(t, ok)
	require.Equal(t, Peer{HostID: "host-1", Role: RoleJoin, TokenID: token.ID()}, peer)
}

func TestProofsAreBoundToTheirJoin(t *testing.T) {
	ca := newCA(t)
	store, err := OpenTokenStore(ca)
	require.NoError(t, err)
	brain := issue(t, ca, Grant{HostID: "brain", Role: RoleAdmin})
	token, _, err := store.Make(RoleJoin, "", time.Time{})
	require.NoError(t, err)
	another, _, err := store.Make(RoleJoin, "", time.Time{})
	require.NoError(t, err)
	request, err := NewRequest("host")
	require.NoError(t, err)
	stranger, err := NewRequest("host")
	require.NoError(t, err)

	here := newJoining(t, ca, brain, request)
	client, server := here.transcripts(t)
	clientsProof := token.Prove(client)
	_, serversProof, err := store.Admit(token.ID(), server, clientsProof)
	require.NoError(t, err)
	refused := func(name string, server Transcript, id string, proof []byte) {
		t.Helper()
		_, reply, err := store.Admit(id, server, proof)
		require.EqualError(t, err, `refused to admit a client with the token "`+id+`": the token is not known here, or the proof of the token is wrong`, name)
		require.ErrorIs(t, err, ErrProof, name)
		require.Nil(t, reply, name)
	}
	for name, change := range map[string]func(*joining){
		"another connection": func(j *joining) {
			next := newJoining(t, ca, brain, request)
			j.client, j.server = next.client, next.server
		},
		"another nonce of the client": func(j *joining) { j.clientNonce = NewNonce() },
		"another nonce of the server": func(j *joining) { j.serverNonce = NewNonce() },
		"exchanged nonces":            func(j *joining) { j.clientNonce, j.serverNonce = j.serverNonce, j.clientNonce },
		"another request":             func(j *joining) { j.csr = stranger.CSR() },
	} {
		changed := here
		change(&changed)
		client, server := changed.transcripts(t)
		refused(name, server, token.ID(), clientsProof)
		require.ErrorIs(t, token.Verify(client, serversProof), ErrProof, name)
	}
	refused("another token", server, another.ID(), clientsProof)
	refused("no token", server, "ffffffffffffffff", clientsProof)
	refused("the server's proof", server, token.ID(), serversProof)
	refused("no proof", server, token.ID(), nil)
	refused("half a proof", server, token.ID(), clientsProof[:16])
	refused("no transcript", Transcript{}, token.ID(), token.Prove(Transcript{}))
	require.EqualError(t, token.Verify(client, clientsProof),
		"the server does not know the token "+token.ID()+", so it is not the one that made it: the proof of the token is wrong")
	require.NoError(t, token.Verify(client, serversProof))
}

func TestTranscriptsHaveFixedSizes(t *testing.T) {
	ca := newCA(t)
	request, err := NewRequest("host")
	require.NoError(t, err)
	j := newJoining(t, ca, issue(t, ca, Grant{HostID: "brain", Role: RoleAdmin}), request)
	old := j.client
	old.Version = tls.VersionTLS12
	for want, transcript := range map[string]func() (Transcript, error){
		"a token can be proven only on a connection of TLS 1.3, after its handshake": func() (Transcript, error) {
			return NewTranscript(old, j.clientNonce, j.serverNonce, j.csr)
		},
		"the nonces of client and server have 31 and 32 bytes, not 32": func() (Transcript, error) {
			return NewTranscript(j.client, j.clientNonce[1:], j.serverNonce, j.csr)
		},
		"the nonces of client and server have 32 and 0 bytes, not 32": func() (Transcript, error) {
			return NewTranscript(j.client, j.clientNonce, nil, j.csr)
		},
		"the certificate request has 4097 bytes, not 1 to 4096": func() (Transcript, error) {
			return NewTranscript(j.client, j.clientNonce, j.serverNonce, bytes.Repeat([]byte{1}, MaxRequest+1))
		},
	} {
		_, err := transcript()
		require.EqualError(t, err, want)
	}
}

// TestOnlyTheOwnerLearnsWhyATokenIsOfNoUse revokes tokens, and lets them expire.
func TestOnlyTheOwnerLearnsWhyATokenIsOfNoUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		store, err := OpenTokenStore(ca)
		require.NoError(t, err)
		request, err := NewRequest("host")
		require.NoError(t, err)
		client, server := newJoining(t, ca, issue(t, ca, Grant{HostID: "brain", Role: RoleAdmin}), request).transcripts(t)
		short, _, err := store.Make(RoleJoin, "", time.Now().Add(time.Hour))
		require.NoError(t, err)
		revoked, _, err := store.Make(RoleJoin, "", time.Time{})
		require.NoError(t, err)
		_, err = store.Revoke(revoked.ID())
		require.NoError(t, err)
		advance(time.Hour - 1)
		_, _, err = store.Admit(short.ID(), server, short.Prove(client))
		require.NoError(t, err)
		advance(1)
		for token, want := range map[Token]string{
			short:   "the token has expired at 2000-01-01T01:00:00Z",
			revoked: "the token was revoked at 2000-01-01T00:00:00Z",
		} {
			_, reply, err := store.Admit(token.ID(), server, token.Prove(client))
			require.EqualError(t, err, "refused to admit a client with the token "+token.ID()+": "+want)
			require.Nil(t, reply)
			_, err = store.Authenticate(token)
			require.EqualError(t, err, want)
			_, _, err = store.Admit(token.ID(), server, token.Prove(Transcript{}))
			require.ErrorIs(t, err, ErrProof)
		}
		require.False(t, store.Revoked(short.ID()), "hosts that have joined stay")
		require.True(t, store.Revoked(revoked.ID()))
		require.True(t, store.Revoked(tokenA), "a token that is not known")
	})
}
