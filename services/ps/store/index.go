package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/raylink/raylink/services/internal/mapfile"
)

// A tag's index and a store's status are one page each, little-endian. They are created complete,
// and only their words change afterwards. All processes that use the store map them.
//
//	 0  magic, 8 bytes
//	 8  format version, uint32
//	16  boot id of the machine, 16 bytes
//	64  words, uint64 each
const (
	indexMagic  = "RLPSIDX\n"
	statusMagic = "RLPSSTA\n"
	pageBootAt  = 16
)

// Words of an index.
const (
	// newestAt is the id of the newest version; 0 if there is none; removed if the index is to be
	// opened again.
	newestAt = 64
	// lastAt is the highest id that a version of the tag had. The next one must exceed it.
	lastAt = 72
	// announcedAt is the id of the captain's newest version.
	announcedAt = 80
	// behindAt is when newest got below announced, in nanoseconds since boot; 0 if it is not.
	behindAt = 88
	// lostAt is the id of a version whose file was damaged; 0 if none was. It may be stored again:
	// it is not a version that was deleted.
	lostAt = 96
)

// confirmedAt is the word of a status: when the captain last confirmed that the store is current,
// in nanoseconds since boot.
const confirmedAt = 64

// removed is the newest id of an index that was removed.
const removed = math.MaxUint64

// checkPage checks an index or status.
func checkPage(b []byte, magic string) error {
	if len(b) != page {
		return fmt.Errorf("%w: %d bytes instead of %d", ErrFormat, len(b), page)
	}
	if string(b[:8]) != magic || binary.LittleEndian.Uint32(b[8:]) != formatVersion {
		return fmt.Errorf("%w: wrong magic number or format version", ErrFormat)
	}
	boot, err := mapfile.BootID()
	if err != nil {
		return err
	}
	if [16]byte(b[pageBootAt:]) != boot {
		return ErrOtherMachine
	}
	return nil
}

// mapPage maps an existing index or status.
func mapPage(path, magic string, access mapfile.Access) ([]byte, error) {
	file, size, err := mapfile.Open(path)
	if err != nil {
		return nil, err
	}
	if size != page {
		return nil, errors.Join(fmt.Errorf("%w: %s has %d bytes", ErrFormat, filepath.Base(path), size), file.Close())
	}
	mapping, err := mapfile.Map(file, page, access)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	if err := checkPage(mapping, magic); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", filepath.Base(path), err), mapfile.Unmap(mapping))
	}
	return mapping, nil
}

// createPage creates an index or status under a temporary name, and renames it once it is complete.
func createPage(path, magic string, words map[int]uint64) ([]byte, error) {
	boot, err := mapfile.BootID()
	if err != nil {
		return nil, err
	}
	temp := path + tempSuffix
	if err := ignoreMissing(os.Remove(temp)); err != nil {
		return nil, err
	}
	file, err := mapfile.Create(temp, page)
	if err != nil {
		return nil, err
	}
	content := make([]byte, page)
	copy(content, magic)
	binary.LittleEndian.PutUint32(content[8:], formatVersion)
	copy(content[pageBootAt:], boot[:])
	for at, value := range words {
		binary.LittleEndian.PutUint64(content[at:], value)
	}
	_, err = file.WriteAt(content, 0)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, errors.Join(err, os.Remove(temp))
	}
	if err := os.Rename(temp, path); err != nil {
		return nil, errors.Join(err, os.Remove(temp))
	}
	return mapPage(path, magic, mapfile.ReadWrite)
}

// damagedPage reports whether an error means that an index or status must be replaced.
func damagedPage(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrFormat) || errors.Is(err, ErrOtherMachine)
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// announce stores the id of the captain's newest version, and since when the newest one of the
// machine is below it.
func announce(index []byte, id uint64) {
	word(index, announcedAt).Store(id)
	setBehind(index)
}

// setBehind updates since when the newest version is below the announced one.
func setBehind(index []byte) {
	behind := word(index, behindAt)
	switch {
	case word(index, newestAt).Load() >= word(index, announcedAt).Load():
		behind.Store(0)
	case behind.Load() == 0:
		behind.Store(uint64(mapfile.Boottime())) //nolint:gosec // positive
	}
}

// since returns the time since a word was set to the time since boot.
func since(at uint64) time.Duration {
	return max(0, mapfile.Boottime()-time.Duration(at)) //nolint:gosec // a time since boot
}
