package tunnel

import (
	"errors"
	"fmt"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
)

// sizeOf returns the encoded size of a message; nil is the empty message.
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

// appendMessage appends the encoding of a message; nil is the empty message. size must come from a
// preceding sizeOf. If the message has changed since then, the error is errChanged.
func appendMessage(b []byte, msg proto.Message, size int) ([]byte, error) {
	out, err := marshal(proto.MarshalOptions{UseCachedSize: true}, b, msg)
	if err == nil && len(out)-len(b) != size {
		return b, errChanged
	}
	return out, err
}

// marshal appends the encoding of a message; nil is the empty message.
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
	return out, err //nolint:wrapcheck // the callers add what was being encoded
}

// panicked converts a panic recovered from protobuf to an error. A message that is modified while
// it is being sent can cause one: only its sender fails.
func panicked(value any) error {
	if value == nil {
		return nil // runtime.Goexit, which the owner of the goroutine reports
	}
	return fmt.Errorf("%w: %v", errPanicked, value)
}

var (
	errPanicked = errors.New("protobuf panicked, as it may when a message is changed while it is being sent")
	errChanged  = errors.New("the message was changed while it was being sent")
	// errEncodingEnded is for message types other than protobuf's own, whose methods may do
	// anything.
	errEncodingEnded = errors.New("the message ended its goroutine (runtime.Goexit) instead of returning")
)

func (c *Conn) cannotEncode(procedure string, msg proto.Message, err error) *connect.Error {
	return Unsendable(procedure, c.dialled, msg, err)
}

// message converts a message of a connect stream, which may be of any type, to a protobuf message.
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
