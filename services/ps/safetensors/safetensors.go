// Package safetensors reads and writes the safetensors format: named tensors in one piece of
// memory, as Hugging Face's library of that name defines it for Python and Rust.
//
// Content in this format is a header and the tensors' data behind it:
//
//	8 bytes   the length of the JSON that follows, little-endian
//	JSON      {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...},
//	          and optionally "__metadata__": {"key": "value", ...}; spaces at its end
//	data      the tensors without gaps, little-endian, rows first
//
// [Parse] returns views of content, which it never copies or modifies. [Layout] returns the header
// and the order of tensors, so that they can be written to a file or mapping without being
// assembled in memory first.
package safetensors

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Limits of a header.
const (
	// MaxHeader is the maximum length of the JSON in bytes, in this package as in the reference
	// implementation.
	MaxHeader = 100_000_000
	// MaxRank is the maximum number of a tensor's dimensions. It is that of NumPy and PyTorch; the
	// format itself has none.
	MaxRank = 64
)

const (
	prefixSize  = 8
	metadataKey = "__metadata__"
)

// Errors that a caller may act on. They are returned wrapped.
var (
	// ErrFormat means that content is not in the safetensors format.
	ErrFormat = errors.New("not valid safetensors content")
	// ErrNoTensor means that a file has no tensor of a name.
	ErrNoTensor = errors.New("no such tensor")
	// ErrTensor means that a tensor cannot be written: a wrong name, data type, shape or size.
	ErrTensor = errors.New("invalid tensor")
)

// Tensor is a named, dense array.
type Tensor struct {
	Name string
	// DType is the type of the elements as the format calls it: BOOL; I8, I16, I32, I64; U8, U16,
	// U32, U64; F16, BF16, F32, F64; C64; F8_E4M3, F8_E5M2, F8_E8M0, F8_E4M3FNUZ, F8_E5M2FNUZ;
	// F6_E2M3, F6_E3M2; F4.
	DType string
	// Shape has the sizes of the dimensions, outermost first. Empty means a scalar. A size of 0 is
	// valid: such a tensor has no data.
	Shape []int
	// Data has the elements in row-major order, little-endian.
	Data []byte
}

// File is parsed content. It is immutable, and safe for concurrent use.
type File struct {
	tensors  []Tensor
	index    map[string]int
	metadata map[string]string
}

// Parse parses content, which is untrusted. It requires what the format does: the data are covered
// completely and without overlaps, each tensor's size is that of its shape and type, and no name
// occurs twice. Otherwise it returns [ErrFormat].
//
// The tensors' Data are parts of content. They are valid as long as content is; names, shapes and
// metadata are copies. The time and memory that Parse needs depend only on the header's length.
func Parse(content []byte) (*File, error) {
	f, header, err := parse(content, uint64(len(content)))
	if err != nil {
		return nil, err
	}
	data := content[header:]
	for i := range f.tensors {
		size, err := f.tensors[i].Size()
		if err != nil {
			return nil, err // it was checked before
		}
		f.tensors[i].Data, data = data[:size:size], data[size:]
	}
	return f, nil
}

// ParseHeader parses content of the given size in bytes by its header alone: content needs to have
// the first [HeaderSize] bytes, and further ones are ignored. It checks what [Parse] does. The
// tensors have no Data.
func ParseHeader(content []byte, size uint64) (*File, error) {
	f, _, err := parse(content, size)
	return f, err
}

// parse parses the header of content of the given size, and returns the header's size too.
func parse(content []byte, total uint64) (*File, uint64, error) {
	size, err := HeaderSize(content)
	if err != nil {
		return nil, 0, err
	}
	if size > min(uint64(len(content)), total) {
		return nil, 0, fmt.Errorf("%w: the header should have %d bytes, but the content ends after %d", ErrFormat, size, min(uint64(len(content)), total))
	}
	entries, metadata, err := parseHeader(content[prefixSize:size])
	if err != nil {
		return nil, 0, err
	}
	f := &File{tensors: make([]Tensor, len(entries)), index: make(map[string]int, len(entries)), metadata: metadata}
	// The names' order in the header says nothing about that of the data.
	slices.SortStableFunc(entries, compareOffsets)
	covered := uint64(0)
	for i := range entries {
		e := &entries[i]
		if err := e.check(covered, total-size); err != nil {
			return nil, 0, fmt.Errorf("%w: tensor %q: %w", ErrFormat, e.Name, err)
		}
		covered = e.end
		f.tensors[i] = e.Tensor
		f.index[e.Name] = i
	}
	if covered != total-size {
		return nil, 0, fmt.Errorf("%w: %d bytes of data belong to no tensor", ErrFormat, total-size-covered)
	}
	return f, size, nil
}

// Collect returns a file of the given tensors, for a part of a larger one: the tensors are in the
// order of the argument, and their Data are not copied. It returns [ErrTensor] if one is invalid.
func Collect(tensors []Tensor, metadata map[string]string) (*File, error) {
	f := &File{tensors: make([]Tensor, len(tensors)), index: make(map[string]int, len(tensors)), metadata: maps.Clone(metadata)}
	for i, t := range tensors {
		if err := t.check(0); err != nil {
			return nil, fmt.Errorf("%w: %q: %w", ErrTensor, t.Name, err)
		}
		if _, ok := f.index[t.Name]; ok {
			return nil, fmt.Errorf("%w: two tensors have the name %q", ErrTensor, t.Name)
		}
		f.tensors[i], f.index[t.Name] = t.clone(), i
	}
	return f, nil
}

// HeaderSize returns the size of the header whose first 8 bytes are given, including them: the
// offset of the data in the content. Further bytes are ignored.
func HeaderSize(first8 []byte) (uint64, error) {
	if len(first8) < prefixSize {
		return 0, fmt.Errorf("%w: %d bytes are too few for a header", ErrFormat, len(first8))
	}
	length := binary.LittleEndian.Uint64(first8)
	if length > MaxHeader {
		return 0, fmt.Errorf("%w: a header of %d bytes; at most %d are allowed", ErrFormat, length, MaxHeader)
	}
	return prefixSize + length, nil
}

// Tensor returns the tensor of a name, or [ErrNoTensor].
func (f *File) Tensor(name string) (Tensor, error) {
	i, ok := f.index[name]
	if !ok {
		return Tensor{}, fmt.Errorf("%w: %q; there are %s", ErrNoTensor, name, f.list())
	}
	return f.tensors[i].clone(), nil
}

// list returns the names for an error text.
func (f *File) list() string {
	const most = 20
	if len(f.tensors) == 0 {
		return "none"
	}
	var text strings.Builder
	for i, t := range f.tensors[:min(len(f.tensors), most)] {
		if i > 0 {
			text.WriteString(", ")
		}
		fmt.Fprintf(&text, "%q", t.Name)
	}
	if more := len(f.tensors) - most; more > 0 {
		fmt.Fprintf(&text, " and %d more", more)
	}
	return text.String()
}

// Names returns the tensors' names in the order of their data.
func (f *File) Names() []string {
	names := make([]string, len(f.tensors))
	for i, t := range f.tensors {
		names[i] = t.Name
	}
	return names
}

// Tensors returns all tensors in the order of their data.
func (f *File) Tensors() []Tensor {
	tensors := make([]Tensor, len(f.tensors))
	for i, t := range f.tensors {
		tensors[i] = t.clone()
	}
	return tensors
}

// Metadata returns a copy of the metadata; it is empty if there are none.
func (f *File) Metadata() map[string]string {
	metadata := make(map[string]string, len(f.metadata))
	maps.Copy(metadata, f.metadata)
	return metadata
}

// Size returns the size of the data in bytes that type and shape imply, or [ErrTensor] if they are
// invalid.
func (t Tensor) Size() (uint64, error) {
	size, err := dataSize(t.DType, t.Shape)
	if err != nil {
		return 0, fmt.Errorf("%w: %q: %w", ErrTensor, t.Name, err)
	}
	return size, nil
}

// clone copies the shape, so that a caller can't modify that of the file.
func (t Tensor) clone() Tensor {
	t.Shape = slices.Clone(t.Shape)
	return t
}
