// Package protocheck finds the field for which a message can't be encoded. It decides as protobuf's
// own encoder does.
package protocheck

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Reason is why a field can't be encoded.
type Reason uint8

const (
	// NotUTF8 is for a string that holds other octets. Strings of proto2 may, unless their file
	// forbids it.
	NotUTF8 Reason = iota + 1
	// Missing is for a required field that is not set.
	Missing
)

// FieldError names a field for which a message can't be encoded.
type FieldError struct {
	Reason Reason
	Field  protoreflect.FieldDescriptor
	// Path leads from the message to the field, with the indexes and keys of what it passes.
	Path string
	// Text is the string that is not UTF-8.
	Text string
}

// Error says what is wrong by the field's full name.
func (p *FieldError) Error() string {
	if p.Reason == Missing {
		return fmt.Sprintf("the required field %s is not set", p.Field.FullName())
	}
	return fmt.Sprintf("the field %s is a string that is not UTF-8; use bytes for other data", p.Field.FullName())
}

// First returns the first problem of a message, or nil if it can be encoded. The message must not
// change meanwhile.
func First(msg proto.Message) *FieldError {
	if msg == nil {
		return nil
	}
	return ofMessage(msg.ProtoReflect())
}

func ofMessage(m protoreflect.Message) *FieldError {
	fields, required := m.Descriptor().Fields(), m.Descriptor().RequiredNumbers()
	for i := range required.Len() {
		if fd := fields.ByNumber(required.Get(i)); !m.Has(fd) {
			return &FieldError{Reason: Missing, Field: fd, Path: string(fd.Name())}
		}
	}
	var found *FieldError
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		found = ofField(fd, v)
		return found == nil
	})
	return found
}

// ofField checks all that a field holds.
func ofField(fd protoreflect.FieldDescriptor, v protoreflect.Value) (found *FieldError) {
	name := string(fd.Name())
	if fd.IsExtension() {
		name = "[" + string(fd.FullName()) + "]"
	}
	switch {
	case fd.IsMap():
		v.Map().Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
			at := name + "[" + strconv.Quote(clip(key.String())) + "]"
			if found = ofValue(fd.MapKey(), key.Value(), at); found == nil {
				found = ofValue(fd.MapValue(), value, at)
			}
			return found == nil
		})
	case fd.IsList():
		for i, list := 0, v.List(); i < list.Len() && found == nil; i++ {
			found = ofValue(fd, list.Get(i), name+"["+strconv.Itoa(i)+"]")
		}
	default:
		found = ofValue(fd, v, name)
	}
	return found
}

func ofValue(fd protoreflect.FieldDescriptor, v protoreflect.Value, at string) *FieldError {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		found := ofMessage(v.Message())
		if found != nil {
			found.Path = at + "." + found.Path
		}
		return found
	case protoreflect.StringKind:
		if enforced(fd) && !utf8.ValidString(v.String()) {
			return &FieldError{Reason: NotUTF8, Field: fd, Path: at, Text: v.String()}
		}
	default: // numbers, enums and bytes are valid whatever they hold
	}
	return nil
}

// enforced reports whether the encoder refuses a string that is not UTF-8.
func enforced(fd protoreflect.FieldDescriptor) bool {
	if own, ok := fd.(interface{ EnforceUTF8() bool }); ok {
		return own.EnforceUTF8()
	}
	return fd.Syntax() == protoreflect.Proto3
}

// clip shortens a key for a path.
func clip(key string) string {
	const bound = 256
	if key = strings.ToValidUTF8(key, "\uFFFD"); len(key) <= bound {
		return key
	}
	end := bound
	for !utf8.RuneStart(key[end]) {
		end--
	}
	return key[:end] + "..."
}
