package storagetest

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// change is a write, as a watcher sees it.
type change struct {
	ID  uint64 `json:"i"`
	Key string `json:"k"`
	// Value is the new value's text.
	Value   string `json:"v,omitempty"`
	Removed bool   `json:"r,omitempty"`
}

// Kinds of writes.
const (
	putKind    = "put"
	addKind    = "add"
	appendKind = "append"
	deleteKind = "delete"
)

// write is one write of an attempt.
type write struct {
	Kind string `json:"o"`
	Key  string `json:"k"`
	// Value is what is put or appended, which no other write does, or the decimal text of what is
	// added.
	Value string `json:"v,omitempty"`
	// ID is the id that was answered.
	ID uint64 `json:"i,omitempty"`
	// Result is the sum or the size that was answered, if it was.
	Result string `json:"s,omitempty"`
}

// Outcomes of attempts.
const (
	// acknowledged: the call succeeded. refused: the error says that nothing was changed. unknown:
	// any other error; the writes were made, or not.
	acknowledged = "acknowledged"
	refused      = "refused"
	unknown      = "unknown"
)

// attempt is a call that writes, of a writer that makes one at a time.
type attempt struct {
	// Seen is the greatest id that the process had seen when the call began.
	Seen   uint64  `json:"n"`
	Writes []write `json:"w"`
	// Condition is the id that the key of the only write must have had, 0 if it must have been
	// missing. Conditional is whether there was a condition.
	Conditional bool   `json:"c,omitempty"`
	Condition   uint64 `json:"d,omitempty"`
	Outcome     string `json:"u"`
}

// read is what a call that reads was answered: the state of one moment.
type read struct {
	// Seen is the greatest id that the process had seen when the call began.
	Seen    uint64   `json:"n"`
	Entries []change `json:"e,omitempty"`
	// Missing are keys of which there were no entries, and so are all others with the prefix, if
	// Prefix is not nil.
	Missing []string `json:"m,omitempty"`
	Prefix  *string  `json:"p,omitempty"`
}

// sent is what a watcher received.
type sent struct {
	Prefix string `json:"p"`
	// Since is the id from which the watcher began, in its first event; Begin is set there.
	Begin   bool     `json:"b,omitempty"`
	Since   uint64   `json:"n,omitempty"`
	Changes []change `json:"c,omitempty"`
	// Until is the id up to which everything was sent, if the watcher was sent one.
	Until uint64 `json:"u,omitempty"`
}

// stream is all that a watcher was sent, over all of its calls.
type stream struct {
	prefix  string
	since   uint64
	changes []change
	until   uint64
}

// record is all that processes have been answered and have seen. It is not safe for concurrent use.
type record struct {
	attempts map[string][]attempt // by writer, in the order of its calls
	reads    map[string][]read
	streams  map[string]*stream
	// final is the state after the last write, whose id is last.
	final []change
	last  uint64
}

func newRecord() *record {
	return &record{attempts: make(map[string][]attempt), reads: make(map[string][]read), streams: make(map[string]*stream)}
}

// maxFaults bounds the list of what is wrong.
const maxFaults = 20

// checker checks a record. Its fields are what it has found so far.
type checker struct {
	*record

	faults []string
	// log are the changes of all streams, sorted by id, and byKey the places of each key's.
	log   []change
	at    map[uint64]int
	byKey map[string][]int
	// ends are the last ids of batches by the ids of their other writes, at which no moment is.
	ends map[uint64]uint64
}

// check returns what is wrong in the record:
//
//   - an id means one change, for all writers, readers and watchers, and the last state;
//   - ids have no gap from 1 to the last one;
//   - a watcher was sent all changes of its keys, once each, in the order of their ids;
//   - each acknowledged write is there with its id, and none that was refused;
//   - each change was made by one call, which made all of its writes, with ids in sequence;
//   - a write gives what its kind says of the state before, whose id is that of its condition;
//   - the writes of a call have greater ids than all that its process had seen before;
//   - a read returns the state of one moment, which is none before what its process had seen;
//   - the last state is that after all changes.
//
// A write whose answer was lost may be there or not.
func (r *record) check() []string {
	c := &checker{record: r, at: make(map[uint64]int), byKey: make(map[string][]int), ends: make(map[uint64]uint64)}
	c.collect()
	c.watchers()
	c.order()
	c.writes()
	for _, who := range slices.Sorted(maps.Keys(r.reads)) {
		for _, rd := range r.reads[who] {
			c.read(who, rd)
		}
	}
	all := ""
	c.read("the last state", read{Seen: r.last, Entries: r.final, Prefix: &all})
	return c.faults
}

func (c *checker) faultf(format string, args ...any) {
	if len(c.faults) < maxFaults {
		c.faults = append(c.faults, fmt.Sprintf(format, args...))
	}
}

// collect makes the log of the streams.
func (c *checker) collect() {
	known := make(map[uint64]change)
	for _, who := range slices.Sorted(maps.Keys(c.streams)) {
		for _, ch := range c.streams[who].changes {
			if other, ok := known[ch.ID]; ok && other != ch {
				c.faultf("%s: id %d means two changes: %s, and %s", who, ch.ID, ch, other)
			}
			known[ch.ID] = ch
		}
	}
	c.log = slices.SortedFunc(maps.Values(known), func(a, b change) int { return cmp.Compare(a.ID, b.ID) })
	next := uint64(1)
	for i, ch := range c.log {
		if ch.ID != next {
			c.faultf("ids %d to %d are of no change that a watcher has seen", next, ch.ID-1)
		}
		next = ch.ID + 1
		c.at[ch.ID] = i
		c.byKey[ch.Key] = append(c.byKey[ch.Key], i)
	}
	if next <= c.last {
		c.faultf("ids %d to %d are of no change that a watcher has seen", next, c.last)
	}
	if next > c.last+1 {
		c.faultf("watchers have seen ids up to %d, but the storage's last id is %d", next-1, c.last)
	}
}

// watchers checks each stream against the log.
func (c *checker) watchers() {
	for _, who := range slices.Sorted(maps.Keys(c.streams)) {
		s := c.streams[who]
		last := s.since
		seen := make(map[uint64]bool)
		for _, ch := range s.changes {
			switch {
			case seen[ch.ID]:
				c.faultf("%s was sent id %d twice", who, ch.ID)
			case ch.ID <= last:
				c.faultf("%s was sent id %d after id %d", who, ch.ID, last)
			case !strings.HasPrefix(ch.Key, s.prefix):
				c.faultf("%s watches %q, and was sent %s", who, s.prefix, ch)
			}
			seen[ch.ID] = true
			last = max(last, ch.ID)
		}
		for _, ch := range c.log {
			if ch.ID > s.since && strings.HasPrefix(ch.Key, s.prefix) && !seen[ch.ID] {
				c.faultf("%s was not sent %s", who, ch)
			}
		}
	}
}

// order checks that the ids of each writer's calls are greater than all that was seen before.
func (c *checker) order() {
	for _, who := range slices.Sorted(maps.Keys(c.attempts)) {
		last := uint64(0)
		for _, a := range c.attempts[who] {
			for _, w := range a.Writes {
				if a.Outcome != acknowledged || w.ID == 0 {
					continue
				}
				if w.ID <= max(last, a.Seen) {
					c.faultf("%s: %s of %q got id %d after id %d was seen", who, w.Kind, w.Key, w.ID, max(last, a.Seen))
				}
				last = max(last, w.ID)
			}
		}
	}
}

// try is an attempt and its writer.
type try struct {
	*attempt

	who string
	// made is set once the attempt's writes were found in the log.
	made bool
}

// tries are attempts by what identifies their writes in the log.
type tries struct {
	// byID are the acknowledged ones.
	byID map[uint64]*try
	// unsure and refused are those that were not acknowledged, by the identity of each of their
	// writes. Those with equal identities are interchangeable.
	unsure, refused map[string][]*try
}

func identity(kind, key, value string) string { return kind + "\x00" + key + "\x00" + value }

// writes checks each change of the log against the attempts, and replays it.
func (c *checker) writes() {
	known := c.tries()
	state := make(map[string]change)
	for i := 0; i < len(c.log); {
		t := c.author(known, state, i)
		if t == nil {
			state[c.log[i].Key] = c.log[i]
			i++
			continue
		}
		t.made = true
		if before := state[t.Writes[0].Key]; t.Conditional && idOf(before) != t.Condition {
			c.faultf("%s: %s was written on the condition that the key's id is %d, but it was %d", t.who, c.log[i], t.Condition, idOf(before))
		}
		for j, w := range t.Writes {
			if i == len(c.log) {
				c.faultf("%s: a batch is torn: its write %d, %s of %q, is not there", t.who, j, w.Kind, w.Key)
				break
			}
			ch := c.log[i]
			if ch.Key != w.Key || t.Outcome == acknowledged && ch.ID != w.ID {
				c.faultf("%s: a batch is torn: its write %d, %s of %q (id %d), is not there, but %s", t.who, j, w.Kind, w.Key, w.ID, ch)
				break
			}
			if last := len(t.Writes) - 1; j < last {
				c.ends[ch.ID] = ch.ID + uint64(last-j)
			}
			c.apply(t.who, w, state[ch.Key], ch)
			state[ch.Key] = ch
			i++
		}
	}
}

// tries indexes the attempts, and checks that what was acknowledged is in the log.
func (c *checker) tries() tries {
	known := tries{byID: make(map[uint64]*try), unsure: make(map[string][]*try), refused: make(map[string][]*try)}
	for _, who := range slices.Sorted(maps.Keys(c.attempts)) {
		for n := range c.attempts[who] {
			t := &try{who: who, attempt: &c.attempts[who][n]}
			for _, w := range t.Writes {
				id := identity(w.Kind, w.Key, w.Value)
				switch {
				case t.Outcome == refused:
					known.refused[id] = append(known.refused[id], t)
				case t.Outcome == unknown:
					known.unsure[id] = append(known.unsure[id], t)
				case w.ID == 0:
					// A key that was missing was deleted.
				default:
					c.isThere(who, w)
					if other := known.byID[w.ID]; other != nil {
						c.faultf("%s: %s of %q was acknowledged with id %d, as a write of %s was", who, w.Kind, w.Key, w.ID, other.who)
					}
					known.byID[w.ID] = t
				}
			}
		}
	}
	return known
}

// isThere checks that an acknowledged write is in the log.
func (c *checker) isThere(who string, w write) {
	if i, ok := c.at[w.ID]; !ok {
		c.faultf("%s: an acknowledged write is lost: %s of %q, id %d", who, w.Kind, w.Key, w.ID)
	} else if c.log[i].Key != w.Key {
		c.faultf("%s: an acknowledged write is lost: %s of %q, id %d, which is of %s", who, w.Kind, w.Key, w.ID, c.log[i])
	}
}

// author returns the attempt whose first write is a change of the log; nil if it is unknown.
func (c *checker) author(known tries, state map[string]change, i int) *try {
	ch := c.log[i]
	if t := known.byID[ch.ID]; t != nil {
		if t.made || t.Writes[0].ID != ch.ID {
			c.faultf("%s: a batch is torn: the writes before %s are not before it", t.who, ch)
			return nil
		}
		return t
	}
	before := state[ch.Key]
	ids := []string{identity(putKind, ch.Key, ch.Value), identity(addKind, ch.Key, difference(before.Value, ch.Value))}
	if part, ok := strings.CutPrefix(ch.Value, before.Value); ok {
		ids = append(ids, identity(appendKind, ch.Key, part))
	}
	if ch.Removed {
		ids = []string{identity(deleteKind, ch.Key, "")}
	}
	var found *try
	for _, id := range ids {
		for _, t := range known.unsure[id] {
			if t.made {
				continue
			}
			if w := t.Writes[0]; identity(w.Kind, w.Key, w.Value) != id {
				c.faultf("%s: a batch is torn: the writes before %s are not before it", t.who, ch)
				t.made = true
				return nil
			}
			if found == nil || t.Conditional && t.Condition == idOf(before) {
				found = t
			}
		}
	}
	if found != nil {
		return found
	}
	for _, id := range ids {
		for _, t := range known.refused[id] {
			c.faultf("%s: %s was written, although the call was refused", t.who, ch)
			return nil
		}
	}
	c.faultf("%s was written by no call, or by one that was made once and written twice", ch)
	return nil
}

// apply checks that a change is what a write gives.
func (c *checker) apply(who string, w write, before, after change) {
	want := change{ID: after.ID, Key: w.Key, Value: w.Value}
	result := ""
	switch w.Kind {
	case addKind:
		sum := number(before.Value) + number(w.Value)
		want.Value = strconv.FormatInt(sum, 10)
		result = want.Value
	case appendKind:
		want.Value = before.Value + w.Value
		result = strconv.Itoa(len(want.Value))
	case deleteKind:
		want.Removed, want.Value = true, ""
	}
	if after != want {
		c.faultf("%s: %s %q of %s gives %s, not %s", who, w.Kind, w.Value, before, want, after)
	}
	if w.Result != "" && w.Result != result {
		c.faultf("%s: %s %q was answered %s, but is %s", who, w.Kind, w.Value, w.Result, after)
	}
}

// read checks a read: there is a moment at which the state was as it says.
func (c *checker) read(who string, r read) {
	from, to := r.Seen, uint64(math.MaxUint64)
	asked := make(map[string]bool)
	for _, e := range r.Entries {
		asked[e.Key] = true
		i, ok := c.at[e.ID]
		if !ok || c.log[i] != e {
			c.faultf("%s: read %s, which was never written, or is lost", who, e)
			return
		}
		from, to = max(from, e.ID), min(to, c.next(e.Key, e.ID)-1)
	}
	from = max(from, c.ends[from])
	if from > to {
		c.faultf("%s: had seen id %d, and read entries that never were at one moment from then on: %s", who, r.Seen, r.Entries)
		return
	}
	missing := r.Missing
	if r.Prefix != nil {
		for key := range c.byKey {
			if !asked[key] && strings.HasPrefix(key, *r.Prefix) {
				missing = append(missing, key)
			}
		}
	}
	for _, key := range missing {
		if !c.isMissing(key, from, to) {
			c.faultf("%s: had seen id %d, and read that %q is missing, which it was not from %d to %d", who, r.Seen, key, from, to)
			return
		}
	}
}

// next returns the id of a key's next change after an id.
func (c *checker) next(key string, id uint64) uint64 {
	places := c.byKey[key]
	n, _ := slices.BinarySearchFunc(places, id+1, func(place int, id uint64) int { return cmp.Compare(c.log[place].ID, id) })
	if n == len(places) {
		return math.MaxUint64
	}
	return c.log[places[n]].ID
}

// isMissing reports whether a key was missing at a moment between two ids.
func (c *checker) isMissing(key string, from, to uint64) bool {
	missing := true
	for _, place := range c.byKey[key] {
		ch := c.log[place]
		if ch.ID > from && missing || ch.ID > to {
			break
		}
		missing = ch.Removed
	}
	return missing
}

// idOf returns the id of a key whose last change is known, as conditions mean it.
func idOf(c change) uint64 {
	if c.Removed {
		return 0
	}
	return c.ID
}

func (c change) String() string {
	switch {
	case c.ID == 0:
		return "a missing key"
	case c.Removed:
		return fmt.Sprintf("the removal %d of %q", c.ID, c.Key)
	}
	return fmt.Sprintf("the write %d of %q as %.60q", c.ID, c.Key, c.Value)
}

// number returns the number of a text, 0 for the empty one.
func number(text string) int64 {
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}

// difference returns the difference of two numbers; "" if they are no numbers.
func difference(from, to string) string {
	a, erra := strconv.ParseInt(cmp.Or(from, "0"), 10, 64)
	b, errb := strconv.ParseInt(to, 10, 64)
	if erra != nil || errb != nil {
		return ""
	}
	return strconv.FormatInt(b-a, 10)
}
