package replay

import (
	"context"
	"errors"
	"fmt"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/ring"
)

// at fills a batch with the rows of a ring that have the given sequence numbers: see
// [ring.ReadHead.At]. If the replay has another ring by now, all of them are lost.
func (h *ReadHead) at(ctx context.Context, id string, sequences []uint64, into *Batch) (lost []int, err error) {
	other := false
	err = h.client.with(ctx, func(r *ring.Ring) error {
		if other = r.ID().String() != id; other {
			return ring.ErrEnded // one of both has ended: look for the current one
		}
		if err := h.bind(r); err != nil {
			return err
		}
		var err error
		lost, err = h.head.At(ctx, sequences, into)
		return err
	}, func() error {
		other = false
		var err error
		lost, err = h.fetchAt(ctx, id, sequences, into)
		return err
	})
	if other && errors.Is(err, ring.ErrEnded) {
		return allOf(sequences), into.Resize(len(sequences))
	}
	return lost, err
}

// fetchAt reads rows through the node, in several calls if they are many.
func (h *ReadHead) fetchAt(ctx context.Context, id string, sequences []uint64, into *Batch) ([]int, error) {
	if err := h.prepare(len(sequences), into); err != nil {
		return nil, err
	}
	var lost []int
	chunk := rowsPerChunk(h.client.layout)
	for begin := 0; begin < len(sequences); begin += chunk {
		wanted := sequences[begin:min(begin+chunk, len(sequences))]
		res, err := h.client.Handle().Read(ctx, &replayv1.ReadRequest{Runs: runsOf(wanted), RingId: id})
		if err != nil {
			return nil, err
		}
		if res.GetBatch().GetRows() == 0 {
			return allOf(sequences), into.Resize(len(sequences))
		}
		part, err := batchOf(h.client.layout, res.GetBatch())
		if err != nil {
			return nil, fmt.Errorf("invalid response from the replay: %w", err)
		}
		got := part.Sequences()
		if len(got) != len(wanted) {
			return nil, fmt.Errorf("invalid response from the replay: %w: %d rows instead of %d", ring.ErrBatch, len(got), len(wanted))
		}
		for i, s := range wanted {
			switch {
			case s != ring.NoRow && got[i] == ring.NoRow:
				lost = append(lost, begin+i)
			case got[i] != s:
				return nil, fmt.Errorf("invalid response from the replay: %w: row %d instead of %d", ring.ErrBatch, got[i], s)
			}
		}
		if err := into.AppendRows(part); err != nil {
			return nil, err
		}
	}
	return lost, nil
}

// allOf returns the indexes of all numbers that rows can have.
func allOf(sequences []uint64) []int {
	var all []int
	for i, s := range sequences {
		if s != ring.NoRow {
			all = append(all, i)
		}
	}
	return all
}
