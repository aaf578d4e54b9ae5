package replay

import (
	"context"

	"github.com/raylink/raylink/services/replay/ring"
)

// Area is the newest rows, as they were when it was made, to be read without hurry.
//
// Where the ring is mapped they are read in place, and writers go around them until the area is released: what it holds is lost to
// the replay meanwhile, and a replay that is held as a whole refuses to be written. From elsewhere it is a copy, and in nobody's way.
type Area struct {
	spans   []Span
	release func() error
}

// Span is a piece of an area: rows that lie together in memory, oldest first.
type Span struct {
	Rows

	sequences []uint64
}

// Len is how many rows the span has.
func (s Span) Len() int { return len(s.sequences) }

// Sequences are the sequence numbers of the rows.
func (s Span) Sequences() []uint64 { return s.sequences }

// Spans are the area's rows, oldest first. They must not be written to, nor used after Release.
func (a *Area) Spans() []Span { return a.spans }

// Len is how many rows the area has.
func (a *Area) Len() int {
	n := 0
	for _, s := range a.spans {
		n += s.Len()
	}
	return n
}

// Release lets writers have the rows again. Only the first call does anything.
func (a *Area) Release() error {
	a.spans = nil
	return a.release()
}

// Hold makes the newest n rows an area: fewer where there are fewer. [ring.ErrEmpty] says that there are none.
func (h *ReadHead) Hold(ctx context.Context, n int) (*Area, error) {
	var area *Area
	err := h.client.with(ctx, func(r *ring.Ring) error {
		if err := h.turnTo(r); err != nil {
			return err
		}
		held, err := h.head.Hold(n)
		if err != nil {
			return err
		}
		area = inPlace(held)
		return nil
	}, func() error {
		batch, err := h.client.NewBatch(0)
		if err != nil {
			return err
		}
		if err := h.fetchNewest(ctx, n, batch); err != nil {
			return err
		}
		area = &Area{spans: []Span{{Rows: batch, sequences: batch.Sequences()}}, release: func() error { return nil }}
		return nil
	})
	return area, err
}

func inPlace(held *ring.Area) *Area {
	area := &Area{release: held.Release}
	for _, s := range held.Spans() {
		sequences := make([]uint64, s.Rows())
		for i := range sequences {
			sequences[i] = s.First() + uint64(i)
		}
		area.spans = append(area.spans, Span{Rows: s, sequences: sequences})
	}
	return area
}
