package runtime

import (
	"context"
	"sync"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// NewLocal puts a node's implementation behind a mailbox, in this process and outside any system: around a fake in a test, for example. It
// needs no Close. It is for generated code.
func NewLocal(service *Service, impl any) Ref { return newStub(service, impl).ref() }

func newStub(service *Service, impl any) *Node {
	n := newNode(nil, service, &nodev1.NodeRecord{
		Nid:  uuid.NewString(), // its own: circles of calls are found by it
		Path: service.Type(), Name: service.Type(), Type: service.Type(), Service: service.name,
	})
	n.serveWith(impl)
	return n
}

// RegisterTunnel registers a node's implementation, behind a mailbox with the schema's limits, on a connect server. It needs no Close. It is for
// generated code.
func RegisterTunnel(server *connect.Server, service *Service, impl any) {
	n := newStub(service, impl)
	for _, m := range service.methods {
		server.Register(connect.Method{Spec: m.spec, Handler: func(ctx context.Context, _ connect.Spec, stream connect.ServerStream) error {
			return n.serveConnect(ctx, m, stream)
		}})
	}
}

// NewTunnel makes a reference to the node that a connect client reaches. It is for generated code.
func NewTunnel(service *Service, client *connect.Client) Ref {
	return Ref{t: &target{service: service, client: &clientTarget{client: client}}}
}

// serveConnect serves a call that came through a connect server, over HTTP for example. ctx carries connect's CallInfo.
func (n *Node) serveConnect(ctx context.Context, m *Method, stream connect.ServerStream) error {
	info, ok := connect.CallInfoForServerContext(ctx)
	if !ok {
		info = &connect.CallInfo{}
	}
	way := byTunnel
	switch info.Protocol {
	case connect.ProtocolNameConnect, connect.ProtocolNameGRPC, connect.ProtocolNameGRPCWeb:
		way = byHTTP
	}
	cc := newCall(ctx, m, way)
	cc.call.receive(metadataOf(info.RequestHeader()))
	if m.shape != connect.StreamTypeUnary {
		err := n.runStream(cc, &replyStream{ServerStream: stream, flush: func() {
			header, _ := cc.call.sent()
			header.addTo(info.ResponseHeader())
		}})
		_, trailer := cc.call.sent()
		trailer.addTo(info.ResponseTrailer())
		return err
	}
	req := m.newRequest()
	if err := stream.Receive(req); err != nil {
		return err
	}
	// Never on this goroutine: it is the transport's, and a method may end the one it runs on.
	done := make(chan struct{})
	j, err := n.submit(cc, req, proto.Size(req), func(*job) { close(done) })
	if err != nil {
		return err
	}
	select {
	case <-done:
	case <-ctx.Done():
		n.cancel(j, context.Cause(ctx))
		return causeOf(ctx)
	}
	header, trailer := cc.call.sent()
	header.addTo(info.ResponseHeader())
	trailer.addTo(info.ResponseTrailer())
	if j.err != nil {
		return j.err
	}
	return stream.Send(j.res)
}

// replyStream puts the headers that the node's code has set where the transport looks for them, before the first message.
type replyStream struct {
	connect.ServerStream

	flush  func()
	once   sync.Once
	source source // only ReceiveEmpty uses it
}

// ReceiveEmpty implements emptyReceiver.
func (s *replyStream) ReceiveEmpty(msg proto.Message) error {
	return s.source.from(s.ServerStream).fill(msg)
}

func (s *replyStream) SendHeaders() error {
	s.once.Do(s.flush)
	return s.ServerStream.SendHeaders()
}

func (s *replyStream) Send(msg any) error {
	s.once.Do(s.flush)
	return s.ServerStream.Send(msg)
}
