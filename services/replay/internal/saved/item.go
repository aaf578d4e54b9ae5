package saved

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/raylink/raylink/services/replay/internal/table"
)

// ErrDamaged means that bytes are not what this package wrote.
var ErrDamaged = errors.New("damaged")

// An item is: slot and number, uvarint each. A free slot has the number 0, and ends there. Then the
// first row and the length of the first run, the number of further runs, and for each of these the
// gap to the end of the run before it and its length, uvarint each; the priority, float64; how
// often the item was sampled, uvarint; when it was inserted, in nanoseconds of Unix time, int64;
// and 0, or one more than the epoch in which it was drawn, uvarint.

// AppendItem appends the state of an item, or of a free slot. now is when it had that state.
func AppendItem(b []byte, s *table.State, now time.Time) []byte {
	b = binary.AppendUvarint(b, uint64(s.Slot))
	b = binary.AppendUvarint(b, s.Number)
	if s.Number == 0 {
		return b
	}
	b = binary.AppendUvarint(b, s.Run.First)
	b = binary.AppendUvarint(b, uint64(s.Run.Length))
	b = binary.AppendUvarint(b, uint64(len(s.More)))
	end := s.Run.First + uint64(s.Run.Length)
	for _, r := range s.More {
		b = binary.AppendUvarint(b, r.First-end)
		b = binary.AppendUvarint(b, uint64(r.Length))
		end = r.First + uint64(r.Length)
	}
	b = appendFloat(b, s.Priority)
	b = binary.AppendUvarint(b, uint64(s.Sampled))
	b = binary.LittleEndian.AppendUint64(b, uint64(now.Add(-s.Age).UnixNano()))
	drawn := uint64(0)
	if s.Drawn {
		drawn = s.Epoch + 1
	}
	return binary.AppendUvarint(b, drawn)
}

// ParseItem parses what [AppendItem] appended, and returns the rest. now is the time for which the
// item's age is returned. An error matches [ErrDamaged]. Whether there can be such an item is
// checked by [table.Restore].
func ParseItem(b []byte, now time.Time) (s table.State, rest []byte, err error) {
	p := parser{rest: b}
	s.Slot = uint32(p.uvarint(math.MaxUint32)) //nolint:gosec // bounded
	if s.Number = p.uvarint(math.MaxUint64); s.Number == 0 {
		return s, p.rest, p.failure("an item")
	}
	s.Run = table.Run{First: p.uvarint(math.MaxUint64), Length: uint32(p.uvarint(math.MaxUint32))} //nolint:gosec // bounded
	end := s.Run.First + uint64(s.Run.Length)
	if more := p.uvarint(uint64(len(p.rest)) / 2); more > 0 && !p.failed {
		s.More = make([]table.Run, more)
	}
	for i := range s.More {
		s.More[i] = table.Run{First: end + p.uvarint(math.MaxUint64), Length: uint32(p.uvarint(math.MaxUint32))} //nolint:gosec // bounded
		end = s.More[i].First + uint64(s.More[i].Length)
	}
	s.Priority = p.float()
	s.Sampled = uint32(p.uvarint(math.MaxUint32))                  //nolint:gosec // bounded
	s.Age = max(0, time.Duration(now.UnixNano()-int64(p.fixed()))) //nolint:gosec // any bits
	if drawn := p.uvarint(math.MaxUint64); drawn > 0 {
		s.Drawn, s.Epoch = true, drawn-1
	}
	return s, p.rest, p.failure("an item")
}

// AppendMeta appends what a table has beside its items.
func AppendMeta(b []byte, m *table.Meta) []byte {
	c := &m.Counts
	for _, n := range []uint64{
		c.Inserted, c.Sampled, c.Overwritten, c.Late, c.Evicted, c.Exhausted, c.Deleted, c.Stale, c.Returned,
		uint64(m.Limiter.Rule), uint64(m.Limiter.MinSize), uint64(m.Limiter.Capacity), //nolint:gosec // not negative
		uint64(m.Lost), m.Oldest, m.Number, m.Epoch, //nolint:gosec // not negative
	} {
		b = binary.AppendUvarint(b, n)
	}
	for _, x := range []float64{m.Limiter.Ratio, m.Limiter.Buffer, m.Difference} {
		b = appendFloat(b, x)
	}
	return b
}

// ParseMeta parses what [AppendMeta] appended, and returns the rest. An error matches [ErrDamaged].
func ParseMeta(b []byte) (m table.Meta, rest []byte, err error) {
	p := parser{rest: b}
	c := &m.Counts
	for _, n := range []*uint64{
		&c.Inserted, &c.Sampled, &c.Overwritten, &c.Late, &c.Evicted, &c.Exhausted, &c.Deleted, &c.Stale, &c.Returned,
	} {
		*n = p.uvarint(math.MaxUint64)
	}
	m.Limiter.Rule = table.Rule(p.uvarint(math.MaxUint8)) //nolint:gosec // bounded
	for _, n := range []*int{&m.Limiter.MinSize, &m.Limiter.Capacity, &m.Lost} {
		*n = int(p.uvarint(math.MaxInt32)) //nolint:gosec // bounded
	}
	for _, n := range []*uint64{&m.Oldest, &m.Number, &m.Epoch} {
		*n = p.uvarint(math.MaxUint64)
	}
	for _, x := range []*float64{&m.Limiter.Ratio, &m.Limiter.Buffer, &m.Difference} {
		*x = p.float()
	}
	return m, p.rest, p.failure("the state of a table")
}

func appendFloat(b []byte, x float64) []byte {
	return binary.LittleEndian.AppendUint64(b, math.Float64bits(x))
}

// parser parses numbers. After a failure it returns zeros.
type parser struct {
	rest   []byte
	failed bool
}

// uvarint parses a number that is at most a maximum.
func (p *parser) uvarint(most uint64) uint64 {
	x, n := binary.Uvarint(p.rest)
	if p.failed || n <= 0 || x > most {
		p.failed = true
		return 0
	}
	p.rest = p.rest[n:]
	return x
}

// fixed parses 8 bytes.
func (p *parser) fixed() uint64 {
	if p.failed || len(p.rest) < 8 {
		p.failed = true
		return 0
	}
	x := binary.LittleEndian.Uint64(p.rest)
	p.rest = p.rest[8:]
	return x
}

func (p *parser) float() float64 { return math.Float64frombits(p.fixed()) }

// text parses a length and as many bytes, which stay part of the input.
func (p *parser) text() []byte {
	n := p.uvarint(uint64(len(p.rest)))
	if p.failed || n > uint64(len(p.rest)) {
		p.failed = true
		return nil
	}
	text := p.rest[:n]
	p.rest = p.rest[n:]
	return text
}

func (p *parser) failure(what string) error {
	if !p.failed {
		return nil
	}
	return fmt.Errorf("%w: %s ends too early or has a number that is too high", ErrDamaged, what)
}
