// Package codec converts messages to bytes and back, and manages the memory for both. It knows
// nothing of frames or connections.
//
// Small messages are appended to a buffer ([Append]) and copied out of one ([Decode]). Large ones
// mostly consist of a few large bytes fields, which are not copied: [Encode] returns an [Encoded],
// whose parts are slices of the message itself, and [DecodeAliasing] returns a message that aliases
// the buffer that it was decoded from. A message must therefore not be modified once it is sent.
//
// A [Buffer] is pooled memory with one or more holders. The memory of [NewAliasable] is recycled
// when the message that aliases it is unreachable.
//
// A message that is modified while it is being encoded is an error ([ErrChanged], [ErrPanicked]),
// never a panic of its encoder.
package codec

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Raw is a message that is encoded already.
type Raw struct{ B []byte }

// ProtoReflect implements [proto.Message]: the message is one without any field that is known.
func (r *Raw) ProtoReflect() protoreflect.Message {
	m := new(emptypb.Empty).ProtoReflect()
	m.SetUnknown(r.B)
	return m
}

// Size returns the encoded size of a message; nil is the empty message.
func Size(msg proto.Message) (size int, err error) {
	if msg == nil {
		return 0, nil
	}
	if raw, ok := msg.(*Raw); ok {
		return len(raw.B), nil
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

// Append appends the encoding of a message; nil is the empty message. size must come from a
// preceding [Size]. If the message has changed since then, the error is ErrChanged.
func Append(b []byte, msg proto.Message, size int) ([]byte, error) {
	out, err := marshal(proto.MarshalOptions{UseCachedSize: true}, b, msg)
	if err == nil && len(out)-len(b) != size {
		return b, ErrChanged
	}
	return out, err
}

// AppendUnsized appends the encoding of a message whose size is unknown; nil is the empty message.
func AppendUnsized(b []byte, msg proto.Message) ([]byte, error) {
	return marshal(proto.MarshalOptions{}, b, msg)
}

// marshal appends the encoding of a message; nil is the empty message.
func marshal(how proto.MarshalOptions, b []byte, msg proto.Message) (out []byte, err error) {
	if msg == nil {
		return b, nil
	}
	if raw, ok := msg.(*Raw); ok {
		return append(b, raw.B...), nil
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
	return fmt.Errorf("%w: %v", ErrPanicked, value)
}

var (
	// ErrPanicked is the error of a message for which protobuf panicked.
	ErrPanicked = errors.New("protobuf panicked, as it may when a message is changed while it is being sent")
	// ErrChanged is the error of a message whose size has changed since it was computed.
	ErrChanged = errors.New("the message was changed while it was being sent")
)
