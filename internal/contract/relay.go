package contract

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	raylink "github.com/raylink/raylink/runtime"
)

// Stubs are probes outside of systems, which can call each other.
type Stubs struct {
	mu      sync.Mutex // guards handles
	handles map[string]*contractv1raylink.Probe
}

// NewStubs makes an empty set.
func NewStubs() *Stubs { return &Stubs{handles: make(map[string]*contractv1raylink.Probe)} }

// Open makes another probe, and a handle of it by the function handle.
func (s *Stubs) Open(handle func(contractv1raylink.ProbeNode) *contractv1raylink.Probe) Peer {
	p := newProbe()
	p.stubs = s
	h := handle(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	name := fmt.Sprint("stub ", len(s.handles))
	s.handles[name] = h
	return Peer{Probe: h, Path: "probe", NID: h.Ref().NID(), Reach: &contractv1.Reach{Stub: name}}
}

// DialHTTP makes a handle of a node that is reached by HTTP. closes ends its connections.
func DialHTTP(reach *contractv1.Reach) (handle *contractv1raylink.Probe, closes func()) {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(reach.GetHttp1())
	protocols.SetUnencryptedHTTP2(!reach.GetHttp1())
	transport := &http.Transport{Protocols: protocols}
	options := []connecthttp.Option{connecthttp.WithReadMaxBytes(64 << 20)}
	switch reach.GetProtocol() {
	case "json":
		options = append(options, connecthttp.WithProtoJSON())
	case "grpc":
		options = append(options, connecthttp.WithGRPC())
	case "grpcweb":
		options = append(options, connecthttp.WithGRPCWeb())
	}
	client := connect.NewClient(connecthttp.NewTransport(raylink.HTTPClient(&http.Client{Transport: transport}), reach.GetUrl(), options...))
	return contractv1raylink.NewProbeTunnel(client), transport.CloseIdleConnections
}

// DialTunnel makes a handle of a node that is reached by a connection of its own.
func DialTunnel(ctx context.Context, reach *contractv1.Reach) (handle *contractv1raylink.Probe, closes func(), err error) {
	tunnel, err := raylink.DialTunnel(ctx, reach.GetTunnel(), "")
	if err != nil {
		return nil, nil, err
	}
	return contractv1raylink.NewProbeTunnel(tunnel.Client()), func() { _ = tunnel.Close() }, nil
}

// dial makes a handle of another node.
func (p *Probe) dial(ctx context.Context, reach *contractv1.Reach) (handle *contractv1raylink.Probe, closes func(), err error) {
	nothing := func() {}
	switch {
	case reach.GetUrl() != "":
		handle, closes = DialHTTP(reach)
		return handle, closes, nil
	case reach.GetTunnel() != nil:
		return DialTunnel(ctx, reach)
	case reach.GetStub() != "":
		p.stubs.mu.Lock()
		defer p.stubs.mu.Unlock()
		return p.stubs.handles[reach.GetStub()], nothing, nil
	}
	handle, err = contractv1raylink.ProbeFrom(raylink.NodeFrom(ctx), reach.GetNode())
	return handle, nothing, err
}

// Relay implements contractv1raylink.ProbeNode.
func (p *Probe) Relay(ctx context.Context, req *contractv1.RelayRequest) (*contractv1.RelayResponse, error) {
	if which, ok := forgery(req.GetWhat()); ok {
		return nil, p.count(which)
	}
	mayEndTurn(ctx)
	p.mu.Lock()
	p.blocked = append(p.blocked, "relay")
	p.mu.Unlock()
	next, closes, err := p.dial(ctx, req.GetNext())
	if err != nil {
		return nil, err
	}
	defer closes()
	switch req.GetWhat() {
	case "add":
		if req.GetAsync() {
			res, err := next.AddAsync(ctx, &contractv1.AddRequest{By: 1}).Get(ctx)
			return &contractv1.RelayResponse{Sum: res.GetSum()}, err
		}
		res, err := next.Add(ctx, &contractv1.AddRequest{By: 1})
		return &contractv1.RelayResponse{Sum: res.GetSum()}, err
	case "fail":
		_, err := next.Fail(ctx, req.GetFail())
		return nil, err
	case "wrap":
		_, err := next.Fail(ctx, req.GetFail())
		return nil, fmt.Errorf("the relay could not: %w", err)
	case "who":
		res, err := next.Who(ctx, req.GetWho())
		return &contractv1.RelayResponse{Who: res}, err
	case "block":
		_, err := next.Block(ctx, req.GetBlock())
		return nil, err
	case "streams":
		sum, err := relayStreams(ctx, next)
		return &contractv1.RelayResponse{Sum: sum}, err
	case "back":
		return next.Relay(ctx, &contractv1.RelayRequest{Next: req.GetBack(), What: "add"})
	}
	return nil, connect.Errorf(connect.CodeInvalidArgument, "what is %q?", req.GetWhat())
}

// relayStreams sends on one stream what it receives on another.
func relayStreams(ctx context.Context, next *contractv1raylink.Probe) (int64, error) {
	from, err := next.Count(ctx, &contractv1.CountRequest{To: 100})
	if err != nil {
		return 0, err
	}
	to, err := next.Sum(ctx)
	if err != nil {
		return 0, err
	}
	for {
		res, err := from.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, err
		}
		if err := to.Send(&contractv1.SumRequest{Number: int64(res.GetNumber())}); err != nil {
			return 0, err
		}
	}
	res, err := to.CloseAndReceive()
	return res.GetSum(), errors.Join(err, from.Close())
}
