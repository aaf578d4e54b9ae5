package tunnel

import (
	"fmt"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/runtime/internal/usercode"
)

// guard runs a handler and then, exactly once, end with the error that its caller gets: also where
// the handler panics or ends its goroutine, and where its error's own methods do. A handler that
// has answered before has said what there is to say.
func (c *Conn) guard(in *Incoming, handle func() error, end func(error)) {
	usercode.Run(func() error {
		if err := handle(); err != nil {
			return authored(err)
		}
		return nil
	}, func(err error) {
		if f, ok := err.(*usercode.UnreturnedError); ok && !in.replied.Load() { //nolint:errorlint // Run's own
			err = c.failed(in.Procedure, f)
		}
		end(err)
	})
}

// failed is for the caller of a handler that did not return. The handler's owner gets a log line.
func (c *Conn) failed(procedure string, f *usercode.UnreturnedError) *connect.Error {
	f.Log(c.cfg.Logger, "tunnel: a handler", "call", procedure)
	if f.Goexit {
		return connect.NewError(connect.CodeInternal, fmt.Sprintf("%s %v", procedure, f))
	}
	return connect.NewError(connect.CodeInternal, procedure+" panicked")
}
