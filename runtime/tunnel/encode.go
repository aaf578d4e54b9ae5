package tunnel

import (
	"errors"
	"fmt"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
)

// appendMessage encodes a message of which the size has just been taken. nil is the empty message.
func appendMessage(b []byte, msg proto.Message) ([]byte, error) {
	return marshal(proto.MarshalOptions{UseCachedSize: true}, b, msg)
}

// marshal appends an encoded message; nil is the empty one. A message that somebody changes meanwhile can make protobuf panic: that is its sender's
// error then, and no end of what others send.
func marshal(how proto.MarshalOptions, b []byte, msg proto.Message) (_ []byte, err error) {
	if msg == nil {
		return b, nil
	}
	defer func() {
		if value := recover(); value != nil {
			err = fmt.Errorf("%w: %v", errPanicked, value)
		}
	}()
	return how.MarshalAppend(b, msg) //nolint:wrapcheck // the callers say what was being encoded
}

var errPanicked = errors.New("protobuf panicked, as it may when a message is changed while it is being sent")

func cannotEncode(procedure string, err error) *connect.Error {
	return connect.Errorf(connect.CodeInternal, "encoding a message of %s: %v", procedure, err).WithCause(err)
}

func cannotDecode(what string, code connect.Code, err error) *connect.Error {
	return connect.Errorf(code, "decoding %s: %v", what, err).WithCause(err)
}

// message is msg as a protobuf message; connect's streams take any.
func message(msg any) (proto.Message, error) {
	if msg == nil {
		return nil, nil //nolint:nilnil // nil is the empty message
	}
	m, ok := msg.(proto.Message)
	if !ok {
		return nil, connect.NewError(connect.CodeInternal, fmt.Sprintf("the tunnel carries protobuf messages, not %T", msg))
	}
	return m, nil
}
