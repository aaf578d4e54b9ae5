package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	benchv1 "github.com/raylink/raylink/bench/gen/bench/v1"
	"github.com/raylink/raylink/bench/gen/bench/v1/benchv1connect"
)

// h2Conns is the number of HTTP/2 connections of the client. h1Conns is the maximum number of its
// HTTP/1.1 connections: each carries one call, further calls block.
const (
	h2Conns   = 2
	h2Streams = 10000
	h2Window  = 16 << 20
	h2Stream  = 4 << 20
	h1Conns   = 64
)

type connectEcho struct {
	benchv1connect.UnimplementedEchoHandler
}

func (connectEcho) Echo(_ context.Context, req *benchv1.EchoRequest) (*benchv1.EchoResponse, error) {
	return &benchv1.EchoResponse{Payload: req.GetPayload()}, nil
}

func (connectEcho) Count(_ context.Context, stream benchv1connect.EchoCountServerStream) (*benchv1.CountResponse, error) {
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

func (connectEcho) Flood(_ context.Context, req *benchv1.FloodRequest, stream benchv1connect.EchoFloodServerStream) error {
	res := &benchv1.FloodResponse{Payload: make([]byte, req.GetSize())}
	for {
		if err := stream.Send(res); err != nil {
			return err
		}
	}
}

type connectServer struct {
	listener net.Listener
	server   *http.Server
}

func serveConnect(ctx context.Context, network string) (server, error) {
	listener, err := listen(ctx, network)
	if err != nil {
		return nil, err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	rpc := connect.NewServer()
	benchv1connect.RegisterEchoHandler(rpc, connectEcho{})
	mux := http.NewServeMux()
	connecthttp.Mount(mux, rpc, connecthttp.WithCompressors())
	s := &http.Server{ //nolint:gosec // needs no timeouts: the benchmark is its only client
		Handler: mux, Protocols: protocols,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: h2Streams, MaxReceiveBufferPerConnection: h2Window, MaxReceiveBufferPerStream: h2Stream},
	}
	go func() { _ = s.Serve(listener) }() // ends with close
	return &connectServer{listener: listener, server: s}, nil
}

func (s *connectServer) address() string { return s.listener.Addr().String() }

func (s *connectServer) close() error { return s.server.Close() }

type connectClient struct {
	network, address string
	configure        func(*http.Transport)
	transports       []*http.Transport
	stubs            []benchv1connect.EchoClient
	next             atomic.Uint32
	// idleConns are clients without calls.
	idleConns []*connectClient
}

func dialConnectH1(_ context.Context, network, address string) (client, error) {
	return newConnectClient(network, address, 1, func(t *http.Transport) {
		t.MaxConnsPerHost, t.MaxIdleConnsPerHost, t.MaxIdleConns = h1Conns, h1Conns, h1Conns
	}), nil
}

func dialConnectH2C(_ context.Context, network, address string) (client, error) {
	return h2cClient{newConnectClient(network, address, h2Conns, useH2C)}, nil
}

func useH2C(t *http.Transport) {
	t.Protocols = new(http.Protocols)
	t.Protocols.SetUnencryptedHTTP2(true)
	t.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerConnection: h2Window, MaxReceiveBufferPerStream: h2Stream}
}

func newConnectClient(network, address string, conns int, configure func(*http.Transport)) *connectClient {
	host := address
	if network == "unix" {
		host = "localhost"
	}
	c := &connectClient{network: network, address: address, configure: configure}
	for range conns {
		t := &http.Transport{
			DisableCompression: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, address)
			},
		}
		configure(t)
		c.transports = append(c.transports, t)
		transport := connecthttp.NewTransport(&http.Client{Transport: t}, "http://"+host, connecthttp.WithCompressors())
		c.stubs = append(c.stubs, benchv1connect.NewEchoClient(connect.NewClient(transport)))
	}
	return c
}

func (c *connectClient) close() error {
	for _, t := range c.transports {
		t.CloseIdleConnections()
	}
	return nil
}

func (c *connectClient) stub() benchv1connect.EchoClient {
	return c.stubs[int(c.next.Add(1))%len(c.stubs)]
}

func (c *connectClient) caller(payload []byte) func() error {
	stub := c.stub()
	req := &benchv1.EchoRequest{Payload: payload}
	return underDeadline(func(ctx context.Context) error {
		res, err := stub.Echo(ctx, req)
		if err != nil {
			return err
		}
		return sameSize(payload, res.GetPayload())
	})
}

func (c *connectClient) stream(payload []byte) (sending, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	s, err := c.stub().Count(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	return &connectSending{stream: s, cancel: cancel, req: &benchv1.CountRequest{Payload: payload}}, nil
}

type connectSending struct {
	stream benchv1connect.EchoCountClientStream
	cancel context.CancelFunc
	req    *benchv1.CountRequest
}

func (s *connectSending) send() error { return s.stream.Send(s.req) }

func (s *connectSending) finish() (uint64, error) {
	defer s.cancel()
	res, err := s.stream.CloseAndReceive()
	return res.GetMessages(), err
}

func (c *connectClient) idle(connections int) error {
	more := newConnectClient(c.network, c.address, connections, c.configure)
	c.transports = append(c.transports, more.transports...)
	for range connections {
		if err := more.caller(nil)(); err != nil {
			return err
		}
	}
	c.idleConns = append(c.idleConns, more)
	return nil
}

// h2cClient is a connectClient whose connections carry several calls at once.
type h2cClient struct{ *connectClient }

func (c h2cClient) shared() sharer {
	return h2cClient{&connectClient{transports: c.transports[:1], stubs: c.stubs[:1]}}
}

func (c h2cClient) flood(size int) (end func(), err error) {
	ctx, cancel := context.WithCancel(context.Background())
	s, err := c.stub().Flood(ctx, &benchv1.FloodRequest{Size: uint32(size)})
	if err != nil {
		cancel()
		return nil, err
	}
	return func() {
		cancel()
		_ = s.Close()
	}, nil
}
