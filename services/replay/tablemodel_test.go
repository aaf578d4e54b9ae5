package replay

import (
	"fmt"
	"math"
	"slices"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
)

// tableModel is the reference implementation of a table, as docs/replay.md describes it: a list of
// items in the order of their insertion, counts, and the calls that wait. Where a selector draws at
// random, the model gets to know the result from the calls, and checks that it is possible.
type tableModel struct {
	sampler, remover Selector
	maxItems         int
	maxSampled       uint32
	limiter          limiterModel
	capacity         uint64

	items []*itemModel
	// oldest is the lowest sequence number of a row that is not overwritten.
	oldest uint64
	// due is how many samples the limiter still wants. lost counts overwritten items towards the
	// minimum size.
	due  float64
	lost int
	// counts are those of Inspect, of which the model knows them.
	inserted, sampled, overwritten, late, evicted, exhausted, deleted, stale uint64
	// inserters and samplers are the calls that wait, in their order; the last of them that got
	// something are lastInserter and lastSampler.
	inserters, samplers       []*modelCall
	lastInserter, lastSampler string
	// gone returns the items that are not in the table any more, after what happens now.
	gone func() []*itemModel
}

type itemModel struct {
	key      Key
	rows     []uint64
	priority float64
	sampled  uint32
	drawn    bool
}

// modelCall is a call that may wait.
type modelCall struct {
	caller      string
	insert      bool
	total, done int
	// item is that of an insert. Without a priority it gets the highest.
	item    itemModel
	maximum bool
	// held means that the call has waited.
	held bool
	// returned means that the real call has returned: an insert with key, a sample with info.
	returned bool
	key      Key
	info     []ItemInfo
	// want are the samples that the model has drawn.
	want []ItemInfo
}

// limiterModel is a limiter.
type limiterModel struct {
	rule              replayv1.LimiterRule
	minSize, capacity int
	perInsert, buffer float64
}

const (
	ruleMinSize   = replayv1.LimiterRule_LIMITER_RULE_UNSPECIFIED
	rulePerInsert = replayv1.LimiterRule_LIMITER_RULE_SAMPLES_PER_INSERT
	ruleQueue     = replayv1.LimiterRule_LIMITER_RULE_QUEUE
	ruleStack     = replayv1.LimiterRule_LIMITER_RULE_STACK
)

// option returns the limiter as users write it.
func (l limiterModel) option() Limiter {
	switch l.rule {
	case rulePerInsert:
		return SamplesPerInsert(l.perInsert, uint64(l.minSize), l.buffer)
	case ruleQueue:
		return Queue(uint64(l.capacity))
	case ruleStack:
		return Stack(uint64(l.capacity))
	default:
		return MinSize(uint64(l.minSize))
	}
}

func (l limiterModel) once() bool { return l.rule == ruleQueue || l.rule == ruleStack }

func (l limiterModel) least() int { return max(1, l.minSize) }

func drawLimiterModel(t *rapid.T) limiterModel {
	switch rule := rapid.SampledFrom([]replayv1.LimiterRule{ruleMinSize, rulePerInsert, ruleQueue, ruleStack}).Draw(t, "rule"); rule {
	case rulePerInsert:
		return limiterModel{
			rule: rule, perInsert: rapid.SampledFrom([]float64{0.25, 0.5, 1, 2, 3.75}).Draw(t, "ratio"),
			minSize: rapid.IntRange(0, 6).Draw(t, "minimum"), buffer: rapid.SampledFrom([]float64{0.5, 0.75, 1.5, 3, 10}).Draw(t, "buffer"),
		}
	case ruleQueue, ruleStack:
		return limiterModel{rule: rule, capacity: rapid.IntRange(0, 6).Draw(t, "capacity")}
	default:
		return limiterModel{minSize: rapid.IntRange(0, 6).Draw(t, "minimum")}
	}
}

// possible reports whether the table can have the limiter.
func (m *tableModel) possible(l limiterModel) bool {
	switch {
	case l.minSize > m.maxItems:
		return false
	case l.rule == rulePerInsert:
		return 2*l.buffer >= 1+l.perInsert && (m.maxSampled == 0 || float64(m.maxSampled) >= l.perInsert)
	case l.once():
		kind := replayv1.SelectorKind_SELECTOR_KIND_FIFO
		if l.rule == ruleStack {
			kind = replayv1.SelectorKind_SELECTOR_KIND_LIFO
		}
		return l.capacity >= 1 && l.capacity <= m.maxItems && m.sampler.kind == kind && m.maxSampled <= 1
	}
	return true
}

// setLimiter replaces the limiter. Counting begins anew.
func (m *tableModel) setLimiter(l limiterModel) {
	m.limiter, m.lost = l, 0
	m.due = l.perInsert * float64(min(len(m.items), l.least()))
	m.serve()
}

// random reports whether a selector's choice is unknown.
func random(s Selector) bool {
	switch s.kind {
	case replayv1.SelectorKind_SELECTOR_KIND_UNIFORM, replayv1.SelectorKind_SELECTOR_KIND_PRIORITIZED, replayv1.SelectorKind_SELECTOR_KIND_EPOCH:
		return true
	default:
		return false
	}
}

// probabilities returns those with which a selector chooses each item: all zero if it can choose
// none.
func (m *tableModel) probabilities(s Selector) []float64 {
	p := make([]float64, len(m.items))
	if len(p) == 0 {
		return p
	}
	// only is for selectors that choose the first item that is better than those before.
	only := func(better func(a, b *itemModel) bool) {
		best := 0
		for i, it := range m.items {
			if better(it, m.items[best]) {
				best = i
			}
		}
		p[best] = 1
	}
	switch s.kind {
	case replayv1.SelectorKind_SELECTOR_KIND_FIFO:
		p[0] = 1
	case replayv1.SelectorKind_SELECTOR_KIND_LIFO:
		p[len(p)-1] = 1
	case replayv1.SelectorKind_SELECTOR_KIND_LOWEST:
		only(func(a, b *itemModel) bool { return a.priority < b.priority })
	case replayv1.SelectorKind_SELECTOR_KIND_HIGHEST:
		only(func(a, b *itemModel) bool { return a.priority > b.priority })
	case replayv1.SelectorKind_SELECTOR_KIND_PRIORITIZED:
		sum := 0.0
		for i, it := range m.items {
			if it.priority > 0 {
				p[i] = math.Pow(it.priority, s.exponent)
				sum += p[i]
			}
		}
		for i := range p {
			p[i] /= max(sum, math.SmallestNonzeroFloat64)
		}
	default:
		left := 0
		for _, it := range m.items {
			if !it.drawn {
				left++
			}
		}
		for i, it := range m.items {
			switch {
			case s.kind != replayv1.SelectorKind_SELECTOR_KIND_EPOCH || left == 0:
				p[i] = 1 / float64(len(p))
			case !it.drawn:
				p[i] = 1 / float64(left)
			}
		}
	}
	return p
}

// drawable reports whether an item can be sampled.
func (m *tableModel) drawable() bool { return slices.Max(append(m.probabilities(m.sampler), 0)) > 0 }

// rounding is what the limiter tolerates.
const rounding = 1e-6

// mayInsert reports whether the last of n inserts need not wait if as many samples come before.
func (m *tableModel) mayInsert(n, samples int) bool {
	l := m.limiter
	switch {
	case l.once():
		return len(m.items)+n-samples <= l.capacity
	case !m.drawable() || len(m.items)+m.lost < l.least() || l.rule != rulePerInsert:
		return true
	default:
		return m.due+l.perInsert*float64(n)-float64(samples) <= l.perInsert*float64(l.least())+l.buffer+rounding
	}
}

// maySample reports whether the last of n samples need not wait if as many inserts come before, of
// items that can be drawn.
func (m *tableModel) maySample(n, inserts int) bool {
	l := m.limiter
	switch {
	case inserts == 0 && !m.drawable(), len(m.items)+m.lost+inserts < l.least():
		return false
	case l.once():
		return len(m.items)+inserts >= n
	case l.rule == rulePerInsert:
		return m.due+l.perInsert*float64(inserts)-float64(n) >= l.perInsert*float64(l.least())-l.buffer-rounding
	}
	return true
}

// limit returns how often an item can be sampled, or 0.
func (m *tableModel) limit() uint32 {
	if m.limiter.once() {
		return 1
	}
	return m.maxSampled
}

// resized keeps the overwritten items that count from exceeding the minimum.
func (m *tableModel) resized() {
	if len(m.items) == 0 {
		m.lost = 0
	}
	m.lost = max(0, min(m.lost, m.limiter.least()-len(m.items)))
}

func (m *tableModel) remove(i int) {
	m.items = slices.Delete(m.items, i, i+1)
	m.resized()
}

func (m *tableModel) find(key Key) int {
	return slices.IndexFunc(m.items, func(it *itemModel) bool { return it.key == key })
}

// wrote is called after a row was written.
func (m *tableModel) wrote(newest uint64) {
	m.oldest = max(m.oldest, newest+1-min(newest+1, m.capacity))
	before := len(m.items)
	m.items = slices.DeleteFunc(m.items, func(it *itemModel) bool { return it.rows[0] < m.oldest })
	expired := before - len(m.items)
	m.overwritten += uint64(expired)
	if expired > 0 {
		m.lost = max(0, min(m.lost+expired, m.limiter.least()-len(m.items)))
		m.serve()
	}
}

func (m *tableModel) update(keys []Key, priorities []float64) (stale int) {
	for i, key := range keys {
		if index := m.find(key); index >= 0 {
			m.items[index].priority = priorities[i]
		} else {
			stale++
		}
	}
	m.stale += uint64(stale)
	m.serve()
	return stale
}

func (m *tableModel) delete(keys []Key) (stale int) {
	for _, key := range keys {
		if index := m.find(key); index >= 0 {
			m.remove(index)
			m.deleted++
		} else {
			stale++
		}
	}
	m.stale += uint64(stale)
	m.serve()
	return stale
}

// call makes a call, and lets it wait for the limiter.
func (m *tableModel) call(c *modelCall) {
	q := m.queue(c)
	if len(*q) == 0 {
		m.advance(c)
	}
	if c.done < c.total {
		c.held = true
		*q = append(*q, c)
	}
	m.serve()
}

func (m *tableModel) queue(c *modelCall) *[]*modelCall {
	if c.insert {
		return &m.inserters
	}
	return &m.samplers
}

// abandon ends a call that waits.
func (m *tableModel) abandon(c *modelCall) {
	q := m.queue(c)
	*q = slices.DeleteFunc(*q, func(other *modelCall) bool { return other == c })
	m.serve()
}

// serve performs the calls that wait, as far as the limiter allows.
func (m *tableModel) serve() {
	for progress := true; progress; {
		progress = false
		for _, q := range []*[]*modelCall{&m.inserters, &m.samplers} {
			for len(*q) > 0 && m.advance((*q)[0]) {
				progress = true
				if (*q)[0].done < (*q)[0].total {
					break
				}
				*q = (*q)[1:]
			}
		}
	}
}

// advance performs what the limiter allows of a call, and reports whether that was anything.
func (m *tableModel) advance(c *modelCall) bool {
	before := c.done
	for c.done < c.total && (c.insert && m.mayInsert(1, 0) || !c.insert && m.maySample(1, 0)) {
		if c.done++; c.insert {
			m.add(c)
		} else {
			m.sample(c)
		}
	}
	switch {
	case c.done == before:
		return false
	case c.insert:
		m.lastInserter = c.caller
	default:
		m.lastSampler = c.caller
	}
	return true
}

// problem is a difference between a table and its model.
type problem string

func (m *tableModel) failf(format string, args ...any) { panic(problem(fmt.Sprintf(format, args...))) }

// add inserts the item of a call.
func (m *tableModel) add(c *modelCall) {
	if !c.returned {
		m.failf("the insert of %s still waits", c.caller)
	}
	it := c.item
	if it.rows[0] < m.oldest {
		m.late++
		if c.key != (Key{}) {
			m.failf("an item of overwritten rows has the key %v", c.key)
		}
		return
	}
	if len(m.items) >= m.maxItems {
		m.evict()
	}
	if c.maximum {
		it.priority = 0
		for _, other := range m.items {
			it.priority = max(it.priority, other.priority)
		}
		if it.priority == 0 {
			it.priority = 1
		}
	}
	if it.key = c.key; it.key == (Key{}) || m.find(it.key) >= 0 {
		m.failf("the item of %s has the key %v", c.caller, it.key)
	}
	m.items = append(m.items, &it)
	m.inserted++
	m.due += m.limiter.perInsert
	m.resized()
}

// evict removes the item that the remover chooses.
func (m *tableModel) evict() {
	p := m.probabilities(m.remover)
	chosen := slices.Index(p, 1)
	if random(m.remover) {
		gone := m.gone()
		if len(gone) != 1 {
			m.failf("%d items have left the full table for another", len(gone))
		}
		chosen = m.find(gone[0].key)
		// In an epoch of the remover, none is drawn twice: removed items are gone. If it finds only
		// items of priority zero, it takes any.
		if m.remover.kind == replayv1.SelectorKind_SELECTOR_KIND_PRIORITIZED && slices.Max(p) > 0 && p[chosen] == 0 {
			m.failf("the remover chose an item of priority zero")
		}
	}
	m.evicted++
	m.remove(chosen)
}

// sample draws an item for a call.
func (m *tableModel) sample(c *modelCall) {
	p := m.probabilities(m.sampler)
	chosen := slices.Index(p, 1)
	if random(m.sampler) {
		if len(c.want) >= len(c.info) {
			m.failf("the sample of %s still waits for item %d", c.caller, len(c.want))
		}
		chosen = m.find(c.info[len(c.want)].Key)
	}
	if chosen < 0 || p[chosen] == 0 {
		m.failf("%s got the item %d of %v", c.caller, chosen, p)
	}
	it := m.items[chosen]
	if !slices.ContainsFunc(m.items, func(it *itemModel) bool { return !it.drawn }) {
		for _, other := range m.items {
			other.drawn = false
		}
	}
	it.drawn = true
	it.sampled++
	weight := 1.0
	if m.sampler.kind == replayv1.SelectorKind_SELECTOR_KIND_PRIORITIZED {
		least := 1.0
		for _, q := range p {
			if q > 0 {
				least = min(least, q)
			}
		}
		weight = math.Pow(least/p[chosen], modelBeta)
	}
	c.want = append(c.want, ItemInfo{
		Key: it.key, Sequences: it.rows, Probability: p[chosen], Weight: weight, Priority: it.priority, Sampled: it.sampled,
		TableSize: uint64(len(m.items)), Held: c.held,
	})
	m.sampled++
	m.due--
	if limit := m.limit(); limit > 0 && it.sampled >= limit {
		m.remove(chosen)
		m.exhausted++
	}
}

// modelBeta is the exponent of the weights.
const modelBeta = 0.4

// blocked returns what Inspect says about the calls that wait, without durations.
func (m *tableModel) blocked() []string {
	var texts []string
	for _, q := range [][]*modelCall{m.inserters, m.samplers} {
		wanted := 0
		for _, c := range q {
			wanted += c.total - c.done
			operation, needs, last := "sample", m.samplesNeed(wanted), m.lastInserter
			if c.insert {
				operation, needs, last = "insert", m.insertsNeed(wanted), m.lastSampler
			}
			switch {
			case needs == "":
				needs = "calls before it"
			case last != "" && needs != needsPriority:
				needs += fmt.Sprintf(" (the last was by %s, D ago)", last)
			}
			texts = append(texts, fmt.Sprintf("%s of %s has %d of %d items and has waited D for %s", operation, c.caller, c.done, c.total, needs))
		}
	}
	return texts
}

const needsPriority = "an item with a priority above zero"

// samplesNeed returns what n samples wait for.
func (m *tableModel) samplesNeed(n int) string {
	if len(m.items) > 0 && !m.drawable() {
		return needsPriority
	}
	inserts := 0
	for !m.maySample(n, inserts) {
		inserts++
	}
	return plural(inserts, "more insert")
}

// insertsNeed returns what n inserts wait for.
func (m *tableModel) insertsNeed(n int) string {
	samples := 0
	for !m.mayInsert(n, samples) {
		samples++
	}
	return plural(samples, "more sample")
}

func plural(n int, what string) string {
	switch n {
	case 0:
		return ""
	case 1:
		return "1 " + what
	default:
		return fmt.Sprintf("%d %ss", n, what)
	}
}

// check compares the table with the model.
func (m *tableModel) check(t *rapid.T, info *replayv1.TableInfo, items []TableItem) {
	require.Equal(t, []uint64{
		uint64(len(m.items)), m.inserted, m.sampled, m.overwritten, m.late, m.evicted, m.exhausted, m.deleted, m.stale,
	}, []uint64{
		info.GetSize(), info.GetInserted(), info.GetSampled(), info.GetOverwritten(), info.GetLate(), info.GetEvicted(), info.GetExhausted(),
		info.GetDeleted(), info.GetStale(),
	}, "size, inserted, sampled, overwritten, late, evicted, exhausted, deleted, stale")
	if m.limiter.rule == rulePerInsert {
		require.InDelta(t, m.due, info.GetDifference(), 1e-9)
	}
	insert, sample := "", ""
	if !m.mayInsert(1, 0) {
		insert = m.insertsNeed(1)
	}
	if !m.maySample(1, 0) {
		sample = m.samplesNeed(1)
	}
	require.Equal(t, insert, info.GetInsertNeeds().GetText())
	require.Equal(t, sample, info.GetSampleNeeds().GetText())
	if m.drawable() {
		require.True(t, insert == "" || sample == "", "inserts and samples wait for each other")
	}
	require.Len(t, items, len(m.items))
	for _, it := range items {
		i := m.find(it.Key)
		require.GreaterOrEqual(t, i, 0, "item %v", it.Key)
		want := m.items[i]
		require.Equal(t, want.rows, it.Sequences)
		require.InDelta(t, want.priority, it.Priority, 0)
		require.Equal(t, want.sampled, it.Sampled)
	}
}
