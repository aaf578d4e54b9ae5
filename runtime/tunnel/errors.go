package tunnel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/internal/protocheck"
	"github.com/raylink/raylink/runtime/tunnel/internal/codec"
)

// ErrNotRun is matched (errors.Is) by errors of calls for which certainly no code of the node has
// run: they were not sent, or the peer's tunnel or its handler ([Incoming.ReplyNotRun]) refused
// them. Such calls may be retried elsewhere, whether or not they are idempotent.
var ErrNotRun = errors.New("tunnel: the call was not run")

// ErrClosed is matched by the errors of a connection that was ended by [Conn.Close] or
// [Conn.Shutdown] on either side.
var ErrClosed = errors.New("tunnel: connection closed")

// ErrProtocol is matched by the errors of a connection that ended because of a protocol violation.
var ErrProtocol = errors.New("tunnel: protocol violation")

// violation returns the error for a breach of the protocol by the peer. It ends the connection.
func violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// unavailable returns the error of a call whose connection ended for the reason cause.
func unavailable(cause error) *connect.Error {
	return connect.NewError(connect.CodeUnavailable, cause.Error()).WithCause(cause)
}

func notRun(err *connect.Error) *connect.Error { return err.WithCause(ErrNotRun) }

// contextError converts a context error to a connect error. doing, if not empty, describes what the
// call was waiting for.
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

// MaxErrorSize limits the text and details of an error that is returned to a caller. Together with
// metadata of [MaxHeaderSize] it fits the default limits of a peer.
const MaxErrorSize = 24 << 10

// NormalizeError returns err in a form that every transport can carry. An invalid code becomes
// Unknown, invalid UTF-8 in texts becomes U+FFFD, and an error larger than [MaxErrorSize] loses its
// details and, if necessary, the end of its message. If nothing has to change it returns err
// itself; otherwise the result has err as its cause.
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

// replacement replaces invalid UTF-8, which neither JSON nor protobuf strings can carry.
const replacement = "\uFFFD"

// maxDetails limits the number of details of an error. [connect.Error.WithDetail] copies the
// existing details, so building an error of n details takes O(n²) time.
const maxDetails = 128

// fitError returns an error's message and details in at most limit bytes. It drops all details if
// they do not fit, and then truncates the message. At most the first maxDetails details are kept.
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
		const note = "... (the error was too large, its details are omitted)"
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

// appendErrorBlock appends an error block of at most limit bytes.
func appendErrorBlock(b []byte, err *connect.Error, limit int) []byte {
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

// errorBlock reads an error block. The error is marked as remote. Details beyond maxDetails are
// skipped.
func (p *parser) errorBlock() *connect.Error {
	code := connect.Code(p.int()) //nolint:gosec // the range of int is checked by p.int
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

// Unsendable returns the error for a message that cannot be encoded. It is the same for every
// transport: InvalidArgument for a request, and Internal for a response or a message that was
// modified while being sent. It names the offending field if that can be found. cause is the
// encoder's error; its text varies between codecs and builds.
func Unsendable(procedure string, request bool, msg proto.Message, cause error) *connect.Error {
	code, what := connect.CodeInternal, "a response"
	if request {
		what = "a request"
	}
	why := ""
	if !errors.Is(cause, codec.ErrPanicked) && !errors.Is(cause, codec.ErrChanged) && !errors.Is(cause, errEncodingEnded) {
		if why = unsendableField(msg); request {
			code = connect.CodeInvalidArgument
		}
	}
	if why == "" {
		why = cause.Error()
	}
	return connect.Errorf(code, "%s of %s can't be sent: %s", what, strings.TrimPrefix(procedure, "/"), why).WithCause(cause)
}

// Undecodable is the error for a message that can't be decoded, the same for every way:
// InvalidArgument for a request, Internal for a response. cause is the decoder's error.
func Undecodable(procedure string, request bool, cause error) *connect.Error {
	code, what := connect.CodeInternal, "a response"
	if request {
		code, what = connect.CodeInvalidArgument, "a request"
	}
	return connect.Errorf(code, "decoding %s of %s: %v", what, strings.TrimPrefix(procedure, "/"), cause).WithCause(cause)
}

// MessageTooLarge returns the error for a message larger than its receiver's limit.
func MessageTooLarge(procedure string, request bool, size, limit int) *connect.Error {
	what := "a response of "
	if request {
		what = "a request of "
	}
	return tooLarge(what+strings.TrimPrefix(procedure, "/"), size, limit, "the receiver's")
}

// CheckMessage returns the error of [Unsendable] if the message cannot be encoded. It costs as much
// as encoding the message.
func CheckMessage(procedure string, request bool, msg proto.Message) error {
	if _, err := codec.AppendUnsized(nil, msg); err != nil {
		return Unsendable(procedure, request, msg, err)
	}
	return nil
}

// CheckDecoding returns the error of [Undecodable] for a message that can be encoded but not
// decoded. It costs as much as encoding and decoding it.
func CheckDecoding(procedure string, request bool, msg proto.Message) error {
	if msg == nil {
		return nil
	}
	b, err := codec.AppendUnsized(nil, msg)
	if err != nil {
		return Unsendable(procedure, request, msg, err)
	}
	if err := proto.Unmarshal(b, msg.ProtoReflect().New().Interface()); err != nil {
		return Undecodable(procedure, request, err)
	}
	return nil
}

// errEncodingEnded is for message types other than protobuf's own, whose methods may do anything.
var errEncodingEnded = errors.New("the message ended its goroutine (runtime.Goexit) instead of returning")

// unsendableField describes the first field because of which a message cannot be encoded. It
// returns "" if there is none.
func unsendableField(msg proto.Message) (why string) {
	defer func() {
		if recover() != nil { // the message is being modified concurrently
			why = ""
		}
	}()
	if found := protocheck.First(msg); found != nil {
		return found.Error()
	}
	return ""
}
