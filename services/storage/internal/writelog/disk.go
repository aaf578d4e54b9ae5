package writelog

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// disk is the file system that Pebble gets. Pebble ends its process, or blocks for ever, at most
// errors of a file system. So this one never reports that a change of a file has failed: it reports
// success, and from then on all changes go to a scratch file system in memory. The directory is as
// if the process had been killed at the first failure, and Pebble can be closed in peace; onFail
// has been called before Pebble goes on.
//
// If lazy is set, a sync of a file of the write-ahead log only marks the file; syncDirty syncs it,
// and so does its Close.
type disk struct {
	vfs.FS

	lazy   bool
	onFail func(error)

	// mu is held for reading by each change of the real file system, so that kill can wait for
	// those that have begun.
	mu      sync.RWMutex
	scratch *vfs.MemFS // not nil: the real file system is not changed any more

	dirtyMu sync.Mutex // guards dirty
	dirty   map[*diskFile]struct{}

	// While a directory is being opened, data files that are obsolete are kept: if the records turn
	// out to be damaged, nothing may be removed.
	keepMu sync.Mutex // guards what follows
	keep   bool
	kept   []string
	// made are the tables that were written while the directory was being opened; manifest is set
	// when a manifest, which may name them, has become the current one.
	made     []string
	manifest bool
}

// kill ends all changes of the real file system.
func (d *disk) kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.scratch == nil {
		d.scratch = vfs.NewMem()
	}
}

// change makes a change of the real file system, and reports whether it did.
func (d *disk) change(do func() error) bool {
	err, dead := d.attempt(do)
	if err == nil {
		return !dead
	}
	d.onFail(err)
	d.kill()
	return false
}

func (d *disk) attempt(do func() error) (err error, dead bool) { //nolint:revive // it is not a failure of attempt
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.scratch != nil {
		return nil, true
	}
	return do(), false
}

// syncDirty syncs the files that are marked. One call at a time.
func (d *disk) syncDirty() {
	d.dirtyMu.Lock()
	files := d.dirty
	d.dirty = nil
	d.dirtyMu.Unlock()
	for f := range files {
		f.flush()
	}
}

func (d *disk) mark(f *diskFile) {
	d.dirtyMu.Lock()
	defer d.dirtyMu.Unlock()
	if d.dirty == nil {
		d.dirty = make(map[*diskFile]struct{}, 1)
	}
	d.dirty[f] = struct{}{}
}

// make returns a file that open has made, or one in memory.
func (d *disk) make(name string, open func() (vfs.File, error)) (vfs.File, error) {
	var file vfs.File
	if d.change(func() (err error) {
		file, err = open()
		if !isFull(err) { // after any other failure the file may be there
			d.note(name)
		}
		return err
	}) {
		return &diskFile{File: file, disk: d, lazy: d.lazy && filepath.Ext(name) == ".log"}, nil
	}
	if err := d.scratch.MkdirAll(d.scratch.PathDir(name), 0o700); err != nil {
		return nil, err
	}
	return d.scratch.Create(name, vfs.WriteCategoryUnspecified)
}

// Create implements [vfs.FS].
func (d *disk) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return d.make(name, func() (vfs.File, error) { return d.FS.Create(name, category) })
}

// ReuseForWrite implements [vfs.FS].
func (d *disk) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return d.make(newname, func() (vfs.File, error) { return d.FS.ReuseForWrite(oldname, newname, category) })
}

// OpenReadWrite implements [vfs.FS].
func (d *disk) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return d.make(name, func() (vfs.File, error) { return d.FS.OpenReadWrite(name, category, opts...) })
}

// OpenDir implements [vfs.FS].
func (d *disk) OpenDir(name string) (vfs.File, error) {
	file, err := d.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &diskFile{File: file, disk: d}, nil
}

// Open implements [vfs.FS].
func (d *disk) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if scratch := d.dead(); scratch != nil {
		if file, err := scratch.Open(name, opts...); err == nil {
			return file, nil
		}
	}
	return d.FS.Open(name, opts...)
}

// Stat implements [vfs.FS].
func (d *disk) Stat(name string) (vfs.FileInfo, error) {
	if scratch := d.dead(); scratch != nil {
		if info, err := scratch.Stat(name); err == nil {
			return info, nil
		}
	}
	return d.FS.Stat(name)
}

func (d *disk) dead() *vfs.MemFS {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.scratch
}

// Link implements [vfs.FS].
func (d *disk) Link(oldname, newname string) error {
	d.change(func() error { return d.FS.Link(oldname, newname) })
	return nil
}

// Rename implements [vfs.FS].
func (d *disk) Rename(oldname, newname string) error {
	if !d.change(func() error { return d.FS.Rename(oldname, newname) }) {
		_ = d.scratch.Rename(oldname, newname) // it may be a real file
	}
	return nil
}

// release removes what was kept, and ends the keeping. A file that cannot be removed is found again
// at the next opening.
func (d *disk) release() {
	d.keepMu.Lock()
	kept := d.kept
	d.keep, d.kept = false, nil
	d.keepMu.Unlock()
	for _, name := range kept {
		_ = d.Remove(name)
	}
}

// note remembers a file that is being made.
func (d *disk) note(name string) {
	d.keepMu.Lock()
	defer d.keepMu.Unlock()
	switch {
	case strings.HasPrefix(filepath.Base(name), "marker.manifest"):
		d.manifest = true
	case d.keep && filepath.Ext(name) == ".sst":
		d.made = append(d.made, name)
	}
}

// discard removes the tables that an opening has written before it failed, if the manifest cannot
// name them: otherwise each attempt on a full disk takes more space. kill must have been called
// before.
func (d *disk) discard() {
	d.keepMu.Lock()
	defer d.keepMu.Unlock()
	if d.manifest || !d.keep {
		return
	}
	for _, name := range d.made {
		_ = d.FS.Remove(name) // it is found again at the next opening
	}
	d.made = nil
}

// keeps reports whether a file is to be kept for now.
func (d *disk) keeps(name string) bool {
	d.keepMu.Lock()
	defer d.keepMu.Unlock()
	data := filepath.Ext(name) == ".log" || filepath.Ext(name) == ".sst" || strings.HasPrefix(filepath.Base(name), "MANIFEST-")
	if !d.keep || !data {
		return false
	}
	d.kept = append(d.kept, name)
	return true
}

// Remove implements [vfs.FS]. Its errors do no harm, and are reported.
func (d *disk) Remove(name string) error {
	if d.keeps(name) {
		return nil
	}
	err, _ := d.attempt(func() error { return d.FS.Remove(name) })
	return err
}

// RemoveAll implements [vfs.FS].
func (d *disk) RemoveAll(name string) error {
	err, _ := d.attempt(func() error { return d.FS.RemoveAll(name) })
	return err
}

// MkdirAll implements [vfs.FS].
func (d *disk) MkdirAll(dir string, perm fs.FileMode) error {
	d.change(func() error { return d.FS.MkdirAll(dir, perm) })
	return nil
}

// Unwrap implements [vfs.FS].
func (d *disk) Unwrap() vfs.FS { return d.FS }

// diskFile is a file or a directory of the real file system.
type diskFile struct {
	vfs.File

	disk *disk
	lazy bool

	mu     sync.Mutex // guards closed, and makes Close wait for a sync
	closed bool
}

// Write implements [vfs.File].
func (f *diskFile) Write(p []byte) (int, error) {
	f.disk.change(func() error { _, err := f.File.Write(p); return err })
	if f.lazy {
		f.disk.mark(f)
	}
	return len(p), nil
}

// WriteAt implements [vfs.File].
func (f *diskFile) WriteAt(p []byte, offset int64) (int, error) {
	f.disk.change(func() error { _, err := f.File.WriteAt(p, offset); return err })
	return len(p), nil
}

// Preallocate implements [vfs.File]. An error does no harm.
func (f *diskFile) Preallocate(offset, length int64) error {
	err, _ := f.disk.attempt(func() error { return f.File.Preallocate(offset, length) })
	return err
}

// Sync implements [vfs.File].
func (f *diskFile) Sync() error {
	if !f.lazy {
		f.disk.change(f.File.Sync)
	}
	return nil
}

// SyncData implements [vfs.File].
func (f *diskFile) SyncData() error {
	if !f.lazy {
		f.disk.change(f.File.SyncData)
	}
	return nil
}

// SyncTo implements [vfs.File].
func (f *diskFile) SyncTo(length int64) (fullSync bool, err error) {
	if f.lazy {
		return true, nil
	}
	f.disk.change(func() (err error) { fullSync, err = f.File.SyncTo(length); return err })
	return fullSync, nil
}

// flush syncs a file that is marked, unless its Close has done so.
func (f *diskFile) flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.disk.change(f.File.SyncData)
	}
}

// Close implements [vfs.File]. A file of the write-ahead log is synced before the next one begins:
// after a loss of power, Pebble requires that all but the last are whole.
func (f *diskFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return f.File.Close()
	}
	f.closed = true
	if f.lazy {
		f.disk.change(f.File.SyncData)
	}
	err := f.File.Close()
	if err != nil {
		f.disk.change(func() error { return err })
	}
	return nil
}

// notExist reports whether a file does not exist.
func notExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
