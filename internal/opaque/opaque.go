// Package opaque is a JSON codec that can write every [anypb.Any]. Protobuf's JSON has no form for
// an Any of a type that the process does not know, or whose value is invalid, and refuses the whole
// message for it. This codec writes such an Any as one of google.protobuf.Struct, which every
// protobuf JSON parser accepts, with the type and the base64 of the value:
//
//	{"@type": "type.googleapis.com/google.protobuf.Struct", "value": {
//	  "@raylink.opaque": "type.googleapis.com/pkg.Unknown", "base64": "CgV3b3JsZA=="}}
//
// Reading, it restores the original Any. All other messages have protobuf's form.
package opaque

import (
	"context"
	"encoding/base64"
	"errors"
	"io"

	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	typeKey  = "@raylink.opaque"
	valueKey = "base64"
	// maxDepth bounds the nesting of Anys that are examined: one further down is opaque as a whole.
	maxDepth = 16

	anyName = "google.protobuf.Any"
)

// Codec is connect's JSON codec with this form. It may be used concurrently.
type Codec struct{ *connectproto.JSONCodec }

// New returns a codec that resolves types in the global registry.
func New() Codec { return Codec{connectproto.NewJSONCodec()} }

// MarshalWrite implements [connect.Codec].
func (c Codec) MarshalWrite(ctx context.Context, dst io.Writer, msg any) error {
	err := c.JSONCodec.MarshalWrite(ctx, dst, msg)
	if other := expressible(msg, err); other != nil {
		return c.JSONCodec.MarshalWrite(ctx, dst, other)
	}
	return err
}

// MarshalWriteStable implements [connect.StableCodec].
func (c Codec) MarshalWriteStable(ctx context.Context, dst io.Writer, msg any) error {
	err := c.JSONCodec.MarshalWriteStable(ctx, dst, msg)
	if other := expressible(msg, err); other != nil {
		return c.JSONCodec.MarshalWriteStable(ctx, dst, other)
	}
	return err
}

// UnmarshalRead implements [connect.Codec].
func (c Codec) UnmarshalRead(ctx context.Context, src io.Reader, msg any) error {
	if err := c.JSONCodec.UnmarshalRead(ctx, src, msg); err != nil {
		return err //nolint:wrapcheck // as the codec's
	}
	if m, ok := msg.(proto.Message); ok {
		each(m.ProtoReflect(), func(m protoreflect.Message) { set(m, restore(fields(m))) })
	}
	return nil
}

// expressible returns a copy, with opaque Anys, of a message that could not be written because of
// err. It returns nil if no Any was the cause.
func expressible(msg any, err error) proto.Message {
	m, ok := msg.(proto.Message)
	if !ok || !errors.Is(err, proto.Error) {
		return nil
	}
	m = proto.Clone(m)
	if !conceal(m, maxDepth) {
		return nil
	}
	return m
}

// conceal makes those Anys in a message opaque that JSON can't express, and reports whether there
// were any.
func conceal(msg proto.Message, depth int) (changed bool) {
	each(msg.ProtoReflect(), func(m protoreflect.Message) {
		packed := fields(m)
		if isExpressible(packed) {
			return
		}
		changed = true
		if depth > 0 {
			// An Any within it may be the only one that can't be expressed.
			if inner, err := packed.UnmarshalNew(); err == nil && conceal(inner, depth-1) {
				if value, err := proto.Marshal(inner); err == nil {
					whole := &anypb.Any{TypeUrl: packed.GetTypeUrl(), Value: value}
					if isExpressible(whole) {
						set(m, whole)
						return
					}
				}
			}
		}
		set(m, pack(packed))
	})
	return changed
}

func isExpressible(packed *anypb.Any) bool {
	_, err := protojson.Marshal(packed)
	return err == nil
}

func pack(packed *anypb.Any) *anypb.Any {
	out, err := anypb.New(&structpb.Struct{Fields: map[string]*structpb.Value{
		typeKey:  structpb.NewStringValue(packed.GetTypeUrl()),
		valueKey: structpb.NewStringValue(base64.StdEncoding.EncodeToString(packed.GetValue())),
	}})
	if err != nil { // the type is not UTF-8
		return &anypb.Any{}
	}
	return out
}

// restore returns the Any whose opaque form packed is, or packed itself.
func restore(packed *anypb.Any) *anypb.Any {
	object := &structpb.Struct{}
	if !packed.MessageIs(object) || packed.UnmarshalTo(object) != nil || len(object.GetFields()) != 2 {
		return packed
	}
	url, isText := object.GetFields()[typeKey].GetKind().(*structpb.Value_StringValue)
	text, isTextToo := object.GetFields()[valueKey].GetKind().(*structpb.Value_StringValue)
	if !isText || !isTextToo {
		return packed
	}
	value, err := base64.StdEncoding.DecodeString(text.StringValue)
	if err != nil {
		return packed
	}
	return &anypb.Any{TypeUrl: url.StringValue, Value: value}
}

// each calls visit for the Anys in a message, except for those within another Any.
func each(m protoreflect.Message, visit func(protoreflect.Message)) {
	if m.Descriptor().FullName() == anyName {
		visit(m)
		return
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					each(v.Message(), visit)
					return true
				})
			}
		case fd.Message() == nil:
		case fd.IsList():
			for i, list := 0, v.List(); i < list.Len(); i++ {
				each(list.Get(i).Message(), visit)
			}
		default:
			each(v.Message(), visit)
		}
		return true
	})
}

// fields returns a copy of a message of type Any, which may be a dynamic message.
func fields(m protoreflect.Message) *anypb.Any {
	fds := m.Descriptor().Fields()
	return &anypb.Any{TypeUrl: m.Get(fds.ByName("type_url")).String(), Value: m.Get(fds.ByName("value")).Bytes()}
}

func set(m protoreflect.Message, to *anypb.Any) {
	fds := m.Descriptor().Fields()
	m.Set(fds.ByName("type_url"), protoreflect.ValueOfString(to.GetTypeUrl()))
	m.Set(fds.ByName("value"), protoreflect.ValueOfBytes(to.GetValue()))
}
