package storagetest

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// story returns the record of a storage that kept its word:
//
//	1  a adds 1 to counter
//	2  b puts one
//	3  a appends x to text
//	4  b's batch: puts left and right, adds to batches; its answer is lost
//	7  a adds 1 to counter; its answer is lost
//	8  b puts one on the condition that its id is 2
//	9  a appends y to text
//	10 b deletes one on the condition that its id is 8; its answer is lost
//	11 a's batch: puts left and right, adds to batches
//	14 a adds 1 to counter
//
// Beside them, a put of b is refused, and a put and a removal whose answers are lost were not made.
func story() *record {
	batch := func(value string, id uint64) []write {
		w := []write{{Kind: putKind, Key: "left", Value: value}, {Kind: putKind, Key: "right", Value: value}, {Kind: addKind, Key: "batches", Value: "1"}}
		for i := range w {
			if id != 0 {
				w[i].ID = id + uint64(i)
			}
		}
		return w
	}
	add := func(id uint64, result string) []write {
		return []write{{Kind: addKind, Key: "counter", Value: "1", ID: id, Result: result}}
	}
	r := newRecord()
	r.attempts["a"] = []attempt{
		{Seen: 0, Writes: add(1, "1"), Outcome: acknowledged},
		{Seen: 2, Writes: []write{{Kind: appendKind, Key: "text", Value: "x", ID: 3, Result: "1"}}, Outcome: acknowledged},
		{Seen: 3, Writes: add(0, ""), Outcome: unknown},
		{Seen: 8, Writes: []write{{Kind: appendKind, Key: "text", Value: "y", ID: 9, Result: "2"}}, Outcome: acknowledged},
		{Seen: 10, Writes: batch("v2", 11), Outcome: acknowledged},
		{Seen: 13, Writes: add(14, "3"), Outcome: acknowledged},
	}
	r.attempts["b"] = []attempt{
		{Seen: 1, Writes: []write{{Kind: putKind, Key: "one", Value: "first", ID: 2}}, Outcome: acknowledged},
		{Seen: 3, Writes: batch("v1", 0), Outcome: unknown},
		{Seen: 7, Writes: []write{{Kind: putKind, Key: "one", Value: "second", ID: 8}}, Conditional: true, Condition: 2, Outcome: acknowledged},
		{Seen: 8, Writes: []write{{Kind: putKind, Key: "one", Value: "third"}}, Conditional: true, Condition: 2, Outcome: refused},
		{Seen: 8, Writes: []write{{Kind: putKind, Key: "other", Value: "fourth"}}, Outcome: unknown},
		{Seen: 8, Writes: []write{{Kind: deleteKind, Key: "one"}}, Conditional: true, Condition: 2, Outcome: unknown},
		{Seen: 9, Writes: []write{{Kind: deleteKind, Key: "one"}}, Conditional: true, Condition: 8, Outcome: unknown},
	}
	all := []change{
		{ID: 1, Key: "counter", Value: "1"},
		{ID: 2, Key: "one", Value: "first"},
		{ID: 3, Key: "text", Value: "x"},
		{ID: 4, Key: "left", Value: "v1"},
		{ID: 5, Key: "right", Value: "v1"},
		{ID: 6, Key: "batches", Value: "1"},
		{ID: 7, Key: "counter", Value: "2"},
		{ID: 8, Key: "one", Value: "second"},
		{ID: 9, Key: "text", Value: "xy"},
		{ID: 10, Key: "one", Removed: true},
		{ID: 11, Key: "left", Value: "v2"},
		{ID: 12, Key: "right", Value: "v2"},
		{ID: 13, Key: "batches", Value: "2"},
		{ID: 14, Key: "counter", Value: "3"},
	}
	r.streams["all"] = &stream{changes: all}
	r.streams["late"] = &stream{since: 5, changes: slices.Clone(all[5:])}
	r.streams["one"] = &stream{prefix: "one", changes: []change{all[1], all[7], all[9]}}
	prefix := ""
	r.reads["reader"] = []read{
		{Seen: 0, Missing: []string{"left", "right"}},
		{Seen: 3, Entries: []change{all[3], all[4]}},
		{Seen: 8, Entries: []change{all[7]}},
		{Seen: 8, Missing: []string{"one"}},
		{Seen: 10, Entries: []change{all[5], all[6], all[3], all[4], all[8]}, Prefix: &prefix},
	}
	r.final, r.last = []change{all[10], all[11], all[12], all[13], all[8]}, 14
	return r
}

// edit removes, replaces or repeats a watcher's changes.
func (s *stream) edit(edit func(c []change) []change) { s.changes = edit(slices.Clone(s.changes)) }

func TestRecordOfStorageThatKeepsItsWordHasNoFaults(t *testing.T) {
	require.Empty(t, story().check())
	require.Empty(t, newRecord().check())
}

// Each edit makes a story of a storage that has not kept its word.
func TestEachKindOfFaultIsNoticed(t *testing.T) {
	for _, c := range []struct {
		name, want string
		edit       func(r *record)
	}{
		{"an acknowledged write is lost", `a: an acknowledged write is lost: add of "counter", id 14`, func(r *record) {
			for _, who := range []string{"all", "late"} {
				r.streams[who].edit(func(c []change) []change { return c[:len(c)-1] })
			}
			r.final[3], r.last = change{ID: 7, Key: "counter", Value: "2"}, 13
		}},
		{"an id is given again after a restart", `id 14 is of another write|is lost: put of "one", id 14`, func(r *record) {
			a := r.attempts["b"]
			r.attempts["b"] = append(a, attempt{Seen: 2, Writes: []write{{Kind: putKind, Key: "one", Value: "again", ID: 14}}, Outcome: acknowledged})
		}},
		{"ids begin anew", `b: put of "one" got id 2 after id 14 was seen`, func(r *record) {
			r.attempts["b"] = append(r.attempts["b"], attempt{Seen: 14, Writes: []write{{Kind: putKind, Key: "one", Value: "again", ID: 2}}, Outcome: acknowledged})
		}},
		{"an id means two changes", `one: id 8 means two changes`, func(r *record) { r.streams["one"].changes[1].Value = "other" }},
		{"a writer's ids fall", `a: append of "text" got id 3 after id 9 was seen`, func(r *record) {
			a := r.attempts["a"]
			a[1], a[3] = a[3], a[1]
			a[1].Seen, a[3].Seen = 0, 0
		}},
		{"a watcher is not sent a change", `late was not sent the write 9 of "text"`, func(r *record) {
			r.streams["late"].edit(func(c []change) []change { return slices.Delete(c, 3, 4) })
		}},
		{"a watcher of a prefix is not sent a change", `one was not sent the removal 10 of "one"`, func(r *record) {
			r.streams["one"].edit(func(c []change) []change { return c[:2] })
		}},
		{"no watcher is sent a change", `ids 7 to 7 are of no change`, func(r *record) {
			for who, i := range map[string]int{"all": 6, "late": 1} {
				r.streams[who].edit(func(c []change) []change { return slices.Delete(c, i, i+1) })
			}
		}},
		{"a watcher is sent a change twice", `late was sent id 9 twice`, func(r *record) {
			r.streams["late"].edit(func(c []change) []change { return slices.Insert(c, 6, c[3]) })
		}},
		{"a watcher is sent changes out of order", `late was sent id 9 after id 10`, func(r *record) {
			r.streams["late"].edit(func(c []change) []change { c[3], c[4] = c[4], c[3]; return c })
		}},
		{"a watcher is sent what it has already", `late was sent id 5 after id 5`, func(r *record) {
			r.streams["late"].edit(func(c []change) []change { return append(slices.Clone(r.streams["all"].changes[4:5]), c...) })
		}},
		{"a watcher is sent another key", `one watches "one", and was sent the write 9`, func(r *record) {
			r.streams["one"].edit(func(c []change) []change { return slices.Insert(c, 2, r.streams["all"].changes[8]) })
		}},
		{"an acknowledged batch is torn", `a: a batch is torn: its write 1, put of "right"`, func(r *record) {
			w := r.attempts["a"][4].Writes
			r.attempts["a"][4].Writes = []write{w[0], {Kind: putKind, Key: "right", Value: "v2", ID: 13}}
		}},
		{"half of a batch whose answer was lost is missing", `b: a batch is torn: its write 1, put of "right"`, func(r *record) { r.drop(5) }},
		{"the other half is missing", `b: a batch is torn: the writes before the write 4 of "right"`, func(r *record) { r.drop(4) }},
		{"a refused write is made", `b: the write 15 of "one" as "third" was written, although the call was refused`, func(r *record) {
			r.more(change{ID: 15, Key: "one", Value: "third"})
		}},
		{"a write is made twice", `the write 15 of "counter" as "4" was written by no call`, func(r *record) {
			r.more(change{ID: 15, Key: "counter", Value: "4"})
		}},
		{"a value comes from nowhere", `the write 15 of "one" as "noise" was written by no call`, func(r *record) {
			r.more(change{ID: 15, Key: "one", Value: "noise"})
		}},
		{"an increment loses another", `add "1" of the write 7 of "counter" as "2" gives .* as "3", not .* as "2"`, func(r *record) {
			for _, s := range r.streams {
				for i := range s.changes {
					if s.changes[i].ID == 14 {
						s.changes[i].Value = "2"
					}
				}
			}
		}},
		{"a sum is answered that is not stored", `add "1" was answered 2, but is the write 14`, func(r *record) { r.attempts["a"][5].Writes[0].Result = "2" }},
		{"a condition is ignored", `on the condition that the key's id is 1, but it was 2`, func(r *record) { r.attempts["b"][2].Condition = 1 }},
		{"a condition of a write whose answer was lost is ignored", `the removal 10 .* on the condition that the key's id is 1, but it was 8`, func(r *record) {
			r.attempts["b"][5].Condition, r.attempts["b"][6].Condition = 1, 1
		}},
		{"a read goes back", `reader: had seen id 7, and read entries that never were`, func(r *record) {
			r.reads["reader"] = append(r.reads["reader"], read{Seen: 7, Entries: []change{{ID: 1, Key: "counter", Value: "1"}}})
		}},
		{"a read of a batch is torn", `read entries that never were at one moment`, func(r *record) {
			all := r.streams["all"].changes
			r.reads["reader"] = append(r.reads["reader"], read{Seen: 3, Entries: []change{all[10], all[4]}})
		}},
		{"a read does not find what was seen", `read that "left" is missing`, func(r *record) {
			r.reads["reader"] = append(r.reads["reader"], read{Seen: 4, Missing: []string{"left"}})
		}},
		{"a list lacks a key", `read that "text" is missing`, func(r *record) {
			last := &r.reads["reader"][4]
			last.Entries = last.Entries[:4]
		}},
		{"something is shown and then lost", `reader: read the write 15 of "counter" as "4", which was never written, or is lost`, func(r *record) {
			r.reads["reader"] = append(r.reads["reader"], read{Seen: 14, Entries: []change{{ID: 15, Key: "counter", Value: "4"}}})
		}},
		{"the last state lacks a key", `the last state: .* "text" is missing`, func(r *record) { r.final = r.final[:4] }},
		{"the last state is an older one", `the last state: had seen id 14, and read entries that never were`, func(r *record) {
			r.final[3] = change{ID: 7, Key: "counter", Value: "2"}
		}},
		{"the storage is empty", `the last state`, func(r *record) { r.final = nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := story()
			c.edit(r)
			faults := r.check()
			require.NotEmpty(t, faults)
			require.Regexp(t, c.want, strings.Join(faults, "\n"))
		})
	}
}

// drop takes a write out of the story: all later ones have smaller ids, everywhere.
func (r *record) drop(id uint64) {
	shift := func(n *uint64) {
		if *n > id || *n == id && id > 0 {
			*n--
		}
	}
	for _, attempts := range r.attempts {
		for i := range attempts {
			shift(&attempts[i].Seen)
			shift(&attempts[i].Condition)
			for j := range attempts[i].Writes {
				shift(&attempts[i].Writes[j].ID)
			}
		}
	}
	for _, s := range r.streams {
		s.edit(func(c []change) []change {
			c = slices.DeleteFunc(c, func(c change) bool { return c.ID == id })
			for i := range c {
				shift(&c[i].ID)
			}
			return c
		})
		shift(&s.since)
	}
	shift(&r.last)
	clear(r.reads)
	r.final = slices.DeleteFunc(r.final, func(c change) bool { return c.ID == id })
	for i := range r.final {
		shift(&r.final[i].ID)
	}
}

// more adds a change at the end.
func (r *record) more(c change) {
	for _, who := range []string{"all", "late"} {
		r.streams[who].edit(func(all []change) []change { return append(all, c) })
	}
	r.last = c.ID
}
