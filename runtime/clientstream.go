package runtime

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
)

// contextGrace is how long a transport may take to notice a context's end. HTTP/2 without
// [HTTPClient] doesn't while requests may still be sent; its streams are closed then, so that
// nobody waits on them for ever.
const contextGrace = time.Second

// clientTargetStream makes of a connect client's stream what every other way gives: a context's end
// ends it on both sides, and is the error; and so does Close, whatever else is going on.
type clientTargetStream struct {
	stream connect.ClientStream
	method *Method
	// info is the caller's, nil if it does not ask, and own what the transport sets.
	info, own *connect.CallInfo
	// ctx is the caller's, life the stream's own.
	ctx, life context.Context //nolint:containedctx // a stream lives as long as its call's context
	cancel    context.CancelFunc

	mu            sync.Mutex // guards what follows
	begun, closed bool
	unwatch       func() bool
}

// begin opens the call, once. Only then is it safe to close it beside other operations.
func (s *clientTargetStream) begin() error {
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
	s.unwatch = context.AfterFunc(s.life, func() { time.AfterFunc(contextGrace, func() { _ = s.stream.Close() }) })
	return s.stream.SendHeaders()
}

// SendHeaders implements connect.ClientStream.
func (s *clientTargetStream) SendHeaders() error { return s.failed(s.begin()) }

// Send implements connect.ClientStream.
func (s *clientTargetStream) Send(msg any) error {
	if err := s.begin(); err != nil {
		return s.failed(err)
	}
	if err := s.stream.Send(msg); err != nil {
		return unsendable(s.method, msg, err)
	}
	return nil
}

// CloseSend implements connect.ClientStream.
func (s *clientTargetStream) CloseSend() error {
	if err := s.begin(); err != nil {
		return s.failed(err)
	}
	return s.stream.CloseSend()
}

// Receive implements connect.ClientStream.
func (s *clientTargetStream) Receive(msg any) error {
	if err := s.begin(); err != nil {
		return s.failed(err)
	}
	err := s.stream.Receive(msg)
	// A transport in one process sets metadata when the stream ends, at any time until Receive says
	// so; it names no protocol.
	if err != nil && isSettled(s.life, err) || err == nil && s.own != nil && s.own.Protocol != "" {
		deliverFrom(s.info, s.own)
	}
	if err == nil {
		return nil
	}
	if !errors.Is(err, io.EOF) {
		err = s.failed(err)
	}
	s.release()
	return err
}

// release gives back what a stream holds that is over.
func (s *clientTargetStream) release() {
	s.mu.Lock()
	unwatch := s.unwatch
	s.mu.Unlock()
	if unwatch != nil {
		unwatch()
	}
	s.cancel()
}

// Close implements connect.ClientStream. The context comes first: closing alone would say that all
// requests were sent.
func (s *clientTargetStream) Close() error {
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

func (s *clientTargetStream) failed(err error) error {
	if err == nil {
		return nil
	}
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed && s.ctx.Err() == nil && errors.Is(err, context.Canceled) {
		// A transport may pass on the plain end of the stream's own context.
		return closedStreamError()
	}
	return endedAt(clientError(s.ctx, err), "the node", s.method, streaming)
}

func closedStreamError() error {
	return connect.NewError(connect.CodeCanceled, "the stream was closed").WithCause(context.Canceled)
}
