package runtime

import (
	"context"
)

// Call calls the method and waits for its response.
//
// The request belongs to nobody from then on, nor does the response once returned: nobody may change either. A nil request
// is the empty message. A call whose context ends returns at once, with the one exception that [Mailbox turns] describe.
func (u *Unary[Req, Res]) Call(ctx context.Context, ref Ref, req Req) (Res, error) {
	panic("not yet")
}

// CallAsync enqueues a call of the method. It blocks only while the way to the node is full, until there is room or ctx ends.
// The future's outcome is the call's.
func (u *Unary[Req, Res]) CallAsync(ctx context.Context, ref Ref, req Req) *Future[Res] {
	panic("not yet")
}

// Call begins a call of the method, and returns its stream of responses.
func (s *ServerStreaming[Req, Res]) Call(ctx context.Context, ref Ref, req Req) (ServerStreamingClient[Res], error) {
	panic("not yet")
}

// Call begins a call of the method, and returns the stream to send its requests on.
func (c *ClientStreaming[Req, Res]) Call(ctx context.Context, ref Ref) (ClientStreamingClient[Req, Res], error) {
	panic("not yet")
}

// Call begins a call of the method, and returns its stream.
func (b *BidiStreaming[Req, Res]) Call(ctx context.Context, ref Ref) (BidiStreamingClient[Req, Res], error) {
	panic("not yet")
}
