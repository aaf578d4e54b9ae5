package store

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/internal/mapfile"
)

// mapped is a file that a reader has mapped. The reader's pulling guards it.
type mapped struct {
	reader *Reader
	key    mapfile.ID
	handle *os.File
	// all maps the whole file. Only the first page of it may be accessed while uses is 0.
	all []byte
	// id, version and content are what the file held when it was last held. The version's
	// description is parsed when it is asked for: that takes a third of a pull's time.
	id      uint64
	version func() *psv1.Version
	content []byte
	// uses is the number of parameters that were not released. While it is positive, the reader
	// holds the file's lock.
	uses int
}

// hold prevents the file from being changed. It returns errRecycled if the file does not have the
// version anymore.
func (m *mapped) hold(id uint64, name string) error {
	if m.uses > 0 {
		if m.id != id {
			return errRecycled
		}
		m.uses++
		return nil
	}
	if err := mapfile.LockShared(m.handle, holdLock); err != nil {
		if errors.Is(err, mapfile.ErrLocked) {
			err = errRecycled
		}
		return err
	}
	if err := m.load(id, name); err != nil {
		return errors.Join(err, mapfile.Unlock(m.handle, holdLock))
	}
	m.uses = 1
	return nil
}

// load maps the file unless it is mapped, and parses its header. The file's lock is held.
func (m *mapped) load(id uint64, name string) error {
	status, err := mapfile.Stat(m.handle)
	if err != nil {
		return err
	}
	if status.Links == 0 {
		return errRecycled
	}
	if status.Size < page {
		return fmt.Errorf("version %d: %w: only %d bytes", id, ErrFormat, status.Size)
	}
	if status.Size != uint64(len(m.all)) {
		m.unmap()
		m.id = 0
		if m.all, err = mapfile.MapPopulated(m.handle, status.Size, mapfile.ReadOnly); err != nil {
			return err
		}
	}
	if word(m.all, stateAt).Load() != id {
		return errRecycled
	}
	if m.id == id {
		return nil
	}
	description, l, err := parseHeader(m.all, status.Size)
	if err == nil {
		err = checkDescription(description, name, id, l.size)
	}
	if err != nil {
		return fmt.Errorf("version %d: %w", id, err)
	}
	m.id, m.content = id, m.all[l.parameters():len(m.all):len(m.all)]
	m.version = describe(slices.Clone(description))
	return nil
}

// describe returns a function that parses a version's description, which was checked, once.
func describe(description []byte) func() *psv1.Version {
	return sync.OnceValue(func() *psv1.Version {
		version := new(psv1.Version)
		// Fails only where a process of the same user has forged details of it: they are left out.
		_ = proto.Unmarshal(description, version)
		return version
	})
}

// release drops a use. With the last one it allows the file to be recycled.
func (m *mapped) release() error {
	m.reader.pulling.Lock()
	defer m.reader.pulling.Unlock()
	if m.uses--; m.uses > 0 {
		return nil
	}
	if m.reader.isClosed() {
		delete(m.reader.files, m.key)
		return m.close()
	}
	err := mapfile.Unlock(m.handle, holdLock)
	m.reader.dropRemoved()
	return err
}

// dropIfRemoved unmaps the file if it was removed, in the background: that takes long for large
// files.
func (m *mapped) dropIfRemoved() {
	if status, err := mapfile.Stat(m.handle); err == nil && status.Links > 0 {
		return
	}
	delete(m.reader.files, m.key)
	if m.reader.newest == m {
		m.reader.newest = nil
	}
	m.reader.unmapping.Go(func() { _ = m.close() })
}

// unmap unmaps a file whose size has changed, in the background.
func (m *mapped) unmap() {
	if all := m.all; all != nil {
		m.all, m.content = nil, nil
		m.reader.unmapping.Go(func() { _ = mapfile.Unmap(all) })
	}
}

func (m *mapped) close() error {
	return errors.Join(mapfile.Unmap(m.all), m.handle.Close())
}

// Parameters are one version of a tag, in mapped memory. They do not change until they are
// released.
type Parameters struct {
	id      uint64
	version func() *psv1.Version
	content []byte
	mapped  *mapped
	cleanup runtime.Cleanup
	once    sync.Once
	err     error
}

// parameters returns a use of the file as parameters.
func (m *mapped) parameters() *Parameters {
	p := &Parameters{id: m.id, version: m.version, content: m.content, mapped: m}
	p.cleanup = runtime.AddCleanup(p, (*mapped).forget, m)
	return p
}

// forget releases parameters that were collected. The caller forgot to do so.
func (m *mapped) forget() {
	r := m.reader
	r.pulling.Lock()
	logged := r.forgotten
	r.forgotten = true
	version := m.version()
	r.pulling.Unlock()
	if !logged {
		slog.Warn("parameters were collected without being released: call Release, or the memory of old versions is kept for longer than necessary",
			slog.String("tag", version.GetTag()), slog.Uint64("version", version.GetId()))
	}
	_ = m.release()
}

// ID is the id of the version.
func (p *Parameters) ID() uint64 { return p.id }

// Version describes the parameters. It must not be modified.
func (p *Parameters) Version() *psv1.Version { return p.version() }

// Bytes returns the parameters. They begin at a page boundary. They must not be used after Release,
// nor after p itself was collected: then the memory may hold another version. It is mapped
// read-only: writing to it crashes the process.
func (p *Parameters) Bytes() []byte { return p.content }

// Verify compares the parameters with the checksum computed when they were pushed.
func (p *Parameters) Verify() error {
	if sum := Checksum(p.Bytes()); sum != p.Version().GetChecksum() {
		return fmt.Errorf("%w: version %d of parameters %q has checksum %08x instead of %08x",
			ErrFormat, p.Version().GetId(), p.Version().GetTag(), sum, p.Version().GetChecksum())
	}
	runtime.KeepAlive(p)
	return nil
}

// Release releases the parameters. Further calls do nothing.
func (p *Parameters) Release() error {
	p.once.Do(func() {
		p.cleanup.Stop()
		p.content = nil
		p.err = p.mapped.release()
	})
	return p.err
}
