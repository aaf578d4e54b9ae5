package tunnel

import (
	"fmt"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/internal/usercode"
)

// runHandler runs a handler and then calls end exactly once with the error for the caller, even if
// the handler or a method of its error panics or ends its goroutine. A failure after the handler
// has answered is not converted.
func (c *Conn) runHandler(in *Incoming, handle func() error, end func(error)) {
	usercode.Run(func() error {
		if err := handle(); err != nil {
			return connecterr.From(err)
		}
		return nil
	}, func(err error) {
		if f, ok := err.(*usercode.UnreturnedError); ok && !in.replied.Load() { //nolint:errorlint // created by Run
			err = c.handlerFailed(in.Procedure, f)
		}
		end(err)
	})
}

// handlerFailed logs a handler that did not return, and returns the error for its caller.
func (c *Conn) handlerFailed(procedure string, f *usercode.UnreturnedError) *connect.Error {
	f.Log(c.cfg.Logger, "tunnel: a handler", "call", procedure)
	if f.Goexit {
		return connect.NewError(connect.CodeInternal, fmt.Sprintf("%s %v", procedure, f))
	}
	return connect.NewError(connect.CodeInternal, procedure+" panicked")
}
