package checkpoint

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/internal/mapfile"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// Writer writes a checkpoint. It is not safe for concurrent use. It must be ended by Commit or
// Abort.
type Writer struct {
	target, part string
	// lock is the open directory, locked.
	lock *os.File
	// created are the parents that did not exist, the innermost last.
	created []string

	rows  *file
	items []byte
	// now is the time for which the ages of items are given.
	now time.Time
	// bytes are those of all files so far, needed about those of the whole checkpoint.
	bytes, needed uint64
}

// Create begins a checkpoint that needs about a number of bytes. The error is [ErrDirectory] unless
// the target is an absolute path that does not exist or is an empty directory, and
// a [mapfile.SpaceError] if the file system has less space, here or later.
func Create(target string, needed uint64) (*Writer, error) {
	w, err := create(target, needed)
	if err != nil {
		return nil, fmt.Errorf("write a checkpoint to %s: %w", target, mapfile.WithSpace(err, target, needed))
	}
	return w, nil
}

func create(target string, needed uint64) (_ *Writer, err error) {
	if !filepath.IsAbs(target) {
		return nil, fmt.Errorf("%w: the path is relative, and would be so to the working directory of the replay's process: use an absolute path", ErrDirectory)
	}
	target = filepath.Clean(target)
	if err := free(target); err != nil {
		return nil, err
	}
	// Otherwise it would fill the file system first, which may be that of others too.
	if err := mapfile.CheckSpace(target, needed); err != nil {
		return nil, err
	}
	w := &Writer{target: target, part: filepath.Join(filepath.Dir(target), "."+filepath.Base(target)+".part"), needed: needed}
	defer func() {
		if err != nil {
			w.removeParents()
		}
	}()
	if err := w.makeParents(filepath.Dir(target)); err != nil {
		return nil, err
	}
	if err := w.makePart(); err != nil {
		return nil, err
	}
	if w.rows, err = w.create(rowsName, rowsMagic); err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	return w, nil
}

// free returns why there can't be a new directory.
func free(target string) error {
	info, err := os.Lstat(target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%w: it exists and is not a directory: use another path", ErrDirectory)
	}
	entries, err := os.ReadDir(target)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%w: it is not empty, and has %s: use another path, or remove it", ErrDirectory, names(entries))
	}
	return nil
}

// names returns the names of files for an error.
func names(entries []fs.DirEntry) string {
	const most = 10
	if len(entries) == 0 {
		return "nothing"
	}
	var list []string
	for _, e := range entries[:min(len(entries), most)] {
		list = append(list, e.Name())
	}
	if more := len(entries) - most; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(list, ", "), more)
	}
	return strings.Join(list, ", ")
}

func (w *Writer) makeParents(folder string) error {
	if _, err := os.Stat(folder); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := w.makeParents(filepath.Dir(folder)); err != nil {
		return err
	}
	err := os.Mkdir(folder, folderPermissions)
	if err == nil {
		w.created = append(w.created, folder)
		err = syncFolder(filepath.Dir(folder))
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

func (w *Writer) removeParents() {
	for _, folder := range slices.Backward(w.created) {
		// Not empty if another program has put a file there.
		_ = os.Remove(folder)
	}
}

// makePart makes the directory in which the files are written, and locks it. A killed writer's is
// removed first: its lock ended with its process.
func (w *Writer) makePart() error {
	const attempts = 10
	for range attempts {
		err := os.Mkdir(w.part, folderPermissions)
		left := errors.Is(err, fs.ErrExist)
		if err != nil && !left {
			return err
		}
		lock, err := os.Open(w.part)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = fmt.Errorf("%w: another checkpoint is being written there: wait for its end, or use another path", ErrDirectory)
			}
			return errors.Join(err, lock.Close())
		}
		if !left && sameFile(lock, w.part) {
			w.lock = lock
			return nil
		}
		if sameFile(lock, w.part) {
			err = os.RemoveAll(w.part)
		}
		if err := errors.Join(err, lock.Close()); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: other checkpoints are written there again and again", ErrDirectory)
}

// sameFile reports whether a path is still that of an open file.
func sameFile(open *os.File, path string) bool {
	a, err := open.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// failed adds to an error what was being done, and if it is a lack of space, how much there is.
func (w *Writer) failed(err error) error {
	return fmt.Errorf("write a checkpoint to %s: %w", w.target, mapfile.WithSpace(err, w.target, w.needed))
}

// Bytes returns the size of the files so far.
func (w *Writer) Bytes() uint64 { return w.bytes }

// RowsPerChunk returns the maximum number of rows of a call of Rows.
func RowsPerChunk(layout ring.Layout) uint64 {
	return max(1, min(chunkBytes/max(1, layout.RowBytes()), maxChunkRows))
}

// Rows writes the rows of a batch with sequence numbers, which must increase, also from call to
// call.
func (w *Writer) Rows(b *ring.Batch) error {
	if b.Rows() == 0 {
		return nil
	}
	parts := make([][]byte, 0, 1+len(b.Layout().Columns))
	parts = append(parts, encodeRuns(b.Sequences()))
	for i := range b.Layout().Columns {
		parts = append(parts, b.Bytes(i))
	}
	return w.chunk(w.rows, parts...)
}

// encodeRuns encodes sequence numbers as runs.
func encodeRuns(sequences []uint64) []byte {
	runs := uint64(0)
	var encoded []byte
	for from := 0; from < len(sequences); {
		to := from + 1
		for to < len(sequences) && sequences[to] == sequences[to-1]+1 {
			to++
		}
		encoded = binary.AppendUvarint(encoded, sequences[from])
		encoded = binary.AppendUvarint(encoded, uint64(to-from)) //nolint:gosec // positive
		from = to
		runs++
	}
	return append(binary.AppendUvarint(nil, runs), encoded...)
}

// Items writes the items of a table, of which next fills states with some: fewer than len(states)
// are the last ones.
func (w *Writer) Items(index int, next func(states []table.State) (int, error)) error {
	f, err := w.create(tableName(index)+unfiltered, itemsMagic)
	if err != nil {
		return w.failed(err)
	}
	states := make([]table.State, itemsPerChunk)
	for n := len(states); n == len(states) && err == nil; {
		if n, err = next(states); err == nil {
			w.now = time.Now()
			err = w.writeItems(f, states[:n])
		}
	}
	// It need not be on the disk, and waiting for that would cost rows of the items.
	return errors.Join(err, f.close())
}

func (w *Writer) writeItems(f *file, states []table.State) error {
	for len(states) > 0 {
		w.items, states = appendItems(w.items[:0], states, w.now)
		if err := w.chunk(f, w.items); err != nil {
			return err
		}
	}
	return nil
}

// Filter completes a table's file: it keeps the items that have their rows, and returns how many
// there are and how many not. An error of has ends it.
func (w *Writer) Filter(index int, has func(*table.State) (bool, error)) (kept, left uint64, described *replayv1.CheckpointFile, err error) {
	defer func() {
		if err != nil {
			err = w.failed(err)
		}
	}()
	all := filepath.Join(w.part, tableName(index)+unfiltered)
	from, err := os.Open(all)
	if err != nil {
		return 0, 0, nil, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	info, err := from.Stat()
	if err != nil {
		return 0, 0, nil, err
	}
	to, err := w.create(tableName(index), itemsMagic)
	if err != nil {
		return 0, 0, nil, err
	}
	r := &chunks{name: tableName(index), from: bufio.NewReader(from), left: uint64(info.Size())} //nolint:gosec // not negative
	var some []table.State
	err = r.items(w.now, func(s *table.State) error {
		switch ok, err := has(s); {
		case err != nil:
			return err
		case !ok:
			left++
			return nil
		}
		kept++
		if some = append(some, *s); len(some) < itemsPerChunk {
			return nil
		}
		err := w.writeItems(to, some)
		some = some[:0]
		return err
	})
	if err == nil {
		err = w.writeItems(to, some)
	}
	if err != nil {
		return 0, 0, nil, errors.Join(err, to.close())
	}
	if err := to.end(); err != nil {
		return 0, 0, nil, err
	}
	w.bytes -= r.read
	return kept, left, to.describe(), os.Remove(all)
}

func tableName(index int) string { return tablePrefix + strconv.Itoa(index) }

// EndRows completes the file of rows.
func (w *Writer) EndRows() (*replayv1.CheckpointFile, error) {
	if err := w.rows.end(); err != nil {
		return nil, w.failed(err)
	}
	return w.rows.describe(), nil
}

// Commit writes the manifest, waits until all is on the disk, and gives the directory its name.
// After an error there is no checkpoint, and nothing is left.
func (w *Writer) Commit(manifest *replayv1.CheckpointManifest) error {
	err := w.commit(manifest)
	if err != nil {
		err = errors.Join(mapfile.WithSpace(err, w.target, w.needed), w.Abort())
		return fmt.Errorf("write a checkpoint to %s: %w", w.target, err)
	}
	return nil
}

func (w *Writer) commit(manifest *replayv1.CheckpointManifest) error {
	text, err := encodeManifest(manifest)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(w.part, manifestName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, filePermissions)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	w.bytes += uint64(len(text))
	if err := w.lock.Sync(); err != nil {
		return err
	}
	// Unlike os.Rename, this replaces an empty directory.
	if err := unix.Rename(w.part, w.target); err != nil {
		if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTDIR) {
			return fmt.Errorf("%w: another program has made it meanwhile: use another path: %w", ErrDirectory, err)
		}
		return err
	}
	w.part = w.target
	if err := syncFolder(filepath.Dir(w.target)); err != nil {
		return err
	}
	err, w.lock = w.lock.Close(), nil
	return err
}

// Abort removes what was written. It does nothing after Commit.
func (w *Writer) Abort() error {
	if w.lock == nil {
		return nil
	}
	var err error
	if w.rows != nil {
		err = w.rows.close()
	}
	err = errors.Join(err, os.RemoveAll(w.part), w.lock.Close())
	w.removeParents()
	w.lock = nil
	return err
}

// file is one that is being written.
type file struct {
	name string
	open *os.File
	size uint64
	sum  uint32
	// synced is how much of it is on the disk.
	synced uint64
}

// syncInterval is how many bytes are written before they have to be on the disk, so that the end of
// a checkpoint does not take long, nor its cancellation.
const syncInterval = 256 << 20

func (w *Writer) create(name, magic string) (*file, error) {
	open, err := os.OpenFile(filepath.Join(w.part, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, filePermissions)
	if err != nil {
		return nil, err
	}
	f := &file{name: name, open: open}
	if err := f.write([]byte(magic)); err != nil {
		return nil, errors.Join(err, f.close())
	}
	w.bytes += magicLength
	return f, nil
}

func (w *Writer) chunk(f *file, parts ...[]byte) error {
	length, sum := uint64(0), uint32(0)
	for _, p := range parts {
		length += uint64(len(p))
		sum = crc32.Update(sum, castagnoli, p)
	}
	header := binary.LittleEndian.AppendUint64(nil, length)
	header = binary.LittleEndian.AppendUint32(header, sum)
	header = binary.LittleEndian.AppendUint32(header, crc32.Checksum(header, castagnoli))
	err := f.write(header)
	for _, p := range parts {
		if err == nil {
			err = f.write(p)
		}
	}
	if err != nil {
		return w.failed(err)
	}
	w.bytes += chunkHeader + length
	return nil
}

func (f *file) write(b []byte) error {
	f.sum = crc32.Update(f.sum, castagnoli, b)
	f.size += uint64(len(b))
	_, err := f.open.Write(b)
	if err == nil && f.size-f.synced >= syncInterval {
		f.synced = f.size
		err = f.open.Sync()
	}
	return err
}

// end waits until the file is on the disk.
func (f *file) end() error { return errors.Join(f.open.Sync(), f.close()) }

func (f *file) close() error {
	err := f.open.Close()
	if errors.Is(err, fs.ErrClosed) {
		return nil
	}
	return err
}

func (f *file) describe() *replayv1.CheckpointFile {
	return &replayv1.CheckpointFile{Name: f.name, Size: f.size, Crc32C: f.sum}
}

// syncFolder waits until a folder's names are on the disk.
func syncFolder(folder string) error {
	f, err := os.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
