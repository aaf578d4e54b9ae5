package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"sync"

	"google.golang.org/protobuf/proto"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/internal/mapfile"
)

// Draft is a version that is being written. One goroutine at a time writes it; sources read it
// concurrently.
type Draft struct {
	store    *Store
	tag      *tag
	content  string
	layout   layout
	progress progress
	// file is the draft's while over is nil. Once published it may become another draft's.
	file *file

	// mu guards the fields below. It is held while a chunk is written.
	mu   sync.Mutex
	lent bool
	// tabled is set if the file has the table of checksums.
	tabled bool
	// over is why the draft is none anymore; nil while it is one.
	over error
}

// errPublished is why a published draft is over.
var errPublished = errors.New("the draft was published")

// progress is how far a draft has been written.
type progress struct {
	// mu guards the fields below.
	mu      sync.Mutex
	written int
	err     error
	// changed is closed when another field changes; nil while no call waits.
	changed chan struct{}
}

// set sets the number of chunks that were written, or why there will be no more.
func (p *progress) set(written int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.written = written
	} else {
		p.err = err
	}
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

func (p *progress) get() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.written
}

// wait blocks until a chunk was written.
func (p *progress) wait(ctx context.Context, chunk int) error {
	for {
		p.mu.Lock()
		switch {
		case p.err != nil:
			err := p.err
			p.mu.Unlock()
			return err
		case chunk < p.written:
			p.mu.Unlock()
			return nil
		}
		if p.changed == nil {
			p.changed = make(chan struct{})
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Reserve reserves the file of a version of the given tag, size and info. The content identifies
// the draft; an empty one is chosen. Reserve uses the file of an old version if it can. It returns
// an error that wraps [ErrVersion] if the version is invalid, [ErrExists] if the content is stored
// or being written, and a [RoomError] if there is no room.
func (s *Store) Reserve(version *psv1.Version, content string) (*Draft, error) {
	d, err := s.reserve(version, content)
	if err != nil {
		return nil, fmt.Errorf("reserve parameters %q: %w", version.GetTag(), err)
	}
	return d, nil
}

func (s *Store) reserve(version *psv1.Version, content string) (*Draft, error) {
	if content == "" {
		content = rand.Text()
	}
	version = &psv1.Version{Tag: version.GetTag(), Size: version.GetSize(), Info: version.GetInfo(), Content: content}
	version = proto.CloneOf(version)
	if err := CheckTag(version.GetTag()); err != nil {
		return nil, err
	}
	if err := checkContent(content); err != nil {
		return nil, err
	}
	if n := proto.Size(version); n > MaxDescription-finalFields {
		return nil, fmt.Errorf("%w: tag and info exceed %d bytes", ErrVersion, MaxDescription-finalFields)
	}
	if version.GetSize() > s.options.MaxBytes {
		return nil, &RoomError{Tag: version.GetTag(), Size: version.GetSize(), Bound: boundBytes, Limit: s.options.MaxBytes}
	}
	t, recycled, err := s.beginReserve(version)
	for noRoom(err) { // for the index of a new tag
		freed, freeErr := s.makeRoom()
		if freeErr != nil {
			return nil, errors.Join(err, freeErr)
		}
		if !freed {
			return nil, s.roomError(err, version)
		}
		t, recycled, err = s.beginReserve(version)
	}
	if err != nil {
		return nil, err
	}
	path := draftPath(t.directory, content)
	f, err := s.allocate(recycled, path, layoutOf(version), version)
	return s.endReserve(t, f, content, err)
}

// beginReserve registers the draft's content, and recycles a file if it can.
func (s *Store) beginReserve(version *psv1.Version) (*tag, *file, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	content := version.GetContent()
	if _, ok := s.files[content]; ok {
		return nil, nil, fmt.Errorf("%w: %q", ErrExists, content)
	}
	if t, ok := s.tags[version.GetTag()]; !ok || !t.live() {
		live := 0
		for _, t := range s.tags {
			if t.live() {
				live++
			}
		}
		if live >= s.options.MaxTags {
			return nil, nil, &RoomError{Tag: version.GetTag(), Size: version.GetSize(), Bound: boundTags, Limit: uint64(live)}
		}
	}
	t, err := s.tag(version.GetTag())
	if err != nil {
		return nil, nil, err
	}
	recycled, err := s.recycle(t, draftPath(t.directory, content))
	if err != nil {
		return nil, nil, err
	}
	s.files[content] = nil
	t.drafts++
	return t, recycled, nil
}

// endReserve registers the draft, or undoes beginReserve.
func (s *Store) endReserve(t *tag, f *file, content string, err error) (*Draft, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && s.closed {
		err = errors.Join(ErrClosed, s.retire(f), f.destroy())
		s.retired = s.retired[:len(s.retired)-1]
	}
	if err != nil {
		t.drafts--
		delete(s.files, content)
		return nil, errors.Join(err, s.dropTag(t))
	}
	d := &Draft{store: s, tag: t, content: content, layout: f.layout, file: f}
	s.files[content], s.drafts[content] = f, d
	return d, nil
}

// Draft returns the draft of a content, or nil.
func (s *Store) Draft(content string) *Draft {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drafts[content]
}

// Content identifies the draft.
func (d *Draft) Content() string { return d.content }

// Tag returns the draft's tag.
func (d *Draft) Tag() string { return d.tag.name }

// Path returns the draft's file, for [Fill].
func (d *Draft) Path() string { return draftPath(d.tag.directory, d.content) }

// Size returns the size of the parameters in bytes.
func (d *Draft) Size() uint64 { return d.layout.size }

// Chunks returns the number of chunks.
func (d *Draft) Chunks() int { return d.layout.chunks() }

// Written returns the number of chunks that were written.
func (d *Draft) Written() int { return d.progress.get() }

// Complete reports whether all chunks were written.
func (d *Draft) Complete() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.complete()
}

func (d *Draft) complete() bool { return !d.lent && d.progress.get() == d.Chunks() }

// Checksum returns the CRC-32C of the parameters, if the draft is complete and not published yet.
func (d *Draft) Checksum() (uint32, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over != nil || !d.complete() {
		return 0, false
	}
	return combine(d.file.table, d.Size()), true
}

// WriteChunk writes the next chunk, after comparing it with its checksum. The chunk that was
// written last may be written again, which changes nothing.
func (d *Draft) WriteChunk(i int, data []byte, sum uint32) error {
	if err := d.writeChunk(i, data, sum); err != nil {
		return fmt.Errorf("write chunk %d of parameters %q: %w", i, d.Tag(), err)
	}
	return nil
}

func (d *Draft) writeChunk(i int, data []byte, sum uint32) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	written := d.progress.get()
	switch {
	case d.over != nil:
		return d.over
	case d.lent:
		return ErrBusy
	case i < written:
		return nil
	case i > written || i >= d.Chunks():
		return fmt.Errorf("%w: chunk %d of %d comes next", ErrVersion, written, d.Chunks())
	}
	from, to := d.layout.chunk(i)
	if uint64(len(data)) != to-from {
		return fmt.Errorf("%w: it has %d bytes instead of %d", ErrDamaged, len(data), to-from)
	}
	parameters, err := d.mapped()
	if err != nil {
		return err
	}
	copy(parameters[from:to], data)
	// The copy has brought the chunk into the processor's cache. It does not count before it is
	// verified.
	if actual := Checksum(data); actual != sum {
		return fmt.Errorf("%w: checksum %08x instead of %08x", ErrDamaged, actual, sum)
	}
	d.file.table[i] = sum
	d.progress.set(written+1, nil)
	return nil
}

// mapped returns the draft's parameters. The draft's mu is held: until then the file stays mapped.
func (d *Draft) mapped() ([]byte, error) {
	if err := d.file.mapAll(); err != nil {
		return nil, err
	}
	return d.file.parameters(), nil
}

// Lend allows another process of the machine to [Fill] the draft, until it is reclaimed or
// discarded.
func (d *Draft) Lend() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.over != nil:
		return fmt.Errorf("lend parameters %q: %w", d.Tag(), d.over)
	case d.lent:
		return nil
	case d.progress.get() > 0:
		return fmt.Errorf("lend parameters %q: %w: %d chunks were written", d.Tag(), ErrVersion, d.progress.get())
	}
	d.lent = true
	word(d.file.first, lentAt).Store(1)
	return nil
}

// Reclaim ends the loan of a draft that was filled with parameters of the given checksum: the draft
// is complete. It returns [ErrBusy] if it is still being filled, and [ErrDamaged] if it was filled
// with something else. Then the draft remains lent. Reclaiming a complete draft does nothing.
func (d *Draft) Reclaim(sum uint32) error {
	if err := d.reclaim(sum); err != nil {
		return fmt.Errorf("reclaim parameters %q: %w", d.Tag(), err)
	}
	return nil
}

func (d *Draft) reclaim(sum uint32) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case errors.Is(d.over, errPublished):
		return nil
	case d.over != nil:
		return d.over
	case d.complete():
		return nil
	case !d.lent:
		return fmt.Errorf("%w: the draft is not lent", ErrVersion)
	}
	if err := mapfile.Lock(d.file.handle, fillLock); err != nil {
		if errors.Is(err, mapfile.ErrLocked) {
			err = ErrBusy
		}
		return err
	}
	if err := d.file.readTable(); err != nil {
		return errors.Join(err, mapfile.Unlock(d.file.handle, fillLock))
	}
	if actual := combine(d.file.table, d.Size()); actual != sum {
		err := fmt.Errorf("%w: checksum %08x instead of %08x", ErrDamaged, actual, sum)
		return errors.Join(err, mapfile.Unlock(d.file.handle, fillLock))
	}
	word(d.file.first, lentAt).Store(0)
	d.lent, d.tabled = false, true
	d.progress.set(d.Chunks(), nil)
	return mapfile.Unlock(d.file.handle, fillLock)
}

// Discard removes the draft. Sources of it return [ErrDiscarded]. Discarding a draft again, or one
// that was published, does nothing.
func (d *Draft) Discard() error {
	if err := errors.Join(d.end(ErrDiscarded), d.store.reap()); err != nil {
		return fmt.Errorf("discard parameters %q: %w", d.Tag(), err)
	}
	return nil
}

// end retires the draft for the given reason.
func (d *Draft) end(reason error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.endLocked(reason)
}

func (d *Draft) endLocked(reason error) error {
	if d.over != nil {
		return nil
	}
	d.over = reason
	d.progress.set(0, reason)
	s := d.store
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.drafts, d.content)
	d.tag.drafts--
	return errors.Join(s.retire(d.file), s.dropTag(d.tag))
}

// Publish makes a complete draft the newest version of its tag, and reports whether it did: if the
// id is not above that of every earlier version, it discards the draft. The version has the draft's
// tag and size, and its info unless it has one itself. Its content and checksum may be omitted.
func (s *Store) Publish(d *Draft, version *psv1.Version) (bool, error) {
	published, err := s.publish(d, version)
	if err == nil {
		err = s.reap()
	}
	if err != nil {
		return published, fmt.Errorf("publish version %d of parameters %q: %w", version.GetId(), d.Tag(), err)
	}
	return published, nil
}

func (s *Store) publish(d *Draft, version *psv1.Version) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	version, err := d.final(version)
	if err != nil {
		return false, err
	}
	if !d.tabled {
		if err := d.file.writeTable(); err != nil {
			return false, err
		}
	}
	if err := d.file.writeHeader(version); err != nil {
		return false, err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return false, ErrClosed
	}
	if d.tag.late(version.GetId()) {
		s.mu.Unlock()
		return false, d.endLocked(ErrDiscarded)
	}
	defer s.mu.Unlock()
	if err := d.file.publish(d.tag, version); err != nil {
		return false, err
	}
	d.over = errPublished
	delete(s.drafts, d.content)
	d.tag.drafts--
	return true, s.retireOld(d.tag)
}

// final returns the description that a draft is published with.
func (d *Draft) final(version *psv1.Version) (*psv1.Version, error) {
	if d.over != nil {
		return nil, d.over
	}
	sum := combine(d.file.table, d.Size())
	switch {
	case !d.complete():
		return nil, fmt.Errorf("%w: only %d of %d chunks were written", ErrVersion, d.progress.get(), d.Chunks())
	case version.GetId() == 0 || version.GetId() == removed:
		return nil, fmt.Errorf("%w: no id", ErrVersion)
	case version.GetTag() != d.Tag():
		return nil, fmt.Errorf("%w: it has tag %q", ErrVersion, version.GetTag())
	case version.GetSize() != d.Size():
		return nil, fmt.Errorf("%w: it has %d bytes instead of %d", ErrVersion, version.GetSize(), d.Size())
	case version.GetContent() != "" && version.GetContent() != d.Content():
		return nil, fmt.Errorf("%w: it has content %q instead of %q", ErrVersion, version.GetContent(), d.Content())
	case version.GetChecksum() != 0 && version.GetChecksum() != sum:
		return nil, fmt.Errorf("%w: checksum %08x instead of %08x", ErrDamaged, sum, version.GetChecksum())
	}
	version = proto.CloneOf(version)
	version.Content, version.Checksum = d.Content(), sum
	if len(version.GetInfo()) == 0 {
		version.Info = d.file.version.GetInfo()
	}
	return version, nil
}

// publish makes a complete file the newest version of a tag. The store's mu is held. Readers find
// the file by the index, so that is written last.
func (f *file) publish(t *tag, version *psv1.Version) error {
	id := version.GetId()
	path := versionPath(t.directory, id)
	word(f.first, stateAt).Store(id)
	if err := os.Rename(f.path, path); err != nil {
		word(f.first, stateAt).Store(0)
		return err
	}
	f.path, f.version = path, version
	t.versions = append(t.versions, f)
	t.newest = f
	word(t.index, newestAt).Store(id)
	word(t.index, lastAt).Store(id)
	word(t.index, lostAt).Store(0)
	setBehind(t.index)
	return nil
}
