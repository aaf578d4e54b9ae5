package main

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	benchv1 "github.com/raylink/raylink/bench/gen/bench/v1"
)

// grpcConns is the number of channels of the client: grpc's documentation recommends several for a
// busy client. grpcWindow is the size of both flow-control windows; setting it disables their
// dynamic estimation.
const (
	grpcConns  = 2
	grpcWindow = 16 << 20
)

type grpcEcho struct {
	benchv1.UnimplementedEchoServer
}

func (grpcEcho) Echo(_ context.Context, req *benchv1.EchoRequest) (*benchv1.EchoResponse, error) {
	return &benchv1.EchoResponse{Payload: req.GetPayload()}, nil
}

func (grpcEcho) Count(stream grpc.ClientStreamingServer[benchv1.CountRequest, benchv1.CountResponse]) error {
	var n uint64
	for {
		_, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&benchv1.CountResponse{Messages: n})
		}
		if err != nil {
			return err
		}
		n++
	}
}

func (grpcEcho) Flood(req *benchv1.FloodRequest, stream grpc.ServerStreamingServer[benchv1.FloodResponse]) error {
	res := &benchv1.FloodResponse{Payload: make([]byte, req.GetSize())}
	for {
		if err := stream.Send(res); err != nil {
			return err
		}
	}
}

type grpcServer struct {
	at     string
	server *grpc.Server
}

func serveGRPC(ctx context.Context, network string) (server, error) {
	listener, err := listen(ctx, network)
	if err != nil {
		return nil, err
	}
	address, security := listener.Addr().String(), insecure.NewCredentials()
	if network == tlsNetwork {
		config, der, err := selfSigned()
		if err != nil {
			return nil, errors.Join(err, listener.Close())
		}
		address, security = securedAddress(address, der), credentials.NewTLS(config)
	}
	s := grpc.NewServer(
		grpc.InitialWindowSize(grpcWindow), grpc.InitialConnWindowSize(grpcWindow), grpc.Creds(security),
	)
	benchv1.RegisterEchoServer(s, grpcEcho{})
	go func() { _ = s.Serve(listener) }() // ends with close
	return &grpcServer{at: address, server: s}, nil
}

func (s *grpcServer) address() string { return s.at }

func (s *grpcServer) close() error {
	s.server.Stop()
	return nil
}

type grpcClient struct {
	network, address string
	conns            []*grpc.ClientConn
	next             atomic.Uint32
}

func dialGRPC(_ context.Context, network, address string) (client, error) {
	return newGRPCClient(network, address, grpcConns)
}

func newGRPCClient(network, address string, conns int) (*grpcClient, error) {
	target, security := "passthrough:///"+address, insecure.NewCredentials()
	switch network {
	case "unix":
		target = "unix:" + address
	case tlsNetwork:
		at, config, err := trusting(address)
		if err != nil {
			return nil, err
		}
		target, security = "passthrough:///"+at, credentials.NewTLS(config)
	}
	c := &grpcClient{network: network, address: address}
	for range conns {
		conn, err := grpc.NewClient(target,
			grpc.WithTransportCredentials(security),
			grpc.WithInitialWindowSize(grpcWindow), grpc.WithInitialConnWindowSize(grpcWindow),
		)
		if err != nil {
			return nil, errors.Join(err, c.close())
		}
		c.conns = append(c.conns, conn)
	}
	return c, nil
}

func (c *grpcClient) close() error {
	var err error
	for _, conn := range c.conns {
		err = errors.Join(err, conn.Close())
	}
	return err
}

// stub returns a client of one of the channels, round-robin.
func (c *grpcClient) stub() benchv1.EchoClient {
	return benchv1.NewEchoClient(c.conns[int(c.next.Add(1))%len(c.conns)])
}

func (c *grpcClient) caller(payload []byte) func() error {
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

func (c *grpcClient) stream(payload []byte) (sending, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	s, err := c.stub().Count(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	return &grpcSending{stream: s, cancel: cancel, req: &benchv1.CountRequest{Payload: payload}}, nil
}

type grpcSending struct {
	stream grpc.ClientStreamingClient[benchv1.CountRequest, benchv1.CountResponse]
	cancel context.CancelFunc
	req    *benchv1.CountRequest
}

func (s *grpcSending) send() error { return s.stream.Send(s.req) }

func (s *grpcSending) finish() (uint64, error) {
	defer s.cancel()
	res, err := s.stream.CloseAndRecv()
	return res.GetMessages(), err
}

func (c *grpcClient) shared() sharer { return &grpcClient{conns: c.conns[:1]} }

func (c *grpcClient) flood(size int) (end func(), err error) {
	ctx, cancel := context.WithCancel(context.Background())
	if _, err := c.stub().Flood(ctx, &benchv1.FloodRequest{Size: uint32(size)}); err != nil {
		cancel()
		return nil, err
	}
	return cancel, nil
}

func (c *grpcClient) idle(connections int) error {
	more, err := newGRPCClient(c.network, c.address, connections)
	if err != nil {
		return err
	}
	c.conns = append(c.conns, more.conns...)
	for range connections {
		if err := more.caller(nil)(); err != nil {
			return err
		}
	}
	return nil
}
