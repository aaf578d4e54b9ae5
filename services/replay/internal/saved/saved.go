// Package saved encodes the tables of a replay for files: the items, in parts, and what changes
// later.
//
// # Format
//
// A file begins with 8 bytes, "RLITEMS" and the version, 1. Records follow. Each is the length of
// its payload, uint32; the CRC-32C of the payload, uint32; the kind, one byte; the CRC-32C of these
// 9 bytes, uint32; and the payload. Numbers of fixed size are little-endian. Kinds:
//
//	1 owner   whatever identifies the rows of the items: for a ring its id
//	2 table   index, name, configuration: the index is that of the table in the file, from 0
//	3 items   index of a table, then items and free slots until the record's end
//	4 commit  the number of tables, then the state of each
//
// Index and number are uvarints; name and configuration are preceded by their length, uvarint.
// item.go has the rest.
//
// Records take effect at the next commit, all together, and in their order: an item replaces that
// of its slot, and a free slot removes it. Those after the last commit have no effect. So a file
// whose writer was killed has the state of the last commit, wherever it ends.
package saved

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"math"
	"time"

	"github.com/raylink/raylink/services/replay/internal/table"
)

const (
	magic = "RLITEMS\x01"
	// recordHeader is the size of what precedes a payload.
	recordHeader = 13
	// maxRecord is the maximum size of a payload.
	maxRecord = 1 << 26
	// maxItems is the size from which items go to another record.
	maxItems = 1 << 20
)

type kind byte

const (
	kindOwner kind = iota + 1
	kindTable
	kindItems
	kindCommit
)

// ErrVersion means that a file has another version of the format.
var ErrVersion = errors.New("another version of the format")

// AppendOwner appends the beginning of a file.
func AppendOwner(b []byte, owner []byte) []byte {
	b = append(b, magic...)
	return appendRecord(b, kindOwner, func(b []byte) []byte { return append(b, owner...) })
}

// AppendTable appends a table without items, whose index is the number of tables before. The
// configuration is not interpreted.
func AppendTable(b []byte, index int, name string, config []byte) []byte {
	return appendRecord(b, kindTable, func(b []byte) []byte {
		b = binary.AppendUvarint(b, uint64(index)) //nolint:gosec // not negative
		b = binary.AppendUvarint(b, uint64(len(name)))
		b = append(b, name...)
		b = binary.AppendUvarint(b, uint64(len(config)))
		return append(b, config...)
	})
}

// AppendItems appends the states of slots of a table, as they were at the time now.
func AppendItems(b []byte, index int, states []table.State, now time.Time) []byte {
	for len(states) > 0 {
		b = appendRecord(b, kindItems, func(b []byte) []byte {
			b = binary.AppendUvarint(b, uint64(index)) //nolint:gosec // not negative
			for begin := len(b); len(states) > 0 && len(b)-begin < maxItems; states = states[1:] {
				b = AppendItem(b, &states[0], now)
			}
			return b
		})
	}
	return b
}

// AppendCommit appends a commit, with the state of each table. It is collected after the items, so
// that it has the numbers of all of them.
func AppendCommit(b []byte, metas []table.Meta) []byte {
	return appendRecord(b, kindCommit, func(b []byte) []byte {
		b = binary.AppendUvarint(b, uint64(len(metas)))
		for i := range metas {
			b = AppendMeta(b, &metas[i])
		}
		return b
	})
}

func appendRecord(b []byte, k kind, payload func([]byte) []byte) []byte {
	begin := len(b)
	b = append(b, make([]byte, recordHeader)...)
	b = payload(b)
	header, content := b[begin:begin+recordHeader], b[begin+recordHeader:]
	binary.LittleEndian.PutUint32(header, uint32(len(content))) //nolint:gosec // records are small
	binary.LittleEndian.PutUint32(header[4:], checksum(content))
	header[8] = byte(k)
	binary.LittleEndian.PutUint32(header[9:], checksum(header[:9]))
	return b
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// Content is what a file has, as of its last commit.
type Content struct {
	Owner  []byte
	Tables []*Table
	// End is the offset behind the last commit, 0 if there is none. Bytes from there on had no
	// effect.
	End int64
}

// Find returns a table by name, or nil.
func (c *Content) Find(name string) *Table {
	for _, t := range c.Tables {
		if t.Name == name {
			return t
		}
	}
	return nil
}

// Read reads a file of the given size. It visits it twice, so that it needs no memory but for the
// items. The file may end anywhere, as that of a writer that was killed: then what follows the last
// commit has no effect. An error matches [ErrDamaged] or [ErrVersion], or is that of the file.
func Read(file io.ReaderAt, size int64) (*Content, error) {
	// First the last commit, and whether all records are intact.
	end := int64(0)
	if err := scan(file, size, func(k kind, _ []byte, after int64) error {
		if k == kindCommit {
			end = after
		}
		return nil
	}); err != nil {
		return nil, err
	}
	c := &Content{End: end}
	if end == 0 {
		return c, nil
	}
	return c, scan(file, end, func(k kind, payload []byte, after int64) error {
		if err := c.apply(k, payload); err != nil {
			return fmt.Errorf("the record that ends at byte %d: %w", after, err)
		}
		return nil
	})
}

// scan visits all complete records of a file. The payload is valid until visit returns.
func scan(file io.ReaderAt, size int64, visit func(k kind, payload []byte, after int64) error) error {
	in := bufio.NewReaderSize(io.NewSectionReader(file, 0, size), 1<<20)
	begin := make([]byte, min(size, int64(len(magic))))
	if _, err := io.ReadFull(in, begin); err != nil {
		return fmt.Errorf("read the beginning: %w", err)
	}
	switch {
	case string(begin) == magic[:len(begin)]:
		if len(begin) < len(magic) {
			return nil
		}
	case len(begin) == len(magic) && string(begin[:len(magic)-1]) == magic[:len(magic)-1]:
		return fmt.Errorf("%w: it has version %d, and this program supports only version %d", ErrVersion, begin[len(magic)-1], magic[len(magic)-1])
	default:
		return fmt.Errorf("%w: it does not begin as a file of items", ErrDamaged)
	}
	var payload []byte
	for at := int64(len(magic)); size-at >= recordHeader; {
		var header [recordHeader]byte
		if _, err := io.ReadFull(in, header[:]); err != nil {
			return fmt.Errorf("read the record at byte %d: %w", at, err)
		}
		length := int64(binary.LittleEndian.Uint32(header[:]))
		if checksum(header[:9]) != binary.LittleEndian.Uint32(header[9:]) || length > maxRecord {
			return fmt.Errorf("%w: the record at byte %d has an invalid header", ErrDamaged, at)
		}
		if length > size-at-recordHeader {
			return nil // its writer was killed
		}
		payload = append(payload[:0], make([]byte, length)...)
		if _, err := io.ReadFull(in, payload); err != nil {
			return fmt.Errorf("read the record at byte %d: %w", at, err)
		}
		if checksum(payload) != binary.LittleEndian.Uint32(header[4:]) {
			return fmt.Errorf("%w: the record at byte %d has a wrong checksum", ErrDamaged, at)
		}
		at += recordHeader + length
		if err := visit(kind(header[8]), payload, at); err != nil {
			return err
		}
	}
	return nil
}

// maxTables bounds the tables of a file.
const maxTables = 1 << 16

func (c *Content) apply(k kind, payload []byte) error {
	p := parser{rest: payload}
	switch k {
	case kindOwner:
		c.Owner = append([]byte(nil), payload...)
		return nil
	case kindTable:
		index := p.uvarint(maxTables)
		t := &Table{Name: string(p.text()), Config: append([]byte(nil), p.text()...)}
		if err := p.failure("a table"); err != nil {
			return err
		}
		if index != uint64(len(c.Tables)) || len(p.rest) > 0 {
			return fmt.Errorf("%w: table %d follows %d tables", ErrDamaged, index, len(c.Tables))
		}
		c.Tables = append(c.Tables, t)
		return nil
	case kindItems:
		return c.applyItems(p)
	case kindCommit:
		if n := p.uvarint(maxTables); p.failed || n != uint64(len(c.Tables)) {
			return fmt.Errorf("%w: a commit of %d tables instead of %d", ErrDamaged, n, len(c.Tables))
		}
		for _, t := range c.Tables {
			var err error
			if t.Meta, p.rest, err = ParseMeta(p.rest); err != nil {
				return err
			}
		}
		if len(p.rest) > 0 {
			return fmt.Errorf("%w: %d more bytes in a commit", ErrDamaged, len(p.rest))
		}
		return nil
	default:
		return fmt.Errorf("%w: a record of the unknown kind %d", ErrDamaged, k)
	}
}

func (c *Content) applyItems(p parser) error {
	index := p.uvarint(maxTables)
	if p.failed || index >= uint64(len(c.Tables)) {
		return fmt.Errorf("%w: items of table %d, and there are %d", ErrDamaged, index, len(c.Tables))
	}
	t := c.Tables[index]
	for len(p.rest) > 0 {
		s, rest, err := ParseItem(p.rest, t.epoch())
		if err != nil {
			return err
		}
		p.rest = rest
		t.set(&s)
	}
	return nil
}

// Table is a table of a file.
type Table struct {
	Name string
	// Config is as it was saved.
	Config []byte
	Meta   table.Meta

	chunks map[uint32]*chunk
	more   map[uint32][]table.Run
	size   int
}

// chunkSize is the number of slots of a chunk.
const chunkSize = 1 << 10

// chunk has the items of consecutive slots.
type chunk [chunkSize]item

// item is that of a slot, without its further runs.
type item struct {
	number, first, epoch uint64
	priority             float64
	// age is that at the time of Table.epoch.
	age             time.Duration
	length, sampled uint32
	drawn           bool
}

// epoch is the time for which ages are stored.
func (*Table) epoch() time.Time { return time.Unix(0, math.MaxInt64) }

// Len returns the number of items.
func (t *Table) Len() int { return t.size }

// set sets the state of a slot.
func (t *Table) set(s *table.State) {
	index := s.Slot / chunkSize
	c := t.chunks[index]
	if c == nil {
		if s.Number == 0 {
			return
		}
		if t.chunks == nil {
			t.chunks, t.more = make(map[uint32]*chunk), make(map[uint32][]table.Run)
		}
		c = new(chunk)
		t.chunks[index] = c
	}
	it := &c[s.Slot%chunkSize]
	if it.number != 0 {
		t.size--
		delete(t.more, s.Slot)
	}
	*it = item{
		number: s.Number, first: s.Run.First, epoch: s.Epoch, priority: s.Priority, age: s.Age,
		length: s.Run.Length, sampled: s.Sampled, drawn: s.Drawn,
	}
	if s.Number == 0 {
		return
	}
	t.size++
	if len(s.More) > 0 {
		t.more[s.Slot] = s.More
	}
}

// Items iterates over the items, in any order, with their age at a time. Items that were older than
// the oldest row when the table's state was collected are not among them: they had left the table.
func (t *Table) Items(now time.Time) iter.Seq[table.State] {
	since := t.epoch().Sub(now)
	return func(yield func(table.State) bool) {
		for index, c := range t.chunks {
			for i := range c {
				it := &c[i]
				if it.number == 0 || it.first < t.Meta.Oldest {
					continue
				}
				slot := index*chunkSize + uint32(i)
				s := table.State{
					Slot: slot, Number: it.number, Run: table.Run{First: it.first, Length: it.length}, More: t.more[slot],
					Priority: it.priority, Sampled: it.sampled, Drawn: it.drawn, Epoch: it.epoch, Age: max(0, it.age-since),
				}
				if !yield(s) {
					return
				}
			}
		}
	}
}

// Restore returns the table with another configuration: see [table.Restore].
func (t *Table) Restore(config table.Config) (*table.Table, error) {
	return table.Restore(config, t.Meta, t.Items(time.Now())) //nolint:wrapcheck // complete
}
