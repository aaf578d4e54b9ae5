package store

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe" //nolint:depguard // atomic access to a word of a mapped page: see word

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
)

// A version's file, little-endian:
//
//	  0  magic, 8 bytes
//	  8  format version, uint32
//	 12  size of a chunk in bytes, uint32
//	 16  size of the parameters in bytes, uint64
//	 24  bytes reserved for the description, uint32
//	 28  length of the description in bytes, uint32
//	 32  CRC-32C of the description, uint32
//	 64  state, uint64: the version's id; 0 while the file is a draft, and once it is recycled
//	 72  lent, uint64: 1 while a process other than the officer may fill the draft
//	128  description: a raylink.ps.v1.Version
//	     CRC-32C of each chunk, uint32, from the next multiple of 8 on
//	     parameters, from the next page boundary on
//
// The first page remains mapped by readers when the file is recycled or removed. It is never
// truncated, so that its words can always be read.
const (
	versionMagic  = "RLPARAM\n"
	formatVersion = 2
	fixedHeader   = 128
	stateAt       = 64
	lentAt        = 72
	page          = 4096
	// ChunkSize is the size of the chunks that parameters are written, checked and sent in, in
	// bytes. Only the last chunk of a version is smaller.
	ChunkSize = 256 << 10
	// MaxDescription is the maximum size of a serialized version without its parameters, in bytes.
	// It bounds tag and info.
	MaxDescription = 64 << 10
	// maxSize bounds the sizes of parameters, so that sums of sizes do not overflow.
	maxSize = 1 << 46
)

// Locks of a version's file, one byte each.
const (
	// holdLock is held shared by readers that use the version. Its exclusive owner may change the
	// file.
	holdLock = 0
	// fillLock is held exclusively by a process while it fills a draft.
	fillLock = 1
)

// layout says where the parts of a version's file begin. Offsets and sizes are in bytes.
type layout struct {
	description uint32 // reserved
	size        uint64 // of the parameters
}

func (l layout) chunks() int   { return int((l.size + ChunkSize - 1) / ChunkSize) } //nolint:gosec // at most maxSize
func (l layout) table() uint64 { return (fixedHeader + uint64(l.description) + 7) / 8 * 8 }
func (l layout) parameters() uint64 {
	return (l.table() + 4*uint64(l.chunks()) + page - 1) / page * page //nolint:gosec // not negative
}
func (l layout) file() uint64 { return l.parameters() + l.size }

// chunk returns the bounds of a chunk within the parameters.
func (l layout) chunk(i int) (from, to uint64) {
	from = uint64(i) * ChunkSize //nolint:gosec // not negative
	return from, min(from+ChunkSize, l.size)
}

// finalFields is what publishing adds to a description: id, time, checksum and content.
const finalFields = 160

// layoutOf returns the layout of a version's file, before the version is final.
func layoutOf(version *psv1.Version) layout {
	return layout{description: uint32(proto.Size(version)) + finalFields, size: version.GetSize()} //nolint:gosec // at most MaxDescription
}

// header returns a file's header and description. It does not contain the words after it.
func header(l layout, version *psv1.Version) (fixed, description []byte, err error) {
	description, err = proto.Marshal(version)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrVersion, err)
	}
	if uint64(len(description)) > uint64(l.description) {
		return nil, nil, fmt.Errorf("%w: the description has %d bytes, but the draft reserves %d", ErrVersion, len(description), l.description)
	}
	le := binary.LittleEndian
	fixed = append(make([]byte, 0, stateAt), versionMagic...)
	fixed = le.AppendUint32(fixed, formatVersion)
	fixed = le.AppendUint32(fixed, ChunkSize)
	fixed = le.AppendUint64(fixed, l.size)
	fixed = le.AppendUint32(fixed, l.description)
	fixed = le.AppendUint32(fixed, uint32(len(description))) //nolint:gosec // at most MaxDescription
	fixed = le.AppendUint32(fixed, Checksum(description))
	return fixed, description, nil
}

// parseVersion parses the header and the description of a version's file. The input is untrusted:
// the layout that it returns is within a file of the given size, and within b where that contains
// the whole file.
func parseVersion(b []byte, fileSize uint64) (*psv1.Version, layout, error) {
	description, l, err := parseHeader(b, fileSize)
	if err != nil {
		return nil, layout{}, err
	}
	version := new(psv1.Version)
	if err := proto.Unmarshal(description, version); err != nil {
		return nil, layout{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if version.GetSize() != l.size {
		return nil, layout{}, fmt.Errorf("%w: the description says %d bytes of parameters, the header %d", ErrFormat, version.GetSize(), l.size)
	}
	return version, l, nil
}

// parseHeader is parseVersion without parsing the description, which it returns.
func parseHeader(b []byte, fileSize uint64) (description []byte, l layout, err error) {
	le := binary.LittleEndian
	if len(b) < fixedHeader || string(b[:8]) != versionMagic {
		return nil, layout{}, fmt.Errorf("%w: wrong magic number", ErrFormat)
	}
	if v := le.Uint32(b[8:]); v != formatVersion {
		return nil, layout{}, fmt.Errorf("%w: format version %d, but this program supports only version %d", ErrFormat, v, formatVersion)
	}
	if chunk := le.Uint32(b[12:]); chunk != ChunkSize {
		return nil, layout{}, fmt.Errorf("%w: chunks of %d bytes, but this program supports only %d", ErrFormat, chunk, ChunkSize)
	}
	l = layout{size: le.Uint64(b[16:]), description: le.Uint32(b[24:])}
	length := le.Uint32(b[28:])
	if l.description > MaxDescription+finalFields || length > l.description || int(length) > len(b)-fixedHeader {
		return nil, layout{}, fmt.Errorf("%w: invalid description length of %d bytes", ErrFormat, length)
	}
	if l.size > maxSize || l.file() != fileSize {
		return nil, layout{}, fmt.Errorf("%w: the file has %d bytes, which do not fit %d bytes of parameters", ErrFormat, fileSize, l.size)
	}
	description = b[fixedHeader : fixedHeader+length]
	if Checksum(description) != le.Uint32(b[32:]) {
		return nil, layout{}, fmt.Errorf("%w: wrong checksum of the description", ErrFormat)
	}
	return description, l, nil
}

// checkDescription checks that a description can be parsed, and that it is that of a version. It
// costs a fraction of parsing it.
func checkDescription(description []byte, name string, id, size uint64) error {
	var tag []byte
	var is, of uint64
	for b := description; len(b) > 0; {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: %w", ErrFormat, protowire.ParseError(n))
		}
		value := b[n:]
		m := protowire.ConsumeFieldValue(number, kind, value)
		if m < 0 {
			return fmt.Errorf("%w: %w", ErrFormat, protowire.ParseError(m))
		}
		switch {
		case number == 1 && kind == protowire.BytesType:
			tag, _ = protowire.ConsumeBytes(value)
		case number == 2 && kind == protowire.VarintType:
			is, _ = protowire.ConsumeVarint(value)
		case number == 3 && kind == protowire.VarintType:
			of, _ = protowire.ConsumeVarint(value)
		}
		b = value[m:]
	}
	if string(tag) != name || is != id || of != size {
		return fmt.Errorf("%w: the file holds version %d of tag %q, with %d bytes", ErrFormat, is, tag, of)
	}
	return nil
}

// decodeTable decodes the checksums of the chunks.
func decodeTable(b []byte) []uint32 {
	table := make([]uint32, len(b)/4)
	for i := range table {
		table[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return table
}

func encodeTable(table []uint32) []byte {
	b := make([]byte, 0, 4*len(table))
	for _, sum := range table {
		b = binary.LittleEndian.AppendUint32(b, sum)
	}
	return b
}

// word returns a word of a mapped page, which several processes access. Offsets are multiples of 8
// within the page, and a mapping begins at a page boundary, so the word is aligned and in bounds.
func word(mapping []byte, offset int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&mapping[offset])) //nolint:gosec // aligned and in bounds
}
