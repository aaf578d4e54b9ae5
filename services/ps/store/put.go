package store

import (
	"errors"
	"fmt"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
)

// Put stores a version and reports whether it did: a version that is not newer than the newest one
// changes nothing. Put computes the version's size and checksum; if they are set already, they must
// be correct.
func (s *Store) Put(version *psv1.Version, parameters []byte) (bool, error) {
	size := uint64(len(parameters))
	switch {
	case version.GetId() == 0:
		return false, fmt.Errorf("store parameters %q: %w: no id", version.GetTag(), ErrVersion)
	case version.GetSize() != 0 && version.GetSize() != size:
		return false, fmt.Errorf("store parameters %q: %w: it has %d bytes instead of %d", version.GetTag(), ErrVersion, size, version.GetSize())
	case version.GetChecksum() != 0 && version.GetChecksum() != Checksum(parameters):
		return false, fmt.Errorf("store parameters %q: %w: %w", version.GetTag(), ErrVersion, ErrDamaged)
	}
	if s.late(version) {
		return false, nil
	}
	final := &psv1.Version{
		Tag: version.GetTag(), Id: version.GetId(), Size: size, Info: version.GetInfo(), Pushed: version.GetPushed(), Content: version.GetContent(),
	}
	d, err := s.Reserve(final, final.GetContent())
	if err != nil {
		return false, err
	}
	for i := range d.Chunks() {
		from, to := d.layout.chunk(i)
		if err := d.WriteChunk(i, parameters[from:to], Checksum(parameters[from:to])); err != nil {
			return false, errors.Join(err, d.Discard())
		}
	}
	stored, err := s.Publish(d, final)
	if !stored {
		err = errors.Join(err, d.Discard())
	}
	return stored, err
}

func (s *Store) late(version *psv1.Version) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tags[version.GetTag()]
	return ok && !s.closed && t.late(version.GetId())
}
