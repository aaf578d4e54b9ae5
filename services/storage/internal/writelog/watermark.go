package writelog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// The watermark is a file beside Pebble's: it says which writes must be there when the directory is
// opened. It has two slots that are written in turn, so that a loss of power while one is written
// leaves the other.
//
//	offset  size
//	     0     8  magic
//	     8     8  format, the version of the records' meaning
//	    16     8  sequence number; the slot with the higher one counts
//	    24     8  the last id that was synced
//	    32     8  the last id that the operating system had
//	    40    36  the boot id for the latter, or zeros
//	    76     4  CRC-32C of all that
const (
	watermarkName = "WATERMARK"
	magic         = "raylinkW"
	slotSize      = 80
	slotStride    = 4096
	bootSize      = 36
)

func checksum(data []byte) uint32 { return crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)) }

// marks are the values of a slot.
type marks struct {
	format, sequence, synced, written uint64
	boot                              string
}

func (m *marks) encode() []byte {
	slot := make([]byte, 0, slotSize)
	slot = append(slot, magic...)
	for _, n := range []uint64{m.format, m.sequence, m.synced, m.written} {
		slot = binary.BigEndian.AppendUint64(slot, n)
	}
	slot = append(slot, m.boot...)
	slot = append(slot, make([]byte, slotSize-4-len(slot))...)
	return binary.BigEndian.AppendUint32(slot, checksum(slot))
}

// decode reads a slot; false if it is not whole.
func (m *marks) decode(slot []byte) bool {
	if len(slot) < slotSize || string(slot[:len(magic)]) != magic ||
		checksum(slot[:slotSize-4]) != binary.BigEndian.Uint32(slot[slotSize-4:]) {
		return false
	}
	number := func(i int) uint64 { return binary.BigEndian.Uint64(slot[8+8*i:]) }
	*m = marks{
		format: number(0), sequence: number(1), synced: number(2), written: number(3),
		boot: strings.TrimRight(string(slot[40:40+bootSize]), "\x00"),
	}
	return true
}

// required returns the last id that the records must have.
func (m *marks) required(boot string) uint64 {
	if boot != "" && boot == m.boot {
		return max(m.synced, m.written)
	}
	return m.synced
}

// watermark is the open file.
type watermark struct {
	marks

	mu   sync.Mutex // guards marks, and writes
	file vfs.File
}

// readWatermark returns false if the file does not exist.
func readWatermark(fs vfs.FS, dir string) (m marks, ok bool, err error) {
	file, err := fs.Open(fs.PathJoin(dir, watermarkName))
	if notExist(err) {
		return marks{}, false, nil
	}
	if err != nil {
		return marks{}, false, failure(dir, "open", err)
	}
	data, err := io.ReadAll(io.LimitReader(file, 2*slotStride))
	if err := errors.Join(err, file.Close()); err != nil {
		return marks{}, false, failure(dir, "read the watermark of", err)
	}
	for _, slot := range [][]byte{data, data[min(len(data), slotStride):]} {
		var found marks
		if found.decode(slot) && (!ok || found.sequence > m.sequence) {
			m, ok = found, true
		}
	}
	if !ok {
		return marks{}, false, &DamagedError{Dir: dir, What: describe(watermarkName, "cannot be decoded")}
	}
	return m, true, nil
}

// createWatermark makes the file of a new directory. It has both slots once it exists.
func createWatermark(fs vfs.FS, dir string, m marks) error {
	temporary := fs.PathJoin(dir, watermarkName+".new")
	file, err := fs.Create(temporary, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	slot := m.encode()
	data := slices.Concat(slot, make([]byte, slotStride-slotSize), slot)
	_, err = file.Write(data)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := fs.Rename(temporary, fs.PathJoin(dir, watermarkName)); err != nil {
		return err
	}
	return syncDir(fs, dir)
}

// openWatermark opens the file of which m was read.
func openWatermark(fs vfs.FS, dir string, m marks) (*watermark, error) {
	file, err := fs.OpenReadWrite(fs.PathJoin(dir, watermarkName), vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	return &watermark{file: file, marks: m}, nil
}

// set changes the marks, and gives them to the operating system.
func (w *watermark) set(change func(*marks)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.marks)
	w.sequence++
	if _, err := w.file.WriteAt(w.encode(), int64(w.sequence%2)*slotStride); err != nil {
		return fmt.Errorf("write the watermark: %w", err)
	}
	return nil
}

func (w *watermark) sync() error {
	if err := w.file.SyncData(); err != nil {
		return fmt.Errorf("sync the watermark: %w", err)
	}
	return nil
}

func syncDir(fs vfs.FS, dir string) error {
	file, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}
