package saved

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/raylink/raylink/services/replay/internal/table"
)

// at is the time of the tests' records.
func at() time.Time { return time.Unix(1_800_000_000, 123_456_789) }

func drawState(t *rapid.T) table.State {
	u32 := func(name string) uint32 { return rapid.Uint32().Draw(t, name) }
	s := table.State{Slot: u32("slot"), Number: rapid.Uint64().Draw(t, "number")}
	if s.Number == 0 {
		return s
	}
	s.Run = table.Run{First: rapid.Uint64().Draw(t, "first"), Length: u32("length")}
	for range rapid.IntRange(0, 3).Draw(t, "runs") {
		s.More = append(s.More, table.Run{First: rapid.Uint64().Draw(t, "first"), Length: u32("length")})
	}
	s.Priority, s.Sampled = rapid.Float64().Draw(t, "priority"), u32("sampled")
	s.Age = time.Duration(rapid.Int64Range(0, int64(50*365*24*time.Hour)).Draw(t, "age"))
	if rapid.Bool().Draw(t, "drawn") {
		s.Drawn, s.Epoch = true, rapid.Uint64Max(math.MaxUint64-1).Draw(t, "epoch")
	}
	return s
}

func drawMeta(t *rapid.T) table.Meta {
	n := func(name string) uint64 { return rapid.Uint64().Draw(t, name) }
	size := rapid.IntRange(0, table.MaxItems)
	return table.Meta{
		Counts: table.Counts{
			Inserted: n("inserted"), Sampled: n("sampled"), Overwritten: n("overwritten"), Late: n("late"), Evicted: n("evicted"),
			Exhausted: n("exhausted"), Deleted: n("deleted"), Stale: n("stale"), Returned: n("returned"),
		},
		Limiter: table.Limiter{
			Rule: table.Rule(rapid.Byte().Draw(t, "rule")), MinSize: size.Draw(t, "min size"), Capacity: size.Draw(t, "capacity"),
			Ratio: rapid.Float64().Draw(t, "ratio"), Buffer: rapid.Float64().Draw(t, "buffer"),
		},
		Difference: rapid.Float64().Draw(t, "difference"), Lost: size.Draw(t, "lost"), Oldest: n("oldest"),
		Number: n("number"), Epoch: n("epoch"),
	}
}

// TestItemsRoundTrip also cuts off the encodings: the rest is refused, not taken for another state.
func TestItemsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, m, rest := drawState(t), drawMeta(t), rapid.SliceOfN(rapid.Byte(), 0, 5).Draw(t, "rest")
		b := AppendItem(nil, &s, at())
		got, after, err := ParseItem(append(slices.Clip(b), rest...), at())
		require.NoError(t, err)
		require.Equal(t, s, got)
		require.Equal(t, rest, append([]byte{}, after...))
		_, _, err = ParseItem(b[:rapid.IntRange(0, len(b)-1).Draw(t, "cut")], at())
		require.ErrorIs(t, err, ErrDamaged)

		b = AppendMeta(nil, &m)
		gotMeta, after, err := ParseMeta(append(slices.Clip(b), rest...))
		require.NoError(t, err)
		require.Equal(t, m, gotMeta)
		require.Equal(t, rest, append([]byte{}, after...))
		_, _, err = ParseMeta(b[:rapid.IntRange(0, len(b)-1).Draw(t, "cut")])
		require.ErrorIs(t, err, ErrDamaged)
	})
}

func TestAgeGoesOnInAFile(t *testing.T) {
	s := table.State{Number: 1, Run: table.Run{Length: 1}, Age: time.Minute}
	got, _, err := ParseItem(AppendItem(nil, &s, at()), at().Add(time.Hour))
	require.NoError(t, err)
	require.Equal(t, time.Hour+time.Minute, got.Age)
	got, _, err = ParseItem(AppendItem(nil, &s, at()), at().Add(-time.Hour))
	require.NoError(t, err)
	require.Zero(t, got.Age, "the clock was set back")
}

// commit is what a table was at a commit.
type commit struct {
	end   int
	items map[table.Key]table.State
	meta  table.Meta
}

// fileRun is a table, and a file of its changes.
type fileRun struct {
	table   *table.Table
	config  table.Config
	file    []byte
	buffer  []table.State
	keys    []table.Key
	row     uint64
	commits []commit
}

func items(tb rapid.TB, of *table.Table) map[table.Key]table.State {
	states := make([]table.State, 1000)
	n, _ := of.Items(0, states)
	require.Less(tb, n, len(states))
	byKey := make(map[table.Key]table.State)
	for _, s := range states[:n] {
		s.Age = 0
		byKey[s.Key()] = s
	}
	return byKey
}

func (r *fileRun) insert(t *rapid.T) {
	for range rapid.IntRange(1, 5).Draw(t, "items") {
		r.row += rapid.Uint64Range(1, 1000).Draw(t, "row")
		it := table.Item{Run: table.Run{First: r.row, Length: 3}, Priority: rapid.Float64Range(0, 9).Draw(t, "priority")}
		if rapid.Bool().Draw(t, "apart") {
			it.More = []table.Run{{First: r.row + 5, Length: 2}}
		}
		keys := make([]table.Key, 1)
		_, err := r.table.TryInsert("", []table.Item{it}, keys)
		require.NoError(t, err)
		r.keys = append(r.keys, keys[0])
	}
}

func (r *fileRun) sample(t *rapid.T) {
	_, _ = r.table.TrySample(make([]table.Sample, rapid.IntRange(1, 4).Draw(t, "samples")), table.SampleOptions{})
}

func (r *fileRun) update(t *rapid.T) {
	if len(r.keys) > 0 {
		_, err := r.table.Update([]table.Key{rapid.SampledFrom(r.keys).Draw(t, "key")}, []float64{rapid.Float64Range(0, 9).Draw(t, "priority")})
		require.NoError(t, err)
	}
}

func (r *fileRun) remove(t *rapid.T) {
	if len(r.keys) > 0 {
		_, err := r.table.Delete([]table.Key{rapid.SampledFrom(r.keys).Draw(t, "key")})
		require.NoError(t, err)
	}
}

func (r *fileRun) expire(t *rapid.T) {
	r.table.Expire(r.row - min(r.row, rapid.Uint64Range(0, 3000).Draw(t, "rows")))
}

// save appends the changes, and a commit.
func (r *fileRun) save(t *rapid.T) {
	for {
		n := r.table.Changes(r.buffer)
		r.file = AppendItems(r.file, 0, r.buffer[:n], time.Now())
		if n < len(r.buffer) {
			break
		}
	}
	r.commit(t)
}

// compact begins a new file with all items.
func (r *fileRun) compact(t *rapid.T) {
	r.save(t)
	r.begin()
	for from := uint32(0); ; {
		n, next := r.table.Items(from, r.buffer)
		r.file, from = AppendItems(r.file, 0, r.buffer[:n], time.Now()), next
		if n < len(r.buffer) {
			break
		}
	}
	r.commit(t)
}

func (r *fileRun) begin() {
	r.file = AppendTable(AppendOwner(nil, []byte("ring")), 0, r.config.Name, []byte("config"))
	r.commits = nil
}

func (r *fileRun) commit(t *rapid.T) {
	meta := r.table.Meta()
	r.file = AppendCommit(r.file, []table.Meta{meta})
	r.commits = append(r.commits, commit{end: len(r.file), items: items(t, r.table), meta: meta})
}

// kill cuts the file off anywhere, and goes on with what it has: the state of the last commit
// before that place, and none but that.
func (r *fileRun) kill(t *rapid.T) {
	cut := rapid.IntRange(0, len(r.file)).Draw(t, "cut")
	content, err := Read(bytes.NewReader(r.file[:cut]), int64(cut))
	require.NoError(t, err)
	last := commit{}
	for _, c := range r.commits {
		if c.end <= cut {
			last = c
		}
	}
	require.Equal(t, last.end, int(content.End))
	if last.end == 0 {
		require.Empty(t, content.Tables)
		return
	}
	require.Equal(t, "ring", string(content.Owner))
	saved := content.Find(r.config.Name)
	require.Equal(t, "config", string(saved.Config))
	require.Equal(t, last.meta, saved.Meta)
	require.Equal(t, len(last.items), saved.Len())
	restored, err := saved.Restore(r.config)
	require.NoError(t, err)
	require.Equal(t, last.items, items(t, restored))
	require.Equal(t, last.meta, restored.Meta())
	if cut < len(r.file) {
		return // a look only
	}
	r.table.Close(nil)
	r.table = restored
	r.table.Track()
	r.begin()
	r.compact(t)
}

func TestFileMatchesTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sampler := rapid.SampledFrom([]table.Selector{{Kind: table.Epoch}, {Kind: table.Prioritized, Exponent: 1}, {}}).Draw(t, "sampler")
		r := &fileRun{config: table.Config{
			Name: "per", Sampler: sampler, Remover: table.Selector{Kind: table.FIFO}, MaxItems: 12,
			MaxSampled: rapid.Uint32Range(0, 3).Draw(t, "max sampled"), Limiter: table.MinSize(2),
		}, buffer: make([]table.State, rapid.IntRange(1, 5).Draw(t, "buffer"))}
		var err error
		r.table, err = table.New(r.config)
		require.NoError(t, err)
		r.table.Track()
		r.begin()
		t.Repeat(map[string]func(*rapid.T){
			"insert": r.insert, "sample": r.sample, "update": r.update, "delete": r.remove, "expire": r.expire,
			"save": r.save, "compact": r.compact, "kill": r.kill,
		})
	})
}

// wholeFile is a file of two tables.
func wholeFile() []byte {
	states := []table.State{
		{Slot: 0, Number: 1, Run: table.Run{First: 10, Length: 3}, Priority: 1},
		{Slot: 5000, Number: 2, Run: table.Run{First: 11, Length: 3}, More: []table.Run{{First: 20, Length: 2}}, Priority: 2},
	}
	b := AppendOwner(nil, []byte("ring"))
	b = AppendTable(b, 0, "a", []byte("x"))
	b = AppendTable(b, 1, "b", nil)
	b = AppendItems(b, 1, states, at())
	b = AppendItems(b, 1, []table.State{{Slot: 0}}, at())
	return AppendCommit(b, []table.Meta{{}, {Number: 2, Oldest: 10}})
}

// TestAnyDamageIsNoticed changes each byte of a file.
func TestAnyDamageIsNoticed(t *testing.T) {
	whole := wholeFile()
	for i := range whole {
		for _, bit := range []byte{1, 0x80} {
			damaged := bytes.Clone(whole)
			damaged[i] ^= bit
			_, err := Read(bytes.NewReader(damaged), int64(len(damaged)))
			if i == len(magic)-1 {
				require.ErrorIs(t, err, ErrVersion)
				continue
			}
			require.ErrorIs(t, err, ErrDamaged, "byte %d", i)
		}
	}
}

func TestInvalidRecordsAreDamage(t *testing.T) {
	begin := func() []byte { return AppendTable(AppendOwner(nil, []byte("ring")), 0, "a", nil) }
	for reason, file := range map[string][]byte{
		"table 2 follows 1 tables":            AppendTable(begin(), 2, "b", nil),
		"items of table 1, and there are 1":   AppendItems(begin(), 1, make([]table.State, 1), at()),
		"a commit of 2 tables instead of 1":   AppendCommit(begin(), make([]table.Meta, 2)),
		"a record of the unknown kind 9":      appendRecord(begin(), 9, func(b []byte) []byte { return b }),
		"an item ends too early":              appendRecord(begin(), kindItems, func(b []byte) []byte { return append(b, 0, 1, 2) }),
		"more bytes in a commit":              appendRecord(begin(), kindCommit, func(b []byte) []byte { return append(AppendMeta(append(b, 1), &table.Meta{}), 1) }),
		"the state of a table ends too early": appendRecord(begin(), kindCommit, func(b []byte) []byte { return append(b, 1) }),
		"a table ends too early":              appendRecord(begin(), kindTable, func(b []byte) []byte { return append(b, 1, 9) }),
	} {
		file = AppendCommit(file, make([]table.Meta, 1))
		_, err := Read(bytes.NewReader(file), int64(len(file)))
		require.ErrorIs(t, err, ErrDamaged)
		require.ErrorContains(t, err, reason)
	}
}

// TestItemsOfOverwrittenRowsHaveLeft has an item that left its table after it was listed, and
// before the table's state was collected.
func TestItemsOfOverwrittenRowsHaveLeft(t *testing.T) {
	b := AppendTable(AppendOwner(nil, nil), 0, "a", nil)
	b = AppendItems(b, 0, []table.State{{Slot: 0, Number: 1, Run: table.Run{First: 9, Length: 1}}}, at())
	b = AppendCommit(b, []table.Meta{{Number: 1, Oldest: 10}})
	content, err := Read(bytes.NewReader(b), int64(len(b)))
	require.NoError(t, err)
	restored, err := content.Tables[0].Restore(table.Config{Name: "a", MaxItems: 1})
	require.NoError(t, err)
	require.Empty(t, items(t, restored))
}

func FuzzRead(f *testing.F) {
	f.Add(wholeFile(), false)
	f.Add(wholeFile()[:60], true)
	f.Fuzz(func(t *testing.T, b []byte, repair bool) {
		if repair {
			repairChecksums(b)
		}
		content, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, saved := range content.Tables {
			restored, err := saved.Restore(table.Config{Name: saved.Name, MaxItems: 100})
			if err == nil {
				require.LessOrEqual(t, restored.Inspect().Size, 100)
			}
		}
	})
}

// repairChecksums makes the checksums of all records right, so that a fuzzer gets beyond them.
func repairChecksums(b []byte) {
	for at := len(magic); at+recordHeader <= len(b); {
		length := int(binary.LittleEndian.Uint32(b[at:]))
		if length > len(b)-at-recordHeader {
			length = len(b) - at - recordHeader
			binary.LittleEndian.PutUint32(b[at:], uint32(length))
		}
		binary.LittleEndian.PutUint32(b[at+4:], checksum(b[at+recordHeader:][:length]))
		binary.LittleEndian.PutUint32(b[at+9:], checksum(b[at:at+9]))
		at += recordHeader + length
	}
}
