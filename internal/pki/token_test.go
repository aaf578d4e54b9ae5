package pki

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func drawToken(t *rapid.T) Token {
	random := rapid.SliceOfN(rapid.Byte(), secretSize, secretSize)
	return Token{
		fingerprint: encoding.EncodeToString(random.Draw(t, "fingerprint")),
		secret:      &secret{bytes: (*[secretSize]byte)(random.Draw(t, "secret"))},
	}
}

func TestTokensAreParsedAsTheyAreWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		token := drawToken(t)
		parsed, err := ParseToken(token.Reveal())
		require.NoError(t, err)
		require.Equal(t, token, parsed)
		require.Equal(t, token.Fingerprint(), parsed.Fingerprint())
		require.Equal(t, token.ID(), parsed.ID())
		require.True(t, isTokenID(token.ID()))
	})
}

// TestSecretsAreNeverShown formats tokens, and all that has them, in all ways.
func TestSecretsAreNeverShown(t *testing.T) {
	ca := newCA(t)
	store, err := OpenTokenStore(ca)
	require.NoError(t, err)
	token, info, err := store.Make(RoleJoin, "label", time.Time{})
	require.NoError(t, err)
	type hidden struct{ token Token }
	type Shown struct{ Token Token }
	values := map[string]any{
		"token": token, "pointer": &token, "field": Shown{token}, "hidden field": hidden{token}, "slice": []Token{token},
		"map": map[string]Token{"a": token}, "store": store, "info": info, "ca": ca, "error": fmt.Errorf("token: %v", token),
	}
	for name, value := range values {
		var shown bytes.Buffer
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t"} {
			fmt.Fprintf(&shown, verb+"\n", value)
		}
		for _, handler := range []slog.Handler{slog.NewJSONHandler(&shown, nil), slog.NewTextHandler(&shown, nil)} {
			slog.New(handler).Info("message", "value", value, slog.Group("group", "value", value))
		}
		encoded, err := json.Marshal(value)
		require.NoError(t, err)
		shown.Write(encoded)
		requireNoSecret(t, token, shown.String(), name)
	}
	require.Equal(t, "rl1."+ca.Fingerprint()+".[redacted]", token.String())
}

// requireNoSecret looks for the secret, and for the key of its proofs, as text, numbers and hex.
func requireNoSecret(t require.TestingT, token Token, shown, name string) {
	key := token.key()
	for _, secret := range [][]byte{token.secret.bytes[:], key[:]} {
		numbers := strings.Trim(fmt.Sprintf("%d", secret), "[]")
		for _, form := range []string{
			string(secret), hex.EncodeToString(secret), base64.StdEncoding.EncodeToString(secret)[:42], encoding.EncodeToString(secret),
			numbers, strings.ReplaceAll(numbers, " ", ","),
		} {
			require.NotContains(t, strings.ToLower(shown), strings.ToLower(form), name)
		}
	}
	require.NotContains(t, shown, fmt.Sprintf("%#v", token.secret.bytes[:]), name)
}

// TestErrorsOfTokensHaveNothingOfTheText damages tokens in one place.
func TestErrorsOfTokensHaveNothingOfTheText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		token := drawToken(t)
		text := token.Reveal()
		at := rapid.IntRange(0, len(text)).Draw(t, "at")
		end := rapid.IntRange(at, min(at+3, len(text))).Draw(t, "end")
		damaged := text[:at] + rapid.StringN(0, 3, -1).Draw(t, "inserted") + text[end:]
		parsed, err := ParseToken(damaged)
		if err != nil {
			_, secret, _ := strings.Cut(strings.TrimPrefix(text, tokenPrefix), ".")
			for i := range len(secret) - 6 {
				require.NotContains(t, err.Error(), secret[i:i+6])
			}
			return
		}
		require.Equal(t, damaged, parsed.Reveal(), "a token has one text")
	})
}

func TestTokensThatAreRefused(t *testing.T) {
	token := newToken(strings.Repeat("A", encodedSize))
	text := token.Reveal()
	for input, want := range map[string]string{
		"":               "it does not begin with rl1.: a token has the form rl1.<fingerprint>.<secret>",
		"RL1" + text[3:]: "it does not begin with rl1.: ",
		" " + text:       "it does not begin with rl1.: ",
		"rl1.abc":        "it has no secret: a token has the form rl1.<fingerprint>.<secret>",
		"rl1.abc.def":    "its fingerprint is not valid: it has 3 characters, not 43",
		"rl1." + strings.Repeat("!", 43) + text[47:]:       "its fingerprint is not valid: it is not in base64url",
		"rl1." + strings.Repeat("A", 42) + "B" + text[47:]: "its fingerprint is not valid: it is not in base64url",
		text[:len(text)-1]:          "its secret has 42 characters, not 43: it was truncated, or something was added",
		text + "\n":                 "its secret has 44 characters, not 43",
		text[:len(text)-1] + "\n":   "its secret is not in base64url",
		text[:60] + "+" + text[61:]: "its secret is not in base64url",
		text[:60] + "." + text[61:]: "its secret is not in base64url",
	} {
		_, err := ParseToken(input)
		require.ErrorContains(t, err, want)
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(newToken(strings.Repeat("A", encodedSize)).Reveal())
	f.Add("rl1..")
	f.Add("rl1.\n.\r")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err == nil {
			require.Equal(t, text, token.Reveal())
			require.True(t, isTokenID(token.ID()))
			return
		}
		if len(text) > 60 {
			require.NotContains(t, err.Error(), text[len(text)-20:])
		}
	})
}
