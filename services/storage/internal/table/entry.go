package table

import (
	"errors"
	"fmt"
	"math"
	"strings"
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
		return parsed{}, errors.New("the value has no type")
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
	if at == nil {
		return 0, nil
	}
	if err := at.CheckValid(); err != nil {
		return 0, fmt.Errorf("the time of expiry: %w", err)
	}
	t := at.AsTime()
	if nano := t.UnixNano(); nano != 0 && time.Unix(0, nano).Equal(t) {
		return nano, nil
	}
	return 0, fmt.Errorf("the time of expiry, %s, is not one that the storage writes", t)
}

// MaxKey is the maximum length of a key in bytes.
const MaxKey = math.MaxUint16

// record is one write in memory. But for its flags it is immutable, so that snapshots, the history
// and the index can share it.
type record struct {
	// data is the key, followed by the value's data.
	data    string
	bits    uint64
	id      uint64
	expires int64
	// words is the size of data's memory in units of eight bytes.
	words  uint32
	keyLen uint16
	kind   Kind
	flags  flags
}

// flags say what a record is needed for. Snapshots do not read them.
type flags uint8

const (
	// expired: the key was removed because its time was over.
	expired flags = 1 << iota
	// superseded: a later write of the key is committed, or this one removed it. The state does not
	// need the record.
	superseded
	// dropped: the history has dropped the record.
	dropped
	// borrows: the data are those of the record that this one supersedes.
	borrows
	// lent: the record that superseded this one borrows its data.
	lent
)

const (
	recordBytes = 48
	// indexBytes is the memory that an index takes for each record: a pointer, in nodes that are
	// half full after ascending inserts and two thirds full after random ones.
	indexBytes = 16
	// slotBytes is the memory that the ring takes for a change: between one and two pointers.
	slotBytes = 12
	// minData is the smallest size of data's memory. Smaller objects share memory with each other
	// (Go's tiny allocator), which is free only when all of them are.
	minData = 16
)

// newRecord copies the key and the value. If before has the same data, it is shared.
func newRecord(before *record, key string, v parsed, expires int64) *record {
	r := &record{bits: v.bits, expires: expires, kind: v.kind, keyLen: uint16(len(key))} //nolint:gosec // at most MaxKey
	if before != nil && v.size() == 0 && len(before.data) == len(key) {
		r.data, r.words, r.flags = before.data, before.words, borrows
		return r
	}
	var b strings.Builder
	b.Grow(max(len(key)+v.size(), minData))
	b.WriteString(key)
	b.WriteString(v.data)
	b.Write(v.raw)
	r.data, r.words = b.String(), uint32(b.Cap()/8) //nolint:gosec // a value is far below 32 GiB
	return r
}

func (r *record) key() string { return r.data[:r.keyLen] }

func (r *record) entry() Entry {
	return Entry{
		Key: r.key(), Value: Value{data: r.data[r.keyLen:], bits: r.bits, kind: r.kind}, ID: r.id, Expires: r.expires,
	}
}

func (r *record) change() Change { return Change{Entry: r.entry(), Expired: r.flags&expired != 0} }

// dataBytes is the memory that data takes.
func (r *record) dataBytes() uint64 { return 8 * uint64(r.words) }

// bytes is the memory that the record takes as a current entry.
func (r *record) bytes() uint64 {
	size := recordBytes + indexBytes + r.dataBytes()
	if r.expires != 0 {
		size += indexBytes
	}
	return size
}

// historyBytes is the memory that the record takes beside the entries while it is in the history.
func (r *record) historyBytes() uint64 {
	switch {
	case r.flags&superseded == 0:
		return slotBytes
	case r.flags&lent != 0:
		return slotBytes + recordBytes
	default:
		return slotBytes + recordBytes + r.dataBytes()
	}
}
