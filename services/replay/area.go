package replay

import (
	"context"
	"fmt"

	"github.com/raylink/raylink/services/replay/ring"
)

// Area is a snapshot of the newest rows that can be read at leisure.
//
// If the ring is mapped, rows are read in place, and writers skip them until the area is released.
// They are lost to the replay meanwhile: if areas hold all of its rows, writes wait. On other
// machines an area is a copy that writers need not skip.
type Area struct {
	spans   []Span
	release func() error
}

// Span is a part of an area: rows that are contiguous in memory, oldest first.
type Span struct {
	Rows

	numbers numbers
}

// Len returns the number of rows.
func (s Span) Len() int { return s.numbers.rows }

// Sequences returns the rows' sequence numbers. Those of an area in place are made by each call.
func (s Span) Sequences() []uint64 { return s.numbers.all() }

// numbers are the sequence numbers of rows: those listed, or if none are, successive ones.
type numbers struct {
	rows   int
	first  uint64
	listed []uint64
}

func (n numbers) all() []uint64 {
	if n.listed != nil {
		return n.listed
	}
	all := make([]uint64, n.rows)
	for i := range all {
		all[i] = n.first + uint64(i)
	}
	return all
}

// Spans returns the area's rows, oldest first. They must not be written to, nor used after Release.
func (a *Area) Spans() []Span { return a.spans }

// Len returns the number of rows.
func (a *Area) Len() int {
	n := 0
	for _, s := range a.spans {
		n += s.Len()
	}
	return n
}

// Release lets writers reuse the rows. Further calls do nothing.
func (a *Area) Release() error {
	a.spans = nil
	return a.release()
}

// Hold makes the newest n rows an area, or fewer if fewer are readable. It returns [ring.ErrEmpty]
// if there are none.
func (h *ReadHead) Hold(ctx context.Context, n int) (*Area, error) {
	var area *Area
	err := h.client.with(ctx, func(r *ring.Ring) error {
		if err := h.bind(r); err != nil {
			return err
		}
		held, err := h.head.Hold(ctx, n)
		if err != nil {
			return err
		}
		area = inPlace(held)
		return nil
	}, func() error {
		if n <= 0 {
			return fmt.Errorf("%w: area of %d rows", ring.ErrBatch, n)
		}
		batch, err := h.client.NewBatch(0)
		if err != nil {
			return err
		}
		if err := h.fetchNewest(ctx, n, batch); err != nil {
			return err
		}
		listed := numbers{rows: batch.Rows(), listed: batch.Sequences()}
		area = &Area{spans: []Span{{Rows: batch, numbers: listed}}, release: func() error { return nil }}
		return nil
	})
	return area, err
}

func inPlace(held *ring.Area) *Area {
	area := &Area{release: held.Release}
	for _, s := range held.Spans() {
		area.spans = append(area.spans, Span{Rows: s, numbers: numbers{rows: s.Rows(), first: s.First()}})
	}
	return area
}
