package raylink_test

import (
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	connectcors "connectrpc.com/cors"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/runtime"
)

// access returns the option for a system with the token, or without one.
func access(token string) runtime.Option {
	if token == "" {
		return runtime.WithOpen()
	}
	return runtime.WithToken(token)
}

// TestListedOriginsAreAllowed sends requests as a browser does, to Brain's address and to a host
// that has joined without a list of its own.
func TestListedOriginsAreAllowed(t *testing.T) {
	t.Parallel()
	const good = "https://good.example"
	for _, token := range []string{"", "s3cret"} {
		brain := system(t, runtime.WithOrigins("HTTPS://Good.Example:443/"), access(token))
		host := joined(t, brain, access(token))
		node := create(t, host).Ref().Path()
		for at, address := range map[string]string{"Brain": brain.Address(), "the host": host.Address()} {
			url := "http://" + address + "/" + node + "/contract.v1.Probe/Who"
			ask := func(method, origin string, header map[string]string) (status int, answer http.Header) {
				req, err := http.NewRequestWithContext(patient(t), method, url, strings.NewReader("{}"))
				require.NoError(t, err)
				req.Header.Set("Origin", origin)
				req.Header.Set("Content-Type", "application/json")
				for key, value := range header {
					req.Header.Set(key, value)
				}
				res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
				require.NoError(t, err)
				_, _ = io.Copy(io.Discard, res.Body)
				require.NoError(t, res.Body.Close())
				return res.StatusCode, res.Header
			}
			// A preflight request carries no token.
			asked := strings.ToLower(strings.Join(append(connectcors.AllowedHeaders(), "Authorization", "Raylink-Node", "Tenant"), ","))
			for _, method := range connectcors.AllowedMethods() {
				status, header := ask(http.MethodOptions, good, map[string]string{"Access-Control-Request-Method": method, "Access-Control-Request-Headers": asked})
				assert.Equal(t, http.StatusNoContent, status, at)
				assert.Equal(t, good, header.Get("Access-Control-Allow-Origin"), at)
				assert.Equal(t, method, header.Get("Access-Control-Allow-Methods"), at)
				assert.Equal(t, asked, header.Get("Access-Control-Allow-Headers"), at)
				assert.Contains(t, header.Get("Vary"), "Origin", at)
				assert.Empty(t, header.Get("Access-Control-Allow-Credentials"), "no cookies")
			}
			for shown, want := range map[string]int{token: http.StatusOK, "wrong": http.StatusUnauthorized} {
				if token == "" {
					want = http.StatusOK
				}
				status, header := ask(http.MethodPost, good, map[string]string{"Authorization": "Bearer " + shown})
				assert.Equal(t, want, status, at)
				assert.Equal(t, []string{good}, header.Values("Access-Control-Allow-Origin"), at)
				assert.Contains(t, header.Get("Access-Control-Expose-Headers"), "Grpc-Status-Details-Bin", at)
				assert.Contains(t, header.Get("Vary"), "Origin", at)
			}
			for _, origin := range []string{
				"https://evil.example", "http://good.example", "https://good.example:8443", "https://good.example.evil.com", "null", "",
			} {
				for _, method := range []string{http.MethodOptions, http.MethodPost} {
					status, header := ask(method, origin, map[string]string{"Access-Control-Request-Method": "POST", "Authorization": "Bearer " + token})
					assert.Equal(t, http.StatusForbidden, status, "%s: %s from %q", at, method, origin)
					assert.Empty(t, header.Get("Access-Control-Allow-Origin"), at)
					assert.Contains(t, header.Get("Vary"), "Origin", at)
				}
			}
		}
	}
}

func TestInvalidOriginsAreRefused(t *testing.T) {
	t.Parallel()
	for origin, code := range map[string]connect.Code{
		"localhost:5173": connect.CodeInvalidArgument, "null": connect.CodeInvalidArgument,
		"*": connect.CodeFailedPrecondition, // there is no token
	} {
		_, err := raylink.Start(patient(t), runtime.WithOrigins(origin), runtime.WithOpen(), runtime.WithData(t.TempDir()))
		assert.Equal(t, code, connect.CodeOf(err), "%s: %v", origin, err)
	}
	rt := system(t, runtime.WithOrigins("*"), runtime.WithToken("s3cret"))
	status, body := post(t, "http://"+rt.Address()+"/BRAIN/raylink.node.v1.NodeService/Ping", func(r *http.Request) {
		r.Header.Set("Origin", "https://any.example")
		r.Header.Set("Authorization", "Bearer s3cret")
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader("{}")), 2
	})
	assert.Equal(t, http.StatusOK, status, body)
}

//go:embed testdata/page.js
var pages embed.FS

// chromium finds a browser. If there is none, the test of pages is skipped, unless the environment
// requires one: `make browser` installs it.
func chromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("RAYLINK_TEST_BROWSER") == "required" {
		require.FailNow(t, "no Chromium was found, and this environment requires one (RAYLINK_TEST_BROWSER)")
	}
	t.Skip("no Chromium was found: `make browser` installs Debian's, as root")
	return ""
}

// TestPagesCallNodes has a page in headless Chromium call a node, through the gateway and at its
// host: from an allowed origin and from another, with a token and without.
func TestPagesCallNodes(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	results := make(chan map[string]any, 2)
	type testCase struct {
		Name  string `json:"name"`
		URL   string `json:"url"`
		Token string `json:"token,omitempty"`
		Node  string `json:"node,omitempty"`
	}
	var cases []testCase
	page := func(from, foreign string) http.Handler {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
			script, err := pages.ReadFile("testdata/page.js")
			assert.NoError(t, err)
			list, err := json.Marshal(cases)
			assert.NoError(t, err)
			next := ""
			if foreign != "" {
				next = fmt.Sprintf("location = %q;", foreign)
			}
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = fmt.Fprintf(w, "<!doctype html><script>%s\nrun(%q, %s).then(results => "+
				"fetch('/results', { method: 'POST', body: JSON.stringify(results) })).then(() => { %s });</script>", script, from, list, next)
		})
		mux.HandleFunc("POST /results", func(_ http.ResponseWriter, r *http.Request) {
			got := make(map[string]any)
			assert.NoError(t, json.NewDecoder(r.Body).Decode(&got))
			results <- got
		})
		return mux
	}
	foreign := httptest.NewServer(page("foreign", ""))
	t.Cleanup(foreign.Close)
	listed := httptest.NewServer(page("listed", foreign.URL))
	t.Cleanup(listed.Close)

	for _, token := range []string{"", "s3cret"} {
		brain := system(t, runtime.WithOrigins(listed.URL), access(token))
		host := joined(t, brain, access(token))
		node := create(t, host).Ref().Path()
		for at, address := range map[string]string{"gateway": brain.Address(), "host": host.Address()} {
			name, base := fmt.Sprintf("token %q at the %s", token, at), "http://"+address
			cases = append(cases,
				testCase{Name: name, URL: base + "/" + node, Token: token},
				testCase{Name: name + " by header", URL: base, Token: token, Node: node})
			if token != "" {
				cases = append(cases, testCase{Name: "none for " + name, URL: base + "/" + node})
			}
		}
	}

	profile := t.TempDir()
	cmd := exec.CommandContext(t.Context(), browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--no-first-run", "--disable-background-networking", "--user-data-dir="+profile, listed.URL)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Env = append(os.Environ(), "HOME="+profile)
	log, err := os.Create(filepath.Join(t.TempDir(), "browser.log"))
	require.NoError(t, err)
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(t, cmd.Start())
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // the browser and its helpers have a process group of their own
		_ = cmd.Wait()
	}()
	all := make(map[string]any)
	for range 2 {
		select {
		case got := <-results:
			maps.Copy(all, got)
		case <-time.After(2 * time.Minute):
			text, _ := os.ReadFile(log.Name())
			require.FailNow(t, "the page did not report", "%s", text)
		}
	}
	for _, c := range cases {
		for call, want := range map[string]string{
			"unary": `[200,["a"],"h","t"]`, "get": `[200,"SERVING"]`, "missing": `[404,"not_found"]`,
			"connectStream": `[200,3,"end"]`, "grpcWeb": `[200,3,"0"]`,
		} {
			if call == "missing" && c.Node != "" {
				continue
			}
			if strings.HasPrefix(c.Name, "none for") {
				want = `[401,"unauthenticated"]`
				switch call {
				case "unary":
					want = `[401,"unauthenticated",null,null]`
				case "connectStream":
					want = `[200,0,"unauthenticated"]`
				case "grpcWeb":
					want = `[200,0,"16"]`
				}
			}
			got, err := json.Marshal(all["listed, "+c.Name+", "+call])
			require.NoError(t, err)
			assert.JSONEq(t, want, string(got), "listed, %s, %s", c.Name, call)
			assert.Equal(t, "blocked", all["foreign, "+c.Name+", "+call], "foreign, %s, %s", c.Name, call)
		}
	}
}
