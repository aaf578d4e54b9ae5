package checkpoint

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// Reader reads a checkpoint. It must be closed.
type Reader struct {
	directory string
	root      *os.Root
	manifest  *replayv1.CheckpointManifest
}

// Open opens the checkpoint in a directory, and checks its manifest and which files of which sizes
// there are. The error is [ErrDamaged] if it is not complete.
func Open(directory string) (*Reader, error) {
	r, err := open(directory)
	if err != nil {
		return nil, fmt.Errorf("read the checkpoint %s: %w", directory, err)
	}
	return r, nil
}

func open(directory string) (_ *Reader, err error) {
	if !filepath.IsAbs(directory) {
		return nil, fmt.Errorf("%w: the path is relative, and would be so to the working directory of the replay's process: use an absolute path", ErrDamaged)
	}
	root, err := os.OpenRoot(directory)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("%w: there is no such directory; %s", ErrDamaged, neighbours(directory))
	}
	if err != nil {
		return nil, err
	}
	r := &Reader{directory: directory, root: root}
	defer func() {
		if err != nil {
			err = errors.Join(err, root.Close())
		}
	}()
	entries, err := os.ReadDir(directory)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == manifestName }) {
		return nil, fmt.Errorf("%w: it has no %s, which is written last; it has %s", ErrDamaged, manifestName, names(entries))
	}
	text, err := r.readManifest()
	if err != nil {
		return nil, err
	}
	if r.manifest, err = parseManifest(text); err != nil {
		return nil, err
	}
	return r, r.checkFiles(entries)
}

// neighbours says which checkpoints are beside one that does not exist.
func neighbours(directory string) string {
	parent := filepath.Dir(directory)
	entries, err := os.ReadDir(parent)
	if err != nil {
		return "nor is there " + parent
	}
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool {
		_, err := os.Lstat(filepath.Join(parent, e.Name(), manifestName))
		return err != nil
	})
	if len(entries) == 0 {
		return "there are no checkpoints in " + parent
	}
	return fmt.Sprintf("%s has the checkpoints %s", parent, names(entries))
}

func (r *Reader) readManifest() (_ []byte, err error) {
	f, size, err := r.openFile(manifestName)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if size > maxManifest {
		return nil, fmt.Errorf("%w: %s has %d bytes, and at most %d are possible", ErrDamaged, manifestName, size, maxManifest)
	}
	text := make([]byte, size)
	if _, err := io.ReadFull(f, text); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, manifestName, err)
	}
	return text, nil
}

// openFile opens a regular file. Others it refuses: opening some of them could block.
func (r *Reader) openFile(name string) (*os.File, uint64, error) {
	f, err := r.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("%w: the file %s is missing", ErrDamaged, name)
	}
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s is not a regular file", ErrDamaged, name)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, uint64(info.Size()), nil //nolint:gosec // not negative
}

// checkFiles compares the files that there are with those of the manifest.
func (r *Reader) checkFiles(entries []fs.DirEntry) error {
	expected := map[string]*replayv1.CheckpointFile{r.manifest.GetFile().GetName(): r.manifest.GetFile()}
	for _, t := range r.manifest.GetTables() {
		expected[t.GetFile().GetName()] = t.GetFile()
	}
	for name, described := range expected {
		f, size, err := r.openFile(name)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		if size != described.GetSize() {
			return fmt.Errorf("%w: the file %s has %d bytes instead of %d", ErrDamaged, name, size, described.GetSize())
		}
	}
	for _, e := range entries {
		if expected[e.Name()] == nil && e.Name() != manifestName {
			return fmt.Errorf("%w: the file %s is not one of it: remove that file if it is another program's", ErrDamaged, e.Name())
		}
	}
	return nil
}

// Manifest returns the checkpoint's description. It must not be modified. Its columns and the
// configurations of its tables have not been validated.
func (r *Reader) Manifest() *replayv1.CheckpointManifest { return r.manifest }

// Close closes the checkpoint.
func (r *Reader) Close() error { return r.root.Close() }

// Rows calls each for all rows, in increasing order of their sequence numbers, in batches: numbers
// and columns, which lie anywhere in memory, and are valid until each returns. Once Rows has
// returned without an error, the whole file was as it was written. It takes the memory of a chunk,
// whatever the file has.
func (r *Reader) Rows(ctx context.Context, layout ring.Layout, each func(sequences []uint64, columns [][]byte) error) error {
	err := r.read(r.manifest.GetFile(), rowsMagic, func(c *chunks) error {
		return c.rows(ctx, layout, r.manifest, each)
	})
	if err != nil {
		return fmt.Errorf("read the checkpoint %s: %w", r.directory, err)
	}
	return nil
}

// Items calls each for all items of a table. A state is valid until each returns. Once Items has
// returned without an error, the whole file was as it was written.
func (r *Reader) Items(ctx context.Context, index int, each func(*table.State) error) error {
	t := r.manifest.GetTables()[index]
	err := r.read(t.GetFile(), itemsMagic, func(c *chunks) error {
		items := uint64(0)
		err := c.items(time.Now(), func(s *table.State) error {
			if items++; items%itemsPerChunk == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			return each(s)
		})
		if err == nil && items != t.GetItems() {
			err = fmt.Errorf("%w: the file %s has %d items instead of %d", ErrDamaged, c.name, items, t.GetItems())
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read the checkpoint %s: %w", r.directory, err)
	}
	return nil
}

// read reads a file, and then compares its checksum.
func (r *Reader) read(described *replayv1.CheckpointFile, magic string, read func(*chunks) error) (err error) {
	f, size, err := r.openFile(described.GetName())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if size != described.GetSize() {
		return fmt.Errorf("%w: the file %s has %d bytes instead of %d", ErrDamaged, described.GetName(), size, described.GetSize())
	}
	c := &chunks{name: described.GetName(), from: bufio.NewReaderSize(f, 1<<16), left: size, magic: magic}
	if err := read(c); err != nil {
		return err
	}
	if c.sum != described.GetCrc32C() {
		return fmt.Errorf("%w: the checksum of the file %s is %08x instead of %08x: it is that of another checkpoint", ErrDamaged, c.name, c.sum, described.GetCrc32C())
	}
	return nil
}

// chunks reads the chunks of a file.
type chunks struct {
	name string
	from *bufio.Reader
	// left is how many bytes the file still has, read how many were read, and sum their checksum.
	left, read uint64
	sum        uint32
	magic      string
	content    []byte
}

func (c *chunks) damaged(format string, args ...any) error {
	return fmt.Errorf("%w: the file %s, at byte %d: %s", ErrDamaged, c.name, c.read, fmt.Sprintf(format, args...))
}

func (c *chunks) take(n uint64) ([]byte, error) {
	if n > c.left {
		return nil, c.damaged("it ends after %d bytes, and %d are missing", c.left, n-c.left)
	}
	if uint64(cap(c.content)) < n {
		c.content = make([]byte, n)
	}
	b := c.content[:n]
	if _, err := io.ReadFull(c.from, b); err != nil {
		return nil, fmt.Errorf("%w (%w)", c.damaged("it can't be read"), err)
	}
	c.left, c.read, c.sum = c.left-n, c.read+n, crc32.Update(c.sum, castagnoli, b)
	return b, nil
}

// next returns the content of the next chunk, of at most a number of bytes, until the next call;
// nil if there is none.
func (c *chunks) next(most uint64) ([]byte, error) {
	if c.read == 0 {
		magic, err := c.take(min(c.left, magicLength))
		if err != nil {
			return nil, err
		}
		if c.magic != "" && string(magic) != c.magic {
			return nil, c.damaged("it begins with %q instead of %q", magic, c.magic)
		}
	}
	if c.left == 0 {
		return nil, nil
	}
	header, err := c.take(chunkHeader)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	length, sum := le.Uint64(header), le.Uint32(header[8:])
	if got, want := crc32.Checksum(header[:12], castagnoli), le.Uint32(header[12:]); got != want {
		return nil, c.damaged("the checksum of a chunk's header is %08x instead of %08x", got, want)
	}
	if length > most {
		return nil, c.damaged("a chunk has %d bytes, and at most %d are possible", length, most)
	}
	content, err := c.take(length)
	if err != nil {
		return nil, err
	}
	if got := crc32.Checksum(content, castagnoli); got != sum {
		return nil, c.damaged("the checksum of the chunk before is %08x instead of %08x", got, sum)
	}
	return content, nil
}

// items reads all items.
func (c *chunks) items(now time.Time, each func(*table.State) error) error {
	for {
		content, err := c.next(maxItemBytes)
		if err != nil || content == nil {
			return err
		}
		if err := parseItems(content, now, each); errors.Is(err, errItems) {
			return c.damaged("%v", err)
		} else if err != nil {
			return err
		}
	}
}

// rows reads all rows.
func (c *chunks) rows(
	ctx context.Context, layout ring.Layout, manifest *replayv1.CheckpointManifest, each func(sequences []uint64, columns [][]byte) error,
) error {
	perChunk, size := RowsPerChunk(layout), layout.RowBytes()
	var sequences []uint64
	var columns [][]byte
	const mostPerRun = 2 * binary.MaxVarintLen64
	rows, next := uint64(0), uint64(0)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		content, err := c.next(binary.MaxVarintLen64 + perChunk*(mostPerRun+size))
		if err != nil {
			return err
		}
		if content == nil {
			break
		}
		if sequences, columns, err = parseRows(content, layout, perChunk, sequences[:0], columns[:0]); err != nil {
			return c.damaged("%v", err)
		}
		if sequences[0] < next || sequences[len(sequences)-1] >= manifest.GetNext() {
			return c.damaged("it has rows %d to %d, and those from %d to %d are possible", sequences[0], sequences[len(sequences)-1], next, manifest.GetNext())
		}
		next = sequences[len(sequences)-1] + 1
		rows += uint64(len(sequences))
		if err := each(sequences, columns); err != nil {
			return err
		}
	}
	if rows != manifest.GetRows() {
		return c.damaged("it has %d rows instead of %d", rows, manifest.GetRows())
	}
	return nil
}

var errRows = errors.New("invalid encoding of rows")

// parseRows appends the sequence numbers, at least one and at most a number of them, and the
// columns of a chunk.
func parseRows(content []byte, layout ring.Layout, most uint64, sequences []uint64, columns [][]byte) ([]uint64, [][]byte, error) {
	p := &parser{b: content}
	end := uint64(0)
	for range p.number(most) {
		first, length := p.number(math.MaxUint64-most), p.number(most-uint64(len(sequences)))
		if p.failed || length == 0 || first < end {
			return nil, nil, fmt.Errorf("%w: its sequence numbers", errRows)
		}
		for i := range length {
			sequences = append(sequences, first+i)
		}
		end = first + length
	}
	rows := uint64(len(sequences))
	if p.failed || rows == 0 || uint64(len(p.b)) != rows*layout.RowBytes() {
		return nil, nil, fmt.Errorf("%w: it has %d rows of %d bytes in %d bytes", errRows, rows, layout.RowBytes(), len(p.b))
	}
	for _, c := range layout.Columns {
		size := rows * c.Bytes()
		columns = append(columns, p.b[:size:size])
		p.b = p.b[size:]
	}
	return sequences, columns, nil
}
