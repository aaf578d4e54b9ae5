package safetensors

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"
)

// dataAlignment is that of the data in the content, in bytes: a cache line, and what vector
// instructions want.
const dataAlignment = 64

// Layout returns the header for tensors, and the tensors in the order in which their data follow
// it. Content is the header and then each tensor's Data; size is its size in bytes.
//
// Larger elements come first, and names in ascending order among equals. So each tensor is aligned
// to the size of its elements where content is aligned to 64 bytes, and equal arguments have equal
// results. Metadata may be nil. It returns [ErrTensor] if a tensor or the metadata can't be
// written.
func Layout(tensors []Tensor, metadata map[string]string) (header []byte, ordered []Tensor, size uint64, err error) {
	ordered = slices.Clone(tensors)
	slices.SortStableFunc(ordered, func(a, b Tensor) int {
		return cmp.Or(-cmp.Compare(elementBits[a.DType], elementBits[b.DType]), cmp.Compare(a.Name, b.Name))
	})
	header = append(make([]byte, prefixSize), '{')
	if len(metadata) > 0 {
		if header, err = appendMetadata(header, metadata); err != nil {
			return nil, nil, 0, err
		}
	}
	names := make(map[string]struct{}, len(tensors))
	for _, t := range ordered {
		if _, ok := names[t.Name]; ok {
			return nil, nil, 0, fmt.Errorf("%w: two tensors have the name %q", ErrTensor, t.Name)
		}
		names[t.Name] = struct{}{}
		if err := t.check(size); err != nil {
			return nil, nil, 0, fmt.Errorf("%w: %q: %w", ErrTensor, t.Name, err)
		}
		header = appendEntry(header, t, size)
		size += uint64(len(t.Data))
	}
	header = append(header, '}')
	for len(header)%dataAlignment != 0 {
		header = append(header, ' ')
	}
	length := uint64(len(header)) - prefixSize
	if length > MaxHeader {
		return nil, nil, 0, fmt.Errorf("%w: %d tensors and %d metadata need a header of %d bytes; at most %d are allowed",
			ErrTensor, len(tensors), len(metadata), length, MaxHeader)
	}
	binary.LittleEndian.PutUint64(header, length)
	return header, ordered, uint64(len(header)) + size, nil
}

// Marshal returns content in one piece. See [Layout] for its order and errors.
func Marshal(tensors []Tensor, metadata map[string]string) ([]byte, error) {
	header, ordered, size, err := Layout(tensors, metadata)
	if err != nil {
		return nil, err
	}
	content := append(make([]byte, 0, size), header...)
	for _, t := range ordered {
		content = append(content, t.Data...)
	}
	return content, nil
}

// check returns an error unless the tensor can be written at an offset. The error does not name it.
func (t Tensor) check(offset uint64) error {
	switch {
	case t.Name == metadataKey:
		return errors.New("the name is reserved for metadata")
	case !utf8.ValidString(t.Name):
		return errors.New("the name is not UTF-8")
	}
	size, err := dataSize(t.DType, t.Shape)
	if err != nil {
		return err
	}
	if size != uint64(len(t.Data)) {
		return fmt.Errorf("%s of shape %v has %d bytes, not %d", t.DType, t.Shape, size, len(t.Data))
	}
	// Only tensors that share memory can get there.
	if offset > math.MaxInt64-MaxHeader-size {
		return fmt.Errorf("the data before it have %d bytes already", offset)
	}
	return nil
}

func appendMetadata(header []byte, metadata map[string]string) ([]byte, error) {
	header = appendString(header, metadataKey)
	header = append(header, ':', '{')
	for i, key := range slices.Sorted(maps.Keys(metadata)) {
		value := metadata[key]
		if !utf8.ValidString(key) || !utf8.ValidString(value) {
			return nil, fmt.Errorf("%w: metadata %q is not UTF-8", ErrTensor, key)
		}
		if i > 0 {
			header = append(header, ',')
		}
		header = appendString(header, key)
		header = append(header, ':')
		header = appendString(header, value)
	}
	return append(header, '}'), nil
}

func appendEntry(header []byte, t Tensor, offset uint64) []byte {
	if header[len(header)-1] != '{' {
		header = append(header, ',')
	}
	header = appendString(header, t.Name)
	header = append(header, `:{"dtype":`...)
	header = appendString(header, t.DType)
	header = append(header, `,"shape":[`...)
	for i, n := range t.Shape {
		if i > 0 {
			header = append(header, ',')
		}
		header = strconv.AppendInt(header, int64(n), 10)
	}
	header = append(header, `],"data_offsets":[`...)
	header = strconv.AppendUint(header, offset, 10)
	header = append(header, ',')
	header = strconv.AppendUint(header, offset+uint64(len(t.Data)), 10)
	return append(header, ']', '}')
}

// appendString appends valid UTF-8 as a JSON string.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ':
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}
