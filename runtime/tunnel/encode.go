package tunnel

import (
	"errors"
	"fmt"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
)

// sizeOf is the encoded size of a message; nil is the empty one.
func sizeOf(msg proto.Message) (size int, err error) {
	if msg == nil {
		return 0, nil
	}
	returned := false
	defer func() {
		if !returned {
			err = panicked(recover())
		}
	}()
	size = proto.Size(msg)
	returned = true
	return size, nil
}

// appendMessage encodes a message of which the size has just been taken; nil is the empty one.
func appendMessage(b []byte, msg proto.Message, size int) ([]byte, error) {
	out, err := marshal(proto.MarshalOptions{UseCachedSize: true}, b, msg)
	if err == nil && len(out)-len(b) != size {
		return b, errChanged
	}
	return out, err
}

// marshal appends an encoded message; nil is the empty one.
func marshal(how proto.MarshalOptions, b []byte, msg proto.Message) (out []byte, err error) {
	if msg == nil {
		return b, nil
	}
	returned := false
	defer func() {
		if !returned {
			err = panicked(recover())
		}
	}()
	out, err = how.MarshalAppend(b, msg)
	returned = true
	return out, err //nolint:wrapcheck // the callers say what was being encoded
}

// panicked makes an error of what was recovered from protobuf. A message that is modified while it
// is being sent can cause a panic: its sender gets the error, and what others send goes on.
func panicked(value any) error {
	if value == nil {
		return nil // runtime.Goexit, of which only the goroutine's owner can say more
	}
	return fmt.Errorf("%w: %v", errPanicked, value)
}

var (
	errPanicked = errors.New("protobuf panicked, as it may when a message is changed while it is being sent")
	errChanged  = errors.New("the message was changed while it was being sent")
	// errEncodingEnded is for messages of other makes than protobuf's, whose methods may do
	// anything.
	errEncodingEnded = errors.New("the message ended its goroutine (runtime.Goexit) instead of returning")
)

func (c *Conn) cannotEncode(procedure string, msg proto.Message, err error) *connect.Error {
	return Unsendable(procedure, c.dialled, msg, err)
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
