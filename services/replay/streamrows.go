package replay

import (
	"fmt"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/ring"
)

// rowShape is how rows lie in a message: column by column, each from a multiple of 8 bytes on.
type rowShape struct {
	// sizes are those of a column's part of a row, in bytes.
	sizes []int
	// row is the size of a row.
	row int
}

func shapeOf(layout ring.Layout) rowShape {
	s := rowShape{sizes: make([]int, len(layout.Columns))}
	for i, c := range layout.Columns {
		s.sizes[i] = int(c.Bytes()) //nolint:gosec // at most maxRow
		s.row += s.sizes[i]
	}
	return s
}

func aligned8(n int) int { return (n + 7) &^ 7 }

// bytes returns the size of n rows.
func (s rowShape) bytes(n int) int {
	end := 0
	for _, size := range s.sizes {
		end = aligned8(end) + n*size
	}
	return end
}

// split sets columns to those of n rows, of which there is room for more in data, from a row on.
func (s rowShape) split(data []byte, room, from, n int, columns [][]byte) {
	begin := 0
	for i, size := range s.sizes {
		at := begin + from*size
		columns[i] = data[at : at+n*size : at+n*size]
		begin = aligned8(begin + room*size)
	}
}

// compact moves the columns of n rows together, of which there was room for more in data.
func (s rowShape) compact(data []byte, room, n int) []byte {
	if n < room {
		from, to := 0, 0
		for _, size := range s.sizes {
			copy(data[to:], data[from:from+n*size])
			from, to = aligned8(from+room*size), aligned8(to+n*size)
		}
	}
	return data[:s.bytes(n)]
}

// rows returns the number of rows of a message, or why there can't be such.
func (s rowShape) rows(data []byte, together []uint32, most int) (int, error) {
	n := 0
	for _, k := range together {
		if k == 0 || int(k) > most {
			return 0, fmt.Errorf("%w: %d rows to be written together: 1 to %d are possible", ring.ErrBatch, k, most)
		}
		if n += int(k); n > most {
			return 0, fmt.Errorf("%w: a message of more than %d rows", ring.ErrBatch, most)
		}
	}
	if want := s.bytes(n); len(data) != want {
		return 0, fmt.Errorf("%w: %d rows have %d bytes instead of %d", ring.ErrBatch, n, len(data), want)
	}
	return n, nil
}

// countRows returns how many rows runs have, or an error if there are more than a number, or if
// they are not in increasing order.
func countRows(runs []*replayv1.Run, most uint64) (uint64, error) {
	var n, next uint64
	for i, r := range runs {
		first, length := r.GetFirst(), uint64(r.GetLength())
		if length == 0 || first < next && i > 0 || first+length < first {
			return 0, fmt.Errorf("%w: sequence numbers %d to %d: they must increase", ErrArgument, first, first+length)
		}
		next = first + length
		if n += length; n > most {
			return 0, fmt.Errorf("%w: sequence numbers of more than %d rows", ErrArgument, most)
		}
	}
	return n, nil
}

// lastOfRuns returns the last n numbers of runs.
func lastOfRuns(runs []*replayv1.Run, n int) []uint64 {
	total := uint64(rowsIn(runs))         //nolint:gosec // not negative
	skip := total - min(total, uint64(n)) //nolint:gosec // not negative
	sequences := make([]uint64, 0, total-skip)
	for _, r := range runs {
		length := uint64(r.GetLength())
		for i := min(skip, length); i < length; i++ {
			sequences = append(sequences, r.GetFirst()+i)
		}
		skip -= min(skip, length)
	}
	return sequences
}
