package runtime

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
)

// contextGrace is how long a transport may take to notice the end of a context. HTTP/2 without
// [HTTPClient] does not notice it while requests may still be sent; its streams are then closed, so
// that no reader blocks on them for ever.
const contextGrace = time.Second

// clientEndpointStream gives a connect client's stream the semantics of every other way: the end of
// the context ends it on both sides and is the error, and so does Close, even while other
// operations are in progress.
type clientEndpointStream struct {
	stream connect.ClientStream
	method *Method
	// info is the caller's, nil if it did not ask for metadata; own is what the transport fills.
	info, own *connect.CallInfo
	// ctx is the caller's, streamCtx is the stream's own.
	ctx, streamCtx context.Context //nolint:containedctx // a stream lives as long as its call's context
	cancel         context.CancelFunc

	mu            sync.Mutex // guards the fields below
	begun, closed bool
	unwatch       func() bool
}

var _ connect.ClientStream = (*clientEndpointStream)(nil)

// begin opens the call once. Only then is it safe to close the stream concurrently with other
// operations.
func (s *clientEndpointStream) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return closedStreamError()
	case s.begun:
		return nil
	}
	s.begun = true
	if s.method.shape&connect.StreamTypeClient == 0 {
		return nil // the request is sent with its only message
	}
	s.unwatch = context.AfterFunc(s.streamCtx, func() { time.AfterFunc(contextGrace, func() { _ = s.stream.Close() }) })
	return s.stream.SendHeaders()
}

// SendHeaders implements [connect.ClientStream].
func (s *clientEndpointStream) SendHeaders() error { return s.failed(s.begin()) }

// Send implements [connect.ClientStream].
func (s *clientEndpointStream) Send(msg any) error {
	if err := s.begin(); err != nil {
		return s.failed(err)
	}
	if err := s.stream.Send(msg); err != nil {
		return unsendable(s.method, msg, err)
	}
	return nil
}

// CloseSend implements [connect.ClientStream].
func (s *clientEndpointStream) CloseSend() error {
	if err := s.begin(); err != nil {
		return s.failed(err)
	}
	return s.stream.CloseSend()
}

// Receive implements [connect.ClientStream].
func (s *clientEndpointStream) Receive(msg any) error {
	if err := s.begin(); err != nil {
		return s.failed(err)
	}
	err := s.stream.Receive(msg)
	// An in-process transport, which sets no protocol, may set metadata until Receive reports the
	// stream's end.
	if err != nil && isMetadataSet(s.streamCtx, err) || err == nil && s.own != nil && s.own.Protocol != "" {
		deliverFrom(s.info, s.own)
	}
	if err == nil {
		return nil
	}
	if !errors.Is(err, io.EOF) {
		err = s.failed(undecodable(s.method, false, err))
	}
	s.release()
	return err
}

// release frees the resources of a stream that has ended.
func (s *clientEndpointStream) release() {
	s.mu.Lock()
	unwatch := s.unwatch
	s.mu.Unlock()
	if unwatch != nil {
		unwatch()
	}
	s.cancel()
}

// Close implements [connect.ClientStream]. It cancels the context first: closing alone would signal
// to the node that all requests were sent.
func (s *clientEndpointStream) Close() error {
	s.mu.Lock()
	s.closed = true
	begun := s.begun
	s.mu.Unlock()
	s.release()
	if !begun {
		return nil
	}
	return s.stream.Close()
}

func (s *clientEndpointStream) failed(err error) error {
	if err == nil {
		return nil
	}
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed && s.ctx.Err() == nil && errors.Is(err, context.Canceled) {
		// A transport may return the plain error of the stream's own context.
		return closedStreamError()
	}
	return endedAt(clientError(s.ctx, err), "the node", s.method, streaming)
}

func closedStreamError() error {
	return connect.NewError(connect.CodeCanceled, "the stream was closed").WithCause(context.Canceled)
}
