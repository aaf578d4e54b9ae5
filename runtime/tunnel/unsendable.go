package tunnel

import (
	"errors"
	"strings"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/internal/protocheck"
)

// Unsendable is the error for a message that can't be encoded, the same for every way that the call
// could go: InvalidArgument for a request, Internal for a response and for a message that was
// changed meanwhile. It names the field that is the reason, where that is known. cause is what the
// encoder said; its text varies between codecs and builds.
func Unsendable(procedure string, request bool, msg proto.Message, cause error) *connect.Error {
	code, what := connect.CodeInternal, "a response"
	if request {
		what = "a request"
	}
	why := ""
	if !errors.Is(cause, errPanicked) && !errors.Is(cause, errChanged) && !errors.Is(cause, errEncodingEnded) {
		if why = unsendableField(msg); request {
			code = connect.CodeInvalidArgument
		}
	}
	if why == "" {
		why = cause.Error()
	}
	return connect.Errorf(code, "%s of %s can't be sent: %s", what, strings.TrimPrefix(procedure, "/"), why).WithCause(cause)
}

// MessageTooLarge is the error for a message that is larger than its receiver takes.
func MessageTooLarge(procedure string, request bool, size, limit int) *connect.Error {
	what := "a response of "
	if request {
		what = "a request of "
	}
	return tooLarge(what+strings.TrimPrefix(procedure, "/"), size, limit, "the receiver's")
}

// CheckMessage returns the error of [Unsendable] for a message that can't be encoded. It costs as
// much as encoding it.
func CheckMessage(procedure string, request bool, msg proto.Message) error {
	if _, err := marshal(proto.MarshalOptions{}, nil, msg); err != nil {
		return Unsendable(procedure, request, msg, err)
	}
	return nil
}

// unsendableField names the first field for which a message can't be encoded, or is empty.
func unsendableField(msg proto.Message) (why string) {
	defer func() {
		if recover() != nil { // the message is being changed meanwhile
			why = ""
		}
	}()
	if found := protocheck.First(msg); found != nil {
		return found.Error()
	}
	return ""
}
