package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sort"

	"github.com/raylink/raylink/services/internal/mapfile"
)

// Fill writes parameters to a draft that its officer has lent, from any process of the machine. The
// parts are written one after the other; together they have the draft's size. Fill returns the
// parameters' CRC-32C. It needs one pass over them, and neither maps nor allocates memory for them.
//
// Fill returns [ErrDiscarded] if the draft was discarded or is not lent, and [ErrBusy] if another
// call is filling it. If the process dies, or if Fill fails, the officer can still discard the
// draft.
func Fill(path string, parts ...[]byte) (sum uint32, err error) {
	content, ok := parseDraftPath(path)
	if !ok {
		return 0, fmt.Errorf("fill %s: %w: not a draft's path", path, ErrVersion)
	}
	if sum, err = fill(path, content, parts); err != nil {
		return 0, fmt.Errorf("fill draft %s: %w", content, err)
	}
	return sum, nil
}

func fill(path, content string, parts [][]byte) (sum uint32, err error) {
	handle, size, err := mapfile.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, ErrDiscarded
	}
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, handle.Close()) }() // releases the lock
	return fillFile(handle, uint64(size), content, parts)     //nolint:gosec // a file's size
}

func fillFile(handle *os.File, size uint64, content string, parts [][]byte) (sum uint32, err error) {
	if err := mapfile.Lock(handle, fillLock); err != nil {
		if errors.Is(err, mapfile.ErrLocked) {
			err = ErrBusy
		}
		return 0, err
	}
	b := make([]byte, min(size, fixedHeader+MaxDescription+finalFields))
	if _, err := handle.ReadAt(b, 0); err != nil {
		return 0, err
	}
	version, l, err := parseVersion(b, size)
	if err != nil {
		return 0, err
	}
	// The officer may have discarded the draft, and reused its file, before it was locked.
	if version.GetContent() != content || binary.LittleEndian.Uint64(b[lentAt:]) != 1 {
		return 0, ErrDiscarded
	}
	pieces := newPieces(parts)
	if total := pieces.size(); total != l.size {
		return 0, fmt.Errorf("%w: %d bytes of parameters for a draft of %d", ErrVersion, total, l.size)
	}
	f := &file{handle: handle, layout: l, table: make([]uint32, l.chunks())}
	if err := inLanes(l.chunks(), func(i int) error { return pieces.writeChunk(f, i) }); err != nil {
		return 0, err
	}
	return combine(f.table, l.size), f.writeTable()
}

// pieces are parts of parameters.
type pieces struct {
	parts [][]byte
	// ends holds the offset of each part's end in the parameters.
	ends []uint64
}

func newPieces(parts [][]byte) pieces {
	p := pieces{parts: parts, ends: make([]uint64, len(parts))}
	var end uint64
	for i, part := range parts {
		end += uint64(len(part))
		p.ends[i] = end
	}
	return p
}

func (p pieces) size() uint64 {
	if len(p.ends) == 0 {
		return 0
	}
	return p.ends[len(p.ends)-1]
}

// writeChunk writes a chunk and its checksum. The checksum is computed last, of what the copy has
// brought into the processor's cache: copies read memory faster than checksums do.
func (p pieces) writeChunk(f *file, chunk int) error {
	from, to := f.layout.chunk(chunk)
	offset := f.layout.parameters()
	for i := sort.Search(len(p.ends), func(i int) bool { return p.ends[i] > from }); from < to; i++ {
		end := min(to, p.ends[i])
		start := p.ends[i] - uint64(len(p.parts[i]))
		piece := p.parts[i][from-start : end-start]
		if _, err := f.handle.WriteAt(piece, int64(offset+from)); err != nil { //nolint:gosec // at most maxSize
			return err
		}
		f.table[chunk] = update(f.table[chunk], piece)
		from = end
	}
	return nil
}
