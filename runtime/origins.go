package runtime

import (
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"connectrpc.com/connect/v2"
	connectcors "connectrpc.com/cors"
	"github.com/rs/cors"
)

// anyOrigin allows the pages of every origin.
const anyOrigin = "*"

// parseOrigins normalizes the origins of the options to the form that browsers send, or refuses
// them.
func parseOrigins(origins []string) ([]string, error) {
	var out []string
	for _, written := range origins {
		origin, why := parseOrigin(strings.TrimSpace(written))
		if why != "" {
			return nil, connect.Errorf(connect.CodeInvalidArgument,
				"allowing the browser origin %q: it %s; an origin is SCHEME://HOST or SCHEME://HOST:PORT, "+
					"such as https://app.example.com or http://localhost:5173, or %s for every origin", written, why, anyOrigin)
		}
		if !slices.Contains(out, origin) {
			out = append(out, origin)
		}
	}
	return out, nil
}

// parseOrigin returns the origin as browsers send it, in lower case and without the scheme's
// default port; or why it is not valid.
func parseOrigin(written string) (origin, why string) {
	if written == anyOrigin {
		return anyOrigin, ""
	}
	if strings.EqualFold(written, "null") {
		return "", "is what all pages without an address send, files and sandboxed frames among them, so that they can't be distinguished"
	}
	u, err := url.Parse(written)
	switch {
	case err != nil:
		return "", "is no URL"
	case u.Scheme == "" || u.Host == "" || u.Hostname() == "":
		return "", "lacks a scheme or a host"
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
		return "", "has more than a scheme, a host and a port"
	case strings.Contains(u.Host, anyOrigin):
		return "", "has a wildcard in it: list each origin"
	case strings.ContainsFunc(u.Host, func(r rune) bool { return r > 0x7e }):
		return "", "has letters beyond ASCII in its host: write it as browsers do, with xn--"
	}
	scheme, host, port := strings.ToLower(u.Scheme), strings.ToLower(u.Hostname()), u.Port()
	if scheme == "http" && port == "80" || scheme == "https" && port == "443" {
		port = ""
	}
	switch {
	case port != "":
		host = net.JoinHostPort(host, port)
	case strings.Contains(host, ":"):
		host = "[" + host + "]"
	}
	return scheme + "://" + host, ""
}

// origins are the browser origins whose pages may call. The zero value allows none.
type origins struct {
	list []string
	cors *cors.Cors
}

// newOrigins makes origins from a list that [parseOrigins] has normalized.
func newOrigins(list []string) *origins {
	o := &origins{list: list}
	if len(list) == 0 {
		return o
	}
	o.cors = cors.New(cors.Options{
		AllowOriginFunc: o.allows,
		AllowedMethods:  connectcors.AllowedMethods(),
		// Metadata is sent in headers of any name, so all are allowed and exposed, including those
		// of Connect and gRPC-Web. The wildcard never exposes `Authorization`, and cookies are
		// never sent.
		AllowedHeaders: []string{"*"},
		ExposedHeaders: append(connectcors.ExposedHeaders(), "*"),
		MaxAge:         7200, // seconds; no browser caches a response for longer
		// A listed page may be on the internet while the host is in a private network.
		AllowPrivateNetwork: true,
	})
	return o
}

// allows reports whether pages of an origin, as the browser sent it, may call.
func (o *origins) allows(origin string) bool {
	return slices.Contains(o.list, anyOrigin) || slices.Contains(o.list, strings.ToLower(origin))
}

// wrap answers preflight requests, and adds the headers that let a browser's page read the
// responses of next, refusals among them. Requests of other origins have been refused before.
func (o *origins) wrap(next http.Handler) http.Handler {
	if o.cors == nil {
		return next
	}
	return o.cors.Handler(next)
}
