package connecterr_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/connecterr"
)

func TestCodeTextAndConversion(t *testing.T) {
	t.Parallel()
	plain, refused := errors.New("no"), connect.NewError(connect.CodeNotFound, "no such node")
	for name, test := range map[string]struct {
		err  error
		code connect.Code
		text string
		// message is that of the converted error, if it is not text.
		message string
	}{
		"plain":              {err: plain, code: connect.CodeUnknown, text: "no"},
		"connect":            {err: refused, code: connect.CodeNotFound, text: "no such node"},
		"with a cause":       {err: refused.WithCause(plain), code: connect.CodeNotFound, text: "no such node"},
		"wrapped":            {err: fmt.Errorf("find: %w", refused), code: connect.CodeNotFound, text: "find: no such node", message: "no such node"},
		"wrapped twice":      {err: fmt.Errorf("a: %w", fmt.Errorf("b: %w", refused)), code: connect.CodeNotFound, text: "a: b: no such node", message: "no such node"},
		"with text after it": {err: fmt.Errorf("%w (twice)", refused), code: connect.CodeNotFound, text: "not_found: no such node (twice)", message: "no such node"},
		"without a message":  {err: connect.NewError(connect.CodeAborted, ""), code: connect.CodeAborted, text: ""},
		"a passed deadline":  {err: context.DeadlineExceeded, code: connect.CodeDeadlineExceeded, text: "context deadline exceeded"},
		"a wrapped passed deadline": {
			err: fmt.Errorf("wait: %w", context.DeadlineExceeded), code: connect.CodeDeadlineExceeded, text: "wait: context deadline exceeded",
		},
		"a canceled context":         {err: context.Canceled, code: connect.CodeCanceled, text: "context canceled"},
		"connect before its context": {err: refused.WithCause(context.Canceled), code: connect.CodeNotFound, text: "no such node"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, test.code, connecterr.Code(test.err))
			require.Equal(t, test.text, connecterr.Text(test.err))
			converted := connecterr.From(test.err)
			require.Equal(t, test.code, converted.Code())
			if known, ok := errors.AsType[*connect.Error](test.err); ok {
				require.Same(t, known, converted)
			} else {
				require.ErrorIs(t, converted, test.err)
			}
			if test.message == "" {
				test.message = test.text
			}
			require.Equal(t, test.message, converted.Message())
		})
	}
}

// TestNilConnectErrorInAChain has a typed nil pointer, as a function with the result *connect.Error
// returns it by mistake.
func TestNilConnectErrorInAChain(t *testing.T) {
	t.Parallel()
	err := errors.Join(errors.New("no"), nilError{})
	require.Equal(t, connect.CodeUnknown, connecterr.Code(err))
	require.Equal(t, "no\nnil", connecterr.Text(err))
	require.Equal(t, "no\nnil", connecterr.From(err).Message())
}

// nilError is found by errors.As as a nil *connect.Error.
type nilError struct{}

func (nilError) Error() string { return "nil" }

func (nilError) As(target any) bool {
	to, ok := target.(**connect.Error)
	if ok {
		*to = nil
	}
	return ok
}
