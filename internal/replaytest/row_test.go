package replaytest

import (
	"errors"
	"fmt"
	"math"

	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/runtime/row"
)

// columns are those of a row, as the plugin would write them.
type columns struct {
	Writer, Number, Episode, After, Life, Sum []uint64
	// Payload has payloadWords per row.
	Payload []uint64
}

const (
	payloadWords = 58
	// poison is the writer of rows that must never become readable.
	poison = 0xdead
)

func rowType() row.Type[columns] {
	names := []string{"writer", "number", "episode", "after", "life", "sum"}
	described := make([]row.GeneratedColumn, 0, len(names)+1)
	for _, name := range names {
		described = append(described, row.GeneratedColumn{Name: name, DType: tensorv1.DataType_DATA_TYPE_UINT64, Bytes: 8})
	}
	described = append(described, row.GeneratedColumn{
		Name: "payload", DType: tensorv1.DataType_DATA_TYPE_UINT64, Shape: []uint64{payloadWords}, Bytes: 8 * payloadWords,
	})
	return row.Type[columns]{Generated: &row.GeneratedRow[columns]{
		Message: "test.Checked",
		Columns: described,
		View: func(c *columns, bytes [][]byte) {
			for i, into := range []*[]uint64{&c.Writer, &c.Number, &c.Episode, &c.After, &c.Life, &c.Sum, &c.Payload} {
				*into = row.GeneratedView[uint64](bytes[i])
			}
		},
	}}
}

// content is what a row says about itself.
type content struct {
	writer uint64
	// number is the row's place among those of its writer, from 1 on. Rows that were not
	// acknowledged have a number too.
	number uint64
	// episode is the number of the episode's first row.
	episode uint64
	// after is one more than the sequence number of the writer's last acknowledged row: 0 if there
	// is none.
	after uint64
	// life is the number of the replay that the writer has opened.
	life uint64
}

// mix returns a hash of words.
func mix(words ...uint64) uint64 {
	h := uint64(0x9e3779b97f4a7c15)
	for _, w := range words {
		h = next(h ^ next(w))
	}
	return h
}

// next is the step of SplitMix64.
func next(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func (c content) sum() uint64 { return mix(c.writer, c.number, c.episode, c.after, c.life) }

// write writes a row. It calls halfway in its middle.
func (c content) write(rows *columns, i int, halfway func()) {
	rows.Writer[i], rows.Number[i], rows.Episode[i], rows.After[i], rows.Life[i] = c.writer, c.number, c.episode, c.after, c.life
	x := c.sum()
	rows.Sum[i] = x
	payload := rows.Payload[i*payloadWords:][:payloadWords]
	for k := range payload {
		if k == payloadWords/2 {
			halfway()
		}
		x = next(x)
		payload[k] = x
	}
}

// errMissing is the error of a row that is zero.
var errMissing = errors.New("a row is missing")

// readRow returns the content of a row, or why it is no complete row.
func readRow(rows *columns, i int) (content, error) {
	c := content{rows.Writer[i], rows.Number[i], rows.Episode[i], rows.After[i], rows.Life[i]}
	x := c.sum()
	if rows.Sum[i] == 0 && c == (content{}) {
		return c, errMissing
	}
	if rows.Sum[i] != x {
		return c, fmt.Errorf("torn row: %+v has the sum %x", c, rows.Sum[i])
	}
	for k, got := range rows.Payload[i*payloadWords:][:payloadWords] {
		if x = next(x); got != x {
			return c, fmt.Errorf("torn row: %+v has other words from %d on", c, k)
		}
	}
	if c.writer == poison {
		return c, fmt.Errorf("a row of a write that panicked is readable: %+v", c)
	}
	return c, nil
}

// identity is what an item is: rows of one writer with consecutive numbers.
type identity struct {
	table         int
	writer, first uint64
	length        int
	// across is set if the item may have rows of several episodes.
	across bool
}

// versions is how many priorities an item can have. It is created with the first one.
const versions = 1 << 12

// priority returns a priority that no other item has: it is from 1 to 2.
func (id identity) priority(version uint64) float64 {
	across := uint64(0)
	if id.across {
		across = 1
	}
	hash := mix(uint64(id.table), id.writer, id.first, uint64(id.length), across)
	return math.Float64frombits(1023<<52 | hash>>24<<12 | version%versions)
}

// hasPriority reports whether a priority is one of the item's.
func (id identity) hasPriority(priority float64) bool {
	return math.Float64bits(priority)|(versions-1) == math.Float64bits(id.priority(versions-1))
}

// version returns which of the item's priorities it is.
func version(priority float64) uint64 { return math.Float64bits(priority) % versions }

// identify returns what an item is whose rows and priority are given, or what is wrong with it.
func identify(table int, rows []content, priority float64) (identity, error) {
	if len(rows) == 0 {
		return identity{}, errors.New("an item has no rows")
	}
	first := rows[0]
	id := identity{table: table, writer: first.writer, first: first.number, length: len(rows)}
	crosses := false
	for i, c := range rows {
		if c.writer != first.writer || c.number != first.number+uint64(i) {
			return id, fmt.Errorf("an item has a foreign row: row %d is %+v, and the first one %+v", i, c, first)
		}
		crosses = crosses || c.episode != first.episode
	}
	if !crosses && id.hasPriority(priority) {
		return id, nil
	}
	if id.across = true; id.hasPriority(priority) {
		return id, nil
	}
	return id, fmt.Errorf("an item has foreign rows, lacks rows, crosses an episode's end or has the priority of another one: "+
		"%d rows from %+v to %+v, priority %x", len(rows), first, rows[len(rows)-1], math.Float64bits(priority))
}

// memory remembers the rows that a reader has read: the newest one of each place in the ring.
type memory struct {
	life uint64
	// rows are in their places; those not seen are zero.
	rows []remembered
}

type remembered struct{ sequence, writer, number uint64 }

func newMemory(life, capacity uint64) *memory {
	return &memory{life: life, rows: make([]remembered, capacity)}
}

// check returns what is wrong with a complete row that was read with a sequence number.
func (m *memory) check(sequence uint64, c content) error {
	known := &m.rows[sequence%uint64(len(m.rows))]
	same := known.writer == c.writer && known.number == c.number
	switch {
	case c.life != m.life:
		return fmt.Errorf("a row of another generation: row %d is %+v, and this is life %d", sequence, c, m.life)
	case c.after > sequence:
		return fmt.Errorf("a row of another generation: row %d is %+v, written after row %d", sequence, c, c.after-1)
	case known.number == 0:
	case known.sequence == sequence && !same:
		return fmt.Errorf("a row of another generation: row %d is %+v, and was %+v before", sequence, c, *known)
	case known.sequence != sequence && same:
		return fmt.Errorf("a row of another generation: row %d is %+v, as row %d was", sequence, c, known.sequence)
	}
	if known.number == 0 || known.sequence < sequence {
		*known = remembered{sequence, c.writer, c.number}
	}
	return nil
}

// checkRows checks rows, and returns their contents. Ordered ones are by increasing sequence
// numbers.
func (m *memory) checkRows(rows *columns, sequences []uint64, ordered bool) ([]content, error) {
	if len(rows.Writer) != len(sequences) {
		return nil, fmt.Errorf("%d rows have %d sequence numbers", len(rows.Writer), len(sequences))
	}
	contents := make([]content, len(sequences))
	numbers := make(map[uint64]uint64)
	for i, s := range sequences {
		c, err := readRow(rows, i)
		if errors.Is(err, errMissing) { // the ring has it, and no item was to be filled
			err = errors.New("torn row: nothing of it is written")
		}
		if err == nil {
			err = m.check(s, c)
		}
		if err == nil && ordered {
			if i > 0 && s <= sequences[i-1] {
				err = fmt.Errorf("row %d follows row %d", s, sequences[i-1])
			} else if c.number <= numbers[c.writer] {
				err = fmt.Errorf("a row of another generation: row %d is %+v, after number %d of the same writer", s, c, numbers[c.writer])
			}
			numbers[c.writer] = c.number
		}
		if err != nil {
			return nil, fmt.Errorf("row %d of %d, number %d: %w", i, len(sequences), s, err)
		}
		contents[i] = c
	}
	return contents, nil
}
