package tunnel

import (
	"cmp"
	"context"
	"io"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/runtime/tunnel/internal/codec"
)

// ServerHandler returns a Handler that serves the methods registered on a connect server, whatever
// the target of a call. Every call runs on its own goroutine. An error that is not a
// [connect.Error] reaches the caller as Unknown with its text, and a context error as Canceled or
// DeadlineExceeded. An error received from another node is passed on with its code, text and
// details.
func ServerHandler(server *connect.Server) Handler { return &serverHandler{server: server} }

type serverHandler struct{ server *connect.Server }

// ServeUnary runs the method on its own goroutine, with a copy of the request.
func (h *serverHandler) ServeUnary(in *Incoming) {
	sent := in.conn().request.body
	body := codec.NewBuffer(len(sent))
	body.B = append(body.B, sent...)
	go h.unary(in, body)
}

func (h *serverHandler) unary(in *Incoming, body *codec.Buffer) {
	info := serverInfo(in)
	stream := &unaryServer{in: in, info: info, body: body}
	in.conn().runHandler(in, func() error {
		err := h.server.Call(in.Context(), in.Procedure, info, stream)
		if err == nil && !stream.answered {
			return connect.Errorf(connect.CodeInternal, "%s returned without a response", in.Procedure)
		}
		return err
	}, func(err error) {
		header, headerErr := HeaderFrom(info.ResponseHeader())
		trailer, trailerErr := HeaderFrom(info.ResponseTrailer())
		in.SetHeader(header)
		in.SetTrailer(trailer)
		in.Reply(stream.response, cmp.Or(err, unsendableReply(headerErr), unsendableReply(trailerErr)))
		stream.body.Free()
	})
}

// ServeStream runs the method.
func (h *serverHandler) ServeStream(ctx context.Context, in *Incoming, stream connect.ServerStream) error {
	info := serverInfo(in)
	informed := &metadataStream{in: in, info: info, stream: stream}
	err := h.server.Call(ctx, in.Procedure, info, informed)
	trailer, trailerErr := HeaderFrom(info.ResponseTrailer())
	in.SetTrailer(trailer)
	return cmp.Or(err, informed.head(), unsendableReply(trailerErr))
}

// unsendableReply returns the error of a call whose handler has set metadata that cannot be sent,
// or nil if err is nil.
func unsendableReply(err error) error {
	if err == nil {
		return nil
	}
	return connect.Errorf(connect.CodeInternal, "the response: %s", connecterr.Text(err)).WithCause(err)
}

func serverInfo(in *Incoming) *connect.CallInfo {
	info := &connect.CallInfo{}
	info.Spec = connect.Spec{Procedure: in.Procedure, StreamType: in.StreamType}
	describe(info, in.PeerAddr())
	in.Header().CopyTo(info.RequestHeader())
	return info
}

// unaryServer is the stream that a connect handler of a unary call is given.
type unaryServer struct {
	in       *Incoming
	info     *connect.CallInfo
	body     *codec.Buffer
	read     bool
	answered bool
	response proto.Message
}

func (s *unaryServer) Receive(msg any) error {
	to, err := message(msg)
	if err != nil {
		return err
	}
	if s.read {
		return io.EOF
	}
	s.read = true
	s.info.ReceiveStats = connect.MessageStats{Size: len(s.body.B)}
	if to == nil {
		return nil
	}
	if err := proto.Unmarshal(s.body.B, to); err != nil {
		return Undecodable(s.in.Procedure, true, err)
	}
	return nil
}

func (*unaryServer) SendHeaders() error { return nil }

func (s *unaryServer) Send(msg any) error {
	m, err := message(msg)
	if err != nil {
		return err
	}
	if s.answered {
		return connect.NewError(connect.CodeInternal, "a second response of a unary call")
	}
	s.answered, s.response = true, m
	if m != nil {
		if size, err := codec.Size(m); err == nil { // else encoding the response reports the error
			s.info.SendStats = connect.MessageStats{Size: size}
		}
	}
	return nil
}

// metadataStream copies the response header of the call info to the tunnel's call.
type metadataStream struct {
	in     *Incoming
	info   *connect.CallInfo
	stream connect.ServerStream
	begun  bool
	wrong  error
}

func (s *metadataStream) Receive(msg any) error { return s.stream.Receive(msg) }

func (s *metadataStream) SendHeaders() error {
	if err := s.head(); err != nil {
		return err
	}
	return s.stream.SendHeaders()
}

func (s *metadataStream) Send(msg any) error {
	if err := s.head(); err != nil {
		return err
	}
	return s.stream.Send(msg)
}

// head sets the response header, once: before the first message, or at the end of a stream without
// messages.
func (s *metadataStream) head() error {
	if !s.begun {
		s.begun = true
		header, err := HeaderFrom(s.info.ResponseHeader())
		s.wrong = unsendableReply(err)
		s.in.SetHeader(header)
	}
	return s.wrong
}
