package runtime

import (
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"connectrpc.com/connect/v2"
	connectcors "connectrpc.com/cors"
	"github.com/rs/cors"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
)

// anyOrigin allows every page of every browser.
const anyOrigin = "*"

// parseOrigins brings the origins of the options into the form that browsers send, or refuses them.
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

// parseOrigin returns the origin as browsers write it: lower case, and without its scheme's own
// port.
func parseOrigin(written string) (origin, why string) {
	if written == anyOrigin {
		return anyOrigin, ""
	}
	if strings.EqualFold(written, "null") {
		return "", "is what all pages without an address send, files and sandboxed frames among them, so that they can't be told apart"
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

// newOrigins makes them of a list in the form of [parseOrigins].
func newOrigins(list []string) *origins {
	o := &origins{list: list}
	if len(list) == 0 {
		return o
	}
	o.cors = cors.New(cors.Options{
		AllowOriginFunc: o.allows,
		AllowedMethods:  connectcors.AllowedMethods(),
		// Metadata travels in headers of any name, so all are allowed and exposed: Connect's and
		// gRPC-Web's own among them. `Authorization` is never exposed by the wildcard, and cookies
		// never come along.
		AllowedHeaders: []string{"*"},
		ExposedHeaders: append(connectcors.ExposedHeaders(), "*"),
		MaxAge:         7200, // seconds; no browser keeps an answer for longer
		// A page on the internet may be listed, and a host is most likely in a private network.
		AllowPrivateNetwork: true,
	})
	return o
}

// allows says whether pages of an origin, as the browser sent it, may call.
func (o *origins) allows(origin string) bool {
	return slices.Contains(o.list, anyOrigin) || slices.Contains(o.list, strings.ToLower(origin))
}

// wrap answers preflight requests, and gives the answers of next the headers by which the browser
// lets the page read them, refusals among them. Requests of other origins have been refused before.
func (o *origins) wrap(next http.Handler) http.Handler {
	if o.cors == nil {
		return next
	}
	return o.cors.Handler(next)
}

// refusePage refuses what the page of an origin that is not allowed makes a browser send. A page
// can reach loopback by a name that its owner lets point there, or straight from its own origin.
func (f *front) refusePage(r *http.Request) error {
	if f.loopback && !isLoopback(hostOf(r.Host)) {
		return connect.Errorf(connect.CodePermissionDenied, "the host %q is not a name of this machine's loopback", r.Host)
	}
	if values := r.Header.Values("Origin"); len(values) > 0 {
		for _, origin := range values {
			if len(values) > 1 || !f.origins.Load().allows(origin) {
				return connect.Errorf(connect.CodePermissionDenied,
					"requests from the browser origin %q are not allowed: WithOrigins or --origin lists those that are", origin)
			}
		}
		return nil
	}
	// A browser names the page's origin with everything but plain GETs, such as those of images and
	// links.
	if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
		return connect.Errorf(connect.CodePermissionDenied,
			"%s requests of a browser's page that don't name its origin are not allowed", site)
	}
	return nil
}

// setPolicy adds what Brain grants HTTP clients to what the host's own options say, so that what
// Brain's address serves to a page its hosts serve too.
func (f *front) setPolicy(brains *brainv1.WebPolicy) {
	f.compression.Store(f.host.options.Compression || brains.GetCompression())
	list, err := parseOrigins(append(slices.Clone(f.host.options.Origins), brains.GetOrigins()...))
	if err != nil {
		f.host.log.Warn("Brain's browser origins are not understood", slog.Any("error", err))
		return
	}
	f.origins.Store(newOrigins(list))
}
