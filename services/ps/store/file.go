package store

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/internal/mapfile"
)

// file is a version's file, or a draft's, in the officer's process. Unless they say otherwise, the
// store's mu guards its fields.
type file struct {
	path string
	// content, layout, handle, first and table don't change while the file is a draft or a version.
	content string
	layout  layout
	handle  *os.File
	// first is the file's first page, mapped for writing.
	first []byte
	// table holds the chunks' checksums. A draft's writer sets each before it reports the chunk.
	table []uint32
	// version is the description: of a draft, what is known of it.
	version *psv1.Version
	// mapping guards all while a source or the draft's writer uses the file, instead of the store's
	// mu: mapping all pages of a large file takes long.
	mapping sync.Mutex
	// all maps the whole file; nil until a source or the writer of a draft needs it.
	all []byte
	// sources is the number of this process's sources that use the file.
	sources int
	// recycled is set once the file has been used for a second version, and collapsed once its
	// pages were collapsed. The store's mu guards both.
	recycled, collapsed bool
	// closing is set if the file is to be closed with its last source.
	closing bool
}

// size returns the file's size in bytes.
func (f *file) size() uint64 { return f.layout.file() }

// id returns the version's id; 0 for a draft or nil.
func (f *file) id() uint64 {
	if f == nil {
		return 0
	}
	return f.version.GetId()
}

// createFile creates a draft's file.
func createFile(path string, l layout, version *psv1.Version) (*file, error) {
	handle, err := mapfile.Create(path, l.file())
	if err != nil {
		return nil, err
	}
	f := &file{path: path, handle: handle}
	if f.first, err = mapfile.Map(handle, page, mapfile.ReadWrite); err == nil {
		err = f.setDraft(l, version)
	}
	if err != nil {
		return nil, errors.Join(err, f.close(), os.Remove(path))
	}
	return f, nil
}

// reuse makes a draft of a recycled file.
func (f *file) reuse(l layout, version *psv1.Version) error {
	if l.file() != f.size() {
		if err := f.unmap(); err != nil {
			return err
		}
		if err := mapfile.Resize(f.handle, l.file()); err != nil {
			return err
		}
	}
	return f.setDraft(l, version)
}

func (f *file) setDraft(l layout, version *psv1.Version) error {
	f.layout, f.version, f.content = l, version, version.GetContent()
	f.table = make([]uint32, l.chunks())
	word(f.first, stateAt).Store(0)
	word(f.first, lentAt).Store(0)
	return f.writeHeader(version)
}

// writeHeader writes the header and the description, while no other process uses them.
func (f *file) writeHeader(version *psv1.Version) error {
	fixed, description, err := header(f.layout, version)
	if err != nil {
		return err
	}
	if _, err := f.handle.WriteAt(description, fixedHeader); err != nil {
		return err
	}
	_, err = f.handle.WriteAt(fixed, 0)
	return err
}

func (f *file) writeTable() error {
	_, err := f.handle.WriteAt(encodeTable(f.table), int64(f.layout.table())) //nolint:gosec // at most maxSize
	return err
}

func (f *file) readTable() error {
	b := make([]byte, 4*f.layout.chunks())
	if _, err := f.handle.ReadAt(b, int64(f.layout.table())); err != nil { //nolint:gosec // at most maxSize
		return err
	}
	f.table = decodeTable(b)
	return nil
}

// openFile opens the file of a version that a previous officer left. It returns an error that wraps
// [ErrFormat] if the file does not contain that version. It does not check the parameters.
func openFile(path, name string, id uint64) (*file, error) {
	handle, size, err := mapfile.Open(path)
	if err != nil {
		if errors.Is(err, mapfile.ErrForeign) {
			err = fmt.Errorf("%w: %w", ErrFormat, err)
		}
		return nil, err
	}
	f := &file{path: path, handle: handle}
	if err := f.load(uint64(size), name, id); err != nil { //nolint:gosec // a file's size
		return nil, errors.Join(fmt.Errorf("version %d: %w", id, err), f.close())
	}
	return f, nil
}

func (f *file) load(size uint64, name string, id uint64) error {
	if size < page {
		return fmt.Errorf("%w: only %d bytes", ErrFormat, size)
	}
	b := make([]byte, min(size, fixedHeader+MaxDescription+finalFields))
	if _, err := f.handle.ReadAt(b, 0); err != nil {
		return err
	}
	var err error
	if f.version, f.layout, err = parseVersion(b, size); err != nil {
		return err
	}
	if f.first, err = mapfile.Map(f.handle, page, mapfile.ReadWrite); err != nil {
		return err
	}
	if state := word(f.first, stateAt).Load(); state != id || f.version.GetTag() != name || f.version.GetId() != id {
		return fmt.Errorf("%w: the file holds version %d of tag %q, in state %d", ErrFormat, f.version.GetId(), f.version.GetTag(), state)
	}
	f.content = f.version.GetContent()
	return f.readTable()
}

// verify checks the parameters. It reads them with several goroutines, and does not map them: few
// versions that are taken over are ever sent or written again.
func (f *file) verify() error {
	if sum := combine(f.table, f.layout.size); sum != f.version.GetChecksum() {
		return fmt.Errorf("%w: the chunks have checksum %08x instead of %08x", ErrFormat, sum, f.version.GetChecksum())
	}
	buffers := sync.Pool{New: func() any { return new([ChunkSize]byte) }}
	return inLanes(f.layout.chunks(), func(i int) error {
		buffer, _ := buffers.Get().(*[ChunkSize]byte)
		defer buffers.Put(buffer)
		from, to := f.layout.chunk(i)
		chunk := buffer[:to-from]
		if _, err := f.handle.ReadAt(chunk, int64(f.layout.parameters()+from)); err != nil { //nolint:gosec // at most maxSize
			return err
		}
		if sum := Checksum(chunk); sum != f.table[i] {
			return fmt.Errorf("%w: chunk %d has checksum %08x instead of %08x", ErrFormat, i, sum, f.table[i])
		}
		return nil
	})
}

// maxLanes bounds the goroutines that read or write parameters at a time.
const maxLanes = 8

// inLanes calls a function for each chunk, in several goroutines. It returns the first error.
func inLanes(chunks int, do func(i int) error) error {
	var next atomic.Int64
	var lanes sync.WaitGroup
	errs := make([]error, min(chunks, runtime.GOMAXPROCS(0), maxLanes))
	for lane := range errs {
		lanes.Go(func() {
			for errs[lane] == nil {
				i := int(next.Add(1)) - 1
				if i >= chunks {
					return
				}
				errs[lane] = do(i)
			}
			next.Store(int64(chunks))
		})
	}
	lanes.Wait()
	return errors.Join(errs...)
}

// mapAll maps the whole file for writing, unless it is mapped. The mapping remains when the file is
// recycled, so that writing to it costs no page fault.
func (f *file) mapAll() error {
	f.mapping.Lock()
	defer f.mapping.Unlock()
	if f.all != nil {
		return nil
	}
	var err error
	f.all, err = mapfile.MapPopulated(f.handle, f.size(), mapfile.ReadWrite)
	return err
}

// parameters returns the mapped parameters.
func (f *file) parameters() []byte {
	from := f.layout.parameters()
	return f.all[from:len(f.all):len(f.all)]
}

// claim reports whether no other process uses the file, and prevents others from using it.
func (f *file) claim() (bool, error) {
	if f.sources > 0 {
		return false, nil
	}
	for i, lock := range []uint64{holdLock, fillLock} {
		err := mapfile.Lock(f.handle, lock)
		if err == nil {
			continue
		}
		if i > 0 {
			err = errors.Join(err, mapfile.Unlock(f.handle, holdLock))
		}
		if errors.Is(err, mapfile.ErrLocked) {
			return false, nil
		}
		return false, err
	}
	word(f.first, stateAt).Store(0)
	word(f.first, lentAt).Store(0)
	return true, nil
}

// unclaim allows other processes to use the file again.
func (f *file) unclaim() error {
	return errors.Join(mapfile.Unlock(f.handle, fillLock), mapfile.Unlock(f.handle, holdLock))
}

// heldElsewhere reports whether other processes or sources use the file.
func (f *file) heldElsewhere() bool {
	locked, err := mapfile.Locked(f.handle, holdLock)
	return f.sources > 0 || locked || err != nil
}

func (f *file) unmap() error {
	f.mapping.Lock()
	defer f.mapping.Unlock()
	all := f.all
	f.all = nil
	return mapfile.Unmap(all)
}

func (f *file) close() error {
	first := f.first
	f.first = nil
	return errors.Join(f.unmap(), mapfile.Unmap(first), f.handle.Close())
}

// destroy frees the memory of a claimed and removed file, although readers may still have it
// mapped: they don't access more than the first page of a file unless they hold it.
func (f *file) destroy() error {
	return errors.Join(f.handle.Truncate(page), f.close())
}

// dropFile removes a file that is not a valid version, and frees its memory unless it is in use.
func dropFile(path string) error {
	handle, size, err := mapfile.Open(path)
	if err != nil {
		return os.RemoveAll(path) // no file of a store
	}
	errs := []error{os.Remove(path)}
	f := &file{handle: handle}
	if size >= page {
		if f.first, err = mapfile.Map(handle, page, mapfile.ReadWrite); err == nil {
			var ok bool
			if ok, err = f.claim(); ok {
				err = handle.Truncate(page)
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, f.close())...)
}
