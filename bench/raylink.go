package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/raylink/raylink"
	benchv1 "github.com/raylink/raylink/bench/gen/bench/v1"
	"github.com/raylink/raylink/bench/gen/bench/v1/benchv1raylink"
	"github.com/raylink/raylink/runtime"
)

// echoNode implements the benchmark's service.
type echoNode struct{}

func newEchoNode(context.Context, *runtime.Node) (benchv1raylink.EchoNode, error) {
	return echoNode{}, nil
}

func (echoNode) Echo(_ context.Context, req *benchv1.EchoRequest) (*benchv1.EchoResponse, error) {
	return &benchv1.EchoResponse{Payload: req.GetPayload()}, nil
}

func (echoNode) EchoConcurrent(_ context.Context, req *benchv1.EchoRequest) (*benchv1.EchoResponse, error) {
	return &benchv1.EchoResponse{Payload: req.GetPayload()}, nil
}

func (echoNode) Count(_ context.Context, stream benchv1raylink.EchoCountServerStream) (*benchv1.CountResponse, error) {
	var n uint64
	for {
		_, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return &benchv1.CountResponse{Messages: n}, nil
		}
		if err != nil {
			return nil, err
		}
		n++
	}
}

func (echoNode) Flood(_ context.Context, req *benchv1.FloodRequest, stream benchv1raylink.EchoFloodServerStream) error {
	res := &benchv1.FloodResponse{Payload: make([]byte, req.GetSize())}
	for {
		if err := stream.Send(res); err != nil {
			return err
		}
	}
}

// brainRole runs Brain like `raylink brain`, until ctx ends. In a system with TLS, joining gets the
// token after serving was called.
func brainRole(ctx context.Context, serving func(address string), joining func(address, token string)) error {
	return raylink.ServeBrain(ctx, raylink.BrainOptions{
		Serving: func(address, _, _ string) { serving(address) }, Joining: joining,
	})
}

type raylinkServer struct {
	rt   *raylink.Runtime
	path string
}

// serveRaylink hosts a node in this process, which joins the Brain in the environment.
func serveRaylink(ctx context.Context, network string) (server, error) {
	rt, err := raylink.Init(ctx, benchv1raylink.EchoType(newEchoNode))
	if err != nil {
		return nil, err
	}
	echo, err := benchv1raylink.CreateEcho(ctx, rt, runtime.ParentProcess())
	if err != nil {
		return nil, errors.Join(err, rt.Close())
	}
	if network != "unix" {
		// A process of the same machine would use the host's Unix socket. Renaming the host's
		// directory hides the socket from this client, so that it uses TCP like a client on another
		// machine.
		dir := echo.Ref().Record().GetHost().GetDirectory()
		if err := os.Rename(dir, dir+".elsewhere"); err != nil {
			return nil, errors.Join(err, rt.Close())
		}
	}
	return &raylinkServer{rt: rt, path: echo.Ref().Path()}, nil
}

func (s *raylinkServer) address() string { return s.path }

func (s *raylinkServer) close() error { return s.rt.Close() }

type raylinkClient struct {
	rt   *raylink.Runtime
	echo *benchv1raylink.Echo
	call func(*benchv1raylink.Echo, context.Context, *benchv1.EchoRequest) (*benchv1.EchoResponse, error)
	send func(*benchv1raylink.Echo, context.Context, *benchv1.EchoRequest) *runtime.Future[*benchv1.EchoResponse]
	// localNode is a node in this process, created on first use.
	localNode *benchv1raylink.Echo
}

func dialRaylink(ctx context.Context, network, path string) (client, error) {
	c, err := newRaylinkClient(ctx, network, path)
	if err != nil {
		return nil, err
	}
	c.call, c.send = (*benchv1raylink.Echo).Echo, (*benchv1raylink.Echo).EchoAsync
	return c, nil
}

func dialRaylinkConcurrent(ctx context.Context, network, path string) (client, error) {
	c, err := newRaylinkClient(ctx, network, path)
	if err != nil {
		return nil, err
	}
	c.call, c.send = (*benchv1raylink.Echo).EchoConcurrent, (*benchv1raylink.Echo).EchoConcurrentAsync
	return c, nil
}

func newRaylinkClient(ctx context.Context, network, path string) (*raylinkClient, error) {
	rt, err := raylink.Init(ctx, benchv1raylink.EchoType(newEchoNode))
	if err != nil {
		return nil, err
	}
	echo, err := benchv1raylink.FindEcho(ctx, rt, runtime.Path(path))
	if err != nil {
		return nil, errors.Join(err, rt.Close())
	}
	_, err = os.Stat(echo.Ref().Record().GetHost().GetSocket())
	if (err == nil) != (network == "unix") {
		return nil, errors.Join(fmt.Errorf("calls would not use %s: %w", network, err), rt.Close())
	}
	return &raylinkClient{rt: rt, echo: echo}, nil
}

func (c *raylinkClient) close() error { return c.rt.Close() }

func (c *raylinkClient) caller(payload []byte) func() error {
	req := &benchv1.EchoRequest{Payload: payload}
	return underDeadline(func(ctx context.Context) error {
		res, err := c.call(c.echo, ctx, req)
		if err != nil {
			return err
		}
		return sameSize(payload, res.GetPayload())
	})
}

// outstandingCall is a future that has not been collected yet.
type outstandingCall struct {
	future *runtime.Future[*benchv1.EchoResponse]
	cancel context.CancelFunc
	begun  time.Time
}

func (c *raylinkClient) start(payload []byte, outstanding int, more func() bool, done func(time.Duration)) error {
	req := &benchv1.EchoRequest{Payload: payload}
	ring := make([]outstandingCall, outstanding)
	collect := func(o *outstandingCall) error {
		if o.future == nil {
			return nil
		}
		res, err := o.future.Get(context.Background())
		o.cancel()
		o.future = nil
		if err != nil {
			return err
		}
		done(time.Since(o.begun))
		return sameSize(payload, res.GetPayload())
	}
	next := 0
	for ; more(); next++ {
		o := &ring[next%outstanding]
		if err := collect(o); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
		*o = outstandingCall{future: c.send(c.echo, ctx, req), cancel: cancel, begun: time.Now()}
	}
	for range outstanding {
		if err := collect(&ring[next%outstanding]); err != nil {
			return err
		}
		next++
	}
	return nil
}

func (c *raylinkClient) stream(payload []byte) (sending, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	s, err := c.echo.Count(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	return &raylinkSending{stream: s, cancel: cancel, req: &benchv1.CountRequest{Payload: payload}}, nil
}

type raylinkSending struct {
	stream benchv1raylink.EchoCountClientStream
	cancel context.CancelFunc
	req    *benchv1.CountRequest
}

func (s *raylinkSending) send() error { return s.stream.Send(s.req) }

func (s *raylinkSending) finish() (uint64, error) {
	defer s.cancel()
	res, err := s.stream.CloseAndReceive()
	return res.GetMessages(), err
}

func (c *raylinkClient) shared() sharer { return c }

func (c *raylinkClient) flood(size int) (end func(), err error) {
	s, err := c.echo.Flood(context.Background(), &benchv1.FloodRequest{Size: uint32(size)})
	if err != nil {
		return nil, err
	}
	return func() { _ = s.Close() }, nil
}

// idle creates tagged tunnels to the node: two processes share one connection otherwise.
func (c *raylinkClient) idle(connections int) error {
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	defer cancel()
	for i := range connections {
		tag := "idle-" + strconv.Itoa(i)
		if _, err := c.echo.Ref().CreateTunnel(ctx, tag); err != nil {
			return err
		}
		if _, err := c.echo.Ref().Tagged(tag).Ping(ctx); err != nil {
			return err
		}
	}
	return nil
}

// nodes creates nodes in this process, and calls each once. The result keeps their handles alive.
// Brain stores each node on disk twice, and a busy disk can take seconds for that: the deadline of
// a call would be too short.
func (c *raylinkClient) nodes(n int) (any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), setUpDeadline)
	defer cancel()
	all, err := benchv1raylink.CreateEchoN(ctx, c.rt, n, runtime.ParentProcess())
	if err != nil {
		return nil, err
	}
	req := &benchv1.EchoRequest{}
	for _, echo := range all {
		if _, err := echo.Echo(ctx, req); err != nil {
			return nil, err
		}
	}
	return all, nil
}
