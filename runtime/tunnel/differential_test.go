package tunnel_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/gen/raylink/node/v1/nodev1connect"
	"github.com/raylink/raylink/runtime/tunnel"
)

// node serves calls through the code that connect generates.
type node struct {
	nodev1connect.UnimplementedNodeServiceHandler
}

func (node) Ping(ctx context.Context, _ *nodev1.PingRequest) (*nodev1.PingResponse, error) {
	info, _ := connect.CallInfoForServerContext(ctx)
	info.ResponseHeader().Set("seen", info.RequestHeader().Get("key"))
	info.ResponseTrailer().Set("after", "1")
	return &nodev1.PingResponse{Time: &timestamppb.Timestamp{Seconds: 7}}, nil
}

func (node) Stop(context.Context, *nodev1.StopRequest) (*nodev1.StopResponse, error) {
	return nil, connect.NewError(connect.CodeAborted, "no").
		WithDetail(&connect.ErrorDetail{Type: "google.protobuf.StringValue", Value: []byte("\x0a\x01x")})
}

func (node) Info(ctx context.Context, _ *nodev1.InfoRequest) (*nodev1.InfoResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (node) Children(context.Context, *nodev1.ChildrenRequest) (*nodev1.ChildrenResponse, error) {
	return nil, nil //nolint:nilnil // what a careless node does
}

func spec(shape connect.StreamType, name string) connect.Spec {
	return connect.Spec{StreamType: shape, Procedure: "/test.v1.Shapes/" + name}
}

// shapes is a server with a method of each streaming shape.
func shapes(server *connect.Server) {
	server.Register(
		connect.Method{Spec: spec(connect.StreamTypeBidi, "Echo"), Handler: func(ctx context.Context, _ connect.Spec, s connect.ServerStream) error {
			info, _ := connect.CallInfoForServerContext(ctx)
			info.ResponseHeader().Set("seen", info.RequestHeader().Get("key"))
			for {
				msg := &wrapperspb.StringValue{}
				err := s.Receive(msg)
				if errors.Is(err, io.EOF) {
					info.ResponseTrailer().Set("after", "1")
					return nil
				}
				if err != nil {
					return err
				}
				if msg.GetValue() == "fail" {
					return connect.NewError(connect.CodeDataLoss, "as asked")
				}
				if err := s.Send(msg); err != nil {
					return err
				}
			}
		}},
		connect.Method{Spec: spec(connect.StreamTypeClient, "Count"), Handler: func(_ context.Context, _ connect.Spec, s connect.ServerStream) error {
			n := 0
			for s.Receive(&wrapperspb.StringValue{}) == nil {
				n++
			}
			return s.Send(wrapperspb.String(strconv.Itoa(n)))
		}},
		connect.Method{Spec: spec(connect.StreamTypeServer, "Repeat"), Handler: func(_ context.Context, _ connect.Spec, s connect.ServerStream) error {
			msg := &wrapperspb.StringValue{}
			if err := s.Receive(msg); err != nil {
				return err
			}
			for range 3 {
				if err := s.Send(msg); err != nil {
					return err
				}
			}
			return nil
		}},
	)
}

func outcome(err error) string {
	if err == nil {
		return "fine"
	}
	if errors.Is(err, io.EOF) {
		return "end"
	}
	var known *connect.Error
	if !errors.As(err, &known) {
		return err.Error()
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%v %q", known.Code(), known.Message())
	for _, d := range known.Details() {
		fmt.Fprintf(&text, " %s=%x", d.Type, d.Value)
	}
	return text.String()
}

// story is everything that a user of a connect client observes of a transport.
func story(ctx context.Context, transport connect.Transport) []string {
	var lines []string
	note := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	client := connect.NewClient(transport)
	nodes := nodev1connect.NewNodeServiceClient(client)
	meta := func(info *connect.CallInfo) {
		note("header %q, trailer %q", info.ResponseHeader().Get("seen"), info.ResponseTrailer().Get("after"))
	}

	c, info := connect.NewClientContext(ctx)
	info.RequestHeader().Set("key", "value")
	pong, err := nodes.Ping(c, &nodev1.PingRequest{})
	note("ping: %v %s", pong.GetTime().GetSeconds(), outcome(err))
	meta(info)
	_, err = nodes.Stop(ctx, &nodev1.StopRequest{})
	note("stop: %s", outcome(err))
	_, err = nodes.Create(ctx, &nodev1.CreateRequest{})
	note("create: %s", outcome(err))
	_, err = nodes.Children(ctx, &nodev1.ChildrenRequest{})
	note("children: %s", outcome(err))
	err = client.CallUnary(ctx, spec(connect.StreamTypeUnary, "Nowhere"), wrapperspb.String(""), &wrapperspb.StringValue{})
	note("nowhere: %s", outcome(err))
	short, cancel := context.WithTimeout(ctx, time.Second)
	_, err = nodes.Info(short, &nodev1.InfoRequest{})
	note("info: %v", connect.CodeOf(err) == connect.CodeDeadlineExceeded || errors.Is(err, context.DeadlineExceeded))
	cancel()

	c, info = connect.NewClientContext(ctx)
	info.RequestHeader().Set("key", "value")
	stream, err := client.CallClientStream(c, spec(connect.StreamTypeBidi, "Echo"))
	note("echo: %s", outcome(err))
	for _, text := range []string{"a", "b"} {
		msg := &wrapperspb.StringValue{}
		note("send: %s", outcome(stream.Send(wrapperspb.String(text))))
		note("receive: %s %q", outcome(stream.Receive(msg)), msg.GetValue())
	}
	note("close: %s", outcome(stream.CloseSend()))
	note("receive: %s", outcome(stream.Receive(&wrapperspb.StringValue{})))
	meta(info)
	note("close: %s", outcome(stream.Close()))

	stream, err = client.CallClientStream(ctx, spec(connect.StreamTypeBidi, "Echo"))
	note("echo: %s %s", outcome(err), outcome(stream.Send(wrapperspb.String("fail"))))
	note("receive: %s", outcome(stream.Receive(&wrapperspb.StringValue{})))
	// Within a process the error is the context's; over HTTP and through a tunnel it is io.EOF.
	note("send: %v", stream.Send(wrapperspb.String("more")) != nil)
	note("close: %s", outcome(stream.Close()))

	stream, err = client.CallClientStream(ctx, spec(connect.StreamTypeClient, "Count"))
	note("count: %s", outcome(err))
	for range 5 {
		note("send: %s", outcome(stream.Send(wrapperspb.String("x"))))
	}
	note("close: %s", outcome(stream.CloseSend()))
	count := &wrapperspb.StringValue{}
	note("receive: %s %q", outcome(stream.Receive(count)), count.GetValue())
	note("receive: %s", outcome(stream.Receive(count)))

	stream, err = client.CallServerStream(ctx, spec(connect.StreamTypeServer, "Repeat"), wrapperspb.String("again"))
	note("repeat: %s", outcome(err))
	for range 4 {
		msg := &wrapperspb.StringValue{}
		note("receive: %s %q", outcome(stream.Receive(msg)), msg.GetValue())
	}
	return lines
}

// TestConnectClientSeesNoDifference runs the same calls through a tunnel and through connect's own
// in-process transport, and compares what a client observes.
func TestConnectClientSeesNoDifference(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := connect.NewServer()
		nodev1connect.RegisterNodeServiceHandler(server, node{})
		shapes(server)
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, tunnel.ServerHandler(server))
		expected := story(t.Context(), connectinprocess.New(server))
		require.Equal(t, expected, story(t.Context(), s.client.Transport("target", "caller")))
		require.False(t, slices.Contains(expected, "info: false"))
	})
}
