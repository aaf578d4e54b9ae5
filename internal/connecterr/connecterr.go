// Package connecterr reads codes and texts from errors that may wrap a connect error, and converts
// other errors to connect errors. All packages use it, so an error has the same code and the same
// text whichever of them reports it.
package connecterr

import (
	"context"
	"errors"
	"strings"

	"connectrpc.com/connect/v2"
)

// Text returns an error's text without the code that [connect.Error] puts before its message. The
// texts of wrappers in front of that, as fmt.Errorf adds them, are kept. err must not be nil.
func Text(err error) string {
	text := err.Error()
	if e, ok := errors.AsType[*connect.Error](err); ok && e != nil {
		if before, found := strings.CutSuffix(text, e.Error()); found {
			return before + e.Message()
		}
	}
	return text
}

// Code returns the code that callers get for an error: that of the connect error in its chain, or
// the one for a context that has ended, or Unknown. err must not be nil.
func Code(err error) connect.Code {
	if e, ok := errors.AsType[*connect.Error](err); ok && e != nil {
		return e.Code()
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return connect.CodeDeadlineExceeded
	case errors.Is(err, context.Canceled):
		return connect.CodeCanceled
	}
	return connect.CodeUnknown
}

// From returns the connect error in an error's chain unchanged, without the wrappers around it. If
// there is none, it returns one that has the error as its cause, its text as the message, and the
// code that [Code] returns. err must not be nil.
func From(err error) *connect.Error {
	if e, ok := errors.AsType[*connect.Error](err); ok && e != nil {
		return e
	}
	return connect.NewError(Code(err), err.Error()).WithCause(err)
}

// OfContext returns the error of a call whose context has ended, with the context's cause in its
// text and chain.
func OfContext(ctx context.Context) error { return Canceled(ctx.Err(), context.Cause(ctx)) }

// Canceled returns the error of a call that ended because of causes, of which there is at least
// one: DeadlineExceeded if one of them is, or else Canceled, with the text of the last. errors.Is
// finds each of them in it.
func Canceled(causes ...error) error {
	code := connect.CodeCanceled
	text := context.Canceled.Error()
	for _, cause := range causes {
		if errors.Is(cause, context.DeadlineExceeded) {
			code, text = connect.CodeDeadlineExceeded, context.DeadlineExceeded.Error()
		}
	}
	out := connect.NewError(code, text)
	if last := causes[len(causes)-1]; last != nil && last.Error() != text {
		out = connect.NewError(code, text+": "+last.Error())
	}
	for i, cause := range causes {
		if i == 0 || !errors.Is(causes[0], cause) {
			out = out.WithCause(cause)
		}
	}
	return out
}
