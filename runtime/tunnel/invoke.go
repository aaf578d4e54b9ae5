package tunnel

import (
	"context"
	"sync"

	"github.com/raylink/raylink/runtime/tunnel/internal/codec"
)

// Invoke calls a unary procedure of the peer itself, not of a target, with an encoded request,
// which must not be modified afterwards. It waits for the response, which it passes to decode;
// decode must not keep the bytes. Invoke does what a connect client does on [Conn.Transport], but
// for interceptors, metadata and statistics, at a fraction of the cost. Its errors are of type
// [connect.Error]. It may be called concurrently.
func (c *Conn) Invoke(ctx context.Context, procedure string, request []byte, decode func(response []byte) error) error {
	call, ok := invocations.Get().(*Call)
	if !ok {
		call = new(Call)
	}
	defer func() { // after the body was freed
		call.Reset()
		invocations.Put(call)
	}()
	call.Procedure, call.Request, call.Synchronous, call.raw = procedure, &codec.Raw{B: request}, true, true
	if err := c.Start(ctx, call); err != nil {
		return err
	}
	c.Wait(ctx, call, func(ctx context.Context) error { return contextError(ctx.Err(), "") })
	var response []byte
	if call.body != nil {
		defer call.body.Free()
		response = call.body.B
	}
	if call.Err != nil {
		return call.Err
	}
	if err := decode(response); err != nil {
		return Undecodable(procedure, false, err)
	}
	return nil
}

// invocations has the calls of Invoke that are over, of type *[Call].
var invocations sync.Pool //nolint:gochecknoglobals // a pool
