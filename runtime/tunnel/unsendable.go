package tunnel

import (
	"errors"
	"strings"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/internal/protocheck"
	"github.com/raylink/raylink/runtime/tunnel/internal/codec"
)

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

func (c *Conn) cannotEncode(procedure string, msg proto.Message, err error) *connect.Error {
	return Unsendable(procedure, c.dialled, msg, err)
}

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
