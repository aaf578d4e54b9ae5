package brain_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/brain"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// The methods of a node, without a schema: requests and responses are strings.
var (
	say    = connect.Spec{Procedure: "/test.v1.Test/Say", StreamType: connect.StreamTypeUnary}
	count  = connect.Spec{Procedure: "/test.v1.Test/Count", StreamType: connect.StreamTypeServer}
	gather = connect.Spec{Procedure: "/test.v1.Test/Gather", StreamType: connect.StreamTypeClient}
	talk   = connect.Spec{Procedure: "/test.v1.Test/Talk", StreamType: connect.StreamTypeBidi}
)

// nodeHost is a host with a listener and one node.
type nodeHost struct {
	server *httptest.Server
	info   *nodev1.HostInfo
	// goOn lets Count send its next number.
	goOn chan struct{}
	// ended receives how each call of Count or Talk ended.
	ended chan error

	mu       sync.Mutex
	requests []*http.Request
}

func newNodeHost(t *testing.T, pid int32) *nodeHost {
	t.Helper()
	h := &nodeHost{goOn: make(chan struct{}), ended: make(chan error, 10)}
	server := connect.NewServer()
	server.Register(
		connect.Method{Spec: say, Handler: h.say},
		connect.Method{Spec: count, Handler: h.count},
		connect.Method{Spec: gather, Handler: h.gather},
		connect.Method{Spec: talk, Handler: h.talk},
	)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server, connecthttp.WithReadMaxBytes(64<<20))
	h.server = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		h.requests = append(h.requests, r)
		h.mu.Unlock()
		// A host knows its nodes by nid.
		nid, rest, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		if !ok || len(nid) != 36 {
			http.Error(w, "the path names no nid: "+r.URL.Path, http.StatusTeapot)
			return
		}
		r.URL.Path = "/" + rest
		mux.ServeHTTP(w, r)
	}))
	h.info = host(pid, strings.TrimPrefix(h.server.URL, "http://"))
	return h
}

func (h *nodeHost) last() *http.Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.requests[len(h.requests)-1]
}

func (h *nodeHost) say(ctx context.Context, _ connect.Spec, stream connect.ServerStream) error {
	var req wrapperspb.StringValue
	if err := stream.Receive(&req); err != nil {
		return err
	}
	info, _ := connect.CallInfoForServerContext(ctx)
	info.ResponseHeader().Set("X-Header", "h")
	info.ResponseTrailer().Set("X-Trailer", "t")
	switch req.GetValue() {
	case "fail":
		detail, err := connectproto.NewErrorDetail(durationpb.New(time.Minute))
		if err != nil {
			return err
		}
		return connect.NewError(connect.CodeDataLoss, "it failed").WithDetail(detail)
	case "wait":
		<-ctx.Done()
		_, hasDeadline := ctx.Deadline()
		h.ended <- fmt.Errorf("deadline %t: %w", hasDeadline, ctx.Err())
		return ctx.Err()
	}
	return stream.Send(wrapperspb.String("you said " + req.GetValue()))
}

func (h *nodeHost) count(ctx context.Context, _ connect.Spec, stream connect.ServerStream) error {
	var req wrapperspb.StringValue
	if err := stream.Receive(&req); err != nil {
		return err
	}
	// The headers are sent at once: the caller waits for them.
	if err := stream.SendHeaders(); err != nil {
		return err
	}
	for i := 0; ; i++ {
		select {
		case <-h.goOn:
		case <-ctx.Done():
			h.ended <- ctx.Err()
			return ctx.Err()
		}
		if i == 3 {
			return nil
		}
		if err := stream.Send(wrapperspb.String(strconv.Itoa(i))); err != nil {
			return err
		}
	}
}

func (h *nodeHost) gather(_ context.Context, _ connect.Spec, stream connect.ServerStream) error {
	total := 0
	for {
		var req wrapperspb.StringValue
		if err := stream.Receive(&req); errors.Is(err, io.EOF) {
			return stream.Send(wrapperspb.String(strconv.Itoa(total)))
		} else if err != nil {
			return err
		}
		total += len(req.GetValue())
	}
}

func (h *nodeHost) talk(_ context.Context, _ connect.Spec, stream connect.ServerStream) (err error) {
	defer func() { h.ended <- err }()
	for {
		var req wrapperspb.StringValue
		if err := stream.Receive(&req); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.Send(wrapperspb.String("re: " + req.GetValue())); err != nil {
			return err
		}
	}
}

// gatewayed is a system with a node on a host, and the node's URL at the gateway.
type gatewayed struct {
	*system

	host *nodeHost
	node *nodev1.NodeRecord
	url  string
}

func gatewaySystem(t *testing.T) *gatewayed {
	t.Helper()
	s := start(t, brain.Options{})
	h := newNodeHost(t, 7)
	manager := s.register(t, "", "manager", nil)
	node := s.register(t, manager.GetNid(), "learner", h.info)
	return &gatewayed{system: s, host: h, node: node, url: s.server.URL + "/" + node.GetPath()}
}

// protocols runs a test for each protocol that clients speak, over HTTP/2.
func protocols(t *testing.T, run func(t *testing.T, opts ...connecthttp.Option)) {
	t.Helper()
	t.Run("connect", func(t *testing.T) { run(t) })
	t.Run("grpc", func(t *testing.T) { run(t, connecthttp.WithGRPC()) })
	t.Run("grpcweb", func(t *testing.T) { run(t, connecthttp.WithGRPCWeb()) })
}

func client(t *testing.T, url string, opts ...connecthttp.Option) *connect.Client {
	t.Helper()
	return connect.NewClient(connecthttp.NewTransport(h2c(t), url, opts...))
}

func TestGatewayReachesANodeByPathNidAndHeader(t *testing.T) {
	s := gatewaySystem(t)
	h, node := s.host, s.node
	_, err := s.client.Register(t.Context(), &brainv1.RegisterRequest{Type: "other"})
	require.NoError(t, err)
	protocols(t, func(t *testing.T, opts ...connecthttp.Option) {
		for _, where := range []string{node.GetPath(), node.GetNid()} {
			ctx, info := connect.NewClientContext(t.Context())
			info.RequestHeader().Set("Authorization", "Bearer token")
			var res wrapperspb.StringValue
			require.NoError(t, client(t, s.server.URL+"/"+where, opts...).CallUnary(ctx, say, wrapperspb.String("hello"), &res))
			require.Equal(t, "you said hello", res.GetValue())
			require.Equal(t, "h", info.ResponseHeader().Get("X-Header"))
			require.Equal(t, "t", info.ResponseTrailer().Get("X-Trailer"))
			require.Empty(t, h.last().Header.Get("Authorization"), "the caller's credentials were forwarded")
			require.Equal(t, 2, h.last().ProtoMajor)

			ctx, info = connect.NewClientContext(t.Context())
			info.RequestHeader().Set("raylink-node", where)
			require.NoError(t, client(t, s.server.URL, opts...).CallUnary(ctx, say, wrapperspb.String("you"), &res))
			require.Equal(t, "you said you", res.GetValue())
		}
	})
}

func TestGatewayServesCurl(t *testing.T) {
	s := gatewaySystem(t)
	h, url := s.host, s.url
	post := func(url, body string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer func() { require.NoError(t, res.Body.Close()) }()
		text, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return res.StatusCode, string(text)
	}
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	status, body := post(url+"/test.v1.Test/Say", `"hello"`)
	require.Equal(t, http.StatusOK, status)
	require.JSONEq(t, `"you said hello"`, body)
	require.Equal(t, 1, h.last().ProtoMajor, "a host sees its caller's capabilities")
	status, body = post(url+"/test.v1.Test/Say", `"fail"`)
	require.Equal(t, http.StatusInternalServerError, status)
	require.Contains(t, body, `"code":"data_loss","message":"it failed"`)
	status, body = post(strings.Replace(url, "learner", "lerner", 1)+"/test.v1.Test/Say", `"hello"`)
	require.Equal(t, http.StatusNotFound, status)
	require.Contains(t, body, `"code":"not_found"`)
	require.Contains(t, body, "manager-0 has learner-0")
}

func TestGatewayForwardsStreamsAsTheyArrive(t *testing.T) {
	s := gatewaySystem(t)
	h, url := s.host, s.url
	protocols(t, func(t *testing.T, opts ...connecthttp.Option) {
		stream, err := client(t, url, opts...).CallServerStream(t.Context(), count, wrapperspb.String(""))
		require.NoError(t, err)
		for i := range 3 {
			h.goOn <- struct{}{} // the node sends no more than this one
			var res wrapperspb.StringValue
			require.NoError(t, stream.Receive(&res))
			require.Equal(t, strconv.Itoa(i), res.GetValue())
		}
		h.goOn <- struct{}{}
		require.ErrorIs(t, stream.Receive(new(wrapperspb.StringValue)), io.EOF)

		stream, err = client(t, url, opts...).CallClientStream(t.Context(), talk)
		require.NoError(t, err)
		for i := range 3 {
			require.NoError(t, stream.Send(wrapperspb.String(strconv.Itoa(i))))
			var res wrapperspb.StringValue
			require.NoError(t, stream.Receive(&res))
			require.Equal(t, fmt.Sprintf("re: %d", i), res.GetValue())
		}
		require.NoError(t, stream.CloseSend())
		require.ErrorIs(t, stream.Receive(new(wrapperspb.StringValue)), io.EOF)
		require.NoError(t, <-h.ended)
	})
}

func TestGatewayForwardsBodiesOfAnySize(t *testing.T) {
	url := gatewaySystem(t).url
	protocols(t, func(t *testing.T, opts ...connecthttp.Option) {
		stream, err := client(t, url, opts...).CallClientStream(t.Context(), gather)
		require.NoError(t, err)
		mebibyte := wrapperspb.String(strings.Repeat("x", 1<<20))
		for range 8 {
			if err := stream.Send(mebibyte); err != nil {
				require.NoError(t, errors.Join(err, stream.Receive(new(wrapperspb.StringValue))))
			}
		}
		require.NoError(t, stream.CloseSend())
		var res wrapperspb.StringValue
		require.NoError(t, stream.Receive(&res))
		require.Equal(t, strconv.Itoa(8<<20), res.GetValue())
		require.NoError(t, stream.Close())
	})
}

// TestGatewayReturnsAResponseThatComesBeforeTheRequestWasRead has a host
// that responds before it has read the request, and a caller that waits for the response before it
// sends the rest.
func TestGatewayReturnsAResponseThatComesBeforeTheRequestWasRead(t *testing.T) {
	s := start(t, brain.Options{})
	server := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no", http.StatusForbidden)
	}))
	node := s.register(t, "", "rude", host(9, strings.TrimPrefix(server.URL, "http://")))
	body, rest := io.Pipe()
	defer func() { require.NoError(t, rest.Close()) }()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.server.URL+"/"+node.GetPath()+"/test.v1.Test/Say", body)
	require.NoError(t, err)
	res, err := s.http.Do(req)
	require.NoError(t, err)
	text, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, "no\n", string(text))
}

// TestGatewaySendsACallOnce breaks a host's connection during a call with headers that permit
// net/http to send a request again.
func TestGatewaySendsACallOnce(t *testing.T) {
	s := start(t, brain.Options{})
	var requests atomic.Int64
	server := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if requests.Add(1) > 1 {
			panic(http.ErrAbortHandler)
		}
	}))
	node := s.register(t, "", "rude", host(9, strings.TrimPrefix(server.URL, "http://")))
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	for i, want := range []int{http.StatusOK, http.StatusServiceUnavailable} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.server.URL+"/"+node.GetPath()+"/test.v1.Test/Say", http.NoBody)
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/proto") // with the empty message
		if i > 0 {
			req.Header["idempotency-key"] = []string{"1"}
		}
		res, err := transport.RoundTrip(req)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.Equal(t, want, res.StatusCode)
	}
	require.EqualValues(t, 2, requests.Load(), "the call was sent again")
}

func TestGatewayForwardsErrorsWithDetails(t *testing.T) {
	url := gatewaySystem(t).url
	protocols(t, func(t *testing.T, opts ...connecthttp.Option) {
		err := client(t, url, opts...).CallUnary(t.Context(), say, wrapperspb.String("fail"), new(wrapperspb.StringValue))
		var failed *connect.Error
		require.ErrorAs(t, err, &failed)
		require.Equal(t, connect.CodeDataLoss, failed.Code())
		require.Equal(t, "it failed", failed.Message())
		require.Len(t, failed.Details(), 1)
	})
}

func TestGatewayForwardsCancellationAndDeadline(t *testing.T) {
	s := gatewaySystem(t)
	h, url := s.host, s.url
	protocols(t, func(t *testing.T, opts ...connecthttp.Option) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		err := client(t, url, opts...).CallUnary(ctx, say, wrapperspb.String("wait"), new(wrapperspb.StringValue))
		require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err), "%v", err)
		require.ErrorContains(t, <-h.ended, "deadline true")

		ctx, cancel = context.WithCancel(t.Context())
		stream, err := client(t, url, opts...).CallServerStream(ctx, count, wrapperspb.String(""))
		require.NoError(t, err)
		h.goOn <- struct{}{}
		require.NoError(t, stream.Receive(new(wrapperspb.StringValue)))
		cancel()
		require.ErrorIs(t, <-h.ended, context.Canceled)
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(stream.Receive(new(wrapperspb.StringValue))))

		stream, err = client(t, url, opts...).CallClientStream(t.Context(), talk)
		require.NoError(t, err)
		require.NoError(t, stream.Send(wrapperspb.String("hello")))
		require.NoError(t, stream.Receive(new(wrapperspb.StringValue)))
		require.NoError(t, stream.Close())
		t.Log("the node reported:", <-h.ended)
	})
}

func TestGatewayReportsErrorsInTheCallersProtocol(t *testing.T) {
	s := gatewaySystem(t)
	starting := s.register(t, "", "starting", nil)
	// A port without a listener.
	closed := httptest.NewServer(http.NotFoundHandler())
	address := strings.TrimPrefix(closed.URL, "http://")
	closed.Close()
	gone := s.register(t, "", "gone", host(9, address))
	dead := s.register(t, "", "dead", nil)
	_, err := s.client.Remove(t.Context(), &brainv1.RemoveRequest{Nids: []string{dead.GetNid()}, Cause: "stopped by a test"})
	require.NoError(t, err)
	protocols(t, func(t *testing.T, opts ...connecthttp.Option) {
		for where, want := range map[string]struct {
			code connect.Code
			text string
		}{
			"manager-0/learner-1":                  {connect.CodeNotFound, "manager-0 has learner-0"},
			"noalias":                              {connect.CodeNotFound, "no node has an alias"},
			"99999999-2222-4333-8444-555555555555": {connect.CodeNotFound, "no node with the nid"},
			starting.GetPath():                     {connect.CodeUnavailable, "is starting"},
			gone.GetPath():                         {connect.CodeUnavailable, "no answer for gone-0 from its host at " + address},
			dead.GetPath():                         {connect.CodeNotFound, "is dead: stopped by a test"},
			"a//b":                                 {connect.CodeInvalidArgument, "not an absolute path"},
		} {
			err := client(t, s.server.URL+"/"+where, opts...).CallUnary(t.Context(), say, wrapperspb.String("x"), new(wrapperspb.StringValue))
			require.Equal(t, want.code, connect.CodeOf(err), "%s: %v", where, err)
			require.ErrorContains(t, err, want.text)
		}
		stream, err := client(t, s.server.URL+"/manager-7", opts...).CallServerStream(t.Context(), count, wrapperspb.String(""))
		if err == nil {
			err = stream.Receive(new(wrapperspb.StringValue))
		}
		require.Equal(t, connect.CodeNotFound, connect.CodeOf(err))
	})
}

// TestGatewayForwardsCompressedBodies forwards compressed requests and responses as they are, for
// callers on other machines. For a caller on its own machine it requests an uncompressed response
// from the host, unless the request is compressed.
func TestGatewayForwardsCompressedBodies(t *testing.T) {
	s := gatewaySystem(t)
	text := strings.Repeat("all work and no play ", 1000)
	plain := []byte(`"` + text + `"`)
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, err := w.Write(plain)
	require.NoError(t, errors.Join(err, w.Close()))
	for _, from := range []string{"192.0.2.1:1", "127.0.0.1:1"} {
		for _, body := range [][]byte{plain, zipped.Bytes()} {
			path := "/" + s.node.GetPath() + say.Procedure
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, bytes.NewReader(body))
			r.RemoteAddr = from
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Accept-Encoding", "gzip")
			if len(body) < len(plain) {
				r.Header.Set("Content-Encoding", "gzip")
			}
			res := httptest.NewRecorder()
			s.server.Config.Handler.ServeHTTP(res, r)
			require.Equal(t, http.StatusOK, res.Code, "%s", res.Body)
			require.Equal(t, r.Header.Get("Content-Encoding"), s.host.last().Header.Get("Content-Encoding"))
			require.Equal(t, int64(len(body)), s.host.last().ContentLength, "the gateway changed the request's body")
			answer, encoding := io.Reader(res.Body), res.Header().Get("Content-Encoding")
			if from == "127.0.0.1:1" && len(body) == len(plain) { // connect answers in the request's encoding
				require.Empty(t, encoding)
			} else {
				require.Equal(t, "gzip", encoding)
				require.Less(t, res.Body.Len(), len(text)/10)
				answer, err = gzip.NewReader(res.Body)
				require.NoError(t, err)
			}
			got, err := io.ReadAll(answer)
			require.NoError(t, err)
			require.JSONEq(t, `"you said `+text+`"`, string(got))
		}
	}
}

func TestGatewayReportsHowAHostDiedDuringACall(t *testing.T) {
	protocols(t, func(t *testing.T, opts ...connecthttp.Option) {
		s := gatewaySystem(t)
		h, url := s.host, s.url
		die := func() {
			h.server.CloseClientConnections()
			_, err := s.client.ReportHost(t.Context(), &brainv1.ReportHostRequest{HostId: h.info.GetId(), Cause: "killed by signal 9 (killed)"})
			require.NoError(t, err)
		}
		c := client(t, url, opts...)
		waiting := make(chan error)
		go func() {
			waiting <- c.CallUnary(t.Context(), say, wrapperspb.String("wait"), new(wrapperspb.StringValue))
		}()
		stream, err := c.CallServerStream(t.Context(), count, wrapperspb.String(""))
		require.NoError(t, err)
		h.goOn <- struct{}{}
		require.NoError(t, stream.Receive(new(wrapperspb.StringValue)))
		require.Eventually(t, func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.requests) == 2 }, patience, time.Millisecond)
		die()
		for _, err := range []error{<-waiting, stream.Receive(new(wrapperspb.StringValue))} {
			require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
			require.ErrorContains(t, err, "manager-0/learner-0 is dead: its host (pid 7 on m1) died: killed by signal 9 (killed)")
		}
	})
}

func TestGatewayPassesLocalRequestsToTheLocalHandler(t *testing.T) {
	b, err := brain.Open(brain.Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()) }()
	own := host(1, "127.0.0.1:1")
	require.NoError(t, b.SetHost(t.Context(), own))
	res, err := b.Service().Register(t.Context(), &brainv1.RegisterRequest{Type: "here", Launcher: own, Alias: "me"})
	require.NoError(t, err)
	node := res.GetNodes()[0]
	_, err = b.Service().Update(t.Context(), &brainv1.UpdateRequest{Changes: []*brainv1.Change{{Nid: node.GetNid(), Incarnation: 1, Host: own}}})
	require.NoError(t, err)
	gateway := b.Gateway(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := fmt.Fprintf(w, "%s %s %q", r.URL.Path, r.URL.RawQuery, r.Header.Get("Raylink-Node"))
		assert.NoError(t, err)
	}), nil)
	ask := func(path, header string) string {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
		if header != "" {
			req.Header.Set("Raylink-Node", header)
		}
		out := httptest.NewRecorder()
		gateway.ServeHTTP(out, req)
		return out.Body.String()
	}
	require.Equal(t, `/  ""`, ask("/", ""))
	require.Equal(t, `/healthz  "here-0"`, ask("/healthz", "here-0"))
	require.Equal(t, `/a.B/C x=1 ""`, ask("/a.B/C?x=1", ""))
	require.Equal(t, `/a.B/C x=1 ""`, ask("/BRAIN/a.B/C?x=1", ""))
	require.Equal(t, `/a.B/C  ""`, ask("/"+b.Root().GetNid()+"/a.B/C", ""))
	require.Equal(t, `/a.B/C  ""`, ask("/a.B/C", "BRAIN"))
	for _, path := range []string{"/here-0/a.B/C", "/me/a.B/C", "/" + node.GetNid() + "/a.B/C"} {
		require.Equal(t, "/"+node.GetNid()+`/a.B/C  ""`, ask(path, ""))
	}
	require.Equal(t, "/"+node.GetNid()+`/a.B/C  ""`, ask("/a.B/C", "me"))
}

func TestGatewayRefusesForwardingLoops(t *testing.T) {
	s := start(t, brain.Options{})
	node := s.register(t, "", "mirror", host(5, strings.TrimPrefix(s.server.URL, "http://")))
	err := client(t, s.server.URL+"/"+node.GetPath()).CallUnary(t.Context(), say, wrapperspb.String("x"), new(wrapperspb.StringValue))
	require.ErrorContains(t, err, "in a forwarding loop")
}
