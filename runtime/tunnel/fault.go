package tunnel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"connectrpc.com/connect/v2"
)

// ErrNotRun is matched (errors.Is) by errors of calls that certainly never reached a handler, so
// that they may be tried elsewhere whatever they do.
var ErrNotRun = errors.New("tunnel: the call was not run")

// ErrClosed is matched by the errors of a connection that ended in good order: by [Conn.Close] or
// [Conn.Shutdown] on either side.
var ErrClosed = errors.New("tunnel: connection closed")

// ErrProtocol is matched by the errors of a connection that ended because one side broke the
// protocol.
var ErrProtocol = errors.New("tunnel: protocol violation")

// violation is what a peer did that no well-behaved one does. The connection ends with it.
func violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// unavailable is what the connection's end is to a call. cause has the reason.
func unavailable(cause error) *connect.Error {
	return connect.NewError(connect.CodeUnavailable, cause.Error()).WithCause(cause)
}

func notRun(err *connect.Error) *connect.Error { return err.WithCause(ErrNotRun) }

// contextError is what the end of a context is to a call. doing says what it was waiting for.
func contextError(err error, doing string) *connect.Error {
	code := connect.CodeCanceled
	if errors.Is(err, context.DeadlineExceeded) {
		code = connect.CodeDeadlineExceeded
	}
	text := err.Error()
	if doing != "" {
		text = doing + ": " + text
	}
	return connect.NewError(code, text).WithCause(err)
}

// authored is the error that a caller is told of for err, which is not nil. An error that somebody
// has authored is told as it is; others by their text.
func authored(err error) *connect.Error {
	var known *connect.Error
	switch {
	case errors.As(err, &known) && known != nil:
		return known
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return contextError(err, "")
	default:
		return connect.NewError(connect.CodeUnknown, err.Error()).WithCause(err)
	}
}

// MaxErrorSize bounds an error that goes back to a caller: its text and its details. Together with
// metadata of [MaxHeaderSize] it fits what a peer takes by default.
const MaxErrorSize = 24 << 10

// NormalizeError returns err as every way can carry it. A code that does not exist becomes Unknown,
// octets of texts that are not UTF-8 become U+FFFD, and an error larger than [MaxErrorSize] loses
// its details, and then the end of its message. Where nothing is to be done it is err itself; else
// err is its cause.
func NormalizeError(err *connect.Error) *connect.Error {
	code := err.Code()
	if code < connect.CodeCanceled || code > connect.CodeUnauthenticated {
		code = connect.CodeUnknown
	}
	message, details := fitError(err, MaxErrorSize)
	same := code == err.Code() && message == err.Message() && len(details) == len(err.Details())
	for i, d := range details {
		same = same && d == err.Details()[i]
	}
	if same {
		return err
	}
	out := connect.NewError(code, message).WithCause(err)
	for _, d := range details {
		out = out.WithDetail(d)
	}
	if err.IsRemote() {
		out = out.WithRemote()
	}
	return out
}

// replacement stands for octets that are not UTF-8, which neither JSON nor protobuf's strings can
// hold.
const replacement = "\uFFFD"

// maxDetails bounds the details of one error. [connect.Error.WithDetail] copies what is there
// already, so that building an error of n details takes n² steps: with this bound they are few.
const maxDetails = 128

// fitError is an error's message and details in no more than limit bytes: details go first if they
// don't fit, then the message's end. Of more than maxDetails details the first are kept.
func fitError(err *connect.Error, limit int) (string, []*connect.ErrorDetail) {
	message, details := strings.ToValidUTF8(err.Message(), replacement), err.Details()
	details = details[:min(len(details), maxDetails)]
	for i, d := range details {
		if !utf8.ValidString(d.Type) {
			details = slices.Clone(details)
			details[i] = &connect.ErrorDetail{Type: strings.ToValidUTF8(d.Type, replacement), Value: d.Value}
		}
	}
	size := 3*varintBytes + len(message)
	for _, d := range details {
		size += 2*varintBytes + len(d.Type) + len(d.Value)
	}
	if size > limit {
		const note = "... (the error was too large, its details are left out)"
		details = nil
		if room := max(limit-len(note)-3*varintBytes, 0); len(message) > room {
			message = message[:room]
			for !utf8.ValidString(message) && len(message) > 0 && len(message) > room-utf8.UTFMax {
				message = message[:len(message)-1]
			}
		}
		message += note
	}
	return message, details
}

// appendFault writes an error block of no more than limit bytes.
func appendFault(b []byte, err *connect.Error, limit int) []byte {
	message, details := fitError(err, limit)
	b = appendInt(b, int(err.Code()))
	b = appendString(b, message)
	b = appendInt(b, len(details))
	for _, d := range details {
		b = appendString(b, d.Type)
		b = appendBytes(b, d.Value)
	}
	return b
}

// fault reads an error block. The error is marked as the peer's, and has no more than maxDetails
// details: the others are skipped.
func (p *parser) fault() *connect.Error {
	code := connect.Code(p.int()) //nolint:gosec // bounded by int
	if code < connect.CodeCanceled || code > connect.CodeUnauthenticated {
		code = connect.CodeUnknown
	}
	err := connect.NewError(code, p.string())
	count := p.int()
	if count > len(p.rest)/2 {
		p.failf("%d error details in %d bytes", count, len(p.rest))
		return err
	}
	for i := range count {
		name, value := p.bytes(), p.bytes()
		if i < maxDetails {
			err = err.WithDetail(&connect.ErrorDetail{Type: string(name), Value: append([]byte{}, value...)})
		}
	}
	return err.WithRemote()
}

func tooLarge(what string, size, limit int, where string) *connect.Error {
	return connect.Errorf(connect.CodeResourceExhausted, "%s is %d bytes, %s limit is %d", what, size, where, limit)
}
