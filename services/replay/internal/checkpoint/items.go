package checkpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/raylink/raylink/services/replay/internal/saved"
	"github.com/raylink/raylink/services/replay/internal/table"
)

// minItem is the least length of an item of package saved, in bytes.
const minItem = 5 + 8 + 1 + 8 + 1

var errItems = errors.New("invalid encoding of items")

// appendItems appends the content of a chunk: the number of items, as a varint, and the items, as
// they are at a time. It returns the items for which there is no room.
func appendItems(b []byte, states []table.State, now time.Time) ([]byte, []table.State) {
	begin, n := len(b), 0
	b = append(b, 0, 0) // the number, with two bytes also where one was enough
	for n < len(states) && len(b)-begin < itemBytes {
		b = saved.AppendItem(b, &states[n], now)
		n++
	}
	b[begin], b[begin+1] = byte(n)|0x80, byte(n>>7)
	return b, states[n:]
}

// parseItems calls each for the items of a chunk, with the age that they have at a time.
func parseItems(content []byte, now time.Time, each func(*table.State) error) error {
	p := &parser{b: content}
	var s table.State // one for all, as a variable of the loop would be allocated each time
	for range p.number(uint64(len(content) / minItem)) {
		var rest []byte
		var err error
		if s, rest, err = saved.ParseItem(p.b, now); err != nil {
			return fmt.Errorf("%w: %w", errItems, err)
		}
		if s.Number == 0 {
			return fmt.Errorf("%w: it has a free slot", errItems)
		}
		p.b = rest
		if err := each(&s); err != nil {
			return err
		}
	}
	if p.failed || len(p.b) > 0 {
		return errItems
	}
	return nil
}

// parser reads numbers. After an invalid one it has failed, and returns zeros.
type parser struct {
	b      []byte
	failed bool
}

// number reads a number, at most a maximum.
func (p *parser) number(most uint64) uint64 {
	n, size := binary.Uvarint(p.b)
	if size <= 0 || n > most {
		p.failed, p.b = true, nil
		return 0
	}
	p.b = p.b[size:]
	return n
}
