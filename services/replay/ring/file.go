package ring

import (
	"errors"

	"github.com/raylink/raylink/services/internal/mapfile"
)

// mapFile maps the whole file for reading and its control part for writing.
func (r *Ring) mapFile() error {
	var err error
	if r.all, err = mapfile.Map(r.file, r.head.geometry.size, mapfile.ReadOnly); err != nil {
		return err
	}
	r.control, err = mapfile.Map(r.file, r.head.geometry.words, mapfile.ReadWrite)
	return err
}

// mapRows maps the whole file for writing. The caller must hold r.mu for writing.
func (r *Ring) mapRows() error {
	if r.rows != nil {
		return nil
	}
	var err error
	r.rows, err = mapfile.Map(r.file, r.head.geometry.size, mapfile.ReadWrite)
	return err
}

// unmapFile removes all mappings and closes the file. The caller must hold r.mu for writing.
func (r *Ring) unmapFile() error {
	errs := []error{r.unregister()}
	for _, mapping := range []*[]byte{&r.all, &r.control, &r.rows} {
		errs = append(errs, mapfile.Unmap(*mapping))
		*mapping = nil
	}
	return errors.Join(append(errs, r.file.Close())...)
}
