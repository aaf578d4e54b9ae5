package table

import (
	"slices"
	"time"
)

// Info describes a table at one time.
type Info struct {
	Name             string
	Sampler, Remover Selector
	Limiter          Limiter
	Size, MaxItems   int
	// MaxSampled is how often an item can be sampled, 0 if there is no limit.
	MaxSampled uint32
	Counts     Counts
	// Difference is how many samples are due, of a limiter with samples per insert. Inserts wait
	// where it would exceed High, samples where it would go below Low.
	Difference, Low, High float64
	// Needs are what an insert and a sample of one item would wait for; zero if they would not.
	InsertNeeds, SampleNeeds Needs
	// Blocked are the calls that wait, inserts first, in the order in which they are served.
	Blocked []Blocked
	// Priorities are quantiles of the priorities, from the minimum to the maximum, and Sampled
	// those of the number of times that an item was sampled. They are estimates from a sample of
	// the items if there are more than a thousand. They are empty if the table is.
	Priorities, Sampled []float64
	// Rates are those of the last seconds.
	Rates Rates
	// Open is how long the table has been open.
	Open time.Duration
}

// Rates are how many items were inserted and drawn per second in a window of time, which ends now.
type Rates struct {
	Window           time.Duration
	Inserts, Samples float64
}

// rateSeconds is how many seconds a table remembers for its rates, the current one included.
const rateSeconds = 10

// meter counts inserts and draws of the last seconds.
type meter [rateSeconds]struct {
	second            int64
	inserted, sampled uint64
}

func (m *meter) add(now time.Duration, inserted, sampled uint64) {
	second := int64(now / time.Second)
	slot := &m[second%rateSeconds]
	if slot.second != second {
		slot.second, slot.inserted, slot.sampled = second, 0, 0
	}
	slot.inserted += inserted
	slot.sampled += sampled
}

// rates returns the rates since the beginning of the first second that is remembered.
func (m *meter) rates(now time.Duration) Rates {
	first := max(0, int64(now/time.Second)-rateSeconds+1)
	var inserted, sampled uint64
	for _, slot := range m {
		if slot.second >= first {
			inserted += slot.inserted
			sampled += slot.sampled
		}
	}
	window := now - time.Duration(first)*time.Second
	seconds := max(window, time.Millisecond).Seconds()
	return Rates{Window: window, Inserts: float64(inserted) / seconds, Samples: float64(sampled) / seconds}
}

// quantiles are those of Info, in percent.
func quantiles() []int { return []int{0, 10, 25, 50, 75, 90, 100} }

// inspected bounds the items from which quantiles are computed.
const inspected = 1000

// Inspect describes the table. Its work does not depend on the number of items.
func (t *Table) Inspect() Info {
	t.mu.Lock()
	defer t.mu.Unlock()
	info := Info{
		Name: t.config.Name, Sampler: t.config.Sampler, Remover: t.config.Remover, Limiter: t.limit.Limiter,
		Size: t.size, MaxItems: t.config.MaxItems, MaxSampled: t.maxSampled(), Counts: t.counts, Open: t.now(),
	}
	info.Rates = t.meter.rates(info.Open)
	if t.limit.Rule == PerInsert {
		info.Difference = t.limit.difference()
		info.Low, info.High = t.limit.bounds()
	}
	if t.limit.canInsert(1, t.size, t.sampler.any()) == 0 {
		info.InsertNeeds = t.limit.forInserts(1, t.size)
	}
	if t.limit.canSample(1, t.size, t.sampler.any()) == 0 {
		info.SampleNeeds = t.limit.forSamples(1, t.size, t.sampler.any())
	}
	for _, q := range []*queue{&t.inserters, &t.samplers} {
		ahead := 0
		for e := q.Front(); e != nil; e = e.Next() {
			w := e.Value.(*waiter) //nolint:forcetypeassert // see queue
			info.Blocked = append(info.Blocked, t.blockedBehind(w, ahead))
			ahead += w.left()
		}
	}
	t.summarize(&info)
	return info
}

// summarize computes quantiles of priorities and counts.
func (t *Table) summarize(info *Info) {
	var priorities, sampled []float64
	visit := func(slot uint32) {
		if it := t.slots.items.at(slot); it.number != 0 {
			priorities = append(priorities, it.priority)
			sampled = append(sampled, float64(it.sampled))
		}
	}
	if t.slots.high <= inspected {
		for slot := range t.slots.high {
			visit(slot)
		}
	} else {
		for range inspected {
			visit(t.random.Uint32N(t.slots.high))
		}
	}
	info.Priorities, info.Sampled = summary(priorities), summary(sampled)
	if len(info.Priorities) > 0 {
		info.Priorities[len(info.Priorities)-1] = t.priorities.highest()
	}
}

// summary returns quantiles of numbers, which it sorts.
func summary(numbers []float64) []float64 {
	if len(numbers) == 0 {
		return nil
	}
	slices.Sort(numbers)
	var result []float64
	for _, percent := range quantiles() {
		result = append(result, numbers[percent*(len(numbers)-1)/100])
	}
	return result
}
