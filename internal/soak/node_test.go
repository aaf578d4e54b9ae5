package soak

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/runtime"
)

// node checks the calls that it receives.
type node struct {
	contractv1raylink.UnimplementedProbeNode

	world *world
	node  *runtime.Node
	// last is the number of the last call of each caller. It is guarded by the node's turns.
	last map[int64]int64
	// blocked is how many methods wait for the end of their context.
	blocked *atomic.Int64
}

// number is what a call adds: its caller's name, and how many calls that caller has made before.
// After a connection was cut its caller takes a new name: calls in transit on the old connection
// may arrive after those on the next.
func number(caller, epoch, count int64) int64 { return (caller<<16|epoch)<<32 | count }

func (w *world) setUp(
	_ context.Context, n *runtime.Node, _ *contractv1.ProbeConfig,
) (contractv1raylink.ProbeNode, error) {
	w.ups.Add(1)
	n.OnStop(func(context.Context) error { w.downs.Add(1); return nil })
	return &node{world: w, node: n, last: make(map[int64]int64), blocked: &w.blocked}, nil
}

// Add runs in a turn: calls of one caller come in order, and none twice.
func (n *node) Add(ctx context.Context, req *contractv1.AddRequest) (*contractv1.AddResponse, error) {
	caller, count := req.GetBy()>>32, req.GetBy()&(1<<32-1)
	if last := n.last[caller]; count <= last {
		err := connect.Errorf(connect.CodeInternal, "call %d of caller %x ran on %s after call %d", count, caller, n.node.Path(), last)
		n.world.faultf("%v", err)
		return nil, err // its caller records it too: the node may live in a process of its own
	}
	n.last[caller] = count
	if count%97 == 0 { // some are slow
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return &contractv1.AddResponse{Sum: req.GetBy()}, nil
}

// fetchPrefix begins a request for a response of so many bytes.
const fetchPrefix = "fetch "

// Echo runs without a turn.
func (*node) Echo(_ context.Context, req *contractv1.EchoRequest) (*contractv1.EchoResponse, error) {
	if digits, ok := strings.CutPrefix(string(req.GetPayload()), fetchPrefix); ok {
		size, err := strconv.Atoi(digits)
		return &contractv1.EchoResponse{Payload: pattern(size, size)}, err
	}
	return &contractv1.EchoResponse{Payload: req.GetPayload()}, nil
}

func (n *node) untilEnd(ctx context.Context) (*contractv1.BlockResponse, error) {
	n.blocked.Add(1)
	defer n.blocked.Add(-1)
	<-ctx.Done()
	return nil, ctx.Err()
}

// Block holds its turn until its context ends.
func (n *node) Block(ctx context.Context, _ *contractv1.BlockRequest) (*contractv1.BlockResponse, error) {
	return n.untilEnd(ctx)
}

// BlockBeside does the same without a turn.
func (n *node) BlockBeside(ctx context.Context, _ *contractv1.BlockRequest) (*contractv1.BlockResponse, error) {
	return n.untilEnd(ctx)
}

// Relay adds to another node, or has that node relay to a third.
func (n *node) Relay(ctx context.Context, req *contractv1.RelayRequest) (*contractv1.RelayResponse, error) {
	next, err := contractv1raylink.ProbeFrom(n.node, req.GetNext().GetNode())
	if err != nil {
		return nil, err
	}
	if req.GetBack() != nil {
		return next.Relay(ctx, &contractv1.RelayRequest{Next: req.GetBack(), What: req.GetWhat()})
	}
	by, err := strconv.ParseInt(req.GetWhat(), 10, 64)
	if err != nil {
		return nil, err
	}
	res, err := next.Add(ctx, &contractv1.AddRequest{By: by})
	return &contractv1.RelayResponse{Sum: res.GetSum()}, err
}

// Count sends numbers.
func (*node) Count(
	_ context.Context, req *contractv1.CountRequest, stream contractv1raylink.ProbeCountServerStream,
) error {
	for i := range req.GetTo() {
		payload := pattern(int(i), int(req.GetPayload()))
		if err := stream.Send(&contractv1.CountResponse{Number: i, Payload: payload}); err != nil {
			return err
		}
	}
	return nil
}

// Sum adds the numbers that it receives.
func (*node) Sum(
	_ context.Context, stream contractv1raylink.ProbeSumServerStream,
) (*contractv1.SumResponse, error) {
	sum := int64(0)
	for {
		req, err := stream.Receive()
		switch {
		case errors.Is(err, io.EOF):
			return &contractv1.SumResponse{Sum: sum}, nil
		case err != nil:
			return nil, err
		}
		sum += req.GetNumber()
	}
}

// Chat echoes messages.
func (*node) Chat(_ context.Context, stream contractv1raylink.ProbeChatServerStream) error {
	for {
		req, err := stream.Receive()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := stream.Send(&contractv1.ChatResponse{Text: req.GetText()}); err != nil {
			return err
		}
	}
}

// pattern is the content of a message, from which a receiver can tell whether it is intact.
func pattern(seed, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(seed + i*7 + i>>8)
	}
	return b
}
