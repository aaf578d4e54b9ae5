package tunnel

import (
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// A large message is nearly always one of a few large fields of bytes: a tensor, a picture, a file.
// protobuf's Unmarshal copies them out of what was read. Where they are most of a message,
// keepFields leaves them where they are instead, so that the buffer becomes the message's own.

const (
	// keptBytes is the smallest field that is worth it.
	keptBytes = 8 << 10
	// keptDepth is how deep in messages such fields are looked for.
	keptDepth = 4
)

// fill decodes b into an empty message. To empty it first, as protobuf's Unmarshal does, would be a
// quarter of the work for a small one.
func fill(b []byte, empty proto.Message) error {
	return proto.UnmarshalOptions{Merge: true}.Unmarshal(b, empty) //nolint:wrapcheck // the callers say what was being decoded
}

// decodeKeeping decodes b into msg, which is empty, and reports whether the message has kept b:
// then b is the message's from there on, and nobody else may change or reuse it.
func decodeKeeping(b []byte, msg proto.Message) (kept bool, err error) {
	m := msg.ProtoReflect()
	if len(b) < keptBytes || 4*keepable(m.Descriptor(), b, keptDepth) < 3*len(b) {
		return false, fill(b, msg)
	}
	if err := keepFields(m, b, keptDepth); err != nil {
		return true, err
	}
	return true, proto.CheckInitialized(msg)
}

// keepable counts the bytes of b, a message of the type, that can be left where they are.
func keepable(md protoreflect.MessageDescriptor, b []byte, depth int) int {
	total := 0
	_ = eachLarge(b, func(num protowire.Number, _, _ int, value []byte) error {
		switch fd := keptField(md, num); {
		case fd == nil:
		case fd.Kind() == protoreflect.BytesKind:
			total += len(value)
		case depth > 1:
			total += keepable(fd.Message(), value, depth-1)
		}
		return nil
	})
	return total
}

// keepFields decodes b into m, like [proto.UnmarshalOptions] with Merge and AllowPartial, but for
// the large fields, which stay in b.
func keepFields(m protoreflect.Message, b []byte, depth int) error {
	rest := 0
	err := eachLarge(b, func(num protowire.Number, begin, end int, value []byte) error {
		fd := keptField(m.Descriptor(), num)
		if fd == nil || fd.Kind() != protoreflect.BytesKind && depth == 1 {
			return nil
		}
		// In the order in which they come, for later ones count more than earlier ones.
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
			return keepFields(m.Mutable(fd).List().AppendMutable().Message(), value, depth-1)
		}
		return keepFields(m.Mutable(fd).Message(), value, depth-1)
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

// keptField is the field of that number if it is one that keepFields knows how to treat: of bytes
// or a message, and not of a map.
func keptField(md protoreflect.MessageDescriptor, num protowire.Number) protoreflect.FieldDescriptor {
	fd := md.Fields().ByNumber(num)
	if fd == nil || !splits(fd) {
		return nil
	}
	return fd
}

// eachLarge calls visit for the large length-delimited fields at the top of an encoded message:
// with a field's number, where it begins and ends, and its value.
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
		if len(value) >= keptBytes {
			if err := visit(num, at, at+n+size, value); err != nil {
				return err
			}
		}
		at += n + size
	}
	return nil
}
