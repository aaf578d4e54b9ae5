package storage

import (
	"math"
	"unicode/utf8"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
)

// kind is the name of a value's type.
type kind string

const (
	noKind      kind = "nothing"
	int64Kind   kind = "int64"
	doubleKind  kind = "double"
	boolKind    kind = "bool"
	stringKind  kind = "string"
	bytesKind   kind = "bytes"
	messageKind kind = "message"
	jsonKind    kind = "json"
)

// maxJSONDepth is how deep lists and objects may nest in a JSON value. Decoders of protobuf accept
// a multiple of it.
const maxJSONDepth = 1000

func kindOf(v *storagev1.Value) kind {
	switch v.GetKind().(type) {
	case *storagev1.Value_Int64Value:
		return int64Kind
	case *storagev1.Value_DoubleValue:
		return doubleKind
	case *storagev1.Value_BoolValue:
		return boolKind
	case *storagev1.Value_StringValue:
		return stringKind
	case *storagev1.Value_BytesValue:
		return bytesKind
	case *storagev1.Value_MessageValue:
		return messageKind
	case *storagev1.Value_JsonValue:
		return jsonKind
	default:
		return noKind
	}
}

func (k kind) isNumber() bool { return k == int64Kind || k == doubleKind }

// int64Value makes one allocation of the value and its kind.
func int64Value(n int64) *storagev1.Value {
	v := &struct {
		storagev1.Value

		number storagev1.Value_Int64Value
	}{number: storagev1.Value_Int64Value{Int64Value: n}}
	v.Kind = &v.number
	return &v.Value
}

func doubleValue(x float64) *storagev1.Value {
	return &storagev1.Value{Kind: &storagev1.Value_DoubleValue{DoubleValue: x}}
}

// wrongType is the error of an operation that needs another type than a key's value has.
func wrongType(key string, has, want kind, format string, args ...any) error {
	return detailed(connect.Errorf(connect.CodeFailedPrecondition, format, args...),
		&storagev1.WrongType{Key: key, Has: string(has), Want: string(want)})
}

// overLimit is the error of a write that exceeds a bound.
func overLimit(code connect.Code, key, limit string, bound, need uint64, format string, args ...any) error {
	return detailed(connect.Errorf(code, format, args...),
		&storagev1.LimitExceeded{Key: key, Limit: limit, Max: bound, Need: need})
}

// checkKey rejects what is no key.
func checkKey(key string) error {
	switch {
	case key == "":
		return connect.Errorf(connect.CodeInvalidArgument, "invalid key: it is empty; a key has 1 to %d bytes", maxKey)
	case len(key) > maxKey:
		return overLimit(connect.CodeInvalidArgument, "", "key bytes", maxKey, uint64(len(key)),
			"invalid key: a key has 1 to %d bytes, but %.40q... has %d", maxKey, key, len(key))
	case !utf8.ValidString(key):
		return connect.Errorf(connect.CodeInvalidArgument, "invalid key: %.40q is not UTF-8", key)
	}
	return nil
}

// checkValue rejects values that can't be sent to readers in other processes, or not be read from
// the disk.
func (n *node) checkValue(key string, value *storagev1.Value) error {
	text := ""
	switch v := value.GetKind().(type) {
	case *storagev1.Value_StringValue:
		text = v.StringValue
	case *storagev1.Value_MessageValue:
		if v.MessageValue == nil {
			return connect.Errorf(connect.CodeInvalidArgument, "store %q: the message is missing", key)
		}
		text = v.MessageValue.GetTypeUrl()
	case *storagev1.Value_JsonValue:
		if problem := checkJSON(v.JsonValue, 0); problem != "" {
			return connect.Errorf(connect.CodeInvalidArgument, "store %q: the JSON value %s", key, problem)
		}
	case nil:
		return connect.Errorf(connect.CodeInvalidArgument, "store %q: no value", key)
	}
	if !utf8.ValidString(text) {
		return connect.Errorf(connect.CodeInvalidArgument, "store %q: the text %.40q is not UTF-8; store it as bytes", key, text)
	}
	return n.checkSize(key, value)
}

// framing is more than what the encoding of a value adds to a number, to bytes or to a text.
const framing = 32

// checkSize rejects values that are too large.
func (n *node) checkSize(key string, value *storagev1.Value) error {
	switch v := value.GetKind().(type) { // most values are small, and need not be measured exactly
	case *storagev1.Value_Int64Value, *storagev1.Value_DoubleValue, *storagev1.Value_BoolValue:
		return nil
	case *storagev1.Value_StringValue:
		if len(v.StringValue) <= n.maxValue-framing {
			return nil
		}
	case *storagev1.Value_BytesValue:
		if len(v.BytesValue) <= n.maxValue-framing {
			return nil
		}
	}
	size := proto.Size(value)
	if size <= n.maxValue {
		return nil
	}
	return overLimit(connect.CodeInvalidArgument, key, "value bytes", uint64(n.maxValue), uint64(size), //nolint:gosec // not negative
		"store %q: the value of %d bytes would not fit into a message; the limit is %d", key, size, n.maxValue)
}

// checkJSON returns what is wrong with a JSON value; "" if nothing is.
func checkJSON(v *structpb.Value, depth int) string {
	if depth > maxJSONDepth {
		return "nests too deep: its lists and objects may have 1000 levels"
	}
	switch k := v.GetKind().(type) {
	case nil:
		return "has a part without a value; JSON's null is one"
	case *structpb.Value_NumberValue:
		if math.IsNaN(k.NumberValue) || math.IsInf(k.NumberValue, 0) {
			return "has a number that JSON can't express: NaN or an infinity"
		}
	case *structpb.Value_StringValue:
		if !utf8.ValidString(k.StringValue) {
			return "has a text that is not UTF-8"
		}
	case *structpb.Value_StructValue:
		for name, field := range k.StructValue.GetFields() {
			if !utf8.ValidString(name) {
				return "has a field whose name is not UTF-8"
			}
			if problem := checkJSON(field, depth+1); problem != "" {
				return problem
			}
		}
	case *structpb.Value_ListValue:
		for _, element := range k.ListValue.GetValues() {
			if problem := checkJSON(element, depth+1); problem != "" {
				return problem
			}
		}
	}
	return ""
}

// stepped returns a number after an increment or decrement. stored is nil if the key is missing.
func stepped(key string, stored, by, initial *storagev1.Value, down bool) (*storagev1.Value, error) {
	of := int64Kind
	for _, v := range []*storagev1.Value{by, initial, stored} { // the last one that is set determines the type
		if v != nil {
			of = kindOf(v)
		}
	}
	if stored != nil && !of.isNumber() {
		want := int64Kind
		if by != nil {
			want = kindOf(by)
		}
		return nil, wrongType(key, of, want, "%q has type %s: only numbers can be incremented", key, of)
	}
	for _, part := range []struct {
		name  string
		value *storagev1.Value
	}{{"step", by}, {"initial value", initial}} {
		switch got := kindOf(part.value); {
		case part.value == nil, got == of && got.isNumber():
		case stored != nil && got.isNumber():
			return nil, wrongType(key, of, got, "%q has type %s, but the %s has type %s", key, of, part.name, got)
		default:
			return nil, connect.Errorf(connect.CodeInvalidArgument,
				"increment %q: the %s has type %s; step and initial value must be numbers of the same type", key, part.name, got)
		}
	}
	if stored == nil {
		stored = initial
	}
	if of == doubleKind {
		return steppedDouble(key, stored, by, down)
	}
	return steppedInt64(key, stored, by, down)
}

func steppedInt64(key string, stored, by *storagev1.Value, down bool) (*storagev1.Value, error) {
	from, step := stored.GetInt64Value(), int64(1)
	if by != nil {
		step = by.GetInt64Value()
	}
	to, over := from+step, step > 0 && from > math.MaxInt64-step || step < 0 && from < math.MinInt64-step
	if down { // not by negating the step, which overflows for the smallest number
		to, over = from-step, step < 0 && from > math.MaxInt64+step || step > 0 && from < math.MinInt64+step
	}
	if over {
		return nil, connect.Errorf(connect.CodeOutOfRange, "increment %q: %d with a step of %d exceeds the range of int64", key, from, step)
	}
	return int64Value(to), nil
}

func steppedDouble(key string, stored, by *storagev1.Value, down bool) (*storagev1.Value, error) {
	from, step := stored.GetDoubleValue(), 1.0
	if by != nil {
		step = by.GetDoubleValue()
	}
	to := from + step
	if down {
		to = from - step
	}
	if math.IsNaN(to) || math.IsInf(to, 0) {
		return nil, connect.Errorf(connect.CodeOutOfRange, "increment %q: %g with a step of %g is not a finite number", key, from, step)
	}
	return doubleValue(to), nil
}

// appended returns bytes or a string with an addition. stored is nil if the key is missing. No
// memory is shared.
func appended(key string, stored, addition *storagev1.Value) (*storagev1.Value, error) {
	of := kindOf(addition)
	if of != bytesKind && of != stringKind {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "append to %q: the addition has type %s; it must be bytes or a string", key, of)
	}
	if has := kindOf(stored); stored != nil && has != of {
		return nil, wrongType(key, has, of, "append to %q: it has type %s, and the addition has type %s", key, has, of)
	}
	if of == stringKind {
		return &storagev1.Value{Kind: &storagev1.Value_StringValue{StringValue: stored.GetStringValue() + addition.GetStringValue()}}, nil
	}
	before, more := stored.GetBytesValue(), addition.GetBytesValue()
	joined := append(append(make([]byte, 0, len(before)+len(more)), before...), more...)
	return &storagev1.Value{Kind: &storagev1.Value_BytesValue{BytesValue: joined}}, nil
}
