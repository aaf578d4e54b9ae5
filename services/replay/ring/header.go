package ring

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// The header, little-endian:
//
//	 0  magic, 8 bytes
//	 8  version, uint32
//	12  length of the header, uint32
//	16  CRC-32C of the header from 20 on, uint32
//	20  number of columns, uint32
//	24  ring id, 16 bytes
//	40  boot id of the machine, 16 bytes
//	56  capacity in rows, uint64
//	64  size of the file in bytes, uint64
//	72  offset of the words, uint64
//	80  columns: dtype uint8, rank uint8, length of name uint16, dimensions uint64 each, name
const (
	magic         = "RLRING\r\n"
	formatVersion = 2
	fixedHeader   = 80
	fixedColumn   = 4
	// maxHeader is an upper bound of the header's length.
	maxHeader = fixedHeader + maxColumns*(fixedColumn+maxRank*8+maxName)
)

type header struct {
	id       ID
	boot     [16]byte
	layout   Layout
	geometry geometry
}

func newHeader(layout Layout) (header, error) {
	g, err := newGeometry(layout)
	if err != nil {
		return header{}, err
	}
	return header{layout: layout.clone(), geometry: g}, nil
}

// run returns how many positions a writer allocates at once: see maxRun.
func (h *header) run() uint64 {
	var row uint64
	for _, c := range h.geometry.columns {
		row += c.size
	}
	return runOf(row)
}

// runOf is run for rows of a size in bytes.
func runOf(row uint64) uint64 { return max(1, min(maxRun, maxRunBytes/max(row, 1))) }

func headerLength(layout Layout) uint64 {
	n := fixedHeader
	for _, c := range layout.Columns {
		n += fixedColumn + 8*len(c.Shape) + len(c.Name)
	}
	return uint64(n)
}

func (h *header) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, headerLength(h.layout))
	b = append(b, magic...)
	b = le.AppendUint32(b, formatVersion)
	b = le.AppendUint32(b, uint32(headerLength(h.layout))) //nolint:gosec // at most maxHeader
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, uint32(len(h.layout.Columns))) //nolint:gosec // at most maxColumns
	b = append(b, h.id[:]...)
	b = append(b, h.boot[:]...)
	b = le.AppendUint64(b, h.layout.Capacity)
	b = le.AppendUint64(b, h.geometry.size)
	b = le.AppendUint64(b, h.geometry.words)
	for _, c := range h.layout.Columns {
		b = append(b, byte(c.DType), byte(len(c.Shape))) //nolint:gosec // at most maxRank
		b = le.AppendUint16(b, uint16(len(c.Name)))      //nolint:gosec // at most maxName
		for _, n := range c.Shape {
			b = le.AppendUint64(b, n)
		}
		b = append(b, c.Name...)
	}
	le.PutUint32(b[16:], checksum(b[20:]))
	return b
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// parseHeader reads a header from the beginning of a file of the given size. The input is
// untrusted: a header that it returns describes a file that is safe to map and use.
func parseHeader(b []byte, fileSize int64) (header, error) {
	le := binary.LittleEndian
	if len(b) < fixedHeader || string(b[:8]) != magic {
		return header{}, fmt.Errorf("%w: wrong magic number", ErrFormat)
	}
	if v := le.Uint32(b[8:]); v != formatVersion {
		return header{}, fmt.Errorf("%w: format version %d, but this program supports only version %d: create the ring again", ErrFormat, v, formatVersion)
	}
	length := le.Uint32(b[12:])
	if length < fixedHeader || uint64(length) > uint64(len(b)) {
		return header{}, fmt.Errorf("%w: invalid header length of %d bytes", ErrFormat, length)
	}
	b = b[:length]
	if checksum(b[20:]) != le.Uint32(b[16:]) {
		return header{}, fmt.Errorf("%w: wrong checksum of the header", ErrFormat)
	}
	layout, err := parseColumns(b[fixedHeader:], le.Uint32(b[20:]))
	if err != nil {
		return header{}, err
	}
	layout.Capacity = le.Uint64(b[56:])
	h, err := newHeader(layout)
	if err != nil {
		return header{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	copy(h.id[:], b[24:])
	copy(h.boot[:], b[40:])
	if le.Uint64(b[64:]) != h.geometry.size || le.Uint64(b[72:]) != h.geometry.words {
		return header{}, fmt.Errorf("%w: the header's sizes do not match its columns", ErrFormat)
	}
	if fileSize < 0 || uint64(fileSize) != h.geometry.size {
		return header{}, fmt.Errorf("%w: the file has %d bytes instead of %d", ErrFormat, fileSize, h.geometry.size)
	}
	return h, nil
}

func parseColumns(b []byte, count uint32) (Layout, error) {
	le := binary.LittleEndian
	if count > maxColumns {
		return Layout{}, fmt.Errorf("%w: %d columns", ErrFormat, count)
	}
	var layout Layout
	for i := range count {
		if len(b) < fixedColumn {
			return Layout{}, fmt.Errorf("%w: column %d is missing", ErrFormat, i)
		}
		c := Column{DType: DType(b[0])}
		rank, name := int(b[1]), int(le.Uint16(b[2:]))
		if rank > maxRank || name > maxName || len(b) < fixedColumn+8*rank+name {
			return Layout{}, fmt.Errorf("%w: column %d is truncated", ErrFormat, i)
		}
		b = b[fixedColumn:]
		for range rank {
			c.Shape = append(c.Shape, le.Uint64(b))
			b = b[8:]
		}
		c.Name = string(b[:name])
		b = b[name:]
		layout.Columns = append(layout.Columns, c)
	}
	if len(b) != 0 {
		return Layout{}, fmt.Errorf("%w: %d extra bytes at the end of the header", ErrFormat, len(b))
	}
	return layout, nil
}
