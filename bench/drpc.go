package main

import (
	"context"
	"errors"
	"io"
	"net"

	"storj.io/drpc/drpcconn"
	"storj.io/drpc/drpcmanager"
	"storj.io/drpc/drpcmux"
	"storj.io/drpc/drpcpool"
	"storj.io/drpc/drpcserver"

	benchv1 "github.com/raylink/raylink/bench/gen/bench/v1"
)

// drpcConns is the maximum number of calls in flight, and so of connections in use: a connection
// carries one call at a time, further calls block.
const (
	drpcConns = 64
	// drpcIdle is the capacity of the pool: enough for the row of idle connections.
	drpcIdle = 1024
)

type drpcEcho struct {
	benchv1.DRPCEchoUnimplementedServer
}

func (drpcEcho) Echo(_ context.Context, req *benchv1.EchoRequest) (*benchv1.EchoResponse, error) {
	return &benchv1.EchoResponse{Payload: req.GetPayload()}, nil
}

func (drpcEcho) Count(stream benchv1.DRPCEcho_CountStream) error {
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

type drpcServer struct {
	listener net.Listener
	cancel   context.CancelFunc
	done     chan struct{}
}

func serveDRPC(ctx context.Context, network string) (server, error) {
	listener, err := listen(ctx, network)
	if err != nil {
		return nil, err
	}
	mux := drpcmux.New()
	if err := benchv1.DRPCRegisterEcho(mux, &drpcEcho{}); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &drpcServer{listener: listener, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		_ = drpcserver.New(mux).Serve(ctx, listener)
	}()
	return s, nil
}

func (s *drpcServer) address() string { return s.listener.Addr().String() }

func (s *drpcServer) close() error {
	s.cancel()
	<-s.done
	return nil
}

type drpcClient struct {
	pool  *drpcpool.Pool[string, *drpcconn.Conn]
	conn  drpcpool.Conn
	slots chan struct{}
}

func dialDRPC(ctx context.Context, network, address string) (client, error) {
	pool := drpcpool.New[string, *drpcconn.Conn](drpcpool.Options{Capacity: drpcIdle, KeyCapacity: drpcIdle})
	conn := pool.Get(ctx, address, func(ctx context.Context, address string) (*drpcconn.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return drpcconn.NewWithOptions(nc, drpcconn.Options{Manager: drpcmanager.Options{SoftCancel: true}}), nil
	})
	return &drpcClient{pool: pool, conn: conn, slots: make(chan struct{}, drpcConns)}, nil
}

func (c *drpcClient) close() error { return errors.Join(c.conn.Close(), c.pool.Close()) }

func (c *drpcClient) caller(payload []byte) func() error {
	stub := benchv1.NewDRPCEchoClient(c.conn)
	req := &benchv1.EchoRequest{Payload: payload}
	return underDeadline(func(ctx context.Context) error {
		c.slots <- struct{}{}
		res, err := stub.Echo(ctx, req)
		<-c.slots
		if err != nil {
			return err
		}
		return sameSize(payload, res.GetPayload())
	})
}

func (c *drpcClient) stream(payload []byte) (sending, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	s, err := benchv1.NewDRPCEchoClient(c.conn).Count(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	return &drpcSending{stream: s, cancel: cancel, req: &benchv1.CountRequest{Payload: payload}}, nil
}

type drpcSending struct {
	stream benchv1.DRPCEcho_CountClient
	cancel context.CancelFunc
	req    *benchv1.CountRequest
}

func (s *drpcSending) send() error { return s.stream.Send(s.req) }

func (s *drpcSending) finish() (uint64, error) {
	defer s.cancel()
	res, err := s.stream.CloseAndRecv()
	return res.GetMessages(), err
}

func (c *drpcClient) idle(connections int) error {
	// Concurrent streams have a connection each, which returns to the pool when the stream ends.
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	defer cancel()
	stub := benchv1.NewDRPCEchoClient(c.conn)
	streams := make([]benchv1.DRPCEcho_CountClient, connections)
	for i := range streams {
		var err error
		if streams[i], err = stub.Count(ctx); err != nil {
			return err
		}
	}
	for _, s := range streams {
		if _, err := s.CloseAndRecv(); err != nil {
			return err
		}
	}
	return nil
}
