package replay

import (
	"errors"
	"fmt"
	"math"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/internal/table"
)

// tableConfig returns the configuration of a table with its defaults.
func tableConfig(c *replayv1.TableConfig) (table.Config, error) {
	sampler, err := selectorOf(c.GetSampler(), table.Uniform)
	if err != nil {
		return table.Config{}, fmt.Errorf("table %q: its sampler: %w", c.GetName(), err)
	}
	remover, err := selectorOf(c.GetRemover(), table.FIFO)
	if err != nil {
		return table.Config{}, fmt.Errorf("table %q: its remover: %w", c.GetName(), err)
	}
	l, err := limiterOf(c.GetLimiter())
	if err != nil {
		return table.Config{}, fmt.Errorf("table %q: %w", c.GetName(), err)
	}
	maxItems := defaultMaxItems
	if c.GetMaxItems() != 0 {
		maxItems = bounded(c.GetMaxItems())
	}
	return table.Config{
		Name: c.GetName(), Sampler: sampler, Remover: remover, MaxItems: maxItems, MaxSampled: c.GetMaxSampled(), Limiter: l,
	}, nil
}

// bounded returns a number of items that is refused if it is too high.
func bounded(n uint64) int { return int(min(n, math.MaxInt32)) }

// kindsOfSelectors are the kinds in the order of the messages', from 1.
func kindsOfSelectors() []table.Kind {
	return []table.Kind{table.Uniform, table.Prioritized, table.FIFO, table.LIFO, table.Lowest, table.Highest, table.Epoch}
}

func selectorOf(s *replayv1.Selector, byDefault table.Kind) (table.Selector, error) {
	selector := table.Selector{Kind: byDefault, Exponent: s.GetExponent()}
	if kind := s.GetKind(); kind != replayv1.SelectorKind_SELECTOR_KIND_UNSPECIFIED {
		kinds := kindsOfSelectors()
		if kind < 0 || int(kind) > len(kinds) {
			return selector, fmt.Errorf("%w: its kind %d is unknown", table.ErrConfig, kind)
		}
		selector.Kind = kinds[kind-1]
	}
	return selector, nil
}

func selectorMessage(s table.Selector) *replayv1.Selector {
	message := &replayv1.Selector{Exponent: s.Exponent}
	for i, kind := range kindsOfSelectors() {
		if kind == s.Kind {
			message.Kind = replayv1.SelectorKind(i + 1)
		}
	}
	return message
}

func limiterOf(l *replayv1.Limiter) (table.Limiter, error) {
	limiter := table.Limiter{
		MinSize: bounded(l.GetMinSize()), Ratio: l.GetSamplesPerInsert(), Buffer: l.GetBuffer(), Capacity: bounded(l.GetCapacity()),
	}
	switch l.GetRule() {
	case replayv1.LimiterRule_LIMITER_RULE_UNSPECIFIED:
	case replayv1.LimiterRule_LIMITER_RULE_SAMPLES_PER_INSERT:
		limiter.Rule = table.PerInsert
	case replayv1.LimiterRule_LIMITER_RULE_QUEUE:
		limiter.Rule = table.Queue
	case replayv1.LimiterRule_LIMITER_RULE_STACK:
		limiter.Rule = table.Stack
	default:
		return limiter, fmt.Errorf("%w: the limiter's rule %d is unknown", table.ErrConfig, l.GetRule())
	}
	return limiter, nil
}

func limiterMessage(l table.Limiter) *replayv1.Limiter {
	message := &replayv1.Limiter{
		MinSize: uint64(l.MinSize), SamplesPerInsert: l.Ratio, Buffer: l.Buffer, Capacity: uint64(l.Capacity), //nolint:gosec // not negative
	}
	switch l.Rule {
	case table.AtLeast:
	case table.PerInsert:
		message.Rule = replayv1.LimiterRule_LIMITER_RULE_SAMPLES_PER_INSERT
	case table.Queue:
		message.Rule = replayv1.LimiterRule_LIMITER_RULE_QUEUE
	case table.Stack:
		message.Rule = replayv1.LimiterRule_LIMITER_RULE_STACK
	}
	return message
}

func itemsOf(messages []*replayv1.Item) []table.Item {
	items := make([]table.Item, len(messages))
	for i, m := range messages {
		items[i] = itemOf(m.GetRuns(), m.Priority)
	}
	return items
}

// itemOf returns an item with these rows. Without a priority it gets the highest of its table.
func itemOf(runs []*replayv1.Run, priority *float64) table.Item {
	item := table.Item{Maximum: priority == nil}
	if priority != nil {
		item.Priority = *priority
	}
	for i, r := range runs {
		run := table.Run{First: r.GetFirst(), Length: r.GetLength()}
		if i == 0 {
			item.Run = run
		} else {
			item.More = append(item.More, run)
		}
	}
	return item
}

func keysOf(numbers []uint64) []table.Key {
	keys := make([]table.Key, len(numbers))
	for i, n := range numbers {
		keys[i] = table.Key(n)
	}
	return keys
}

func runsMessage(first table.Run, more []table.Run) []*replayv1.Run {
	runs := make([]*replayv1.Run, 0, 1+len(more))
	runs = append(runs, &replayv1.Run{First: first.First, Length: first.Length})
	for _, r := range more {
		runs = append(runs, &replayv1.Run{First: r.First, Length: r.Length})
	}
	return runs
}

// sampledItemsOf allocates the messages of all items together.
func sampledItemsOf(samples []table.Sample) []*replayv1.SampledItem {
	n := len(samples)
	for i := range samples {
		n += len(samples[i].More)
	}
	items, messages := make([]replayv1.SampledItem, len(samples)), make([]*replayv1.SampledItem, len(samples))
	runs, pointers := make([]replayv1.Run, n), make([]*replayv1.Run, n)
	used := 0
	add := func(r table.Run) {
		runs[used].First, runs[used].Length = r.First, r.Length
		pointers[used] = &runs[used]
		used++
	}
	for i := range samples {
		s, m, first := &samples[i], &items[i], used
		add(s.Run)
		for _, r := range s.More {
			add(r)
		}
		m.Key, m.Runs = uint64(s.Key), pointers[first:used:used]
		m.Probability, m.Weight, m.Priority, m.Sampled = s.Probability, s.Weight, s.Priority, s.Sampled
		m.TableSize, m.AgeNs, m.Held = uint64(s.Size), uint64(s.Age), s.Held //nolint:gosec // not negative
		messages[i] = m
	}
	return messages
}

// blockedOf returns what the limiter made a call wait for, if that is its error, otherwise the
// error.
func blockedOf(err error) (*replayv1.Blocked, error) {
	if blocked, ok := errors.AsType[*table.BlockedError](err); ok {
		return blockedMessage(&blocked.Blocked), nil
	}
	return nil, err
}

func blockedMessage(b *table.Blocked) *replayv1.Blocked {
	return &replayv1.Blocked{
		Caller: b.Caller, Operation: b.Op.String(), Done: uint64(b.Done), Total: uint64(b.Total), WaitedNs: uint64(b.Waited), //nolint:gosec // not negative
		Inserts: b.Needs.Inserts, Samples: b.Needs.Samples, Priority: b.Needs.Priority, From: b.Needs.From, Text: b.String(),
	}
}

func needsMessage(n table.Needs) *replayv1.Needs {
	message := &replayv1.Needs{Inserts: n.Inserts, Samples: n.Samples, Priority: n.Priority}
	if n.Any() {
		message.Text = n.String()
	}
	return message
}

func tableInfoOf(info table.Info) *replayv1.TableInfo {
	c := info.Counts
	message := &replayv1.TableInfo{
		Config: &replayv1.TableConfig{
			Name: info.Name, Sampler: selectorMessage(info.Sampler), Remover: selectorMessage(info.Remover),
			MaxItems: uint64(info.MaxItems), MaxSampled: info.MaxSampled, Limiter: limiterMessage(info.Limiter), //nolint:gosec // not negative
		},
		Size: uint64(info.Size), Inserted: c.Inserted, Sampled: c.Sampled, //nolint:gosec // not negative
		Overwritten: c.Overwritten, Evicted: c.Evicted, Exhausted: c.Exhausted, Deleted: c.Deleted, Late: c.Late,
		Stale: c.Stale, Returned: c.Returned, Difference: info.Difference, Low: info.Low, High: info.High,
		Priorities: info.Priorities, TimesSampled: info.Sampled,
		WindowNs: uint64(info.Rates.Window), InsertsPerSecond: info.Rates.Inserts, SamplesPerSecond: info.Rates.Samples, //nolint:gosec // not negative
		InsertNeeds: needsMessage(info.InsertNeeds), SampleNeeds: needsMessage(info.SampleNeeds),
	}
	for i := range info.Blocked {
		message.Blocked = append(message.Blocked, blockedMessage(&info.Blocked[i]))
	}
	return message
}

// tableReason returns the reason of an error of tables, or unspecified.
func tableReason(err error) replayv1.Reason {
	switch {
	case errors.Is(err, ErrTable):
		return replayv1.Reason_REASON_TABLE
	case errors.Is(err, ErrLimiter):
		return replayv1.Reason_REASON_LIMITER
	case errors.Is(err, ErrItem):
		return replayv1.Reason_REASON_ITEM
	case errors.Is(err, ErrPriority):
		return replayv1.Reason_REASON_PRIORITY
	case errors.Is(err, ErrArgument):
		return replayv1.Reason_REASON_ARGUMENT
	case errors.Is(err, ErrKey):
		return replayv1.Reason_REASON_KEY
	default:
		return replayv1.Reason_REASON_UNSPECIFIED
	}
}
