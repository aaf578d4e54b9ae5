package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
)

// Source reads a version or a draft in the officer's process, for those that can't map its file.
// The file is not changed until the source is released. It is safe for concurrent use.
type Source struct {
	store *Store
	file  *file
	// draft is nil if the file was published when the source was made.
	draft *Draft
	all   []byte
	once  sync.Once
	err   error

	// version is the description when the source was made.
	version *psv1.Version
}

// Source returns a source of a content, published or not. It returns [ErrNoVersion] if the store
// does not have it.
func (s *Store) Source(content string) (*Source, error) {
	x, err := s.source(func() *file { return s.files[content] })
	if err != nil {
		return nil, fmt.Errorf("read content %q: %w", content, err)
	}
	return x, nil
}

// SourceOf returns a source of a tag's newest version. It returns [ErrNoVersion] if there is none.
func (s *Store) SourceOf(name string) (*Source, error) {
	x, err := s.source(func() *file {
		if t, ok := s.tags[name]; ok {
			return t.newest
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read parameters %q: %w", name, err)
	}
	return x, nil
}

// source returns a source of a file that is found while the store's mu is held.
func (s *Store) source(find func() *file) (*Source, error) {
	s.mu.Lock()
	closed, f := s.closed, find()
	if closed || f == nil {
		s.mu.Unlock()
		if closed {
			return nil, ErrClosed
		}
		return nil, ErrNoVersion
	}
	f.sources++ // from here on the file stays as it is
	x := &Source{store: s, file: f, draft: s.drafts[f.content], version: f.version}
	s.mu.Unlock()
	if err := f.mapAll(); err != nil {
		return nil, errors.Join(err, x.Release())
	}
	x.all = f.parameters()
	return x, nil
}

// Version describes the source. Of a draft it has only tag, size, content and info. It must not be
// modified.
func (x *Source) Version() *psv1.Version { return x.version }

// Chunk returns a chunk, in mapped memory, and its checksum. Of a draft it waits until the chunk
// was written; it returns [ErrDiscarded] if the draft is discarded, and [ErrClosed] if the store is
// closed. The data is valid until the source is released.
func (x *Source) Chunk(ctx context.Context, i int) (data []byte, sum uint32, err error) {
	if i < 0 || i >= x.file.layout.chunks() {
		return nil, 0, fmt.Errorf("read chunk %d of parameters %q: %w: there are %d", i, x.version.GetTag(), ErrVersion, x.file.layout.chunks())
	}
	if x.draft != nil {
		if err := x.draft.progress.wait(ctx, i); err != nil {
			return nil, 0, fmt.Errorf("read chunk %d of parameters %q: %w", i, x.version.GetTag(), err)
		}
	}
	from, to := x.file.layout.chunk(i)
	return x.all[from:to:to], x.file.table[i], nil
}

// Bytes returns the parameters of a published version, or of a complete draft. They must not be
// used after Release.
func (x *Source) Bytes() []byte { return x.all }

// Release releases the source. Further calls do nothing.
func (x *Source) Release() error {
	x.once.Do(func() { x.err = x.release() })
	return x.err
}

func (x *Source) release() error {
	s := x.store
	s.mu.Lock()
	x.file.sources--
	unused := x.file.sources == 0
	closing := x.file.closing
	s.mu.Unlock()
	var err error
	switch {
	case unused && closing:
		err = x.file.close()
	case unused:
		err = s.reap()
	}
	if err != nil {
		return fmt.Errorf("release parameters %q: %w", x.version.GetTag(), err)
	}
	return nil
}
