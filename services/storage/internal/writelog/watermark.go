package writelog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// The watermark is a file beside Pebble's: it says which writes must be there when the directory is
// opened, and which ids may have been given. It has two slots that are written in turn, so that a
// loss of power while one is written leaves the other.
//
//	offset  size
//	     0     8  magic
//	     8     8  format, the version of the records' meaning
//	    16     8  sequence number; the slot with the higher one counts
//	    24     8  the last id that was synced
//	    32     8  the last id that the operating system had
//	    40     8  the floor: no later write has this id or one below it
//	    48     8  the last id that may have been given, if the log was not closed
//	    56    36  the boot id for the last id that the operating system had, or zeros
//	    92     4  CRC-32C of all that
const (
	watermarkName = "WATERMARK"
	magic         = "raylinkW"
	slotSize      = 96
	slotStride    = 4096
	bootSize      = 36
)

func checksum(data []byte) uint32 { return crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)) }

// marks are the values of a slot.
type marks struct {
	format, sequence, synced, written, floor, reserved uint64
	boot                                               string

	// certain is set if both slots were whole: no later marks have been lost.
	certain bool
}

func (m *marks) encode() []byte {
	slot := make([]byte, 0, slotSize)
	slot = append(slot, magic...)
	for _, n := range []uint64{m.format, m.sequence, m.synced, m.written, m.floor, m.reserved} {
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
		format: number(0), sequence: number(1), synced: number(2), written: number(3), floor: number(4), reserved: number(5),
		boot: strings.TrimRight(string(slot[56:56+bootSize]), "\x00"),
	}
	return true
}

// sameBoot reports whether the operating system has not been started again since the marks were
// written: it has everything that it was given.
func (m *marks) sameBoot(boot string) bool { return boot != "" && boot == m.boot }

// required returns the last id that the records must have.
func (m *marks) required(boot string) uint64 {
	if m.sameBoot(boot) {
		return max(m.synced, m.written)
	}
	return m.synced
}

// acknowledged returns the last id that the records may have: later ones are of a group whose
// commit has failed, or was never answered. After a loss of power that is not known, because
// acknowledged groups are marked, but the marks are not synced with each.
func (m *marks) acknowledged(boot string) uint64 {
	if m.sameBoot(boot) && m.certain {
		return max(m.synced, m.written)
	}
	return math.MaxUint64
}

// lost returns the floor for the writes of a log whose last record is known: above all ids that
// have been given. It is higher than that of the last record if later ones may have been lost.
func (m *marks) lost(boot string, last uint64) uint64 {
	if m.sameBoot(boot) || m.reserved <= max(last, m.floor) {
		return m.floor
	}
	return m.reserved + 1 // no watcher has seen this one, and all others get an error
}

// watermark is the open file.
type watermark struct {
	marks

	mu   sync.Mutex // guards marks, slots, and writes
	file vfs.File
	// slots are the reservations in the slots of the file.
	slots [2]uint64
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
	whole := 0
	for _, slot := range [][]byte{data, data[min(len(data), slotStride):]} {
		var found marks
		if !found.decode(slot) {
			continue
		}
		if whole++; whole == 1 || found.sequence > m.sequence {
			m = found
		}
	}
	if whole == 0 {
		return marks{}, false, &DamagedError{Dir: dir, What: describe(watermarkName, "cannot be decoded")}
	}
	m.certain = whole == 2
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
	w.slots[w.sequence%2] = w.reserved
	return nil
}

// sync returns the last id that is reserved in both slots on the disk: whichever survives a loss of
// power reserves it.
func (w *watermark) sync() (reserved uint64, err error) {
	w.mu.Lock()
	reserved = min(w.slots[0], w.slots[1])
	w.mu.Unlock()
	if err := w.file.SyncData(); err != nil {
		return 0, fmt.Errorf("sync the watermark: %w", err)
	}
	return reserved, nil
}

func syncDir(fs vfs.FS, dir string) error {
	file, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

// bootID identifies the time since the operating system was started: what it was given to write
// before is in the files, even if it was not synced. Empty if it is not known.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(id) < bootSize {
		return ""
	}
	return string(id[:bootSize])
}

// describe names a file of a directory.
func describe(name, what string) string { return fmt.Sprintf("the file %s %s", name, what) }
