package table

import (
	"errors"
	"fmt"
	"time"
)

// ErrNotEmpty means that a table that should get the items of another has had items.
var ErrNotEmpty = errors.New("the table is not empty")

// Adopt gives each table the items, counts and limiter's state of another one that was restored
// with its configuration, and that must not be used afterwards. Either all tables get them, or, if
// one has had items, none: then the error is [ErrNotEmpty], or says that the table was closed. then
// is called while no other call can see the tables' new state; if it fails, nothing changes.
//
// Calls that wait are served from the new items. For [Table.Changes] none of the items has changed:
// a caller that collects changes needs a copy of the restored tables.
func Adopt(tables, restored []*Table, then func() error) error {
	for i, t := range tables {
		t.mu.Lock()
		defer t.mu.Unlock()
		switch {
		case t.closed != nil:
			return t.closed
		case t.size > 0 || t.counts.Inserted > 0:
			return fmt.Errorf("table %q: %w: it has %d items, and %d were inserted", t.config.Name, ErrNotEmpty, t.size, t.counts.Inserted)
		case t.config.Sampler != restored[i].config.Sampler || t.config.Remover != restored[i].config.Remover:
			return fmt.Errorf("table %q: %w: the restored one has other selectors", t.config.Name, ErrArgument)
		}
	}
	if err := then(); err != nil {
		return err
	}
	for i, t := range tables {
		t.adopt(restored[i])
		t.serve()
	}
	return nil
}

// adopt takes over the state of another table.
func (t *Table) adopt(from *Table) {
	t.slots, t.size, t.priorities, t.wheel = from.slots, from.size, from.priorities, from.wheel
	t.sampler, t.remover, t.limit, t.counts = from.sampler, from.remover, from.limit, from.counts
	t.number = from.number
	if t.reserve != nil && t.number > t.reserved {
		t.reserved = t.number + reserveStep
		t.reserve(t.reserved)
	}
	// Items were created on the other table's clock.
	later := int64(from.began.Sub(t.began) / time.Nanosecond)
	for slot := range t.slots.high {
		if it := t.slots.items.at(slot); it.number != 0 {
			it.created += later
		}
	}
}

// Configuration returns the table's configuration with the limiter in use.
func (t *Table) Configuration() Config {
	t.mu.Lock()
	defer t.mu.Unlock()
	config := t.config
	config.Limiter = t.limit.Limiter
	return config
}
