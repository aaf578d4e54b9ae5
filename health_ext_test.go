package raylink_test

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestHealthInJSON asks for health as curl and a load balancer's probe do, and gets the words of gRPC's schema.
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
			status, answer = ask(t, http.MethodPost, check, "application/json", `{"service":"demo.v1.Nobody"}`)
			assert.Equal(t, http.StatusNotFound, status)
			assert.JSONEq(t, `{"code":"not_found","message":"this host has no service \"demo.v1.Nobody\""}`, answer)
		})
	}

	// A watch's first word comes at once; this one ends with its reader.
	for service, status := range map[string]string{"contract.v1.Probe": "SERVING", "demo.v1.Nobody": "SERVICE_UNKNOWN"} {
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
