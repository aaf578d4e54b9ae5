package codec

import (
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Most large messages consist of a few large bytes fields: tensors, images, files. protobuf's
// Unmarshal copies them out of the receive buffer. If they make up most of a message, aliasFields
// leaves them in place, and the message takes ownership of the buffer.

const (
	// keptBytes is the smallest field that is aliased instead of copied.
	aliasedBytes = 8 << 10
	// keptDepth is the depth of nested messages to which such fields are looked for.
	aliasDepth = 4
)

// Decode decodes b into a message that must be empty. Clearing it first, as protobuf's Unmarshal
// does, would be a quarter of the work for a small message.
func Decode(b []byte, empty proto.Message) error {
	return proto.UnmarshalOptions{Merge: true}.Unmarshal(b, empty) //nolint:wrapcheck // the callers add what was being decoded
}

// DecodeAliasing decodes b into msg, which must be empty, and reports whether msg aliases b. If so,
// msg owns b, which must not be modified or reused afterwards.
func DecodeAliasing(b []byte, msg proto.Message) (aliases bool, err error) {
	m := msg.ProtoReflect()
	if len(b) < aliasedBytes || 4*aliasable(m.Descriptor(), b, aliasDepth) < 3*len(b) {
		return false, Decode(b, msg)
	}
	if err := aliasFields(m, b, aliasDepth); err != nil {
		return true, err
	}
	return true, proto.CheckInitialized(msg)
}

// aliasable returns how many bytes of b, an encoded message of type md, can be aliased.
func aliasable(md protoreflect.MessageDescriptor, b []byte, depth int) int {
	total := 0
	_ = eachLarge(b, func(num protowire.Number, _, _ int, value []byte) error {
		switch fd := aliasableField(md, num); {
		case fd == nil:
		case fd.Kind() == protoreflect.BytesKind:
			total += len(value)
		case depth > 1:
			total += aliasable(fd.Message(), value, depth-1)
		}
		return nil
	})
	return total
}

// aliasFields decodes b into m like [proto.UnmarshalOptions] with Merge and AllowPartial, except
// that large fields alias b.
func aliasFields(m protoreflect.Message, b []byte, depth int) error {
	rest := 0
	err := eachLarge(b, func(num protowire.Number, begin, end int, value []byte) error {
		fd := aliasableField(m.Descriptor(), num)
		if fd == nil || fd.Kind() != protoreflect.BytesKind && depth == 1 {
			return nil
		}
		// Keep the order of the fields, since later ones override earlier ones.
		if err := mergeInto(m, b[rest:begin]); err != nil {
			return err
		}
		rest = end
		if fd.Kind() == protoreflect.BytesKind {
			v := protoreflect.ValueOfBytes(slices.Clip(value))
			if fd.IsList() {
				m.Mutable(fd).List().Append(v)
			} else {
				m.Set(fd, v)
			}
			return nil
		}
		if fd.IsList() {
			return aliasFields(m.Mutable(fd).List().AppendMutable().Message(), value, depth-1)
		}
		return aliasFields(m.Mutable(fd).Message(), value, depth-1)
	})
	if err != nil {
		return err
	}
	return mergeInto(m, b[rest:])
}

func mergeInto(m protoreflect.Message, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	return proto.UnmarshalOptions{Merge: true, AllowPartial: true}.Unmarshal(b, m.Interface())
}

// aliasableField returns the field with this number if aliasFields can alias it or descend into it:
// a bytes or message field that is not a map.
func aliasableField(md protoreflect.MessageDescriptor, num protowire.Number) protoreflect.FieldDescriptor {
	fd := md.Fields().ByNumber(num)
	if fd == nil || !splits(fd) {
		return nil
	}
	return fd
}

// eachLarge calls visit for each large length-delimited field at the top level of an encoded
// message, with the field's number, its start and end in b, and its value.
func eachLarge(b []byte, visit func(num protowire.Number, begin, end int, value []byte) error) error {
	for at := 0; at < len(b); {
		num, typ, n := protowire.ConsumeTag(b[at:])
		if n < 0 {
			return protowire.ParseError(n)
		}
		if typ != protowire.BytesType {
			size := protowire.ConsumeFieldValue(num, typ, b[at+n:])
			if size < 0 {
				return protowire.ParseError(size)
			}
			at += n + size
			continue
		}
		value, size := protowire.ConsumeBytes(b[at+n:])
		if size < 0 {
			return protowire.ParseError(size)
		}
		if len(value) >= aliasedBytes {
			if err := visit(num, at, at+n+size, value); err != nil {
				return err
			}
		}
		at += n + size
	}
	return nil
}
