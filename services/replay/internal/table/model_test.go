package table

import (
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// modelItem is an item of the reference implementation.
type modelItem struct {
	key      Key
	runs     []Run
	priority float64
	sampled  uint32
	drawn    bool
}

// model is the reference implementation: the items in the order of their insertion, and counts.
type model struct {
	config  Config
	limiter Limiter
	items   []*modelItem
	oldest  uint64
	// due is how many samples the limiter still wants.
	due    float64
	lost   int
	counts Counts
	// keys are those of all items so far.
	keys []Key
}

func (m *model) find(key Key) int {
	return slices.IndexFunc(m.items, func(it *modelItem) bool { return it.key == key })
}

func (m *model) drawable() bool {
	return m.total(m.config.Sampler) > 0
}

// total returns the sum of the masses of a selector; each item of others than prioritized has 1.
func (m *model) total(s Selector) float64 {
	sum := 0.0
	for _, it := range m.items {
		sum += m.mass(s, it)
	}
	return sum
}

func (m *model) mass(s Selector, it *modelItem) float64 {
	switch {
	case s.Kind != Prioritized:
		return 1
	case it.priority == 0:
		return 0
	}
	return max(math.Pow(it.priority, s.Exponent), minMass)
}

// probability returns that with which a selector chooses an item.
func (m *model) probability(s Selector, it *modelItem) float64 {
	first, last := m.items[0], m.items[len(m.items)-1]
	lowest, highest, left := first, first, 0
	for _, other := range m.items {
		if other.priority < lowest.priority {
			lowest = other
		}
		if other.priority > highest.priority {
			highest = other
		}
		if !other.drawn {
			left++
		}
	}
	var only *modelItem
	switch s.Kind {
	case Prioritized:
		return m.mass(s, it) / m.total(s)
	case FIFO:
		only = first
	case LIFO:
		only = last
	case Lowest:
		only = lowest
	case Highest:
		only = highest
	case Epoch:
		switch {
		case left == 0:
			return 1 / float64(len(m.items))
		case it.drawn:
			return 0
		}
		return 1 / float64(left)
	default:
		return 1 / float64(len(m.items))
	}
	if it == only {
		return 1
	}
	return 0
}

func (m *model) minSize() int { return max(1, m.limiter.MinSize) }

func (m *model) reached() bool { return len(m.items)+m.lost >= m.minSize() }

func (m *model) canInsert() bool {
	switch {
	case m.limiter.once():
		return len(m.items) < m.limiter.Capacity
	case !m.drawable(), !m.reached():
		return true
	case m.limiter.Rule == PerInsert:
		return m.due+m.limiter.Ratio <= m.limiter.Ratio*float64(m.minSize())+m.limiter.Buffer+1e-6
	}
	return true
}

func (m *model) canSample() bool {
	switch {
	case !m.drawable(), !m.reached():
		return false
	case m.limiter.Rule == PerInsert:
		return m.due-1 >= m.limiter.Ratio*float64(m.minSize())-m.limiter.Buffer-1e-6
	}
	return true
}

func (m *model) maxSampled() uint32 {
	if m.limiter.once() {
		return 1
	}
	return m.config.MaxSampled
}

func (m *model) remove(i int) {
	m.items = slices.Delete(m.items, i, i+1)
	m.forget()
}

func (m *model) forget() {
	if len(m.items) == 0 || len(m.items) >= m.minSize() {
		m.lost = 0
	}
	m.lost = max(0, min(m.lost, m.minSize()-len(m.items)))
}

func (m *model) limit(l Limiter) {
	m.limiter, m.lost = l, 0
	m.due = l.Ratio * float64(min(len(m.items), m.minSize()))
}

// try performs a call without waiting.
func try(t *Table, w *waiter) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.advance(w, t.now())
	t.serve()
	return w.done
}

func drawSelector(t *rapid.T, name string) Selector {
	s := Selector{Kind: Kind(rapid.IntRange(0, int(kinds)-1).Draw(t, name))}
	if s.Kind == Prioritized {
		s.Exponent = rapid.SampledFrom([]float64{0, 0.6, 1, 2}).Draw(t, name+"'s exponent")
	}
	return s
}

func drawLimiter(t *rapid.T) Limiter {
	switch Rule(rapid.IntRange(0, int(Stack)).Draw(t, "rule")) {
	case PerInsert:
		return SamplesPerInsert(rapid.SampledFrom([]float64{0.1, 0.5, 1, 2, 3.7}).Draw(t, "ratio"), rapid.IntRange(0, 6).Draw(t, "minimum"),
			rapid.SampledFrom([]float64{0.55, 0.75, 1, 1.5, 3, 10}).Draw(t, "buffer"))
	case Queue:
		return QueueOf(rapid.IntRange(0, 6).Draw(t, "capacity"))
	case Stack:
		return StackOf(rapid.IntRange(0, 6).Draw(t, "capacity"))
	default:
		return MinSize(rapid.IntRange(-1, 6).Draw(t, "minimum"))
	}
}

func drawPriority(t *rapid.T) float64 {
	return rapid.OneOf(rapid.SampledFrom([]float64{0, math.Copysign(0, -1), 1, 2, 1e-9}), rapid.Float64Range(0, 10)).Draw(t, "priority")
}

// TestTableMatchesModel performs random operations on a table of a random configuration, and
// compares all that can be seen with the reference implementation.
func TestTableMatchesModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		config := Config{
			Name: "t", Sampler: drawSelector(t, "sampler"), Remover: drawSelector(t, "remover"),
			MaxItems: rapid.IntRange(1, 12).Draw(t, "max items"), MaxSampled: uint32(rapid.IntRange(0, 3).Draw(t, "max sampled")),
			Limiter: drawLimiter(t), Seed: rapid.Uint64Min(1).Draw(t, "seed"),
		}
		table, err := New(config)
		if err != nil {
			require.ErrorIs(t, err, ErrConfig)
			config.Limiter = MinSize(1)
			table, err = New(config)
		}
		require.NoError(t, err)
		m := &model{config: config}
		m.limit(config.Limiter)
		run := &modelRun{table: table, model: m, replica: map[uint32]State{}}
		table.Track()
		t.Repeat(map[string]func(*rapid.T){
			"insert":      run.insert,
			"insertBatch": run.insertBatch,
			"sample":      run.sample,
			"update":      run.update,
			"delete":      run.delete,
			"expire":      run.expire,
			"limit":       run.limit,
			"restore":     run.restore,
			"changes":     run.changes,
			"":            run.check,
		})
	})
}

// modelRun is a table, its model, and a copy of the table that has been kept by its changes.
type modelRun struct {
	table   *Table
	model   *model
	replica map[uint32]State
}

func (r *modelRun) drawItem(t *rapid.T) Item {
	it := Item{Run: Run{First: r.model.oldest + rapid.Uint64Range(0, 300).Draw(t, "first"), Length: rapid.Uint32Range(1, 5).Draw(t, "length")}}
	if rapid.IntRange(0, 5).Draw(t, "late") == 0 {
		it.Run.First -= min(it.Run.First, 10)
	}
	end := it.Run.First + uint64(it.Run.Length)
	for range rapid.IntRange(-2, 2).Draw(t, "more") {
		more := Run{First: end + rapid.Uint64Range(0, 9).Draw(t, "gap"), Length: rapid.Uint32Range(1, 3).Draw(t, "length")}
		end = more.First + uint64(more.Length)
		it.More = append(it.More, more)
	}
	if it.Maximum = rapid.Bool().Draw(t, "maximum"); !it.Maximum {
		it.Priority = drawPriority(t)
	}
	return it
}

// inserted changes the model as an insert must change the table, but for the eviction.
func (r *modelRun) inserted(t *rapid.T, it Item, key Key) {
	m := r.model
	if it.Run.First < m.oldest {
		require.Zero(t, key)
		m.counts.Late++
		return
	}
	require.NotZero(t, key)
	require.NotContains(t, m.keys, key)
	priority := it.Priority
	if it.Maximum {
		priority = 0
		for _, other := range m.items {
			priority = max(priority, other.priority)
		}
		if priority == 0 {
			priority = 1
		}
	}
	m.items = append(m.items, &modelItem{key: key, runs: append([]Run{it.Run}, it.More...), priority: math.Abs(priority)})
	m.keys = append(m.keys, key)
	m.counts.Inserted++
	m.due += m.limiter.Ratio
	m.forget()
}

func (r *modelRun) insert(t *rapid.T) {
	m := r.model
	it := r.drawItem(t)
	var key [1]Key
	n := try(r.table, &waiter{op: Insert, items: []Item{it}, keys: key[:], total: 1})
	if !m.canInsert() {
		require.Zero(t, n)
		return
	}
	require.Equal(t, 1, n)
	if it.Run.First >= m.oldest && len(m.items) == m.config.MaxItems {
		gone := -1
		for i, other := range m.items {
			if _, ok := r.table.Get(other.key); !ok {
				require.Equal(t, -1, gone, "one item is evicted")
				gone = i
			}
		}
		require.NotEqual(t, -1, gone, "an item is evicted")
		remover := m.config.Remover
		if m.total(remover) > 0 {
			if remover.Kind == Epoch {
				remover.Kind = Uniform
			}
			require.Positive(t, m.probability(remover, m.items[gone]), "%v evicted item %d", remover, gone)
		}
		m.items = slices.Delete(m.items, gone, gone+1)
		if len(m.items) == 0 {
			m.lost = 0
		}
		m.counts.Evicted++
	}
	r.inserted(t, it, key[0])
}

// insertBatch inserts several items, none of which makes the table evict another.
func (r *modelRun) insertBatch(t *rapid.T) {
	m := r.model
	items := make([]Item, rapid.IntRange(0, m.config.MaxItems-len(m.items)).Draw(t, "items"))
	for i := range items {
		items[i] = r.drawItem(t)
	}
	keys := make([]Key, len(items))
	n := try(r.table, &waiter{op: Insert, items: items, keys: keys, total: len(items)})
	for i := range n {
		require.True(t, m.canInsert(), "insert %d of %d", i, n)
		r.inserted(t, items[i], keys[i])
	}
	if n < len(items) {
		require.False(t, m.canInsert(), "only %d of %d", n, len(items))
	}
}

func (r *modelRun) sample(t *rapid.T) {
	m := r.model
	samples := make([]Sample, rapid.IntRange(0, 5).Draw(t, "samples"))
	beta := rapid.SampledFrom([]float64{0, 0.4, 1}).Draw(t, "beta")
	n := try(r.table, &waiter{op: Draw, samples: samples, beta: beta, total: len(samples)})
	for i, s := range samples[:n] {
		require.True(t, m.canSample(), "sample %d of %d", i, n)
		index := m.find(s.Key)
		require.GreaterOrEqual(t, index, 0, "an item of the table is sampled")
		it := m.items[index]
		p := m.probability(m.config.Sampler, it)
		require.Positive(t, p, "%v sampled item %d", m.config.Sampler, index)
		require.InEpsilon(t, p, s.Probability, 1e-9)
		if m.config.Sampler.Kind == Epoch {
			if !slices.ContainsFunc(m.items, func(it *modelItem) bool { return !it.drawn }) {
				for _, other := range m.items {
					other.drawn = false
				}
			}
			it.drawn = true
		}
		it.sampled++
		weight := 1.0
		if m.config.Sampler.Kind == Prioritized {
			least := math.Inf(1)
			for _, other := range m.items {
				if q := m.probability(m.config.Sampler, other); q > 0 {
					least = min(least, q)
				}
			}
			weight = math.Pow(least/p, beta)
		}
		require.InEpsilon(t, weight, s.Weight, 1e-9)
		require.LessOrEqual(t, s.Weight, 1.0)
		require.Equal(t, it.runs, append([]Run{s.Run}, s.More...))
		require.InDelta(t, it.priority, s.Priority, 0)
		require.Equal(t, it.sampled, s.Sampled)
		require.Equal(t, len(m.items), s.Size)
		m.due--
		m.counts.Sampled++
		if m.maxSampled() > 0 && it.sampled >= m.maxSampled() {
			m.remove(index)
			m.counts.Exhausted++
		}
	}
	if n < len(samples) {
		require.False(t, m.canSample(), "only %d of %d", n, len(samples))
	}
}

// drawKeys draws keys of which some items have left the table, or never were there.
func (r *modelRun) drawKeys(t *rapid.T) []Key {
	return rapid.SliceOfN(rapid.SampledFrom(append([]Key{0, 1 << slotBits, MaxItems - 1}, r.model.keys...)), 0, 5).Draw(t, "keys")
}

func (r *modelRun) update(t *rapid.T) {
	keys := r.drawKeys(t)
	updated, stale := make([]float64, len(keys)), 0
	for i, key := range keys {
		updated[i] = drawPriority(t)
		if index := r.model.find(key); index >= 0 {
			r.model.items[index].priority = math.Abs(updated[i])
		} else {
			stale++
		}
	}
	n, err := r.table.Update(keys, updated)
	require.NoError(t, err)
	require.Equal(t, stale, n)
	r.model.counts.Stale += uint64(stale)
	if len(keys) > 0 {
		updated[0] = rapid.SampledFrom([]float64{-1, math.NaN(), math.Inf(1), math.Inf(-1)}).Draw(t, "invalid")
		_, err = r.table.Update(keys, updated)
		require.ErrorIs(t, err, ErrPriority)
	}
}

func (r *modelRun) delete(t *rapid.T) {
	keys, stale := r.drawKeys(t), 0
	for _, key := range keys {
		if index := r.model.find(key); index >= 0 {
			r.model.remove(index)
			r.model.counts.Deleted++
		} else {
			stale++
		}
	}
	n, err := r.table.Delete(keys)
	require.NoError(t, err)
	require.Equal(t, stale, n)
	r.model.counts.Stale += uint64(stale)
}

func (r *modelRun) expire(t *rapid.T) {
	m := r.model
	oldest := m.oldest + rapid.OneOf(rapid.Uint64Range(0, 100), rapid.Uint64Range(0, 1<<40)).Draw(t, "ahead")
	if rapid.IntRange(0, 9).Draw(t, "back") == 0 {
		oldest = m.oldest / 2
	}
	m.oldest = max(m.oldest, oldest)
	before := len(m.items)
	m.items = slices.DeleteFunc(m.items, func(it *modelItem) bool { return it.runs[0].First < m.oldest })
	expired := before - len(m.items)
	m.lost = max(0, min(m.lost+expired, m.minSize()-len(m.items)))
	m.counts.Overwritten += uint64(expired)
	require.Equal(t, expired, r.table.Expire(oldest))
}

func (r *modelRun) limit(t *rapid.T) {
	l := drawLimiter(t)
	if err := r.table.SetLimiter(l); err != nil {
		require.ErrorIs(t, err, ErrConfig)
		return
	}
	r.model.limit(l)
}

// restore goes on with a copy of the table.
func (r *modelRun) restore(t *rapid.T) {
	meta := r.table.Meta()
	var states []State
	buffer := make([]State, rapid.IntRange(1, 5).Draw(t, "buffer"))
	for from := uint32(0); ; {
		n, next := r.table.Items(from, buffer)
		states, from = append(states, buffer[:n]...), next
		if n < len(buffer) {
			break
		}
	}
	config := r.model.config
	config.Limiter = meta.Limiter
	table, err := Restore(config, meta, slices.Values(states))
	require.NoError(t, err)
	r.table.Close(nil)
	r.table = table
	r.table.Track()
	clear(r.replica)
	for _, s := range states {
		r.replica[s.Slot] = s
	}
}

// changes applies the table's changes to the copy, and compares it with the table.
func (r *modelRun) changes(t *rapid.T) {
	buffer := make([]State, rapid.IntRange(1, 5).Draw(t, "buffer"))
	for {
		n := r.table.Changes(buffer)
		for _, s := range buffer[:n] {
			if s.Number == 0 {
				delete(r.replica, s.Slot)
			} else {
				r.replica[s.Slot] = s
			}
		}
		if n < len(buffer) {
			break
		}
	}
	require.Len(t, r.replica, len(r.model.items))
	for _, s := range r.replica {
		got, ok := r.table.Get(s.Key())
		require.True(t, ok)
		// When an epoch ends, no item changes: package saved compares epochs.
		got.Age, got.Drawn, got.Epoch, s.Age, s.Drawn, s.Epoch = 0, false, 0, 0, false, 0
		require.Equal(t, got, s)
	}
}

// check compares the items, the counts and what has to wait.
func (r *modelRun) check(t *rapid.T) {
	m := r.model
	for _, it := range m.items {
		s, ok := r.table.Get(it.key)
		require.True(t, ok)
		require.Equal(t, it.key, s.Key())
		require.Equal(t, it.runs, append([]Run{s.Run}, s.More...))
		require.InDelta(t, it.priority, s.Priority, 0)
		require.Equal(t, it.sampled, s.Sampled)
		left := slices.ContainsFunc(m.items, func(it *modelItem) bool { return !it.drawn })
		if m.config.Sampler.Kind == Epoch && left {
			require.Equal(t, it.drawn, s.Drawn)
		}
	}
	info := r.table.Inspect()
	require.Equal(t, len(m.items), info.Size)
	require.Equal(t, m.counts, info.Counts)
	require.Equal(t, m.canInsert(), info.InsertNeeds == Needs{}, "insert waits for %v", info.InsertNeeds)
	require.Equal(t, m.canSample(), info.SampleNeeds == Needs{}, "sample waits for %v", info.SampleNeeds)
	if m.drawable() {
		require.True(t, m.canInsert() || m.canSample(), "inserts and samples wait for each other")
	}
}
