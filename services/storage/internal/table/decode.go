package table

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// decoded is the parts of an encoded storagev1.Change. Its key and value are in the encoding's
// memory.
type decoded struct {
	key     []byte
	value   parsed
	id      uint64
	expires int64
	expired bool
}

// The numbers of the fields of storagev1.Change.
const (
	keyField     = 1
	valueField   = 2
	idField      = 3
	expiresField = 4
	expiredField = 5
)

// Errors of records that were not written by AppendProto, or are damaged.
var (
	errOrder  = errors.New("a field occurs twice, or fields are not in order")
	errUTF8   = errors.New("a string is not UTF-8")
	errBool   = errors.New("a truth value is neither 0 nor 1")
	errNoType = errors.New("the value has no type")
)

// decodeChange decodes what AppendProto encodes. It accepts less than protobuf does: every field at
// most once, in the order of their numbers, and none that is unknown. What it accepts, protobuf
// decodes to the same. With an error, the key is set if that was decoded.
func decodeChange(b []byte) (c decoded, err error) {
	err = fields(b, func(number protowire.Number, kind protowire.Type, bits uint64, data []byte) (err error) {
		switch {
		case number == keyField && kind == protowire.BytesType:
			if c.key = data; !utf8.Valid(data) {
				return errUTF8
			}
		case number == valueField && kind == protowire.BytesType:
			if c.value, err = decodeValue(data); err != nil {
				return err
			}
		case number == idField && kind == protowire.VarintType:
			c.id = bits
		case number == expiresField && kind == protowire.BytesType:
			if c.expires, err = decodeExpires(data); err != nil {
				return err
			}
		case number == expiredField && kind == protowire.VarintType:
			if c.expired = bits == 1; bits > 1 {
				return errBool
			}
		default:
			return unknownField(number, kind)
		}
		return nil
	})
	switch n := len(c.key); {
	case err != nil:
		return c, err
	case n == 0 || n > MaxKey:
		return c, fmt.Errorf("a key has 1 to %d bytes, but this one %d", MaxKey, n)
	case c.value.kind == None && c.expires != 0:
		return c, errors.New("a removal has no time of expiry")
	case c.value.kind != None && c.expired:
		return c, errors.New("an expired entry has no value")
	}
	return c, nil
}

// fields calls visit for each field of a message, with the bits of a number or the data of what has
// a length. The numbers of the fields must ascend.
func fields(b []byte, visit func(number protowire.Number, kind protowire.Type, bits uint64, data []byte) error) error {
	before := protowire.Number(0)
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if number <= before {
			return errOrder
		}
		before = number
		var bits uint64
		var data []byte
		switch kind {
		case protowire.VarintType:
			bits, n = protowire.ConsumeVarint(b)
		case protowire.Fixed64Type:
			bits, n = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			data, n = protowire.ConsumeBytes(b)
		default:
			return unknownField(number, kind)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := visit(number, kind, bits, data); err != nil {
			return err
		}
	}
	return nil
}

func unknownField(number protowire.Number, kind protowire.Type) error {
	return fmt.Errorf("the field %d with the wire type %d is not known; a newer version may have written it", number, kind)
}

// decodeValue decodes a storagev1.Value.
func decodeValue(b []byte) (v parsed, err error) {
	err = fields(b, func(number protowire.Number, kind protowire.Type, bits uint64, data []byte) error {
		if v.kind != None {
			return errors.New("the value has two types")
		}
		v.kind, v.bits, v.raw = Kind(min(number, protowire.Number(JSON)+1)), bits, data //nolint:gosec // bounded
		return v.checkDecoded(kind)
	})
	if err == nil && v.kind == None {
		err = errNoType
	}
	return v, err
}

// checkDecoded checks the bits and data of a value's kind that had a wire type.
func (p parsed) checkDecoded(wire protowire.Type) error {
	// As deep as it may be inside of a storagev1.Change.
	const outer = 2
	unmarshal := proto.UnmarshalOptions{RecursionLimit: protowire.DefaultRecursionLimit - outer}
	switch {
	case p.kind == Int64 && wire == protowire.VarintType, p.kind == Double && wire == protowire.Fixed64Type,
		p.kind == Bytes && wire == protowire.BytesType:
		return nil
	case p.kind == Bool && wire == protowire.VarintType:
		if p.bits > 1 {
			return errBool
		}
		return nil
	case p.kind == String && wire == protowire.BytesType:
		if !utf8.Valid(p.raw) {
			return errUTF8
		}
		return nil
	case p.kind == Message && wire == protowire.BytesType:
		return unmarshal.Unmarshal(p.raw, new(anypb.Any))
	case p.kind == JSON && wire == protowire.BytesType:
		return unmarshal.Unmarshal(p.raw, new(structpb.Value))
	}
	return unknownField(protowire.Number(p.kind), wire)
}

// decodeExpires decodes a Timestamp.
func decodeExpires(b []byte) (int64, error) {
	var at timestamppb.Timestamp
	err := fields(b, func(number protowire.Number, kind protowire.Type, bits uint64, _ []byte) error {
		switch {
		case number == 1 && kind == protowire.VarintType:
			at.Seconds = int64(bits) //nolint:gosec // the bits of an int64
		case number == 2 && kind == protowire.VarintType: //nolint:mnd // the field's number
			at.Nanos = int32(bits) //nolint:gosec // as protobuf does
		default:
			return unknownField(number, kind)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return unixNano(&at)
}
