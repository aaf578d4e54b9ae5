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
	for f := (field{}); len(b) > 0; {
		if b, err = f.next(b); err != nil {
			return c, err
		}
		switch {
		case f.number == keyField && f.kind == protowire.BytesType:
			if c.key = f.data; !utf8.Valid(f.data) {
				return c, errUTF8
			}
		case f.number == valueField && f.kind == protowire.BytesType:
			if c.value, err = decodeValue(f.data); err != nil {
				return c, err
			}
		case f.number == idField && f.kind == protowire.VarintType:
			c.id = f.bits
		case f.number == expiresField && f.kind == protowire.BytesType:
			if c.expires, err = decodeExpires(f.data); err != nil {
				return c, err
			}
		case f.number == expiredField && f.kind == protowire.VarintType:
			if c.expired = f.bits == 1; f.bits > 1 {
				return c, errBool
			}
		default:
			return c, unknownField(f.number, f.kind)
		}
	}
	switch n := len(c.key); {
	case n == 0 || n > MaxKey:
		return c, fmt.Errorf("a key has 1 to %d bytes, but this one %d", MaxKey, n)
	case c.value.kind == None && c.expires != 0:
		return c, errors.New("a removal has no time of expiry")
	case c.value.kind != None && c.expired:
		return c, errors.New("an expired entry has no value")
	}
	return c, nil
}

// field is a field of a message: its bits if it is a number, or its data if it has a length.
type field struct {
	number protowire.Number
	kind   protowire.Type
	bits   uint64
	data   []byte
}

// next decodes the field that follows, whose number must be higher, and returns what is behind it.
func (f *field) next(b []byte) (rest []byte, err error) {
	number, kind, n := protowire.ConsumeTag(b)
	if n < 0 {
		return nil, protowire.ParseError(n)
	}
	if number <= f.number {
		return nil, errOrder
	}
	b = b[n:]
	*f = field{number: number, kind: kind}
	switch kind {
	case protowire.VarintType:
		f.bits, n = protowire.ConsumeVarint(b)
	case protowire.Fixed64Type:
		f.bits, n = protowire.ConsumeFixed64(b)
	case protowire.BytesType:
		f.data, n = protowire.ConsumeBytes(b)
	default:
		return nil, unknownField(number, kind)
	}
	if n < 0 {
		return nil, protowire.ParseError(n)
	}
	return b[n:], nil
}

func unknownField(number protowire.Number, kind protowire.Type) error {
	return fmt.Errorf("the field %d with the wire type %d is not known; a newer version may have written it", number, kind)
}

// decodeValue decodes a storagev1.Value.
func decodeValue(b []byte) (v parsed, err error) {
	for f := (field{}); len(b) > 0; {
		if b, err = f.next(b); err != nil {
			return parsed{}, err
		}
		if v.kind != None {
			return parsed{}, errors.New("the value has two types")
		}
		if f.number > protowire.Number(JSON) {
			return parsed{}, unknownField(f.number, f.kind)
		}
		v.kind, v.bits, v.raw = Kind(f.number), f.bits, f.data //nolint:gosec // bounded
		if err = v.checkDecoded(f.kind); err != nil {
			return parsed{}, err
		}
	}
	if v.kind == None {
		return parsed{}, errNoType
	}
	return v, nil
}

// checkDecoded checks the bits and data of a value that was decoded from a wire type.
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
	for f := (field{}); len(b) > 0; {
		var err error
		if b, err = f.next(b); err != nil {
			return 0, err
		}
		switch {
		case f.number == 1 && f.kind == protowire.VarintType:
			at.Seconds = int64(f.bits) //nolint:gosec // the bits of an int64
		case f.number == 2 && f.kind == protowire.VarintType: //nolint:mnd // the field's number
			at.Nanos = int32(f.bits) //nolint:gosec // as protobuf does
		default:
			return 0, unknownField(f.number, f.kind)
		}
	}
	return unixNano(&at)
}
