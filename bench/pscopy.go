package main

import (
	"context"
	"errors"
	"hash/crc32"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// The baselines of one machine: memory that both processes have mapped from the start.
const (
	copySystem   = "copy"   // a copy into mapped memory, with one checksum
	mappedSystem = "mapped" // reading mapped memory
	bareSystem   = "bare"   // a copy by all processors without a checksum, then readers of mapped memory
)

// chunkBytes is the size of the parts in which baselines copy and send.
const chunkBytes = 256 << 10

var castagnoli = crc32.MakeTable(crc32.Castagnoli) //nolint:gochecknoglobals // constant

// checksum is the CRC-32C of parameters.
func checksum(parameters []byte) uint32 { return crc32.Checksum(parameters, castagnoli) }

// mapFile maps a file of a size, which it creates if necessary. It reads each page, so that all are
// in this process's page table.
func mapFile(path string, size int) (memory []byte, err error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := file.Truncate(int64(size)); err != nil {
		return nil, err
	}
	memory, err = unix.Mmap(int(file.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	touch(memory)
	return memory, err
}

// fileMemory is the mapped memory of a file, of one size at a time.
type fileMemory struct {
	path   string
	memory []byte
}

func (m *fileMemory) of(size int) ([]byte, error) {
	if len(m.memory) == size {
		return m.memory, nil
	}
	if err := m.close(); err != nil {
		return nil, err
	}
	memory, err := mapFile(m.path, size)
	m.memory = memory
	return memory, err
}

func (m *fileMemory) close() error {
	if m.memory == nil {
		return nil
	}
	err := unix.Munmap(m.memory)
	m.memory = nil
	return err
}

// copyPusher copies parameters into mapped memory.
type copyPusher struct{ fileMemory }

func newCopyPusher(_ context.Context, words []string) (pusher, string, error) {
	return &copyPusher{fileMemory{path: words[0]}}, "", nil
}

// push copies chunk by chunk, so that the checksum reads what the copy has just brought into the
// processor's cache.
func (p *copyPusher) push(_ context.Context, parameters []byte, _ bool) error {
	memory, err := p.of(len(parameters))
	if err != nil {
		return err
	}
	var sum uint32
	for at := 0; at < len(parameters); at += chunkBytes {
		end := min(at+chunkBytes, len(parameters))
		copy(memory[at:end], parameters[at:end])
		sum = crc32.Update(sum, castagnoli, memory[at:end])
	}
	touched.Store(uint64(sum))
	return nil
}

// barePusher copies parameters into mapped memory, with all processors and without a checksum.
type barePusher struct{ fileMemory }

func newBarePusher(_ context.Context, words []string) (pusher, string, error) {
	return &barePusher{fileMemory{path: words[0]}}, "", nil
}

func (p *barePusher) push(_ context.Context, parameters []byte, _ bool) error {
	memory, err := p.of(len(parameters))
	if err != nil {
		return err
	}
	var lanes sync.WaitGroup
	var next atomic.Int64
	for range runtime.GOMAXPROCS(0) {
		lanes.Go(func() {
			for {
				at := int(next.Add(chunkBytes)) - chunkBytes
				if at >= len(parameters) {
					return
				}
				copy(memory[at:], parameters[at:min(at+chunkBytes, len(parameters))])
			}
		})
	}
	lanes.Wait()
	return nil
}

// copyReader reads mapped memory.
type copyReader struct{ fileMemory }

func newCopyReader(_ context.Context, words []string) (reader, string, error) {
	return &copyReader{fileMemory{path: words[0]}}, "", nil
}

func (r *copyReader) pull(_ context.Context, size int) ([]byte, func() error, error) {
	memory, err := r.of(size)
	return memory, func() error { return nil }, err
}
