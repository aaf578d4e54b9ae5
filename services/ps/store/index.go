package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe" //nolint:depguard // atomic access to a word of a mapped page: see id

	"github.com/raylink/raylink/services/internal/mapfile"
)

// A tag's index is one page, little-endian:
//
//	 0  magic, 8 bytes
//	 8  format version, uint32
//	16  boot id of the machine, 16 bytes
//	64  id of the newest version, uint64; 0 before the first
//
// Every reader of the tag maps it.
const (
	indexMagic  = "RLPSIDX\n"
	indexIDAt   = 64
	indexBootAt = 16
)

type index struct {
	directory string
	page      []byte
}

// id returns the word that holds the newest version's id. It is aligned, because the mapping begins
// at a page boundary, and in bounds, because the mapping has the size of a page.
func (x *index) id() *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&x.page[indexIDAt])) //nolint:gosec // aligned and in bounds
}

// openIndex maps a tag's index for writing. It creates the index if there is no usable one.
func openIndex(directory string) (index, error) {
	x, err := mapIndex(directory, mapfile.ReadWrite)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrFormat) || errors.Is(err, ErrOtherMachine) {
		return createIndex(directory)
	}
	return x, err
}

// mapIndex maps an existing index.
func mapIndex(directory string, access mapfile.Access) (index, error) {
	file, size, err := mapfile.Open(filepath.Join(directory, indexName))
	if err != nil {
		return index{}, err
	}
	if size != page {
		return index{}, errors.Join(fmt.Errorf("%w: index has %d bytes", ErrFormat, size), file.Close())
	}
	mapping, err := mapfile.Map(file, page, access)
	if err := errors.Join(err, file.Close()); err != nil {
		return index{}, err
	}
	x := index{directory: directory, page: mapping}
	if err := x.check(); err != nil {
		return index{}, errors.Join(err, x.close())
	}
	return x, nil
}

func (x *index) check() error {
	if string(x.page[:8]) != indexMagic || binary.LittleEndian.Uint32(x.page[8:]) != formatVersion {
		return fmt.Errorf("%w: wrong magic number or format version of the index", ErrFormat)
	}
	boot, err := mapfile.BootID()
	if err != nil {
		return err
	}
	if [16]byte(x.page[indexBootAt:]) != boot {
		return ErrOtherMachine
	}
	return nil
}

// createIndex creates an index under a temporary name, and renames it once it is complete.
func createIndex(directory string) (index, error) {
	boot, err := mapfile.BootID()
	if err != nil {
		return index{}, err
	}
	path := filepath.Join(directory, indexName)
	file, err := mapfile.Create(path+tempSuffix, page)
	if err != nil {
		return index{}, err
	}
	content := make([]byte, page)
	copy(content, indexMagic)
	binary.LittleEndian.PutUint32(content[8:], formatVersion)
	copy(content[indexBootAt:], boot[:])
	_, err = file.WriteAt(content, 0)
	if err := errors.Join(err, file.Close()); err != nil {
		return index{}, errors.Join(err, os.Remove(path+tempSuffix))
	}
	if err := os.Rename(path+tempSuffix, path); err != nil {
		return index{}, err
	}
	return mapIndex(directory, mapfile.ReadWrite)
}

func (x *index) close() error {
	mapping := x.page
	x.page = nil
	return mapfile.Unmap(mapping)
}
