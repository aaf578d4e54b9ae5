package codec

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Most large messages consist of a few large bytes fields (decode.go). Copying these to encode them
// would cost as much as writing them. They are written from the message's own memory instead, which
// is why the message must not be modified afterwards; only what is between them is encoded.

// Encoded is an encoded message that is sent in fragments. It is not safe for concurrent use.
type Encoded struct {
	// small is the memory of everything that was encoded.
	small *Buffer
	// parts is the message in order: slices of small, alternating with large fields.
	parts [][]byte
	// Size is the size of the whole message in bytes.
	Size int
	// part and at are the position of the next fragment: an index of parts and an offset in that
	// part.
	part, at int

	few [3][]byte
}

// Free releases the memory. It does nothing on nil.
func (e *Encoded) Free() {
	if e != nil {
		e.small.Free()
		*e = Encoded{}
	}
}

// Next consumes the next n bytes and calls each for every part of them.
func (e *Encoded) Next(n int, each func(part []byte)) {
	for n > 0 {
		part := e.parts[e.part][e.at:]
		if len(part) > n {
			part = part[:n]
		}
		n -= len(part)
		if e.at += len(part); e.at == len(e.parts[e.part]) {
			e.part, e.at = e.part+1, 0
		}
		if len(part) > 0 {
			each(part)
		}
	}
}

// Encode encodes a message, part of it in place; nil is the empty message. size must be the current
// size of the message, which must not be modified before the Encoded is freed.
func Encode(msg proto.Message, size int) (_ *Encoded, err error) {
	returned := false
	defer func() {
		if !returned {
			err = panicked(recover())
		}
	}()
	e := &Encoded{}
	if large, where := largeBytes(msg, size); 2*large >= size && large > 0 && proto.CheckInitialized(msg) == nil {
		e.small = NewBuffer(size - large + splitRoom)
		s := splitter{buf: e.small.B, parts: e.few[:0]}
		err = s.message(msg.ProtoReflect(), where)
		e.small.B, e.parts = s.buf, s.finish()
	} else {
		e.small = NewBuffer(size)
		e.small.B, err = Append(e.small.B, msg, size)
		e.parts = append(e.few[:0], e.small.B)
	}
	returned = true
	if err != nil {
		e.Free()
		return nil, err
	}
	for _, part := range e.parts {
		e.Size += len(part)
	}
	return e, nil
}

// splitRoom is the initial room for the tags and lengths of fields that are written separately. The
// buffer grows if more is needed.
const splitRoom = 64

// largeBytes returns the total size of a message's large fields, and the search that finds them
// again.
func largeBytes(msg proto.Message, size int) (total int, where search) {
	if size < aliasedBytes || msg == nil {
		return 0, where
	}
	where = search{depth: aliasDepth, most: 2 * size / aliasedBytes}
	where.each(msg.ProtoReflect(), func(_ protoreflect.FieldDescriptor, n int) { total += n })
	return total, where
}

// search limits where large fields are looked for: to a depth of nested messages, and to lists of
// messages that are short enough to consist mostly of large fields, but not in lists within lists.
// The cost is small compared with encoding, whatever the message.
type search struct {
	depth, most int
	inList      bool
}

// each calls visit for each field of a message that is large or contains large fields, with their
// total size.
func (s search) each(m protoreflect.Message, visit func(fd protoreflect.FieldDescriptor, large int)) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !splits(fd) || !m.Has(fd) {
			continue
		}
		large := 0
		if v := m.Get(fd); !fd.IsList() {
			large = s.in(fd, v)
		} else if list := v.List(); list.Len() <= s.most {
			for j := range list.Len() {
				large += s.in(fd, list.Get(j))
			}
		}
		if large > 0 {
			visit(fd, large)
		}
	}
}

// in returns the total size of the large fields in one value of a field.
func (s search) in(fd protoreflect.FieldDescriptor, v protoreflect.Value) (total int) {
	if fd.Kind() == protoreflect.BytesKind {
		if n := len(v.Bytes()); n >= aliasedBytes {
			return n
		}
		return 0
	}
	if inside, ok := s.inside(fd); ok {
		inside.each(v.Message(), func(_ protoreflect.FieldDescriptor, n int) { total += n })
	}
	return total
}

// inside returns the search for the messages in a field, and whether they are searched at all.
func (s search) inside(fd protoreflect.FieldDescriptor) (search, bool) {
	if s.depth <= 1 || s.inList && fd.IsList() {
		return s, false
	}
	return search{depth: s.depth - 1, most: s.most, inList: s.inList || fd.IsList()}, true
}

// splits reports whether a field can be written and aliased separately: a bytes or message field
// that is not a map.
func splits(fd protoreflect.FieldDescriptor) bool {
	return !fd.IsMap() && (fd.Kind() == protoreflect.BytesKind || fd.Kind() == protoreflect.MessageKind)
}

// splitter encodes a message in parts.
type splitter struct {
	buf []byte
	// ends are the offsets of buf at which the large fields are inserted; fields are those fields.
	ends   []int
	fields [][]byte
	parts  [][]byte
}

// message encodes a message: first everything without large fields, then the fields with large
// ones, by number. The order of different fields on the wire has no meaning.
func (s *splitter) message(m protoreflect.Message, where search) error {
	var apart []protoreflect.FieldDescriptor
	where.each(m, func(fd protoreflect.FieldDescriptor, _ int) { apart = append(apart, fd) })
	if err := s.rest(m, apart); err != nil {
		return err
	}
	slices.SortFunc(apart, func(a, b protoreflect.FieldDescriptor) int { return cmp.Compare(a.Number(), b.Number()) })
	for _, fd := range apart {
		v := m.Get(fd)
		if !fd.IsList() {
			if err := s.field(fd, v, where); err != nil {
				return err
			}
			continue
		}
		for i, list := 0, v.List(); i < list.Len(); i++ {
			if err := s.field(fd, list.Get(i), where); err != nil {
				return err
			}
		}
	}
	return nil
}

// rest encodes a message without the fields in apart.
func (s *splitter) rest(m protoreflect.Message, apart []protoreflect.FieldDescriptor) error {
	rest := m
	if len(apart) > 0 {
		rest = m.New()
		m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			if !slices.Contains(apart, fd) {
				rest.Set(fd, v)
			}
			return true
		})
		rest.SetUnknown(m.GetUnknown())
	}
	var err error
	s.buf, err = marshal(proto.MarshalOptions{AllowPartial: true}, s.buf, rest.Interface())
	return err
}

// field encodes one value of a bytes or message field.
func (s *splitter) field(fd protoreflect.FieldDescriptor, v protoreflect.Value, where search) error {
	s.buf = protowire.AppendTag(s.buf, fd.Number(), protowire.BytesType)
	if fd.Kind() == protoreflect.MessageKind {
		s.buf = protowire.AppendVarint(s.buf, uint64(proto.Size(v.Message().Interface()))) //nolint:gosec // a size is not negative
		inside, _ := where.inside(fd)
		return s.message(v.Message(), inside)
	}
	b := v.Bytes()
	s.buf = protowire.AppendVarint(s.buf, uint64(len(b)))
	if len(b) < aliasedBytes {
		s.buf = append(s.buf, b...)
		return nil
	}
	s.ends = append(s.ends, len(s.buf))
	s.fields = append(s.fields, b)
	return nil
}

// finish returns the parts. They are cut only now, since buf may have been reallocated while it
// grew.
func (s *splitter) finish() [][]byte {
	from := 0
	for i, end := range s.ends {
		s.parts = append(s.parts, s.buf[from:end], s.fields[i])
		from = end
	}
	if from < len(s.buf) {
		s.parts = append(s.parts, s.buf[from:])
	}
	return s.parts
}
