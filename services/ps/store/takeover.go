package store

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/raylink/raylink/services/internal/mapfile"
)

// load takes over what a previous officer left, or initializes a new store.
func (s *Store) load() error {
	path := filepath.Join(s.directory, statusName)
	status, err := mapPage(path, statusMagic, mapfile.ReadWrite)
	foreign := errors.Is(err, ErrOtherMachine)
	if damagedPage(err) {
		words := map[int]uint64{confirmedAt: uint64(mapfile.Boottime())} //nolint:gosec // positive
		if foreign {
			err = s.dropTags() // before the status says that they are of this boot
		} else {
			err = nil
		}
		if err == nil {
			status, err = createPage(path, statusMagic, words)
		}
	}
	if err != nil {
		return err
	}
	s.status = status
	entries, err := os.ReadDir(s.directory)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name, ok := parseTagDirectory(entry.Name())
		if !entry.IsDir() || !ok {
			continue
		}
		t := &tag{name: name, directory: filepath.Join(s.directory, entry.Name())}
		err := t.load()
		if t.index == nil && err == nil {
			continue
		}
		s.tags[name] = t
		for _, f := range t.versions {
			s.files[f.content] = f
			s.total += f.size()
		}
		if err != nil {
			return fmt.Errorf("load tag %q: %w", name, err)
		}
	}
	return nil
}

// dropTags removes the versions of another boot.
func (s *Store) dropTags() error {
	entries, err := os.ReadDir(s.directory)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if _, ok := parseTagDirectory(entry.Name()); !ok {
			continue
		}
		path := filepath.Join(s.directory, entry.Name())
		if err := errors.Join(removeTag(path), os.RemoveAll(path)); err != nil {
			return err
		}
	}
	return nil
}

// load takes over a tag's versions, and removes everything else from its directory.
func (t *tag) load() error {
	path := filepath.Join(t.directory, indexName)
	var err error
	t.index, err = mapPage(path, indexMagic, mapfile.ReadWrite)
	if err != nil && !damagedPage(err) {
		return err
	}
	var newest, last, lost uint64
	known := t.index != nil
	if known {
		newest, last, lost = word(t.index, newestAt).Load(), word(t.index, lastAt).Load(), word(t.index, lostAt).Load()
	}
	if newest == removed { // a crash interrupted the removal of the tag or the store
		err := errors.Join(mapfile.Unmap(t.index), removeTag(t.directory), os.RemoveAll(t.directory))
		t.index = nil
		return err
	}
	var deleted uint64
	if newest == 0 {
		deleted = last // a crash may have interrupted Delete
	}
	highest, err := t.openVersions(deleted)
	if err != nil {
		return err
	}
	if !known {
		newest = highest // the names of files are all that is known of the tag
	}
	if err := t.findNewest(); err != nil {
		return err
	}
	switch id := t.newest.id(); {
	case id < newest:
		// Readers may have seen the version that is damaged. They must not see an older one.
		lost, newest, t.newest = newest, 0, nil
		if err := t.dropVersions(t.versions); err != nil {
			return err
		}
	case id > 0:
		newest, lost = id, 0
	}
	last = max(last, newest, lost)
	if !known {
		t.index, err = createPage(path, indexMagic, map[int]uint64{newestAt: newest, lastAt: last, lostAt: lost})
		return err
	}
	word(t.index, lostAt).Store(lost)
	word(t.index, lastAt).Store(last)
	word(t.index, newestAt).Store(newest)
	setBehind(t.index)
	return nil
}

// openVersions opens the versions whose headers are valid and whose ids are above those that were
// deleted. It returns the highest id that a file has by its name.
func (t *tag) openVersions(deleted uint64) (highest uint64, err error) {
	entries, err := os.ReadDir(t.directory)
	if err != nil {
		return 0, err
	}
	for _, entry := range entries {
		path := filepath.Join(t.directory, entry.Name())
		id, ok := parseVersionFile(entry.Name())
		switch {
		case entry.Name() == indexName:
			continue
		case ok && id > deleted:
			highest = max(highest, id)
			f, err := openFile(path, t.name, id)
			if err == nil {
				t.versions = append(t.versions, f)
				continue
			}
			if !errors.Is(err, ErrFormat) {
				return highest, err
			}
		}
		if err := dropFile(path); err != nil {
			return highest, err
		}
	}
	slices.SortFunc(t.versions, func(a, b *file) int { return cmp.Compare(a.id(), b.id()) })
	return highest, nil
}

// findNewest finds the newest version whose parameters are valid. It removes newer ones.
func (t *tag) findNewest() error {
	for i, f := range slices.Backward(t.versions) {
		err := f.verify()
		if err == nil {
			t.newest = f
			return nil
		}
		if !errors.Is(err, ErrFormat) {
			return err
		}
		if err := t.dropVersions(t.versions[i:]); err != nil {
			return err
		}
	}
	return nil
}

// dropVersions removes the last versions.
func (t *tag) dropVersions(last []*file) error {
	t.versions = t.versions[:len(t.versions)-len(last)]
	errs := make([]error, 0, 2*len(last))
	for _, f := range last {
		errs = append(errs, f.close(), dropFile(f.path))
	}
	return errors.Join(errs...)
}
