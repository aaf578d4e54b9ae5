package pki

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestTokenStoreAgainstAModel makes, revokes and looks for tokens, with restarts between.
func TestTokenStoreAgainstAModel(t *testing.T) {
	ca := newCA(t)
	rapid.Check(t, func(t *rapid.T) {
		require.NoError(t, removeIfPresent(filepath.Join(ca.dir, tokensFile)))
		store, err := OpenTokenStore(ca)
		require.NoError(t, err)
		model := make(map[Token]TokenInfo)
		draw := func(t *rapid.T) Token {
			tokens := slices.SortedFunc(maps.Keys(model), func(a, b Token) int { return strings.Compare(a.ID(), b.ID()) })
			return rapid.SampledFrom(append(tokens, newToken(ca.fingerprint))).Draw(t, "token")
		}
		t.Repeat(map[string]func(*rapid.T){
			"make": func(t *rapid.T) {
				if len(model) >= 4 { // a write is several milliseconds
					t.Skip("enough")
				}
				role := rapid.SampledFrom([]Role{RoleCall, RoleJoin, RoleAdmin}).Draw(t, "role")
				label := rapid.StringMatching(`[a-zä\\"<]{0,20}`).Draw(t, "label")
				var expires time.Time
				if rapid.Bool().Draw(t, "expires") {
					expires = time.Now().Add(time.Hour)
				}
				token, info, err := store.Make(role, label, expires)
				require.NoError(t, err)
				require.Equal(t, token.ID(), info.ID)
				require.Equal(t, role, info.Role)
				require.Equal(t, label, info.Label)
				require.WithinDuration(t, expires, info.Expires, time.Second)
				model[token] = info
			},
			"revoke": func(t *rapid.T) {
				token := draw(t)
				info, err := store.Revoke(token.ID())
				want, known := model[token]
				if !known {
					require.ErrorIs(t, err, ErrTokenUnknown)
					return
				}
				require.NoError(t, err)
				if want.Revoked.IsZero() {
					require.WithinDuration(t, time.Now(), info.Revoked, 2*time.Second)
					want.Revoked = info.Revoked
				}
				require.Equal(t, want, info)
				model[token] = want
			},
			"restart": func(t *rapid.T) {
				var err error
				store, err = OpenTokenStore(ca)
				require.NoError(t, err)
			},
			"look": func(t *rapid.T) {
				token := draw(t)
				want, known := model[token]
				info, found := store.Find(token.ID())
				require.Equal(t, known, found)
				require.Equal(t, want, info)
				isRevoked := !known || !want.Revoked.IsZero()
				require.Equal(t, isRevoked, store.Revoked(token.ID()))
				info, err := store.Authenticate(token)
				require.Equal(t, isRevoked, err != nil)
				if !isRevoked {
					require.Equal(t, want, info)
				}
			},
			"": func(t *rapid.T) {
				want := slices.SortedFunc(maps.Values(model), func(a, b TokenInfo) int {
					if !a.Created.Equal(b.Created) {
						return a.Created.Compare(b.Created)
					}
					return strings.Compare(a.ID, b.ID)
				})
				require.Equal(t, want, append([]TokenInfo(nil), store.List()...))
			},
		})
	})
}

func TestTokensAreUsedConcurrently(t *testing.T) {
	store, err := OpenTokenStore(newCA(t))
	require.NoError(t, err)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 3 {
				token, info, err := store.Make(RoleCall, "", time.Time{})
				if err != nil {
					t.Error(err)
					return
				}
				_, err = store.Authenticate(token)
				_, err2 := store.Revoke(info.ID)
				if err != nil || err2 != nil || !store.Revoked(info.ID) {
					t.Error(err, err2)
				}
			}
		})
	}
	group.Wait()
	require.Len(t, store.List(), 12)
}

func TestTokensThatCannotBeMade(t *testing.T) {
	store, err := OpenTokenStore(newCA(t))
	require.NoError(t, err)
	for want, makeIt := range map[string]func() error{
		`making a token: the role "root" is not known: use admin, join or call`: func() error { _, _, err := store.Make("root", "", time.Time{}); return err },
		"making a token: its label must be at most 128 bytes of text in one line": func() error {
			_, _, err := store.Make(RoleJoin, "a\nb", time.Time{})
			return err
		},
		"making a token: it would expire at 2001-02-03T04:05:06Z, and now is 20": func() error {
			_, _, err := store.Make(RoleJoin, "", time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC))
			return err
		},
	} {
		require.ErrorContains(t, makeIt(), want)
	}
	require.Empty(t, store.List())
}

// TestTokenOfAnotherSystem has the right secret, but another fingerprint.
func TestTokenOfAnotherSystem(t *testing.T) {
	store, err := OpenTokenStore(newCA(t))
	require.NoError(t, err)
	token, _, err := store.Make(RoleCall, "", time.Time{})
	require.NoError(t, err)
	other := Token{fingerprint: strings.Repeat("A", encodedSize), secret: token.secret}
	_, err = store.Authenticate(other)
	require.EqualError(t, err, "it is for the CA "+other.fingerprint+", and this is "+store.fingerprint+": the token is not known here")
}

// TestFailedWritesChangeNothing takes the directory away.
func TestFailedWritesChangeNothing(t *testing.T) {
	ca := newCA(t)
	store, err := OpenTokenStore(ca)
	require.NoError(t, err)
	_, info, err := store.Make(RoleCall, "", time.Time{})
	require.NoError(t, err)
	require.NoError(t, os.Rename(ca.dir, ca.dir+".away"))
	_, err = store.Revoke(info.ID)
	require.ErrorContains(t, err, "revoking the token "+info.ID+": writing "+filepath.Join(ca.dir, tokensFile)+": ")
	_, _, err = store.Make(RoleCall, "", time.Time{})
	require.ErrorContains(t, err, "making a token: writing "+filepath.Join(ca.dir, tokensFile)+": ")
	require.Equal(t, []TokenInfo{info}, store.List())
	require.NoError(t, os.Rename(ca.dir+".away", ca.dir))
	again, err := OpenTokenStore(ca)
	require.NoError(t, err)
	require.Equal(t, store.List(), again.List())
}

func TestDamagedTokenFiles(t *testing.T) {
	ca := newCA(t)
	store, err := OpenTokenStore(ca)
	require.NoError(t, err)
	token, _, err := store.Make(RoleJoin, "label", time.Time{})
	require.NoError(t, err)
	path := filepath.Join(ca.dir, tokensFile)
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
	var file tokensJSON
	require.NoError(t, json.Unmarshal(content, &file))
	edited := func(change func(*tokensJSON)) []byte {
		next := file
		next.Tokens = slices.Clone(file.Tokens)
		change(&next)
		text, err := json.Marshal(next)
		require.NoError(t, err)
		return text
	}
	for want, damaged := range map[string][]byte{
		"it is not the JSON that was written":          content[:len(content)/2],
		"it is not the JSON that was written ":         nil,
		"something follows the tokens":                 append(slices.Clone(content), "{}"...),
		"its version is 2, and this program knows 1":   edited(func(f *tokensJSON) { f.Version = 2 }),
		"token 0: its key has 31 bytes, not 32":        edited(func(f *tokensJSON) { f.Tokens[0].Key = f.Tokens[0].Key[:31] }),
		"token 0: its key has 33 bytes, not 32":        edited(func(f *tokensJSON) { f.Tokens[0].Key = append(slices.Clone(f.Tokens[0].Key), 0) }),
		"token 0: its id is not that of its key":       edited(func(f *tokensJSON) { f.Tokens[0].ID = tokenA }),
		`token 0: the role "" is not known`:            edited(func(f *tokensJSON) { f.Tokens[0].Role = "" }),
		"token 0: it has no time of creation":          edited(func(f *tokensJSON) { f.Tokens[0].Created = time.Time{} }),
		"token 0: its label must be at most 128 bytes": edited(func(f *tokensJSON) { f.Tokens[0].Label = strings.Repeat("x", 129) }),
		"token 1: its id occurs twice":                 edited(func(f *tokensJSON) { f.Tokens = append(f.Tokens, f.Tokens[0]) }),
		"it has 10001 tokens, more than 10000":         edited(func(f *tokensJSON) { f.Tokens = make([]tokenJSON, maxTokens+1) }),
	} {
		require.NoError(t, os.WriteFile(path, damaged, 0o600))
		_, err := OpenTokenStore(ca)
		require.ErrorContains(t, err, "reading the tokens: "+path+" is damaged: "+strings.TrimSpace(want))
		requireNoSecret(t, token, err.Error(), want)
	}
	require.NoError(t, os.WriteFile(path, content, 0o600))
	require.NoError(t, os.Chmod(path, 0o604))
	_, err = OpenTokenStore(ca)
	require.ErrorContains(t, err, fmt.Sprintf("reading the tokens: %s can be accessed by other users (mode 0604)", path))
}

func FuzzTokenFile(f *testing.F) {
	key := newToken(strings.Repeat("A", encodedSize)).key()
	content, err := formatTokens(map[string]*storedToken{key.id(): {
		info: TokenInfo{ID: key.id(), Role: RoleJoin, Label: "label", Created: time.Unix(1, 0).UTC(), Expires: time.Unix(2, 0).UTC()}, key: key,
	}})
	require.NoError(f, err)
	f.Add(content)
	f.Add([]byte(`{"version":1,"tokens":[{}]}`))
	f.Add([]byte(`{"version":1,"tokens":null}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		tokens, err := parseTokens(content)
		if err != nil {
			require.Nil(t, tokens)
			return
		}
		text, err := formatTokens(tokens)
		require.NoError(t, err)
		again, err := parseTokens(text)
		require.NoError(t, err)
		require.Len(t, again, len(tokens))
		for id, stored := range tokens {
			require.Equal(t, id, stored.key.id())
			require.Equal(t, stored.key, again[id].key)
			require.True(t, stored.info.Created.Equal(again[id].info.Created))
		}
	})
}
