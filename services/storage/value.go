package storage

import (
	"math"

	"connectrpc.com/connect/v2"

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

func int64Value(n int64) *storagev1.Value {
	return &storagev1.Value{Kind: &storagev1.Value_Int64Value{Int64Value: n}}
}

func doubleValue(x float64) *storagev1.Value {
	return &storagev1.Value{Kind: &storagev1.Value_DoubleValue{DoubleValue: x}}
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
		return nil, connect.Errorf(connect.CodeFailedPrecondition,
			"%q has type %s: only numbers can be incremented", key, of)
	}
	for _, part := range []struct {
		name  string
		value *storagev1.Value
	}{{"step", by}, {"initial value", initial}} {
		switch got := kindOf(part.value); {
		case part.value == nil, got == of && got.isNumber():
		case stored != nil && got.isNumber():
			return nil, connect.Errorf(connect.CodeFailedPrecondition,
				"%q has type %s, but the %s has type %s", key, of, part.name, got)
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
