package parametertest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// history is what all processes have pushed and seen. It checks what must hold at any time:
//
//   - an id means one push, for its pusher and for each reader;
//   - the ids that a tag's one pusher gets increase.
type history struct {
	t *testing.T

	mu     sync.Mutex // guards the fields below
	faults []string
	tags   map[string]*tagHistory
	// troubles are errors of readers, and failures those of pushers.
	troubles, failures []string
	// changed is closed at the next event.
	changed chan struct{}
}

type tagHistory struct {
	// tokens are the pushes by id.
	tokens map[uint64]uint64
	// acknowledged is the last acknowledged id, and pushes how many there are.
	acknowledged uint64
	pushes       int
	// seen is the last id of each reader, and since when it has it.
	seen map[string]uint64
	at   map[string]time.Time
	// staleness is what a reader's follower said last.
	staleness map[string]answer
}

func newHistory(t *testing.T) *history {
	t.Helper()
	h := &history{t: t, tags: make(map[string]*tagHistory), changed: make(chan struct{})}
	t.Cleanup(h.check)
	return h
}

func (h *history) tag(name string) *tagHistory {
	if h.tags[name] == nil {
		h.tags[name] = &tagHistory{
			tokens: make(map[uint64]uint64), seen: make(map[string]uint64), at: make(map[string]time.Time), staleness: make(map[string]answer),
		}
	}
	return h.tags[name]
}

func (h *history) faultf(format string, args ...any) {
	if len(h.faults) < 20 {
		h.faults = append(h.faults, fmt.Sprintf(format, args...))
	}
}

// add adds an event of a process.
func (h *history) add(who string, a answer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.tag(a.Tag)
	switch a.Event {
	case pushedEvent, sawEvent:
		if token, ok := t.tokens[a.Version]; ok && token != a.Token {
			h.faultf("%s: version %d of %q is of two pushes, %x and %x: an id was given twice", who, a.Version, a.Tag, token, a.Token)
		}
		t.tokens[a.Version] = a.Token
		if a.Event == pushedEvent {
			if a.Version <= t.acknowledged {
				h.faultf("%s: push %x of %q got id %d after %d", who, a.Token, a.Tag, a.Version, t.acknowledged)
			}
			t.acknowledged = max(t.acknowledged, a.Version)
			t.pushes++
			break
		}
		if a.Version <= t.seen[who] {
			h.faultf("%s: saw version %d of %q after %d", who, a.Version, a.Tag, t.seen[who])
		}
		t.seen[who], t.at[who] = a.Version, time.Now()
	case failedEvent:
		h.failures = append(h.failures, fmt.Sprintf("%s: push %q: %s", who, a.Tag, a.Error))
	case troubleEvent:
		h.troubles = append(h.troubles, fmt.Sprintf("%s: %q: %s", who, a.Tag, a.Error))
	case "staleness":
		t.staleness[who] = a
	default:
		h.faultf("%s: %s", who, a.Error)
	}
	close(h.changed)
	h.changed = make(chan struct{})
}

// check fails the test if something was wrong.
func (h *history) check() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.faults {
		assert.Fail(h.t, f)
	}
}

// await waits until a condition holds, which is checked after every event.
func (h *history) await(limit time.Duration, what string, ok func() bool) {
	h.t.Helper()
	timeout := time.After(limit)
	for {
		h.mu.Lock()
		done, changed, faults := ok(), h.changed, len(h.faults)
		h.mu.Unlock()
		if done {
			return
		}
		if faults > 0 {
			h.t.FailNow() // check says why
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

// String describes the state. The caller holds mu.
func (h *history) String() string {
	var text strings.Builder
	for name, t := range h.tags {
		fmt.Fprintf(&text, "%q: %d pushes, the last is %d, seen %v; ", name, t.pushes, t.acknowledged, t.seen)
	}
	last := func(texts []string) []string { return texts[max(0, len(texts)-5):] }
	return text.String() + fmt.Sprintf("%d errors of pushers, at last %q; %d errors of readers, at last %q",
		len(h.failures), last(h.failures), len(h.troubles), last(h.troubles))
}

// acknowledged returns the last acknowledged id of a tag.
func (h *history) acknowledged(tag string) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tag(tag).acknowledged
}

// is checks that an id means a push that was seen or acknowledged as that id before.
func (h *history) is(who, tag string, id, token uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if known, ok := h.tag(tag).tokens[id]; ok && known != token {
		h.faultf("%s: version %d of %q is of two pushes, %x and %x", who, id, tag, known, token)
	}
	h.tag(tag).tokens[id] = token
}

// troubled reports whether a reader has had an error. The caller holds mu.
func (h *history) troubled(who string) bool {
	return slices.ContainsFunc(h.troubles, func(text string) bool { return strings.HasPrefix(text, who+":") })
}
