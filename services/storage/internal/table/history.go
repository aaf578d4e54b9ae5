package table

// history is the latest committed changes, whose ids are contiguous: a ring that grows up to its
// limits. It always has the newest change.
type history struct {
	maxLen   int
	maxBytes uint64

	// ring has length records, the oldest at head.
	ring         []*record
	head, length int
	bytes        uint64
}

// at returns the i-th oldest change.
func (h *history) at(i int) *record { return h.ring[(h.head+i)%len(h.ring)] }

// push adds the newest change.
func (h *history) push(r *record) {
	if h.length == len(h.ring) {
		grown := make([]*record, min(max(2*h.length, 64), max(h.maxLen+1, h.length+1)))
		for i := range h.length {
			grown[i] = h.at(i)
		}
		h.ring, h.head = grown, 0
	}
	h.ring[(h.head+h.length)%len(h.ring)] = r
	h.length++
	h.bytes += r.historyBytes()
}

// pop drops the oldest change.
func (h *history) pop() *record {
	r := h.ring[h.head]
	h.ring[h.head] = nil
	h.head = (h.head + 1) % len(h.ring)
	h.length--
	h.bytes -= r.historyBytes()
	r.flags |= dropped
	return r
}

// supersede marks a record whose key has a later committed write.
func (h *history) supersede(r *record) {
	inHistory := r.flags&dropped == 0
	if inHistory {
		h.bytes -= r.historyBytes()
	}
	r.flags |= superseded
	if inHistory {
		h.bytes += r.historyBytes()
	}
}

// full reports whether the oldest change has to be dropped.
func (h *history) full() bool {
	return h.length > 1 && (h.length > h.maxLen || h.bytes > h.maxBytes)
}
