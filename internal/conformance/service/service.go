// Package service implements connectrpc.conformance.v1.ConformanceService as a RayLink node. The
// service's schema specifies the methods: each responds or fails as the request's definition says,
// and reports the call's requests and metadata.
package service

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	conformancev1 "github.com/raylink/raylink/internal/conformance/gen/connectrpc/conformance/v1"
	"github.com/raylink/raylink/internal/conformance/gen/connectrpc/conformance/v1/conformancev1raylink"
	"github.com/raylink/raylink/runtime"
)

// Node implements the service. Methods that it does not override, such as Unimplemented, fail with
// the code unimplemented.
type Node struct {
	conformancev1raylink.UnimplementedConformanceServiceNode

	// Broken makes the node omit response headers, to check that a run can fail.
	Broken bool
}

var _ conformancev1raylink.ConformanceServiceNode = Node{}

// Unary implements the service.
func (n Node) Unary(ctx context.Context, req *conformancev1.UnaryRequest) (*conformancev1.UnaryResponse, error) {
	payload, err := n.answer(ctx, req.GetResponseDefinition(), req)
	return &conformancev1.UnaryResponse{Payload: payload}, err
}

// IdempotentUnary implements the service.
func (n Node) IdempotentUnary(
	ctx context.Context, req *conformancev1.IdempotentUnaryRequest,
) (*conformancev1.IdempotentUnaryResponse, error) {
	payload, err := n.answer(ctx, req.GetResponseDefinition(), req)
	return &conformancev1.IdempotentUnaryResponse{Payload: payload}, err
}

// ClientStream implements the service.
func (n Node) ClientStream(
	ctx context.Context, stream conformancev1raylink.ConformanceServiceClientStreamServerStream,
) (*conformancev1.ClientStreamResponse, error) {
	var definition *conformancev1.UnaryResponseDefinition
	var requests []proto.Message
	for {
		req, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if len(requests) == 0 {
			definition = req.GetResponseDefinition()
		}
		requests = append(requests, req)
	}
	payload, err := n.answer(ctx, definition, requests...)
	return &conformancev1.ClientStreamResponse{Payload: payload}, err
}

// ServerStream implements the service.
func (n Node) ServerStream(
	ctx context.Context, req *conformancev1.ServerStreamRequest, stream conformancev1raylink.ConformanceServiceServerStreamServerStream,
) error {
	out := replies{node: n, ctx: ctx, send: func(payload *conformancev1.ConformancePayload) error {
		return stream.Send(&conformancev1.ServerStreamResponse{Payload: payload})
	}}
	out.begin(req.GetResponseDefinition())
	if err := out.received(req); err != nil {
		return err
	}
	if err := out.sendRest(); err != nil {
		return err
	}
	return out.end()
}

// BidiStream implements the service. In full duplex it responds to each request as it arrives,
// otherwise to all of them at their end.
func (n Node) BidiStream(ctx context.Context, stream conformancev1raylink.ConformanceServiceBidiStreamServerStream) error {
	out := replies{node: n, ctx: ctx, send: func(payload *conformancev1.ConformancePayload) error {
		return stream.Send(&conformancev1.BidiStreamResponse{Payload: payload})
	}}
	fullDuplex := false
	for first := true; ; first = false {
		req, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if first {
			fullDuplex = req.GetFullDuplex()
			out.begin(req.GetResponseDefinition())
		}
		if err := out.received(req); err != nil {
			return err
		}
		if !fullDuplex {
			continue
		}
		if sent, err := out.sendNext(); err != nil {
			return err
		} else if !sent {
			break // a request without a response is the last
		}
	}
	if err := out.sendRest(); err != nil {
		return err
	}
	return out.end()
}

// answer returns the outcome of a call that has one response.
func (n Node) answer(
	ctx context.Context, definition *conformancev1.UnaryResponseDefinition, requests ...proto.Message,
) (*conformancev1.ConformancePayload, error) {
	packed, err := pack(requests...)
	if err != nil {
		return nil, err
	}
	info := requestInfo(ctx, packed)
	n.respond(ctx, definition.GetResponseHeaders(), definition.GetResponseTrailers())
	if err := wait(ctx, definition.GetResponseDelayMs()); err != nil {
		return nil, err
	}
	if definition.GetError() != nil {
		return nil, failure(definition.GetError(), info)
	}
	return &conformancev1.ConformancePayload{Data: definition.GetResponseData(), RequestInfo: info}, nil
}

// replies are the responses of a stream.
type replies struct {
	node       Node
	ctx        context.Context //nolint:containedctx // of one call
	send       func(*conformancev1.ConformancePayload) error
	definition *conformancev1.StreamResponseDefinition
	sent       int
	// requests are those that no response has reported yet.
	requests []*anypb.Any
}

func (r *replies) begin(definition *conformancev1.StreamResponseDefinition) {
	r.definition = definition
	r.node.respond(r.ctx, definition.GetResponseHeaders(), definition.GetResponseTrailers())
}

func (r *replies) received(req proto.Message) error {
	packed, err := pack(req)
	r.requests = append(r.requests, packed...)
	return err
}

// sendNext sends the next response, if there is one.
func (r *replies) sendNext() (bool, error) {
	if r.sent == len(r.definition.GetResponseData()) {
		return false, nil
	}
	payload := &conformancev1.ConformancePayload{Data: r.definition.GetResponseData()[r.sent]}
	switch {
	case r.sent == 0:
		payload.RequestInfo = requestInfo(r.ctx, r.requests)
	case len(r.requests) > 0:
		payload.RequestInfo = &conformancev1.ConformancePayload_RequestInfo{Requests: r.requests}
	}
	r.requests = nil
	if err := wait(r.ctx, r.definition.GetResponseDelayMs()); err != nil {
		return false, err
	}
	r.sent++
	return true, r.send(payload)
}

func (r *replies) sendRest() error {
	for {
		if sent, err := r.sendNext(); !sent || err != nil {
			return err
		}
	}
}

// end returns the stream's outcome. If no response was sent, the error reports the requests.
func (r *replies) end() error {
	if r.definition.GetError() == nil {
		return nil
	}
	if r.sent > 0 {
		return failure(r.definition.GetError(), nil)
	}
	return failure(r.definition.GetError(), requestInfo(r.ctx, r.requests))
}

// wait blocks for some time. If ctx ends first, it returns ctx's error.
func wait(ctx context.Context, ms uint32) error {
	if ms == 0 {
		return nil
	}
	select {
	case <-time.After(time.Duration(ms) * time.Millisecond):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func pack(messages ...proto.Message) ([]*anypb.Any, error) {
	packed := make([]*anypb.Any, 0, len(messages))
	for _, m := range messages {
		a, err := anypb.New(m)
		if err != nil {
			return nil, err
		}
		packed = append(packed, a)
	}
	return packed, nil
}

// respond sets the response's metadata. The suite has binary values in base64, a node the octets.
func (n Node) respond(ctx context.Context, headers, trailers []*conformancev1.Header) {
	call := runtime.CallFrom(ctx)
	if !n.Broken {
		each(headers, call.SetHeader)
	}
	each(trailers, call.SetTrailer)
}

func each(headers []*conformancev1.Header, set func(key, value string)) {
	for _, h := range headers {
		for _, value := range h.GetValue() {
			if octets, err := connect.DecodeBinaryHeader(value); err == nil && isBinary(h.GetName()) {
				value = string(octets)
			}
			set(h.GetName(), value)
		}
	}
}

func isBinary(key string) bool { return strings.HasSuffix(strings.ToLower(key), "-bin") }

func requestInfo(ctx context.Context, requests []*anypb.Any) *conformancev1.ConformancePayload_RequestInfo {
	info := &conformancev1.ConformancePayload_RequestInfo{Requests: requests}
	seen := make(map[string]*conformancev1.Header)
	for key, value := range runtime.CallFrom(ctx).Metadata().All() {
		if isBinary(key) {
			value = connect.EncodeBinaryHeader([]byte(value))
		}
		if seen[key] == nil {
			seen[key] = &conformancev1.Header{Name: key}
			info.RequestHeaders = append(info.RequestHeaders, seen[key])
		}
		seen[key].Value = append(seen[key].Value, value)
	}
	if deadline, ok := ctx.Deadline(); ok {
		info.TimeoutMs = new(time.Until(deadline).Milliseconds())
	}
	return info
}

// failure makes the error that a definition requests.
func failure(definition *conformancev1.Error, info *conformancev1.ConformancePayload_RequestInfo) error {
	details := definition.GetDetails()
	if info != nil {
		packed, err := pack(info)
		if err != nil {
			return err
		}
		details = append(slices.Clip(details), packed...)
	}
	err := connect.NewError(connect.Code(definition.GetCode()), definition.GetMessage()) //nolint:gosec // connect's codes are the suite's
	for _, d := range details {
		err = err.WithDetail(&connect.ErrorDetail{Type: string(d.MessageName()), Value: d.GetValue()})
	}
	return err
}
