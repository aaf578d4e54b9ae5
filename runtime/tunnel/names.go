package tunnel

// Targets, callers and procedures repeat from call to call. The dialling side interns each: a NAME
// frame assigns it a number at its first use, and later calls send the number only. The peer limits
// the size of the table; names beyond it are sent in full, as number 0.

// interner is the sending half. It is guarded by Conn.mu.
type interner struct {
	numbers map[string]uint32
	bytes   int
	// lastNames and lastNumbers cache the names and numbers of the last call, since consecutive
	// calls mostly have the same.
	lastNames   [3]string
	lastNumbers [3]uint32
}

// refs are the numbers of a call's names, 0 for a name sent in full.
type refs [3]uint32

// intern returns the numbers of a call's names. It queues a NAME frame for each new name that fits
// the table.
func (t *interner) intern(o *outbox, names [3]string, peer *limits) refs {
	for i, name := range names {
		if t.lastNumbers[i] == 0 || t.lastNames[i] != name {
			t.lastNames[i], t.lastNumbers[i] = name, t.number(o, name, peer)
		}
	}
	return t.lastNumbers
}

func (t *interner) number(o *outbox, name string, peer *limits) uint32 {
	if number, known := t.numbers[name]; known {
		return number
	}
	if len(t.numbers) >= peer.maxNames || t.bytes+len(name) > peer.maxNameTableBytes || len(name) > maxNameLength {
		return 0
	}
	if t.numbers == nil {
		t.numbers = make(map[string]uint32)
	}
	number := uint32(len(t.numbers) + 1) //nolint:gosec // bounded by maxNames
	t.numbers[name] = number
	t.bytes += len(name)
	start := o.beginFrame(len(name))
	o.buf = append(o.buf, name...)
	o.endFrame(start, kindName, 0, number)
	return number
}

// append encodes the references, and the names that are sent in full.
func (r refs) append(b []byte, names [3]string) []byte {
	for i, number := range r {
		b = appendInt(b, int(number))
		if number == 0 {
			b = appendString(b, names[i])
		}
	}
	return b
}

// Names are the names in a CALL. Calls of one connection with the same names share one Names.
type Names struct {
	// Target is the callee, Caller the calling entity, and Procedure the method. They are as sent
	// by the caller and not verified.
	Target, Caller, Procedure string
	// resolution is the handler's, see Resolution.
	resolution Resolution
	// aliases is set if the last large request with these names aliased its receive buffer. It is
	// owned by the read loop.
	aliases bool
}

// Resolution is what a handler has resolved the names of a call to.
type Resolution interface {
	// Current reports whether the names would still be resolved to the same.
	Current() bool
}

// Resolution returns the resolution that was set for a call with these names, or nil if there is
// none or it is no longer current. It is for use in ServeUnary, as is SetResolution.
func (n *Names) Resolution() Resolution {
	if n.resolution != nil && !n.resolution.Current() {
		n.resolution = nil
	}
	return n.resolution
}

// SetResolution keeps a resolution for later calls with these names.
func (n *Names) SetResolution(r Resolution) { n.resolution = r }

// nameTable is the receiving half. It is owned by the read loop.
type nameTable struct {
	names []string
	bytes int
	// shared holds the Names by their numbers. last and lastNumbers cache the entry used last.
	shared      map[refs]*Names
	last        *Names
	lastNumbers refs
}

// maxShared limits the number of shared Names.
const maxShared = 1 << 12

func (t *nameTable) add(number uint32, name []byte) error {
	switch {
	case int(number) != len(t.names)+1:
		return violation("name number %d after %d", number, len(t.names))
	case len(t.names) >= maxNames || t.bytes+len(name) > maxNameTableBytes:
		return violation("more than %d names or %d bytes of them", maxNames, maxNameTableBytes)
	}
	t.names = append(t.names, string(name))
	t.bytes += len(name)
	return nil
}

// read reads the three names of a CALL.
func (t *nameTable) read(p *parser) *Names {
	var numbers refs
	var names [3]string
	whole := true // all names have numbers
	for i := range numbers {
		numbers[i], names[i] = t.name(p)
		whole = whole && numbers[i] != 0
	}
	if whole && numbers == t.lastNumbers {
		return t.last
	}
	if whole && t.shared[numbers] != nil {
		t.last, t.lastNumbers = t.shared[numbers], numbers
		return t.last
	}
	n := &Names{Target: names[0], Caller: names[1], Procedure: names[2]}
	if whole && p.err == nil && len(t.shared) < maxShared {
		if t.shared == nil {
			t.shared = make(map[refs]*Names)
		}
		t.shared[numbers] = n
		t.last, t.lastNumbers = n, numbers
	}
	return n
}

func (t *nameTable) name(p *parser) (uint32, string) {
	number := p.int()
	switch {
	case number == 0:
		return 0, p.string()
	case number > len(t.names):
		p.failf("name number %d of %d", number, len(t.names))
		return 0, ""
	}
	return uint32(number), t.names[number-1] //nolint:gosec // bounded by maxNames
}
