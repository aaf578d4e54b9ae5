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
// parameters' CRC-32C. It needs one pass over them, and no memory of their size.
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
	if err := pieces.writeTo(f); err != nil {
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

// writeTo writes the parameters and the checksums of their chunks.
//
// On a tmpfs they are copied into mappings: there, a write costs more for each page than to map it,
// and writes to one file exclude each other. Other file systems write larger units, and map pages
// for writing slowly. Measured for 256 MiB with two processors: on a tmpfs 69 ms by mappings (36 ms
// with large pages) and 92 ms by writes, on ext4 684 ms and 65 ms.
func (p pieces) writeTo(f *file) error {
	if !mapfile.InMemory(f.handle) {
		return inLanes(f.layout.chunks(), func(i int) error { return p.writeChunk(f, i) })
	}
	windows := (f.layout.chunks() + windowChunks - 1) / windowChunks
	return inLanes(windows, func(i int) error { return p.writeWindow(f, i) })
}

// writeChunk writes a chunk and its checksum.
func (p pieces) writeChunk(f *file, chunk int) error {
	from, _ := f.layout.chunk(chunk)
	offset := f.layout.parameters() + from
	return p.eachPiece(f.layout, chunk, func(piece []byte) error {
		if _, err := f.handle.WriteAt(piece, int64(offset)); err != nil { //nolint:gosec // at most maxSize
			return err
		}
		offset += uint64(len(piece))
		f.table[chunk] = update(f.table[chunk], piece)
		return nil
	})
}

// windowChunks is how many chunks are mapped at a time. To map everything would add the parameters'
// size to the memory of the pusher.
const windowChunks = 16

// writeWindow writes the chunks of a window and their checksums. A checksum is computed last, of
// what the copy has brought into the processor's cache: copies read memory faster than checksums
// do.
func (p pieces) writeWindow(f *file, window int) error {
	first := window * windowChunks
	last := min(first+windowChunks, f.layout.chunks()) - 1
	from, _ := f.layout.chunk(first)
	_, to := f.layout.chunk(last)
	mapping, err := mapfile.MapWindow(f.handle, f.layout.parameters()+from, to-from)
	if err != nil {
		return err
	}
	mapping.Populate()
	into := mapping.Bytes()
	for i := first; i <= last; i++ {
		err = errors.Join(err, p.eachPiece(f.layout, i, func(piece []byte) error {
			into = into[copy(into, piece):]
			f.table[i] = update(f.table[i], piece)
			return nil
		}))
	}
	return errors.Join(err, mapping.Unmap())
}

// eachPiece calls a function for each successive piece of a chunk.
func (p pieces) eachPiece(l layout, chunk int, do func(piece []byte) error) error {
	from, to := l.chunk(chunk)
	for i := sort.Search(len(p.ends), func(i int) bool { return p.ends[i] > from }); from < to; i++ {
		end := min(to, p.ends[i])
		start := p.ends[i] - uint64(len(p.parts[i]))
		if err := do(p.parts[i][from-start : end-start]); err != nil {
			return err
		}
		from = end
	}
	return nil
}
