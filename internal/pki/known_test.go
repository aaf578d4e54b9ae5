package pki

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestHostsKnowTokens: what a host knows admits the tokens that can be used, and no others.
func TestHostsKnowTokens(t *testing.T) {
	ca := newCA(t)
	store, err := OpenTokenStore(ca)
	require.NoError(t, err)
	changed := store.Changed()
	good, info, err := store.Make(RoleCall, "", time.Time{})
	require.NoError(t, err)
	<-changed
	old, _, err := store.Make(RoleAdmin, "", time.Now().Add(time.Hour))
	require.NoError(t, err)
	gone, _, err := store.Make(RoleAdmin, "", time.Time{})
	require.NoError(t, err)
	_, err = store.Revoke(gone.ID())
	require.NoError(t, err)
	changed = store.Changed()

	verifiers, revoked := store.Verifiers()
	require.Equal(t, []string{gone.ID()}, revoked)
	require.Len(t, verifiers, 2)
	for i := range verifiers {
		if verifiers[i].ID == old.ID() {
			verifiers[i].Expires = time.Now()
		}
	}
	k := NewKnown(ca.Fingerprint(), verifiers, revoked)
	peer, err := k.Authenticate(good)
	require.NoError(t, err)
	require.Equal(t, Peer{Role: RoleCall, TokenID: info.ID}, peer)
	for token, want := range map[Token]error{
		old: ErrTokenExpired, gone: ErrTokenRevoked, newToken(ca.Fingerprint()): ErrTokenUnknown,
		newToken(newCA(t).Fingerprint()):                           ErrTokenUnknown,
		{fingerprint: newCA(t).Fingerprint(), secret: good.secret}: ErrTokenUnknown,
	} {
		_, err := k.Authenticate(token)
		require.ErrorIs(t, err, want)
	}
	// A token with the id of another one, as if ids had collided.
	verifiers[0].Hash[0] ^= 1
	verifiers[1].Hash[0] ^= 1
	_, err = NewKnown(ca.Fingerprint(), verifiers, revoked).Authenticate(good)
	require.ErrorIs(t, err, ErrTokenUnknown)
	_, err = new(Known).Authenticate(good)
	require.ErrorIs(t, err, ErrTokenUnknown)
	select {
	case <-changed:
		t.Fatal("nothing has changed")
	default:
	}
}

// TestKeptSecrets: a restart has the same secret and token, and a revoked token is replaced.
func TestKeptSecrets(t *testing.T) {
	ca := newCA(t)
	first, err := ca.Secret()
	require.NoError(t, err)
	store, err := OpenTokenStore(ca)
	require.NoError(t, err)
	token, err := store.KeepToken("join", RoleJoin, "made at the first start")
	require.NoError(t, err)

	ca, err = OpenCA(ca.dir)
	require.NoError(t, err)
	again, err := ca.Secret()
	require.NoError(t, err)
	require.Equal(t, first, again)
	store, err = OpenTokenStore(ca)
	require.NoError(t, err)
	kept, err := store.KeepToken("join", RoleJoin, "")
	require.NoError(t, err)
	require.Equal(t, token.Reveal(), kept.Reveal())
	_, err = store.Revoke(token.ID())
	require.NoError(t, err)
	other, err := store.KeepToken("join", RoleJoin, "")
	require.NoError(t, err)
	require.NotEqual(t, token.ID(), other.ID())
}
