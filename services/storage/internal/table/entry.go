package table

import (
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
)

// Kind is a value's type. It equals the number of the field of storagev1.Value.
type Kind uint8

// The kinds of values. None is that of a removed entry.
const (
	None Kind = iota
	Int64
	Double
	Bool
	String
	Bytes
	Message
	JSON
)

// Value is an immutable value. The zero Value has the kind None.
type Value struct {
	// data is the text, the bytes, or the encoded Any or JSON value.
	data string
	// bits is the number or truth value.
	bits uint64
	kind Kind
}

// Kind returns the value's type.
func (v Value) Kind() Kind { return v.kind }

// Int64 returns the number of a value of the kind Int64.
func (v Value) Int64() int64 { return int64(v.bits) } //nolint:gosec // the bits of an int64

// Double returns the number of a value of the kind Double.
func (v Value) Double() float64 { return math.Float64frombits(v.bits) }

// Data returns the content of a value of the kind String or Bytes, and the encoding of one of the
// kind Message or JSON.
func (v Value) Data() string { return v.data }

// Proto returns a copy, which belongs to the caller; nil if the kind is None.
func (v Value) Proto() *storagev1.Value {
	switch v.kind {
	case Int64:
		return &storagev1.Value{Kind: &storagev1.Value_Int64Value{Int64Value: v.Int64()}}
	case Double:
		return &storagev1.Value{Kind: &storagev1.Value_DoubleValue{DoubleValue: v.Double()}}
	case Bool:
		return &storagev1.Value{Kind: &storagev1.Value_BoolValue{BoolValue: v.bits != 0}}
	case String:
		return &storagev1.Value{Kind: &storagev1.Value_StringValue{StringValue: v.data}}
	case Bytes:
		return &storagev1.Value{Kind: &storagev1.Value_BytesValue{BytesValue: []byte(v.data)}}
	case Message:
		m := new(anypb.Any)
		decode(v.data, m)
		return &storagev1.Value{Kind: &storagev1.Value_MessageValue{MessageValue: m}}
	case JSON:
		m := new(structpb.Value)
		decode(v.data, m)
		return &storagev1.Value{Kind: &storagev1.Value_JsonValue{JsonValue: m}}
	default:
		return nil
	}
}

// decode decodes what this package has encoded.
func decode(data string, m proto.Message) {
	if err := proto.Unmarshal([]byte(data), m); err != nil {
		panic(fmt.Sprintf("table: decode a stored %T: %v", m, err))
	}
}

// parsed is a value whose data may be raw, the caller's memory, instead.
type parsed struct {
	Value

	raw []byte
}

// size is the size of the value's data.
func (p parsed) size() int { return len(p.data) + len(p.raw) }

// parse returns the parts of a value.
func parse(v *storagev1.Value) (parsed, error) {
	var m proto.Message
	out := parsed{}
	switch k := v.GetKind().(type) {
	case *storagev1.Value_Int64Value:
		out.kind, out.bits = Int64, uint64(k.Int64Value) //nolint:gosec // the bits of an int64
		return out, nil
	case *storagev1.Value_DoubleValue:
		out.kind, out.bits = Double, math.Float64bits(k.DoubleValue)
		return out, nil
	case *storagev1.Value_BoolValue:
		out.kind = Bool
		if k.BoolValue {
			out.bits = 1
		}
		return out, nil
	case *storagev1.Value_StringValue:
		out.kind, out.data = String, k.StringValue
		return out, nil
	case *storagev1.Value_BytesValue:
		out.kind, out.raw = Bytes, k.BytesValue
		return out, nil
	case *storagev1.Value_MessageValue:
		out.kind, m = Message, k.MessageValue
	case *storagev1.Value_JsonValue:
		out.kind, m = JSON, k.JsonValue
	default:
		return parsed{}, errNoType
	}
	var err error
	if out.raw, err = (proto.MarshalOptions{Deterministic: true}).Marshal(m); err != nil {
		return parsed{}, fmt.Errorf("encode the value: %w", err)
	}
	return out, nil
}

// Entry is a key and its value.
type Entry struct {
	Key   string
	Value Value
	ID    uint64
	// Expires is a Unix time in nanoseconds; 0 means never.
	Expires int64
}

// Proto returns a copy, which belongs to the caller.
func (e Entry) Proto() *storagev1.Entry {
	return &storagev1.Entry{Key: e.Key, Value: e.Value.Proto(), Id: e.ID, Expires: timestamp(e.Expires)}
}

// Change is one write. A Value of the kind None means that the key was removed.
type Change struct {
	Entry

	// Expired is set if the key was removed because its time was over.
	Expired bool
}

// Proto returns a copy, which belongs to the caller.
func (c Change) Proto() *storagev1.Change {
	return &storagev1.Change{
		Key: c.Key, Value: c.Value.Proto(), Id: c.ID, Expires: timestamp(c.Expires), Expired: c.Expired,
	}
}

// AppendProto appends the encoding of the storagev1.Change.
func (c Change) AppendProto(b []byte) []byte {
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendString(b, c.Key)
	if c.Value.kind != None {
		b = protowire.AppendTag(b, 2, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(c.Value.sizeWith(len(c.Value.data)))) //nolint:gosec // not negative
		b = c.Value.append(b)
	}
	b = protowire.AppendTag(b, 3, protowire.VarintType)
	b = protowire.AppendVarint(b, c.ID)
	if c.Expires != 0 {
		b = protowire.AppendTag(b, 4, protowire.BytesType)
		b = appendTimestamp(b, c.Expires)
	}
	if c.Expired {
		b = protowire.AppendTag(b, 5, protowire.VarintType)
		b = protowire.AppendVarint(b, 1)
	}
	return b
}

// encodedSize returns the size of the storagev1.Value.
func (p parsed) encodedSize() uint64 { return uint64(p.sizeWith(p.size())) } //nolint:gosec // not negative

// sizeWith returns the size of the storagev1.Value if its data have a size.
func (v Value) sizeWith(data int) int {
	const tag = 1
	switch v.kind {
	case None:
		return 0
	case Int64, Bool:
		return tag + protowire.SizeVarint(v.bits)
	case Double:
		return tag + protowire.SizeFixed64()
	default:
		return tag + protowire.SizeBytes(data)
	}
}

// append appends the encoding of the storagev1.Value.
func (v Value) append(b []byte) []byte {
	number := protowire.Number(v.kind)
	switch v.kind {
	case None:
		return b
	case Int64, Bool:
		return protowire.AppendVarint(protowire.AppendTag(b, number, protowire.VarintType), v.bits)
	case Double:
		return protowire.AppendFixed64(protowire.AppendTag(b, number, protowire.Fixed64Type), v.bits)
	default:
		return protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), v.data)
	}
}

// seconds splits a Unix time as a Timestamp does, whose nanoseconds are not negative.
func seconds(at int64) (whole, nanos int64) {
	whole, nanos = at/int64(time.Second), at%int64(time.Second)
	if nanos < 0 {
		whole, nanos = whole-1, nanos+int64(time.Second)
	}
	return whole, nanos
}

func timestamp(at int64) *timestamppb.Timestamp {
	if at == 0 {
		return nil
	}
	whole, nanos := seconds(at)
	return &timestamppb.Timestamp{Seconds: whole, Nanos: int32(nanos)} //nolint:gosec // below 1e9
}

// appendTimestamp appends the encoding of a Timestamp and, before it, its size.
func appendTimestamp(b []byte, at int64) []byte {
	var fields [24]byte
	encoded := fields[:0]
	whole, nanos := seconds(at)
	if whole != 0 {
		encoded = protowire.AppendVarint(protowire.AppendTag(encoded, 1, protowire.VarintType), uint64(whole)) //nolint:gosec // as protobuf does
	}
	if nanos != 0 {
		encoded = protowire.AppendVarint(protowire.AppendTag(encoded, 2, protowire.VarintType), uint64(nanos)) //nolint:gosec // not negative
	}
	return protowire.AppendBytes(b, encoded)
}

// unixNano is the inverse of timestamp.
func unixNano(at *timestamppb.Timestamp) (int64, error) {
	if err := at.CheckValid(); err != nil {
		return 0, fmt.Errorf("the time of expiry: %w", err)
	}
	t := at.AsTime()
	if nano := t.UnixNano(); nano != 0 && time.Unix(0, nano).Equal(t) {
		return nano, nil
	}
	return 0, fmt.Errorf("the time of expiry, %s, is not one that the storage writes", t)
}
