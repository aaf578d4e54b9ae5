package tunnel

import (
	"fmt"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
)

// appendMessage encodes a message of which the size has just been taken. nil is the empty message.
func appendMessage(b []byte, msg proto.Message) ([]byte, error) {
	if msg == nil {
		return b, nil
	}
	return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, msg)
}

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
