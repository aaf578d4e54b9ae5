package raylink_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
)

// TestHealthInJSON requests health as curl and a load balancer's probe do, and gets the names of
// gRPC's schema.
func TestHealthInJSON(t *testing.T) {
	t.Parallel()
	brain := system(t)
	host := joined(t, brain)
	node := create(t, host).Ref().Path()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}
	ask := func(t *testing.T, method, url, contentType, body string) (status int, answer string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Content-Type", contentType)
		res, err := client.Do(req)
		require.NoError(t, err)
		all, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		return res.StatusCode, string(all)
	}
	for name, base := range map[string]string{
		"Brain":                       brain.Address(),
		"a host":                      host.Address(),
		"a node's URL":                host.Address() + "/" + node,
		"a node's URL at the gateway": brain.Address() + "/" + node,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			check := "http://" + base + "/grpc.health.v1.Health/Check"
			for _, message := range []string{`{}`, `{"service":"grpc.health.v1.Health"}`, `{"service":"contract.v1.Probe"}`} {
				status, answer := ask(t, http.MethodPost, check, "application/json", message)
				assert.Equal(t, http.StatusOK, status)
				assert.JSONEq(t, `{"status":"SERVING"}`, answer, message)
				status, answer = ask(t, http.MethodGet, check+"?connect=v1&encoding=json&message="+url.QueryEscape(message), "", "")
				assert.Equal(t, http.StatusOK, status)
				assert.JSONEq(t, `{"status":"SERVING"}`, answer, message)
			}
			status, answer := ask(t, http.MethodPost, strings.TrimSuffix(check, "Check")+"List", "application/json", `{}`)
			assert.Equal(t, http.StatusOK, status)
			var list struct {
				Statuses map[string]struct {
					Status string `json:"status"`
				} `json:"statuses"`
			}
			require.NoError(t, json.Unmarshal([]byte(answer), &list))
			for _, service := range []string{"", "contract.v1.Probe", "contract.v1.Other", "grpc.health.v1.Health", "raylink.node.v1.NodeService"} {
				assert.Equal(t, "SERVING", list.Statuses[service].Status, service)
			}
			status, answer = ask(t, http.MethodPost, check, "application/json", `{"service":"demo.v1.Missing"}`)
			assert.Equal(t, http.StatusNotFound, status)
			assert.JSONEq(t, `{"code":"not_found","message":"this host has no service \"demo.v1.Missing\""}`, answer)
		})
	}

	// A watch's first message is sent at once; this watch ends with its reader.
	for service, status := range map[string]string{"contract.v1.Probe": "SERVING", "demo.v1.Missing": "SERVICE_UNKNOWN"} {
		message := `{"service":"` + service + `"}`
		envelope := string(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))) + message
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+brain.Address()+"/grpc.health.v1.Health/Watch", strings.NewReader(envelope))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/connect+json")
		res, err := client.Do(req)
		require.NoError(t, err)
		head := make([]byte, 5)
		_, err = io.ReadFull(res.Body, head)
		require.NoError(t, err)
		first := make([]byte, binary.BigEndian.Uint32(head[1:]))
		_, err = io.ReadFull(res.Body, first)
		require.NoError(t, err)
		assert.JSONEq(t, `{"status":"`+status+`"}`, string(first))
		require.NoError(t, res.Body.Close())
	}
}

// ready reports whether a host is ready, by /readyz and by gRPC's health, which must agree.
func ready(t *testing.T, address string) bool {
	t.Helper()
	get := func(path string) int {
		req, err := http.NewRequestWithContext(patient(t), http.MethodGet, "http://"+address+path, nil)
		require.NoError(t, err)
		res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		return res.StatusCode
	}
	require.Equal(t, http.StatusOK, get("/livez"), "it must stay live")
	isReady := get("/readyz") == http.StatusOK
	status, answer := post(t, "http://"+address+"/grpc.health.v1.Health/Check", func(r *http.Request) {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader("{}")), 2
	})
	require.Equal(t, http.StatusOK, status, answer)
	if isReady && strings.Contains(answer, "NOT_SERVING") { // it changed in between
		isReady = get("/readyz") == http.StatusOK
	}
	require.Equal(t, isReady, !strings.Contains(answer, "NOT_SERVING"), answer)
	return isReady
}

// blocked makes a call that runs until it is released.
func blocked(t *testing.T, p *contractv1raylink.Probe) (letGo func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	p.BlockAsync(ctx, &contractv1.BlockRequest{Name: "call"})
	require.Eventually(t, func() bool {
		log, err := p.Log(patient(t), nil)
		return err == nil && slices.Contains(log.GetBlocked(), "call")
	}, patience, time.Millisecond)
	return cancel
}

// TestDrainingHostIsNotReady has a host whose Close, and a launched process whose node's stop,
// waits for a call.
func TestDrainingHostIsNotReady(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]func(t *testing.T) (p *contractv1raylink.Probe, address string, end func() error){
		"a driver that closes": func(t *testing.T) (*contractv1raylink.Probe, string, func() error) {
			t.Helper()
			rt := system(t)
			return create(t, rt), rt.Address(), rt.Close
		},
		"a process whose node stops": func(t *testing.T) (*contractv1raylink.Probe, string, func() error) {
			t.Helper()
			p := create(t, driver)
			return p, p.Ref().NodeRef().GetHost().GetAddress(), func() error { return p.Ref().Stop(patient(t)) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, address, end := begin(t)
			require.True(t, ready(t, address))
			next := watchHealth(patient(t), t, address)
			letGo := blocked(t, p)
			ended := make(chan error, 1)
			go func() { ended <- end() }()
			last, err := next()
			require.NoError(t, err)
			assert.JSONEq(t, `{"status":"NOT_SERVING"}`, last)
			assert.False(t, ready(t, address))
			select {
			case err := <-ended:
				t.Errorf("it ended, with %v, while a call ran", err)
			default:
			}
			letGo()
			require.NoError(t, <-ended)
		})
	}
}

// TestHostThatHasLostBrainIsReady has a host whose nodes still serve.
func TestHostThatHasLostBrainIsReady(t *testing.T) {
	t.Parallel()
	brain := system(t)
	host := joined(t, brain)
	node := create(t, host).Ref().Path()
	require.True(t, ready(t, host.Address()))
	require.NoError(t, brain.Close())
	assert.True(t, ready(t, host.Address()))
	status, answer := post(t, "http://"+host.Address()+"/"+node+"/contract.v1.Probe/Add", nil)
	assert.Equal(t, http.StatusOK, status, answer)
}
