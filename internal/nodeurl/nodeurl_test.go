package nodeurl_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/raylink/raylink/internal/nodename"
	"github.com/raylink/raylink/internal/nodeurl"
)

const nid = "0a1b2c3d-2222-4333-8444-55555555abcd"

// request makes a request of a percent-encoded URL.
func request(t *testing.T, path string, headers ...string) *http.Request {
	t.Helper()
	u, err := url.ParseRequestURI(path)
	require.NoError(t, err)
	return &http.Request{Method: http.MethodPost, URL: u, Header: http.Header{nodeurl.NodeHeader: headers}}
}

func TestRouteOfARequest(t *testing.T) {
	const m = "/pkg.S/M"
	for _, c := range []struct {
		path    string
		headers []string
		node    string
	}{
		{path: m},
		{path: "//pkg.S/M//"},
		{path: "/S/M"},
		{path: "/x" + m, node: "x"},
		{path: "/x" + m + "/", node: "x"},
		{path: "//x" + m, node: "x"},
		{path: "/a-0/b-1" + m, node: "a-0/b-1"},
		{path: "/a-0%2Fb-1" + m, node: "a-0/b-1"},
		{path: "/x%2Fpkg.S%2FM", node: "x"},
		{path: "/a%252Fb" + m, node: "a%2Fb"},
		{path: "/p%C3%A4onie" + m, node: "päonie"},
		{path: "/100%25" + m, node: "100%"},
		{path: "/..." + m, node: "..."},
		{path: "/BRAIN" + m, node: "BRAIN"},
		{path: "/" + strings.ToUpper(nid) + m, node: nid},
		{path: m, headers: []string{"x"}, node: "x"},
		{path: m, headers: []string{"/x"}, node: "x"},
		{path: m, headers: []string{" /x/ "}, node: "x"},
		{path: m, headers: []string{"a-0/b-1/"}, node: "a-0/b-1"},
		{path: m, headers: []string{"a%2Fb"}, node: "a%2Fb"},
		{path: m, headers: []string{"päonie"}, node: "päonie"},
		{path: m, headers: []string{"BRAIN"}, node: "BRAIN"},
		{path: m, headers: []string{strings.ToUpper(nid)}, node: nid},
		{path: m, headers: []string{""}},
		{path: m, headers: []string{"/"}},
		{path: m, headers: []string{"", "x", "/x"}, node: "x"},
		{path: "/x" + m, headers: []string{"/x/"}, node: "x"},
		{path: "/" + nid + m, headers: []string{strings.ToUpper(nid)}, node: nid},
	} {
		got, err := nodeurl.Parse(request(t, c.path, c.headers...))
		if assert.NoError(t, err, "%s %q", c.path, c.headers) {
			assert.Equal(t, c.node, got.Node, "%s %q", c.path, c.headers)
			want := m
			if c.path == "/S/M" {
				want = "/S/M"
			}
			assert.Equal(t, want, got.Procedure, "%s %q", c.path, c.headers)
		}
	}
}

func TestRouteThatCannotBeMeantIsRefused(t *testing.T) {
	const m = "/pkg.S/M"
	for _, c := range []struct {
		path    string
		headers []string
		says    string
	}{
		{path: "/./x" + m, says: "relative path"},
		{path: "/../x" + m, says: "relative path"},
		{path: "/.." + m, says: "relative path"},
		{path: "/a-0/%2E%2E/b-0" + m, says: "relative path"},
		{path: m, headers: []string{"./x"}, says: "relative path"},
		{path: m, headers: []string{".."}, says: "relative path"},
		{path: "/a//b" + m, says: "not an absolute path"},
		{path: m, headers: []string{"a//b"}, says: "not an absolute path"},
		{path: "/x" + m, headers: []string{"y"}, says: "two nodes"},
		{path: "/x" + m, headers: []string{".."}, says: "relative path"},
		{path: m, headers: []string{"x", "y"}, says: "two nodes"},
		{path: "/%FF" + m, says: "not UTF-8"},
		{path: m, headers: []string{"caf\xe9"}, says: "not UTF-8"},
		{path: "/BRAIN/x-0" + m, says: `this one is "x-0"`},
	} {
		_, err := nodeurl.Parse(request(t, c.path, c.headers...))
		assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%s %q: %v", c.path, c.headers, err)
		assert.ErrorContains(t, err, c.says, "%s %q", c.path, c.headers)
	}
}

func TestRouteOfWhatIsNoCall(t *testing.T) {
	for _, path := range []string{"/", "//", "/healthz", "/x/", "/./M", "/pkg.S/..", "/x/../M", "/x/pkg.S/."} {
		_, err := nodeurl.Parse(request(t, path, "x"))
		require.ErrorIs(t, err, nodeurl.ErrNotACall, path)
	}
	u := &url.URL{Path: "*"}
	_, err := nodeurl.Parse(&http.Request{Method: http.MethodOptions, URL: u})
	require.ErrorIs(t, err, nodeurl.ErrNotACall)
}

func TestURLOfARoute(t *testing.T) {
	const m = "/pkg.S/M"
	for _, c := range []struct{ node, procedure, url string }{
		{"", "", "http://host:1"},
		{"", m, "http://host:1/pkg.S/M"},
		{"x-0", "", "http://host:1/x-0"},
		{"x-0/y-1", m, "http://host:1/x-0/y-1/pkg.S/M"},
		{nid, m, "http://host:1/" + nid + "/pkg.S/M"},
		{"BRAIN", m, "http://host:1/BRAIN/pkg.S/M"},
		{"100%", "", "http://host:1/100%25"},
		{"a%2Fb", m, "http://host:1/a%252Fb/pkg.S/M"},
		{"päonie", m, "http://host:1/p%C3%A4onie/pkg.S/M"},
		{"a;b,c?d#e", "", "http://host:1/a%3Bb%2Cc%3Fd%23e"},
	} {
		assert.Equal(t, c.url, nodeurl.Route{Node: c.node, Procedure: c.procedure}.URL("host:1").String())
	}
}

// TestURLRoundTrip checks that the URL of a route is parsed as the same node, service and method,
// whatever characters an alias may have.
func TestURLRoundTrip(t *testing.T) {
	name := rapid.Custom(func(t *rapid.T) string {
		return nodename.Of(rapid.StringMatching(`[a-z][a-z0-9]{0,5}`).Draw(t, "type"), rapid.Uint64().Draw(t, "index"))
	})
	alias := rapid.OneOf(
		rapid.StringOf(rapid.RuneFrom([]rune(`%;,?#&=+:@$!*'()[]{}<>|\^~."-_2Fa`))),
		rapid.StringMatching(`(%[0-9A-F]{2}|%2[fF]|[a-z.:;])+`),
		rapid.StringN(1, -1, nodename.MaxAliasBytes),
	).Filter(func(s string) bool { return nodename.BadAlias(s) == "" })
	node := rapid.OneOf(
		rapid.Just(""), rapid.Just(nodename.RootPath), rapid.Just(nid), alias,
		rapid.Map(rapid.SliceOfN(name, 1, 4), func(names []string) string { return strings.Join(names, "/") }),
	)
	rapid.Check(t, func(t *rapid.T) {
		service := rapid.StringMatching(`([a-z][a-z0-9_]*\.){0,3}[A-Z][A-Za-z0-9_]*`).Draw(t, "service")
		method := rapid.StringMatching(`[A-Za-z][A-Za-z0-9_]*`).Draw(t, "method")
		route := nodeurl.Route{Node: node.Draw(t, "node"), Procedure: nodename.Procedure(service, method)}
		built := route.URL("127.0.0.1:7777").String()
		u, err := url.Parse(built)
		require.NoError(t, err)
		require.Equal(t, "127.0.0.1:7777", u.Host, built)
		require.Empty(t, u.RawQuery+u.Fragment, built)
		// The request line holds only the path.
		u, err = url.ParseRequestURI(u.RequestURI())
		require.NoError(t, err)
		got, err := nodeurl.Parse(&http.Request{URL: u})
		require.NoError(t, err, built)
		require.Equal(t, route, got, built)
		// Clients append the procedure to a node's base URL.
		base := nodeurl.Route{Node: route.Node}.URL("127.0.0.1:7777").String()
		require.Equal(t, built, base+route.Procedure)
	})
}

// FuzzRoute checks that a route's own path is read as the same route without a header. The gateway
// relies on it when it forwards a request.
func FuzzRoute(f *testing.F) {
	for _, path := range []string{"/pkg.S/M", "/x/pkg.S/M/", "//x//y/pkg.S/M", "/../x/S/M", "/%2e/S/M", "/\xff/S/M", "*", ""} {
		for _, header := range []string{"", "x", "/x/", "./x", "a,b", strings.ToUpper(nid), "BRAIN", "BRAIN/x", "\x00"} {
			f.Add(path, header, header != "x")
		}
	}
	f.Fuzz(func(t *testing.T, path, header string, given bool) {
		r := &http.Request{URL: &url.URL{Path: path}, Header: make(http.Header)}
		if given {
			r.Header.Set(nodeurl.NodeHeader, header)
		}
		got, err := nodeurl.Parse(r)
		if err != nil {
			assert.Zero(t, got)
			if code := connect.CodeOf(err); code != connect.CodeInvalidArgument {
				assert.ErrorIs(t, err, nodeurl.ErrNotACall)
			}
			assert.True(t, utf8.ValidString(err.Error()))
			assert.Less(t, len(err.Error()), 4096)
			return
		}
		service, method, ok := strings.Cut(got.Procedure[1:], "/")
		assert.True(t, ok && service != "" && method != "" && !strings.Contains(method, "/"), got.Procedure)
		assert.False(t, strings.HasPrefix(got.Node, "/") || strings.HasSuffix(got.Node, "/"), got.Node)
		assert.True(t, utf8.ValidString(got.Node))
		again, err := nodeurl.Parse(&http.Request{URL: &url.URL{Path: got.Path()}})
		require.NoError(t, err)
		assert.Equal(t, got, again)
		// So it is after a round trip over the wire.
		u, err := url.ParseRequestURI(got.URL("host").RequestURI())
		require.NoError(t, err)
		again, err = nodeurl.Parse(&http.Request{URL: u})
		require.NoError(t, err)
		assert.Equal(t, got, again)
	})
}
