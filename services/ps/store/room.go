package store

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/internal/mapfile"
)

// RoomError says which bound parameters exceed, and what takes the room. It wraps [ErrNoRoom].
type RoomError struct {
	// Tag and Size are what there is no room for: parameters of so many bytes.
	Tag  string
	Size uint64
	// Bound names what is exceeded: "max_bytes", "max_total_bytes", "max_tags" or "disk".
	Bound string
	// Limit is the bound, in bytes or tags; 0 for a disk.
	Limit uint64
	// Usage is what the store has.
	Usage Usage
	// Err is the error of the file system; nil unless the disk is full.
	Err error
}

// Error says what was refused, why, what takes the room and what to do.
func (e *RoomError) Error() string {
	text := fmt.Sprintf("no room for %d bytes of parameters %q: ", e.Size, e.Tag)
	switch e.Bound {
	case boundBytes:
		return text + fmt.Sprintf("parameters have at most %d bytes (max_bytes)", e.Limit)
	case boundTags:
		return text + fmt.Sprintf("the limit of %d tags (max_tags) is reached: delete one", e.Limit)
	case boundTotal:
		text += fmt.Sprintf("all files together have at most %d bytes (max_total_bytes)", e.Limit)
	default:
		text += e.Err.Error()
	}
	return text + fmt.Sprintf("; %s: delete tags, release parameters or raise the bound", e.Usage)
}

// Unwrap returns [ErrNoRoom] and the error of the file system.
func (e *RoomError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrNoRoom}
	}
	return []error{ErrNoRoom, e.Err}
}

// The bounds of a store.
const (
	boundBytes = "max_bytes"
	boundTotal = "max_total_bytes"
	boundTags  = "max_tags"
	boundDisk  = "disk"
)

// Usage is what a store's files take.
type Usage struct {
	// Files and Bytes count all files, Drafts those of drafts.
	Files, Drafts int
	Bytes         uint64
	// Retired is the size of the files that were deleted or discarded and are still in use.
	Retired uint64
	// Tags is sorted by size, the largest first.
	Tags []TagUsage
}

// TagUsage is what a tag's files take.
type TagUsage struct {
	Tag string
	// Versions counts the versions that have files, Held those among them that are in use, Drafts
	// the drafts.
	Versions, Held, Drafts int
	// Bytes is the size of the files.
	Bytes uint64
}

// maxListed bounds the tags in an error's text.
const maxListed = 5

// String lists the tags that take most.
func (u Usage) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d bytes are used", u.Bytes)
	for i, t := range u.Tags {
		if i == maxListed {
			fmt.Fprintf(&b, ", %d more tags", len(u.Tags)-i)
			break
		}
		separator := ", "
		if i == 0 {
			separator = ": "
		}
		fmt.Fprintf(&b, "%s%d by tag %q (%d versions, %d in use, %d drafts)", separator, t.Bytes, t.Tag, t.Versions, t.Held, t.Drafts)
	}
	if u.Retired > 0 {
		fmt.Fprintf(&b, ", %d by deleted versions in use", u.Retired)
	}
	return b.String()
}

// Usage returns what the store's files take.
func (s *Store) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.usage()
}

func (s *Store) usage() Usage {
	u := Usage{Bytes: s.total}
	byTag := make(map[string]*TagUsage)
	of := func(name string) *TagUsage {
		if byTag[name] == nil {
			byTag[name] = &TagUsage{Tag: name}
		}
		return byTag[name]
	}
	for name, t := range s.tags {
		for _, f := range t.versions {
			usage := of(name)
			usage.Versions++
			usage.Bytes += f.size()
			if !s.closed && f.heldElsewhere() {
				usage.Held++
			}
			u.Files++
		}
	}
	for _, d := range s.drafts {
		usage := of(d.tag.name)
		usage.Drafts++
		usage.Bytes += d.file.size()
		u.Drafts++
		u.Files++
	}
	for _, f := range s.retired {
		u.Retired += f.size()
		u.Files++
	}
	for _, usage := range byTag {
		u.Tags = append(u.Tags, *usage)
	}
	slices.SortFunc(u.Tags, func(a, b TagUsage) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Tag, b.Tag))
	})
	return u
}

// tag returns a tag, and creates it if necessary. The store's mu is held.
func (s *Store) tag(name string) (*tag, error) {
	if s.closed {
		return nil, ErrClosed
	}
	if t, ok := s.tags[name]; ok {
		return t, nil
	}
	if err := CheckTag(name); err != nil {
		return nil, err
	}
	t := &tag{name: name, directory: tagPath(s.directory, name)}
	if err := os.Mkdir(t.directory, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	var err error
	if t.index, err = createPage(filepath.Join(t.directory, indexName), indexMagic, nil); err != nil {
		return nil, errors.Join(err, os.Remove(t.directory))
	}
	s.tags[name] = t
	return t, nil
}

// dropTag removes a tag that never had a version and is of no use anymore. The store's mu is held.
func (s *Store) dropTag(t *tag) error {
	if s.closed || t.live() || t.last() > 0 || word(t.index, announcedAt).Load() > 0 {
		return nil
	}
	delete(s.tags, t.name)
	word(t.index, newestAt).Store(removed)
	err := mapfile.Unmap(t.index)
	t.index = nil
	return errors.Join(err, os.RemoveAll(t.directory))
}

// retire removes a file. Its memory is freed by reap, once it is not in use. The store's mu is
// held.
func (s *Store) retire(f *file) error {
	delete(s.files, f.content)
	s.retired = append(s.retired, f)
	return ignoreMissing(os.Remove(f.path))
}

// reap frees the retired files that are not in use. It waits for another call that does. The
// store's mu must not be held.
func (s *Store) reap() error {
	s.reaping.Lock()
	defer s.reaping.Unlock()
	var errs []error
	var free []*file
	s.mu.Lock()
	s.retired = slices.DeleteFunc(s.retired, func(f *file) bool {
		claimed, err := f.claim()
		errs = append(errs, err)
		if claimed {
			free = append(free, f)
		}
		return claimed
	})
	s.mu.Unlock()
	for _, f := range free {
		size := f.size()
		errs = append(errs, f.destroy())
		s.mu.Lock()
		s.total -= size
		s.mu.Unlock()
	}
	return errors.Join(errs...)
}

// Sweep frees what is not in use anymore: versions beyond [Options.Held], and deleted ones. On a
// tmpfs it moves large files that are used again to large pages, if there were none when they were
// created. The officer calls it regularly.
func (s *Store) Sweep() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return fmt.Errorf("sweep parameters: %w", ErrClosed)
	}
	var errs []error
	for _, t := range s.tags {
		errs = append(errs, s.retireOld(t))
	}
	s.mu.Unlock()
	for {
		s.mu.Lock()
		large, size := s.toCollapse()
		s.mu.Unlock()
		if large == nil {
			break
		}
		_ = mapfile.Collapse(large, size) // without large pages it is only slower
		errs = append(errs, large.Close())
	}
	if err := errors.Join(append(errs, s.reap())...); err != nil {
		return fmt.Errorf("sweep parameters: %w", err)
	}
	return nil
}

// collapseFrom is the size in bytes from which a file's pages are collapsed.
const collapseFrom = 8 << 20

// toCollapse returns a version's file whose pages are to be collapsed, opened once more since it
// may be recycled meanwhile; or nil. Only files that are used again and again are worth it. The
// store's mu is held.
func (s *Store) toCollapse() (*os.File, uint64) {
	for _, t := range s.tags {
		for _, f := range t.versions {
			if !f.recycled || f.collapsed || f.size() < collapseFrom || !mapfile.InMemory(f.handle) {
				continue
			}
			f.collapsed = true
			handle, _, err := mapfile.Open(f.path)
			if err != nil {
				return nil, 0
			}
			return handle, f.size()
		}
	}
	return nil, 0
}

// old returns the versions that come before the newest one, except for the last of them.
func (t *tag) old(except int) []*file {
	return t.versions[:max(0, len(t.versions)-1-except)]
}

// retireOld retires the versions beyond the held ones that are not in use. The store's mu is held.
func (s *Store) retireOld(t *tag) error {
	var errs []error
	for _, f := range slices.Clone(t.old(s.options.Held)) {
		claimed, err := f.claim()
		errs = append(errs, err)
		if claimed {
			errs = append(errs, s.retireVersion(t, f))
		}
	}
	return errors.Join(errs...)
}

func (s *Store) retireVersion(t *tag, f *file) error {
	t.versions = slices.DeleteFunc(t.versions, func(g *file) bool { return g == f })
	return s.retire(f)
}

// recycle claims an old version that is not in use and renames it to a draft, or returns nil. The
// store's mu is held.
func (s *Store) recycle(t *tag, path string) (*file, error) {
	for _, f := range t.old(s.options.Held - 1) {
		claimed, err := f.claim()
		if err != nil {
			return nil, err
		}
		if !claimed {
			continue
		}
		t.versions = slices.DeleteFunc(t.versions, func(g *file) bool { return g == f })
		delete(s.files, f.content)
		if err := os.Rename(f.path, path); err != nil {
			return nil, errors.Join(err, s.retire(f))
		}
		f.path, f.recycled = path, true
		// The file is a draft now, so that a reader that gets the lock lets go of it.
		return f, f.unclaim()
	}
	return nil, nil //nolint:nilnil // nil means that there is none
}

// makeRoom frees the oldest version of any tag that is neither the newest one nor in use. It
// reports whether it freed anything.
func (s *Store) makeRoom() (bool, error) {
	s.mu.Lock()
	before := s.total
	s.mu.Unlock()
	if err := s.reap(); err != nil {
		return false, err
	}
	s.mu.Lock()
	freed := s.total < before
	var err error
	if !freed {
		freed, err = s.retireOldest()
	}
	s.mu.Unlock()
	return freed, errors.Join(err, s.reap())
}

func (s *Store) retireOldest() (bool, error) {
	type candidate struct {
		tag  *tag
		file *file
	}
	var candidates []candidate
	for _, t := range s.tags {
		for _, f := range t.old(0) {
			candidates = append(candidates, candidate{t, f})
		}
	}
	slices.SortFunc(candidates, func(a, b candidate) int {
		return a.file.version.GetPushed().AsTime().Compare(b.file.version.GetPushed().AsTime())
	})
	for _, c := range candidates {
		claimed, err := c.file.claim()
		if err != nil {
			return false, err
		}
		if claimed {
			return true, s.retireVersion(c.tag, c.file)
		}
	}
	return false, nil
}

// allocate returns a file for a draft: the recycled one, if it is not nil, or a new one. If there
// is no room, it frees old versions.
func (s *Store) allocate(recycled *file, path string, l layout, version *psv1.Version) (*file, error) {
	for {
		f, err := s.tryAllocate(recycled, path, l, version)
		if err == nil {
			return f, nil
		}
		if recycled != nil {
			// Its size is uncertain: start again with a new file.
			s.mu.Lock()
			err = errors.Join(err, s.retire(recycled))
			s.mu.Unlock()
			if e := s.reap(); e != nil || !noRoom(err) {
				return nil, errors.Join(err, e)
			}
			recycled = nil
			continue
		}
		if !noRoom(err) {
			return nil, err
		}
		freed, freeErr := s.makeRoom()
		if freeErr != nil {
			return nil, errors.Join(err, freeErr)
		}
		if !freed {
			return nil, s.roomError(err, version)
		}
	}
}

// errTotal means that the files have no room within Options.MaxTotalBytes.
var errTotal = errors.New("max_total_bytes is exceeded")

func noRoom(err error) bool {
	return errors.Is(err, errTotal) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

func (s *Store) tryAllocate(recycled *file, path string, l layout, version *psv1.Version) (*file, error) {
	var before uint64
	if recycled != nil {
		before = recycled.size()
	}
	after := l.file()
	s.mu.Lock()
	if limit := s.options.MaxTotalBytes; limit > 0 && s.total-before+after > limit && after > before {
		s.mu.Unlock()
		return nil, errTotal
	}
	s.total += after - before
	s.mu.Unlock()
	f := recycled
	var err error
	if f == nil {
		f, err = createFile(path, l, version)
	} else {
		err = f.reuse(l, version)
	}
	if err == nil {
		return f, nil
	}
	s.mu.Lock()
	if f == nil {
		s.total -= after
	} else {
		s.total -= after - before
		s.total += f.size() - before
	}
	s.mu.Unlock()
	return nil, err
}

func (s *Store) roomError(err error, version *psv1.Version) error {
	e := &RoomError{Tag: version.GetTag(), Size: version.GetSize(), Bound: boundDisk, Err: err, Usage: s.Usage()}
	if errors.Is(err, errTotal) {
		e.Bound, e.Limit, e.Err = boundTotal, s.options.MaxTotalBytes, nil
	}
	return e
}
