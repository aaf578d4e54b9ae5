package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe" //nolint:depguard // a word of a mapped page is used atomically: see id

	"github.com/raylink/raylink/services/internal/mapfile"
)

// A tag's index, one page, little-endian:
//
//	 0  magic, 8 bytes
//	 8  version of the format, uint32
//	16  boot id of the machine, 16 bytes
//	64  the id of the newest version, uint64; 0 before the first
//
// It is mapped by everybody who follows the tag.
const (
	indexMagic  = "RLPSIDX\n"
	indexIDAt   = 64
	indexBootAt = 16
)

type index struct {
	directory string
	page      []byte
}

// id is the newest version's. The mapping begins a page, so the word is aligned; and it has the page's size.
func (x *index) id() *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&x.page[indexIDAt])) //nolint:gosec // see above
}

// openIndex maps a tag's index to be written, and makes one where there is none that can be used.
func openIndex(directory string) (index, error) {
	x, err := mapIndex(directory, mapfile.ReadWrite)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrFormat) || errors.Is(err, ErrOtherMachine) {
		return makeIndex(directory)
	}
	return x, err
}

// mapIndex maps a tag's index.
func mapIndex(directory string, access mapfile.Access) (index, error) {
	file, size, err := mapfile.Open(filepath.Join(directory, indexName))
	if err != nil {
		return index{}, err
	}
	if size != page {
		return index{}, errors.Join(fmt.Errorf("%w: an index of %d bytes", ErrFormat, size), file.Close())
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
		return fmt.Errorf("%w: it is no index, or one of another version", ErrFormat)
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

// makeIndex makes an index. It comes to its place when it is whole.
func makeIndex(directory string) (index, error) {
	boot, err := mapfile.BootID()
	if err != nil {
		return index{}, err
	}
	path := filepath.Join(directory, indexName)
	file, err := mapfile.Create(path+begunSuffix, page)
	if err != nil {
		return index{}, err
	}
	content := make([]byte, page)
	copy(content, indexMagic)
	binary.LittleEndian.PutUint32(content[8:], formatVersion)
	copy(content[indexBootAt:], boot[:])
	_, err = file.WriteAt(content, 0)
	if err := errors.Join(err, file.Close()); err != nil {
		return index{}, errors.Join(err, os.Remove(path+begunSuffix))
	}
	if err := os.Rename(path+begunSuffix, path); err != nil {
		return index{}, err
	}
	return mapIndex(directory, mapfile.ReadWrite)
}

func (x *index) close() error {
	mapping := x.page
	x.page = nil
	return mapfile.Unmap(mapping)
}
