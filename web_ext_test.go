package raylink_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/runtime"
)

// TestRequestMeansTheSameAtHostAndGateway names a node in every possible way, at its own host and
// at Brain's gateway in another process.
func TestRequestMeansTheSameAtHostAndGateway(t *testing.T) {
	t.Parallel()
	brain := system(t)
	host := joined(t, brain)
	p := create(t, host, runtime.WithAlias("x"))
	nid, path := p.Ref().NID(), p.Ref().Path()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	ask := func(address, target string, headers []string) (status int, answer string) {
		// The target is sent unchanged; Go's client would clean it.
		req, err := http.NewRequestWithContext(patient(t), http.MethodPost, "http://"+address, strings.NewReader(`{"key":"k"}`))
		require.NoError(t, err)
		req.URL.Opaque = "//" + address + target
		req.Header.Set("Content-Type", "application/json")
		req.Header["Raylink-Node"] = headers
		res, err := transport.RoundTrip(req)
		require.NoError(t, err)
		defer func() { _ = res.Body.Close() }()
		all, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return res.StatusCode, string(all)
	}
	const m = "/contract.v1.Probe/Who"
	for _, c := range []struct {
		target  string
		headers []string
		status  int
		says    string
	}{
		{"/x" + m, nil, http.StatusOK, path},
		{"/x" + m + "/", nil, http.StatusOK, path},
		{"//x" + m, nil, http.StatusOK, path},
		{"/%78" + m, nil, http.StatusOK, path},
		{"/x%2Fcontract.v1.Probe%2FWho", nil, http.StatusOK, path},
		{"/" + path + m, nil, http.StatusOK, path},
		{"/" + nid + m, nil, http.StatusOK, path},
		{"/" + strings.ToUpper(nid) + m, nil, http.StatusOK, path},
		{m, []string{"x"}, http.StatusOK, path},
		{m, []string{"/x"}, http.StatusOK, path},
		{m, []string{"/" + path + "/"}, http.StatusOK, path},
		{m, []string{strings.ToUpper(nid)}, http.StatusOK, path},
		{"/x" + m, []string{"/x"}, http.StatusOK, path},
		{m, []string{"", "x"}, http.StatusOK, path},
		{"/x" + m, []string{"y"}, http.StatusBadRequest, "two nodes"},
		{m, []string{"x", "y"}, http.StatusBadRequest, "two nodes"},
		{"/./x" + m, nil, http.StatusBadRequest, "relative"},
		{"/../x" + m, nil, http.StatusBadRequest, "relative"},
		{m, []string{"../x"}, http.StatusBadRequest, "relative"},
		{"/a//x" + m, nil, http.StatusBadRequest, "not an absolute path"},
		{"/BRAIN/" + path + m, nil, http.StatusBadRequest, "not an absolute path"},
		{"/%FF" + m, nil, http.StatusBadRequest, "not UTF-8"},
		{"/X" + m, nil, http.StatusNotFound, "no"},
		{"/x-9" + m, nil, http.StatusNotFound, "x-9"},
		{"/x", []string{"x"}, http.StatusNotFound, "a call's URL is"},
		{"/x/..", []string{"x"}, http.StatusNotFound, "a call's URL is"},
		{"/", nil, http.StatusNotFound, "a call's URL is"},
	} {
		for _, at := range []struct{ name, address string }{{"host", host.Address()}, {"gateway", brain.Address()}} {
			status, answer := ask(at.address, c.target, c.headers)
			assert.Equal(t, c.status, status, "%s: %s %q: %s", at.name, c.target, c.headers, answer)
			assert.Contains(t, answer, c.says, "%s: %s %q", at.name, c.target, c.headers)
		}
	}
}

// TestPagesThatDoNotNameTheirOriginAreRefused sends requests as images and links of a page do.
func TestPagesThatDoNotNameTheirOriginAreRefused(t *testing.T) {
	t.Parallel()
	brain := system(t, runtime.WithOrigins("https://good.example"))
	host := joined(t, brain)
	create(t, host)
	for _, address := range []string{brain.Address(), host.Address()} {
		url := "http://" + address + "/probe-0/contract.v1.Probe/Add"
		for site, want := range map[string]int{
			"cross-site": http.StatusForbidden, "same-site": http.StatusForbidden, "same-origin": http.StatusOK, "none": http.StatusOK,
		} {
			status, body := post(t, url, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", site) })
			assert.Equal(t, want, status, "%s: %s", site, body)
		}
	}
}
