package runtime

import (
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestOriginsAreParsedAsBrowsersFormatThem(t *testing.T) {
	for written, want := range map[string]string{
		"https://app.example.com":       "https://app.example.com",
		"HTTPS://App.Example.com/":      "https://app.example.com",
		"https://app.example.com:443":   "https://app.example.com",
		"https://app.example.com:80":    "https://app.example.com:80",
		"http://app.example.com:80":     "http://app.example.com",
		"http://localhost:5173":         "http://localhost:5173",
		"http://127.0.0.1:1":            "http://127.0.0.1:1",
		"http://[::1]:3000":             "http://[::1]:3000",
		"http://[::1]":                  "http://[::1]",
		"chrome-extension://abcdefghij": "chrome-extension://abcdefghij",
		"*":                             "*",
	} {
		got, err := parseOrigins([]string{written, written})
		require.NoError(t, err, written)
		assert.Equal(t, []string{want}, got, written)
	}
	for written, why := range map[string]string{
		"":                      "lacks a scheme or a host",
		"app.example.com":       "lacks a scheme or a host",
		"localhost:5173":        "lacks a scheme or a host",
		"//app.example.com":     "lacks a scheme or a host",
		"https://":              "lacks a scheme or a host",
		"https://:443":          "lacks a scheme or a host",
		"https://a.example/x":   "more than a scheme",
		"https://a.example?x":   "more than a scheme",
		"https://a.example?":    "more than a scheme",
		"https://me@a.example":  "more than a scheme",
		"https://*.example.com": "wildcard",
		"https://päonie.de":     "xn--",
		"null":                  "can't be distinguished",
		"http://a b":            "is no URL",
	} {
		_, err := parseOrigins([]string{"https://good.example", written})
		assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), written)
		assert.ErrorContains(t, err, why, written)
	}
}

func TestOriginsAreComparedExactly(t *testing.T) {
	list, err := parseOrigins([]string{"https://good.example", "http://localhost:5173"})
	require.NoError(t, err)
	o := newOrigins(list)
	for origin, want := range map[string]bool{
		"https://good.example": true, "HTTPS://Good.Example": true, "http://localhost:5173": true,
		"http://good.example": false, "https://good.example:8443": false, "https://good.example.evil.com": false,
		"https://evil-good.example": false, "https://www.good.example": false, "http://localhost": false, "null": false, "": false,
		"https://good.example/": false, "*": false,
	} {
		assert.Equal(t, want, o.allows(origin), origin)
	}
	assert.False(t, newOrigins(nil).allows("https://good.example"))
	assert.True(t, newOrigins([]string{"*"}).allows("null"))
}
