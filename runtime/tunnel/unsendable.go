package tunnel

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Unsendable is the error for a message that can't be encoded, the same for every way that the call could go: InvalidArgument for
// a request, Internal for a response and for a message that was changed meanwhile. It names the field that is the reason, where
// that is known. cause is what the encoder said; its text varies between codecs and builds.
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

// CheckMessage returns the error of [Unsendable] for a message that can't be encoded. It costs as much as encoding it.
func CheckMessage(procedure string, request bool, msg proto.Message) error {
	if _, err := marshal(proto.MarshalOptions{}, nil, msg); err != nil {
		return Unsendable(procedure, request, msg, err)
	}
	return nil
}

// unsendableField names the first field for which a message can't be encoded, or is empty.
func unsendableField(msg proto.Message) (why string) {
	if msg == nil {
		return ""
	}
	defer func() {
		if recover() != nil { // the message is being changed meanwhile
			why = ""
		}
	}()
	if err := checkFields(msg.ProtoReflect()); err != nil {
		return err.Error()
	}
	return ""
}

func checkFields(m protoreflect.Message) error {
	required := m.Descriptor().RequiredNumbers()
	for i := range required.Len() {
		if fd := m.Descriptor().Fields().ByNumber(required.Get(i)); !m.Has(fd) {
			return fmt.Errorf("the required field %s is not set", fd.FullName())
		}
	}
	var wrong error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsList():
			for i, list := 0, v.List(); i < list.Len() && wrong == nil; i++ {
				wrong = checkValue(fd, list.Get(i))
			}
		case fd.IsMap():
			v.Map().Range(func(key protoreflect.MapKey, v protoreflect.Value) bool {
				if wrong = checkValue(fd.MapKey(), key.Value()); wrong == nil {
					wrong = checkValue(fd.MapValue(), v)
				}
				return wrong == nil
			})
		default:
			wrong = checkValue(fd, v)
		}
		return wrong == nil
	})
	return wrong
}

func checkValue(fd protoreflect.FieldDescriptor, v protoreflect.Value) error {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return checkFields(v.Message())
	case protoreflect.StringKind:
		// As protobuf's own encoder decides it: proto2's strings may be anything.
		enforced, ok := fd.(interface{ EnforceUTF8() bool })
		if must := ok && enforced.EnforceUTF8() || !ok && fd.Syntax() == protoreflect.Proto3; must && !utf8.ValidString(v.String()) {
			return fmt.Errorf("the field %s is a string that is not UTF-8; use bytes for other data", fd.FullName())
		}
	default:
	}
	return nil
}
