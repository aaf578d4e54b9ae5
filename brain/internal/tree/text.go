package tree

import (
	"strconv"
	"unicode/utf8"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// CheckText refuses a request that holds text which is not UTF-8, and names the field. A connection
// checks that too, but a caller in Brain's own process has none; and what could not be encoded could
// be neither stored nor sent to watchers.
func CheckText(req proto.Message) error {
	field, text, ok := invalidText(req.ProtoReflect())
	if !ok {
		return nil
	}
	return connect.Errorf(connect.CodeInvalidArgument, "the field %s of the %s is not UTF-8: %q",
		field, req.ProtoReflect().Descriptor().Name(), clip(text))
}

// invalidText finds the first text that is not UTF-8. field is its path in the message.
func invalidText(m protoreflect.Message) (field, text string, found bool) {
	check := func(name string, fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch fd.Kind() {
		case protoreflect.StringKind:
			if !utf8.ValidString(v.String()) {
				field, text, found = name, v.String(), true
			}
		case protoreflect.MessageKind, protoreflect.GroupKind:
			var inner string
			if inner, text, found = invalidText(v.Message()); found {
				field = name + "." + inner
			}
		default: // numbers, enums and bytes are valid whatever they hold
		}
		return !found
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := string(fd.Name())
		switch {
		case fd.IsMap():
			v.Map().Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
				at := name + "[" + strconv.Quote(clip(key.String())) + "]"
				return check(at, fd.MapKey(), key.Value()) && check(at, fd.MapValue(), value)
			})
		case fd.IsList():
			for i := range v.List().Len() {
				if !check(name+"["+strconv.Itoa(i)+"]", fd, v.List().Get(i)) {
					break
				}
			}
		default:
			check(name, fd, v)
		}
		return !found
	})
	return field, text, found
}
