package tunnel

// Targets, callers and procedures repeat from call to call. The dialling side gives each a number the first time, by a NAME
// frame, and then sends the number alone. The table has an end (the peer's to say); names past it travel in full, as number 0.

// interner is the sending half. It is guarded by the connection's lock.
type interner struct {
	numbers map[string]uint32
	bytes   int
}

// define appends the NAME frame for a name that is new and still fits.
func (t *interner) define(b []byte, name string, peer *limits) []byte {
	if _, known := t.numbers[name]; known {
		return b
	}
	if len(t.numbers) >= peer.maxNames || t.bytes+len(name) > peer.maxNameBytes || len(name) > maxNameBytes {
		return b
	}
	if t.numbers == nil {
		t.numbers = make(map[string]uint32)
	}
	number := uint32(len(t.numbers) + 1) //nolint:gosec // bounded by maxNames
	t.numbers[name] = number
	t.bytes += len(name)
	b = makeHeader(kindName, 0, number, len(name)).append(b)
	return append(b, name...)
}

// append writes a reference to the name.
func (t *interner) append(b []byte, name string) []byte {
	if number, known := t.numbers[name]; known {
		return appendInt(b, int(number))
	}
	return appendString(append(b, 0), name)
}

// nameTable is the receiving half. It belongs to the reading goroutine.
type nameTable struct {
	names []string
	bytes int
}

func (t *nameTable) add(number uint32, name []byte) error {
	switch {
	case int(number) != len(t.names)+1:
		return violation("name number %d after %d", number, len(t.names))
	case len(t.names) >= maxNames || t.bytes+len(name) > maxNamesBytes:
		return violation("more than %d names or %d bytes of them", maxNames, maxNamesBytes)
	}
	t.names = append(t.names, string(name))
	t.bytes += len(name)
	return nil
}

func (t *nameTable) read(p *parser) string {
	number := p.int()
	switch {
	case number == 0:
		return p.string()
	case number > len(t.names):
		p.fail("name number %d of %d", number, len(t.names))
		return ""
	}
	return t.names[number-1]
}
