// Conformance-client is a client under test for connectconformance. It makes each call by a
// generated handle.
//
//	conformance-client -way tunnel   a handle of the node "conf", an alias, by a tunnel
//	                                 (the server's address is that of Brain)
//	conformance-client -way local    a handle of a node in this process, without the server
//	conformance-client -way http     a handle of the node "conf" over connect's HTTP client
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	conformancev1 "github.com/raylink/raylink/internal/conformance/gen/connectrpc/conformance/v1"
	"github.com/raylink/raylink/internal/conformance/gen/connectrpc/conformance/v1/conformancev1raylink"
	"github.com/raylink/raylink/internal/conformance/service"
	"github.com/raylink/raylink/internal/conformance/wire"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
)

// atOnce is the number of concurrent calls.
const atOnce = 4

func main() {
	way := flag.String("way", "tunnel", "tunnel, local or http")
	flag.Parse()
	if err := run(*way); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

func run(way string) error {
	c := &client{way: way, handles: make(map[string]*conformancev1raylink.ConformanceService)}
	defer c.close()
	slots := make(chan struct{}, atOnce)
	var calls sync.WaitGroup
	defer calls.Wait()
	var out sync.Mutex
	for {
		req := &conformancev1.ClientCompatRequest{}
		if err := wire.Read(os.Stdin, req); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		slots <- struct{}{}
		calls.Go(func() {
			defer func() { <-slots }()
			res := &conformancev1.ClientCompatResponse{TestName: req.GetTestName()}
			if result, err := c.do(req); err != nil {
				res.Result = &conformancev1.ClientCompatResponse_Error{Error: &conformancev1.ClientErrorResult{Message: err.Error()}}
			} else {
				res.Result = &conformancev1.ClientCompatResponse_Response{Response: result}
			}
			out.Lock()
			defer out.Unlock()
			if err := wire.Write(os.Stdout, res); err != nil {
				fmt.Fprintln(os.Stderr, "client:", err)
			}
		})
	}
}

type client struct {
	way string

	mu      sync.Mutex // guards all below
	handles map[string]*conformancev1raylink.ConformanceService
	undo    []func()
}

func (c *client) close() {
	for _, undo := range c.undo {
		undo()
	}
}

// handle makes a handle of the node at an address, once.
func (c *client) handle(ctx context.Context, address string) (*conformancev1raylink.ConformanceService, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.handles[address]; h != nil {
		return h, nil
	}
	var h *conformancev1raylink.ConformanceService
	switch c.way {
	case "local":
		h = conformancev1raylink.NewLocalConformanceService(service.Node{})
	case "http":
		protocols := new(http.Protocols)
		protocols.SetUnencryptedHTTP2(true)
		transport := &http.Transport{Protocols: protocols}
		c.undo = append(c.undo, transport.CloseIdleConnections)
		h = conformancev1raylink.NewConformanceServiceTunnel(connect.NewClient(
			connecthttp.NewTransport(runtime.HTTPClient(&http.Client{Transport: transport}), "http://"+address+"/conf")))
	default:
		dir, err := os.MkdirTemp("", "conformance")
		if err != nil {
			return nil, err
		}
		c.undo = append(c.undo, func() { _ = os.RemoveAll(dir) })
		//nolint:contextcheck // it outlives the call
		rt, err := join.Start(context.Background(), runtime.WithBrain(address), runtime.WithData(dir), runtime.WithOpen())
		if err != nil {
			return nil, err
		}
		c.undo = append(c.undo, func() { _ = rt.Close() })
		if h, err = conformancev1raylink.FindConformanceService(ctx, rt, runtime.Alias("conf")); err != nil {
			return nil, err
		}
	}
	c.handles[address] = h
	return h, nil
}

// call is the state of one call.
type call struct {
	req    *conformancev1.ClientCompatRequest
	handle *conformancev1raylink.ConformanceService
	cancel context.CancelFunc
	result *conformancev1.ClientResponseResult

	// When to cancel the call: before its requests end, after so many responses, or so long after
	// its requests have ended; the latter two are -1 for never.
	beforeCloseSend bool
	afterResponses  int
	afterCloseSend  time.Duration
}

func (c *client) do(req *conformancev1.ClientCompatRequest) (*conformancev1.ClientResponseResult, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	h, err := c.handle(ctx, net.JoinHostPort(req.GetHost(), strconv.FormatUint(uint64(req.GetPort()), 10)))
	if err != nil {
		return nil, fmt.Errorf("making a handle: %w", err)
	}
	if req.TimeoutMs != nil { // a timeout of zero is one
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, time.Duration(req.GetTimeoutMs())*time.Millisecond)
		defer stop()
	}
	ctx, info := connect.NewClientContext(ctx)
	for _, header := range req.GetRequestHeaders() {
		for _, value := range header.GetValue() {
			info.RequestHeader().Add(header.GetName(), value)
		}
	}
	out := &call{req: req, handle: h, cancel: cancel, result: &conformancev1.ClientResponseResult{}, afterResponses: -1, afterCloseSend: -1}
	if req.GetCancel() != nil {
		switch when := req.GetCancel().GetCancelTiming().(type) {
		case *conformancev1.ClientCompatRequest_Cancel_BeforeCloseSend:
			out.beforeCloseSend = true
		case *conformancev1.ClientCompatRequest_Cancel_AfterNumResponses:
			out.afterResponses = int(when.AfterNumResponses)
		case *conformancev1.ClientCompatRequest_Cancel_AfterCloseSendMs:
			out.afterCloseSend = time.Duration(when.AfterCloseSendMs) * time.Millisecond
		default:
			out.afterCloseSend = 0
		}
	}
	err = out.make(ctx)
	out.result.ResponseHeaders, out.result.ResponseTrailers = headers(info.ResponseHeader()), headers(info.ResponseTrailer())
	return out.result, err
}

func headers(from *connect.Header) []*conformancev1.Header {
	var to []*conformancev1.Header
	for key, values := range from.All() {
		to = append(to, &conformancev1.Header{Name: key, Value: values})
	}
	return to
}

// make makes the call. Its outcome is in the result; an error is one of this program.
func (c *call) make(ctx context.Context) error {
	switch c.req.GetMethod() {
	case "Unary":
		return unary(ctx, c, &conformancev1.UnaryRequest{}, c.handle.Unary)
	case "IdempotentUnary":
		return unary(ctx, c, &conformancev1.IdempotentUnaryRequest{}, c.handle.IdempotentUnary)
	case "Unimplemented":
		_, err := c.handle.Unimplemented(ctx, &conformancev1.UnimplementedRequest{})
		c.failed(err)
		return nil
	case "ServerStream":
		return c.serverStream(ctx)
	case "ClientStream":
		return c.clientStream(ctx)
	case "BidiStream":
		return c.bidiStream(ctx)
	}
	return fmt.Errorf("the service has no method %q", c.req.GetMethod())
}

// failed records the call's error.
func (c *call) failed(err error) {
	if err == nil || errors.Is(err, io.EOF) {
		return
	}
	c.result.Error = &conformancev1.Error{Code: conformancev1.Code(connect.CodeOf(err)), Message: new(err.Error())} //nolint:gosec // connect's codes are the suite's
	e, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return
	}
	c.result.Error.Message = new(e.Message())
	for _, d := range e.Details() {
		c.result.Error.Details = append(c.result.Error.Details, &anypb.Any{TypeUrl: "type.googleapis.com/" + d.Type, Value: d.Value})
	}
}

func (c *call) got(payload *conformancev1.ConformancePayload) {
	c.result.Payloads = append(c.result.Payloads, payload)
	if len(c.result.GetPayloads()) == c.afterResponses {
		c.cancel()
	}
}

// request unpacks one of the call's requests.
func (c *call) request(i int, into proto.Message) error {
	if err := c.req.GetRequestMessages()[i].UnmarshalTo(into); err != nil {
		return fmt.Errorf("request %d: %w", i, err)
	}
	time.Sleep(time.Duration(c.req.GetRequestDelayMs()) * time.Millisecond) //nolint:forbidigo // the suite requests a pause
	return nil
}

// unsent records that the requests from number i on were not sent.
func (c *call) unsent(i int) {
	c.result.NumUnsentRequests = int32(len(c.req.GetRequestMessages()) - i) //nolint:gosec // a handful
}

func unary[Req proto.Message, Res interface {
	GetPayload() *conformancev1.ConformancePayload
}](ctx context.Context, c *call, req Req, method func(context.Context, Req) (Res, error)) error {
	if err := c.request(0, req); err != nil {
		return err
	}
	if c.afterCloseSend >= 0 {
		time.AfterFunc(c.afterCloseSend, c.cancel)
	}
	res, err := method(ctx, req)
	if err == nil {
		c.got(res.GetPayload())
	}
	c.failed(err)
	return nil
}

// closedSend cancels the call if it is to be canceled after its requests have ended.
func (c *call) closedSend() {
	if c.afterCloseSend >= 0 {
		time.Sleep(c.afterCloseSend) //nolint:forbidigo // the suite requests a pause
		c.cancel()
	}
}

func (c *call) serverStream(ctx context.Context) error {
	req := &conformancev1.ServerStreamRequest{}
	if err := c.request(0, req); err != nil {
		return err
	}
	stream, err := c.handle.ServerStream(ctx, req)
	if err != nil {
		c.failed(err)
		return nil
	}
	defer stream.Close() //nolint:errcheck // the outcome is known
	c.closedSend()
	for {
		res, err := stream.Receive()
		if err != nil {
			c.failed(err)
			return nil
		}
		c.got(res.GetPayload())
	}
}

func (c *call) clientStream(ctx context.Context) error {
	stream, err := c.handle.ClientStream(ctx)
	if err != nil {
		c.failed(err)
		return nil
	}
	defer stream.Close() //nolint:errcheck // the outcome is known
	for i := range c.req.GetRequestMessages() {
		req := &conformancev1.ClientStreamRequest{}
		if err := c.request(i, req); err != nil {
			return err
		}
		if err := stream.Send(req); err != nil {
			c.unsent(i)
			break // CloseAndReceive has the reason
		}
	}
	if c.beforeCloseSend {
		c.cancel()
	}
	if c.afterCloseSend >= 0 {
		time.AfterFunc(c.afterCloseSend, c.cancel)
	}
	res, err := stream.CloseAndReceive()
	if err == nil {
		c.got(res.GetPayload())
	}
	c.failed(err)
	return nil
}

func (c *call) bidiStream(ctx context.Context) error {
	stream, err := c.handle.BidiStream(ctx)
	if err != nil {
		c.failed(err)
		return nil
	}
	defer stream.Close() //nolint:errcheck // the outcome is known
	// receive reports whether there may be another response.
	receive := func() bool {
		res, err := stream.Receive()
		if err != nil {
			c.failed(err)
			return false
		}
		c.got(res.GetPayload())
		return true
	}
	fullDuplex := c.req.GetStreamType() == conformancev1.StreamType_STREAM_TYPE_FULL_DUPLEX_BIDI_STREAM
	for i := range c.req.GetRequestMessages() {
		req := &conformancev1.BidiStreamRequest{}
		if err := c.request(i, req); err != nil {
			return err
		}
		if err := stream.Send(req); err != nil {
			c.unsent(i)
			for receive() { // until the error arrives
			}
			return nil
		}
		if fullDuplex && !receive() {
			return nil
		}
	}
	if c.beforeCloseSend {
		c.cancel()
	}
	_ = stream.CloseSend() // receiving returns the reason
	c.closedSend()
	for receive() { // the rest
	}
	return nil
}
