package safetensors

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// entry is one tensor of a header.
type entry struct {
	Tensor

	// begin and end are offsets in the data.
	begin, end uint64
}

func compareOffsets(a, b entry) int {
	return cmp.Or(cmp.Compare(a.begin, b.begin), cmp.Compare(a.end, b.end))
}

// check returns an error unless the tensor begins at covered, where the one before it ends, and has
// the size of its shape.
func (e *entry) check(covered, data uint64) error {
	switch {
	case e.end < e.begin:
		return fmt.Errorf("its data end at %d, before they begin at %d", e.end, e.begin)
	case e.end > data:
		return fmt.Errorf("its data end at %d, but there are only %d bytes", e.end, data)
	case e.begin < covered:
		return fmt.Errorf("its data begin at %d and overlap those of another, which end at %d", e.begin, covered)
	case e.begin > covered:
		return fmt.Errorf("its data begin at %d, after a hole that begins at %d", e.begin, covered)
	}
	size, err := dataSize(e.DType, e.Shape)
	if err != nil {
		return err
	}
	if size != e.end-e.begin {
		return fmt.Errorf("%s of shape %v has %d bytes, not %d", e.DType, e.Shape, size, e.end-e.begin)
	}
	return nil
}

// parseHeader parses a header's JSON.
//
// It is a parser of its own, not encoding/json, because the format forbids what that accepts:
// duplicate names, unpaired surrogates and invalid UTF-8, which it replaces, so that two names
// become one. Nothing in it recurses: the depth is that of the format. It is also several times
// faster, which counts where each new version of the parameters is parsed.
func parseHeader(header []byte) ([]entry, map[string]string, error) {
	if !utf8.Valid(header) {
		return nil, nil, fmt.Errorf("%w: the header is not UTF-8", ErrFormat)
	}
	s := &scanner{header: header}
	entries, metadata, err := s.parse()
	if err != nil {
		return nil, nil, fmt.Errorf("%w: header, byte %d: %w", ErrFormat, s.at, err)
	}
	return entries, metadata, nil
}

// scanner reads a header from the front. Its methods skip the white space before what they read.
type scanner struct {
	header []byte
	at     int
	// scratch holds the string that was read last, if it has escapes.
	scratch []byte
}

func (s *scanner) parse() ([]entry, map[string]string, error) {
	if len(s.header) == 0 || s.header[0] != '{' {
		return nil, nil, errors.New("it does not begin with {")
	}
	var entries []entry
	var metadata map[string]string
	names := make(map[string]struct{})
	err := s.object(func(name []byte) error {
		if _, ok := names[string(name)]; ok {
			return fmt.Errorf("%.80q occurs twice", name)
		}
		key := string(name)
		names[key] = struct{}{}
		if key == metadataKey {
			var err error
			metadata, err = s.metadata()
			return err
		}
		e := entry{Tensor: Tensor{Name: key}}
		if err := s.entry(&e); err != nil {
			return fmt.Errorf("tensor %.80q: %w", key, err)
		}
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	if s.peek() != 0 {
		return nil, nil, errors.New("something follows the closing }")
	}
	return entries, metadata, nil
}

func (s *scanner) metadata() (map[string]string, error) {
	metadata := make(map[string]string)
	err := s.object(func(name []byte) error {
		if _, ok := metadata[string(name)]; ok {
			return fmt.Errorf("metadata: %.80q occurs twice", name)
		}
		key := string(name)
		value, err := s.text()
		if err != nil {
			return fmt.Errorf("metadata: %.80q: %w", key, err)
		}
		metadata[key] = string(value)
		return nil
	})
	return metadata, err
}

// entry reads a tensor's description. It must have all fields, each once, and no others: to ignore
// an unknown one could be to misread the data.
func (s *scanner) entry(e *entry) error {
	const dtype, shape, offsets, all = 1, 2, 4, 7
	seen := 0
	err := s.object(func(name []byte) (err error) {
		var field int
		switch string(name) {
		case "dtype":
			field = dtype
			e.DType, err = s.dtype()
		case "shape":
			field = shape
			e.Shape, err = s.shape()
		case "data_offsets":
			field = offsets
			err = s.offsets(e)
		default:
			return fmt.Errorf("unknown field %.80q", name)
		}
		if err == nil && seen&field != 0 {
			return errors.New("a field occurs twice")
		}
		seen |= field
		return err
	})
	if err == nil && seen != all {
		return errors.New("it lacks one of dtype, shape and data_offsets")
	}
	return err
}

func (s *scanner) dtype() (string, error) {
	text, err := s.text()
	if err != nil {
		return "", err
	}
	if _, ok := elementBits[string(text)]; !ok {
		return "", fmt.Errorf("unknown data type %.40q", text)
	}
	return string(text), nil
}

func (s *scanner) shape() ([]int, error) {
	shape := []int{}
	err := s.array(func() error {
		if len(shape) == MaxRank {
			return fmt.Errorf("more than %d dimensions", MaxRank)
		}
		n, err := s.number()
		if err != nil {
			return err
		}
		if n > math.MaxInt {
			return fmt.Errorf("a dimension of %d", n)
		}
		shape = append(shape, int(n))
		return nil
	})
	return shape, err
}

func (s *scanner) offsets(e *entry) error {
	n := 0
	err := s.array(func() (err error) {
		switch n++; n {
		case 1:
			e.begin, err = s.number()
		case 2:
			e.end, err = s.number()
		default:
			err = errors.New("data_offsets has more than two numbers")
		}
		return err
	})
	if err == nil && n != 2 {
		return errors.New("data_offsets has fewer than two numbers")
	}
	return err
}

// object reads an object. It calls value after each name, which is valid until then.
func (s *scanner) object(value func(name []byte) error) error {
	return s.list('{', '}', func() error {
		name, err := s.text()
		if err != nil {
			return err
		}
		// The name may be in the scratch memory, which reading the value overwrites: value has to
		// copy it first.
		if err := s.expect(':'); err != nil {
			return err
		}
		return value(name)
	})
}

func (s *scanner) array(element func() error) error { return s.list('[', ']', element) }

func (s *scanner) list(open, end byte, element func() error) error {
	if err := s.expect(open); err != nil {
		return err
	}
	if s.peek() == end {
		s.at++
		return nil
	}
	for {
		if err := element(); err != nil {
			return err
		}
		if s.peek() == end {
			s.at++
			return nil
		}
		if err := s.expect(','); err != nil {
			return err
		}
	}
}

// peek returns the next byte after white space, or 0 at the end. A byte 0 is returned as 1: it is
// valid nowhere.
func (s *scanner) peek() byte {
	for s.at < len(s.header) {
		switch c := s.header[s.at]; c {
		case ' ', '\t', '\n', '\r':
			s.at++
		default:
			return max(c, 1)
		}
	}
	return 0
}

func (s *scanner) expect(c byte) error {
	if got := s.peek(); got == 0 {
		return fmt.Errorf("it ends where %q should follow", c)
	} else if got != c {
		return fmt.Errorf("%q where %q should follow", got, c)
	}
	s.at++
	return nil
}

// number reads a number without sign, fraction and exponent.
func (s *scanner) number() (uint64, error) {
	s.peek()
	from := s.at
	for s.at < len(s.header) && '0' <= s.header[s.at] && s.header[s.at] <= '9' {
		s.at++
	}
	digits := s.header[from:s.at]
	if len(digits) == 0 {
		return 0, errors.New("a number without sign should follow")
	}
	if s.at < len(s.header) {
		switch s.header[s.at] {
		case '.', 'e', 'E':
			return 0, errors.New("a number is not written as an integer")
		}
	}
	const most = 20 // digits of the largest uint64
	if digits[0] == '0' && len(digits) > 1 || len(digits) > most {
		return 0, fmt.Errorf("invalid number %.30s", digits)
	}
	n, err := strconv.ParseUint(string(digits), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("invalid number %s", digits)
	}
	return n, nil
}

// text reads a string. The result is valid until the next string is read.
func (s *scanner) text() ([]byte, error) {
	if err := s.expect('"'); err != nil {
		return nil, err
	}
	from := s.at
	for ; s.at < len(s.header); s.at++ {
		switch c := s.header[s.at]; {
		case c == '"':
			s.at++
			return s.header[from : s.at-1], nil
		case c == '\\':
			s.scratch = append(s.scratch[:0], s.header[from:s.at]...)
			return s.escapedText()
		case c < ' ':
			return nil, errors.New("a control character in a string")
		}
	}
	return nil, errors.New("it ends within a string")
}

// escapedText reads the rest of a string into the scratch memory.
func (s *scanner) escapedText() ([]byte, error) {
	for s.at < len(s.header) {
		c := s.header[s.at]
		s.at++
		switch {
		case c == '"':
			return s.scratch, nil
		case c < ' ':
			return nil, errors.New("a control character in a string")
		case c == '\\':
			if err := s.escape(); err != nil {
				return nil, err
			}
		default:
			s.scratch = append(s.scratch, c)
		}
	}
	return nil, errors.New("it ends within a string")
}

// escape reads what follows a backslash.
func (s *scanner) escape() error {
	if s.at == len(s.header) {
		return errors.New("it ends within a string")
	}
	c := s.header[s.at]
	s.at++
	switch c {
	case '"', '\\', '/':
		s.scratch = append(s.scratch, c)
	case 'b':
		s.scratch = append(s.scratch, '\b')
	case 'f':
		s.scratch = append(s.scratch, '\f')
	case 'n':
		s.scratch = append(s.scratch, '\n')
	case 'r':
		s.scratch = append(s.scratch, '\r')
	case 't':
		s.scratch = append(s.scratch, '\t')
	case 'u':
		r, err := s.unicode()
		if err != nil {
			return err
		}
		s.scratch = utf8.AppendRune(s.scratch, r)
	default:
		return fmt.Errorf("invalid escape \\%c in a string", c)
	}
	return nil
}

// unicode reads what follows \u: a character, or the two halves of one.
func (s *scanner) unicode() (rune, error) {
	r, err := s.hex()
	if err != nil || !utf16.IsSurrogate(r) {
		return r, err
	}
	if len(s.header)-s.at < 2 || s.header[s.at] != '\\' || s.header[s.at+1] != 'u' {
		return 0, errors.New("half a character in a string")
	}
	s.at += 2
	low, err := s.hex()
	if err != nil {
		return 0, err
	}
	if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
		return 0, errors.New("half a character in a string")
	}
	return r, nil
}

func (s *scanner) hex() (rune, error) {
	const digits = 4
	if len(s.header)-s.at < digits {
		return 0, errors.New("it ends within a string")
	}
	var r rune
	for range digits {
		c := s.header[s.at]
		s.at++
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, errors.New("invalid escape \\u in a string")
		}
		r = r<<4 | rune(c)
	}
	return r, nil
}
