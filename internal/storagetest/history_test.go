package storagetest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
)

// history collects the events of all processes into a record.
type history struct {
	t *testing.T

	mu     sync.Mutex // guards the fields below
	record *record
	faults []string
	// troubles are errors that may pass.
	troubles []string
	// made are how many attempts of each outcome there were, and reads how many reads.
	made  map[string]int
	reads int
	// changed is closed at the next event.
	changed chan struct{}
}

func newHistory(t *testing.T) *history {
	t.Helper()
	return &history{t: t, record: newRecord(), made: make(map[string]int), changed: make(chan struct{})}
}

// add adds an event of a process.
func (h *history) add(process string, a answer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	who := process + " " + a.Who
	switch a.Event {
	case attemptEvent:
		// Writers go on in other rounds.
		h.record.attempts[a.Who] = append(h.record.attempts[a.Who], *a.Attempt)
		h.made[a.Attempt.Outcome]++
	case readEvent:
		h.record.reads[who] = append(h.record.reads[who], *a.Read)
		h.reads++
	case sentEvent:
		s := h.record.streams[who]
		if s == nil {
			s = &stream{prefix: a.Sent.Prefix, since: a.Sent.Since}
			h.record.streams[who] = s
		}
		s.changes = append(s.changes, a.Sent.Changes...)
		if n := len(s.changes); n > 0 {
			s.until = max(s.until, s.changes[n-1].ID)
		}
		s.until = max(s.until, a.Sent.Until)
	case troubleEvent:
		h.troubles = append(h.troubles, fmt.Sprintf("%s: %s: %s", who, a.Code, a.Error))
	default:
		h.faults = append(h.faults, fmt.Sprintf("%s: %s %s", who, a.Code, a.Error))
	}
	close(h.changed)
	h.changed = make(chan struct{})
}

// await waits until a condition holds, which is checked after every event with mu held.
func (h *history) await(limit time.Duration, what string, ok func() bool) {
	h.t.Helper()
	timeout := time.After(limit)
	for {
		h.mu.Lock()
		done, changed, faults := ok(), h.changed, h.faults
		h.mu.Unlock()
		if done {
			return
		}
		if len(faults) > 0 {
			require.Fail(h.t, faults[0])
		}
		select {
		case <-changed:
		case <-timeout:
			h.mu.Lock()
			defer h.mu.Unlock()
			require.Fail(h.t, what, "within %v: %s", limit, h)
		}
	}
}

// awaitMore waits until so many more writes are acknowledged.
func (h *history) awaitMore(count int, what string) {
	h.t.Helper()
	h.mu.Lock()
	before := h.made[acknowledged]
	h.mu.Unlock()
	h.await(proctest.Patience, what, func() bool { return h.made[acknowledged] >= before+count })
}

// newest returns the id of the last change of the keys with a prefix that was sent to a watcher; of
// all keys, the last id.
func (r *record) newest(prefix string, last uint64) (id uint64) {
	if prefix == "" {
		return last
	}
	for _, s := range r.streams {
		for _, c := range slices.Backward(s.changes) {
			if strings.HasPrefix(c.Key, prefix) {
				id = max(id, c.ID)
				break
			}
		}
	}
	return id
}

// finish checks the record with the last state, once all watchers have been sent everything.
func (h *history) finish(final []change, last uint64) {
	h.t.Helper()
	for _, all := range []bool{true, false} { // those of all keys show what the others wait for
		h.await(proctest.Patience, "watchers were not sent the last changes", func() bool {
			for _, s := range h.record.streams {
				if (s.prefix == "") == all && s.until < h.record.newest(s.prefix, last) {
					return false
				}
			}
			return true
		})
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.record.final, h.record.last = final, last
	h.t.Log(h)
	for _, f := range append(h.faults, h.record.check()...) {
		assert.Fail(h.t, f)
	}
}

// String describes the state. The caller holds mu.
func (h *history) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "writes: %v; %d reads; %d watchers; ", h.made, h.reads, len(h.record.streams))
	for who, s := range h.record.streams {
		if s.prefix == "" {
			fmt.Fprintf(&text, "%s was sent all up to id %d; ", who, s.until)
		}
	}
	fmt.Fprintf(&text, "%d errors, at last %q", len(h.troubles), h.troubles[max(0, len(h.troubles)-3):])
	return text.String()
}
