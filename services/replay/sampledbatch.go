package replay

import (
	"time"

	"github.com/raylink/raylink/services/replay/ring"
)

// ItemInfo describes a sampled item as it was after the draw.
type ItemInfo struct {
	Key Key
	// Sequences are the sequence numbers of the item's rows. They are valid as long as the batch.
	Sequences []uint64
	// Probability is that with which the draw had this result; Weight is the importance weight: see
	// [Weights].
	Probability, Weight float64
	Priority            float64
	// Sampled is how often the item has been drawn, this time included.
	Sampled uint32
	// TableSize is the number of the table's items.
	TableSize uint64
	// Age is the time since the item was inserted.
	Age time.Duration
	// Held means that the limiter made the call wait for this draw.
	Held bool
}

// SampledBatch is a full batch of items, and a copy of their rows.
type SampledBatch[C any] struct {
	// Columns has Length rows for each item, back to back. Shorter items end with zero rows.
	Columns C
	// Mask has an element for each row of Columns: 1, or 0 for one that only fills up its item.
	Mask []uint8
	// Info describes the items, in the order of Columns.
	Info []ItemInfo
	// Length is the number of rows of the longest item, or that of the option [Length].
	Length int
	// Replaced is how many more items were drawn, because rows of theirs were overwritten before
	// they were copied.
	Replaced int

	rows *Batch
	// view has the rows instead, if they are in the memory of a response. stream is that which the
	// batch was received on, in a number of responses.
	view      *Batch
	stream    *sampleStream[C]
	responses uint64
	// ring is that of the rows.
	ring  string
	bytes [][]byte
}

// Len returns the number of items.
func (b *SampledBatch[C]) Len() int { return len(b.Info) }

// Keys returns the keys of the items. They remain valid.
func (b *SampledBatch[C]) Keys() []Key {
	keys := make([]Key, len(b.Info))
	for i := range b.Info {
		keys[i] = b.Info[i].Key
	}
	return keys
}

// restart empties a batch, for rows of a ring.
func (b *SampledBatch[C]) restart(id string) {
	b.Info, b.Length, b.ring = b.Info[:0], 0, id
}

// lengthen makes room for longer items.
func (b *SampledBatch[C]) lengthen(length, items int) error {
	if length == b.Length {
		return nil
	}
	longer, err := ring.NewBatch(b.rows.Layout(), items*length)
	if err != nil {
		return err
	}
	sequences := make([]uint64, items*length)
	for i := range sequences {
		sequences[i] = ring.NoRow
	}
	for i := range items {
		for c := range b.bytes {
			old, into := b.rows.Bytes(c), longer.Bytes(c)
			size := len(old) / (items * b.Length)
			copy(into[i*length*size:], old[i*b.Length*size:(i+1)*b.Length*size])
		}
		copy(sequences[i*length:], b.rows.Sequences()[i*b.Length:(i+1)*b.Length])
	}
	longer.SetSequences(sequences)
	b.rows, b.Length = longer, length
	return nil
}

// finish sets what depends on all rows.
func (b *SampledBatch[C]) finish(t *Typed[C]) error {
	all := b.rows
	if b.view != nil {
		all = b.view
	}
	sequences := all.Sequences()
	b.Mask = b.Mask[:0]
	for i := range b.Info {
		rows := sequences[i*b.Length : (i+1)*b.Length]
		n := 0
		for _, s := range rows {
			mask := uint8(0)
			if s != ring.NoRow {
				mask = 1
				n++
			}
			b.Mask = append(b.Mask, mask)
		}
		b.Info[i].Sequences = rows[:n:n]
	}
	for i := range b.bytes {
		b.bytes[i] = all.Bytes(i)
	}
	return t.row.View(&b.Columns, all.Rows(), b.bytes)
}

// moveRows copies n rows of a batch to other places of it.
func moveRows(b *Batch, to, from, n int) {
	if to == from || n == 0 {
		return
	}
	for c := range b.Layout().Columns {
		bytes := b.Bytes(c)
		size := len(bytes) / b.Rows()
		copy(bytes[to*size:(to+n)*size], bytes[from*size:(from+n)*size])
	}
}
