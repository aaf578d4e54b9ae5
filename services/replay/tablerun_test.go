package replay

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/internal/leaktest"
)

// tableRun performs random operations of a table with the public API, one after the other, and
// compares what can be seen with a model. Calls that wait go on in the background.
type tableRun struct {
	client *Client
	model  *tableModel
	// writers have History(3), and at most one item on its way.
	writers []*runWriter
	// learners have batches of one or more items.
	learners []*runLearner
	updater  *Sampler[pointColumns]
	// numbers are those of the rows' points, by sequence number.
	numbers map[uint64]int64
	// keys are those of all items so far.
	keys []Key
}

type runWriter struct {
	name    string
	w       *TypedWriter[pointColumns]
	episode []uint64
	call    *modelCall
	pending *PendingKey
}

type runLearner struct {
	name  string
	batch int
	s     *Sampler[pointColumns]
	call  *modelCall
}

// Durations in what blocked calls say.
var durations = regexp.MustCompile(`(waited |, )[0-9.]+[nµm]?s( for| ago)`)

// TestTablesMatchTheirModel has all samplers, removers and limiters.
func TestTablesMatchTheirModel(t *testing.T) {
	for _, way := range []string{"mapped", "remote"} {
		t.Run(way, func(t *testing.T) {
			leaktest.Check(t)
			m := &restartable{}
			remote := tunnelTo(t, m)
			rapid.Check(t, func(t *rapid.T) {
				r := newTableRun(t, func(n *node) *Client {
					if way == "mapped" {
						return open(t, n)
					}
					m.ReplayNode = &remoteReplay{node: n}
					if rapid.IntRange(0, 24).Draw(t, "encoded") > 0 { // to close a stream of HTTP/2 takes a second
						return open(t, m)
					}
					return openHandle(t, remote)
				})
				t.Repeat(map[string]func(*rapid.T){
					"append": r.append, "item": r.item, "item2": r.item, "next": r.next, "next2": r.next, "end": r.end, "update": r.update,
					"delete": r.delete, "limit": r.limit, "close": r.close, "blocked": r.errors, "": func(*rapid.T) {},
				})
			})
		})
	}
}

// newTableRun makes a replay with a table of a random configuration.
func newTableRun(t *rapid.T, open func(*node) *Client) *tableRun {
	m := &tableModel{
		limiter: drawLimiterModel(t), remover: drawSelector(t, "remover"), sampler: drawSelector(t, "sampler"),
		maxItems: rapid.IntRange(1, 9).Draw(t, "max items"), maxSampled: rapid.SampledFrom([]uint32{0, 0, 1, 2, 4}).Draw(t, "max sampled"),
		capacity: rapid.SampledFrom([]uint64{8, 16, 40}).Draw(t, "capacity"),
	}
	switch m.limiter.rule {
	case ruleQueue:
		m.sampler = FIFO()
	case ruleStack:
		m.sampler = LIFO()
	default:
	}
	options := []TableOption{m.sampler, Remover(m.remover), MaxItems(uint64(m.maxItems)), MaxSampled(m.maxSampled), m.limiter.option()}
	_, err := newTables([]*replayv1.TableConfig{Table("t", options...)})
	require.Equal(t, m.possible(m.limiter), err == nil, "%v", err)
	if err != nil {
		require.ErrorIs(t, err, ErrLimiter)
		m.limiter = limiterModel{}
		options[len(options)-1] = m.limiter.option()
	}
	n := emptyNode(t, tempDirectory(t), pointsReplay(m.capacity, Table("t", options...), Table("other", FIFO())))
	t.Cleanup(func() { require.NoError(t, n.close()) })
	r := &tableRun{client: open(n), model: m, numbers: make(map[uint64]int64)}
	p, err := As(r.client, pointRow())
	require.NoError(t, err)
	for i := range 3 {
		w, err := p.Writer(History(3), Caller(fmt.Sprint("actor-", i)))
		require.NoError(t, err)
		r.writers = append(r.writers, &runWriter{name: fmt.Sprint("actor-", i), w: w})
		l := &runLearner{name: fmt.Sprint("learner-", i), batch: []int{1, 1, 3}[i]}
		r.learners = append(r.learners, l)
		r.open(t, p, l)
	}
	r.updater, err = p.Sampler("t")
	require.NoError(t, err)
	m.gone = func() []*itemModel { return r.gone(t) }
	return r
}

func (r *tableRun) open(t *rapid.T, p *Typed[pointColumns], l *runLearner) {
	var err error
	l.s, err = p.Sampler("t", BatchOf(l.batch), Caller(l.name), Weights(modelBeta))
	require.NoError(t, err)
}

func drawSelector(t *rapid.T, role string) Selector {
	return rapid.SampledFrom([]Selector{
		Uniform(), Prioritized(0), Prioritized(0.6), Prioritized(2), FIFO(), LIFO(), Lowest(), Highest(), Epoch(),
	}).Draw(t, role)
}

// do compares the table with the model, after an operation of the model.
func (r *tableRun) do(t *rapid.T, operation func()) {
	r.collect(t)
	func() {
		defer func() {
			if p, ok := recover().(problem); ok {
				require.Fail(t, string(p))
			}
		}()
		operation()
	}()
	for _, c := range r.calls() {
		require.Equal(t, c.done == c.total, c.returned, "%s has %d of %d", c.caller, c.done, c.total)
	}
	info := r.info(t)
	require.Equal(t, r.model.blocked(), blockedTexts(info))
	r.model.check(t, info, r.items(t))
	for _, l := range r.learners {
		if l.call != nil && l.call.returned {
			requireSamples(t, l.call)
			l.call = nil
		}
	}
	for _, w := range r.writers {
		if w.call != nil && w.call.returned {
			if w.call.key != (Key{}) {
				r.keys = append(r.keys, w.call.key)
			}
			w.call, w.pending = nil, nil
		}
	}
}

// requireSamples compares what a call got with what the model has drawn.
func requireSamples(t *rapid.T, c *modelCall) {
	require.Len(t, c.info, len(c.want))
	for i, got := range c.info {
		want := c.want[i]
		require.InEpsilon(t, want.Probability, got.Probability, 1e-9)
		require.InEpsilon(t, want.Weight, got.Weight, 1e-9)
		require.Positive(t, got.Age)
		got.Probability, got.Weight, got.Age, got.Sequences = want.Probability, want.Weight, 0, slices.Clone(got.Sequences)
		require.Equal(t, want, got)
	}
}

// calls returns those that wait, or that the model has not ended yet.
func (r *tableRun) calls() []*modelCall {
	var calls []*modelCall
	for _, w := range r.writers {
		if w.call != nil {
			calls = append(calls, w.call)
		}
	}
	for _, l := range r.learners {
		if l.call != nil {
			calls = append(calls, l.call)
		}
	}
	return calls
}

func (r *tableRun) info(t *rapid.T) *replayv1.TableInfo {
	info, err := r.client.Inspect(t.Context())
	require.NoError(t, err)
	return info.GetTables()[0]
}

func blockedTexts(info *replayv1.TableInfo) []string {
	var texts []string
	for _, b := range info.GetBlocked() {
		texts = append(texts, durations.ReplaceAllString(b.GetText(), "${1}D$2"))
	}
	return texts
}

func (r *tableRun) items(t *rapid.T) []TableItem {
	var items []TableItem
	for it, err := range r.client.Items(t.Context(), "t") {
		require.NoError(t, err)
		items = append(items, it)
	}
	return items
}

// gone returns the model's items that are not in the table any more, except those that a call was
// the last to draw.
func (r *tableRun) gone(t *rapid.T) []*itemModel {
	present := make(map[Key]bool)
	for _, it := range r.items(t) {
		present[it.Key] = true
	}
	for _, c := range r.calls() {
		for i := len(c.want); i < len(c.info); i++ {
			if limit := r.model.limit(); limit > 0 && c.info[i].Sampled >= limit {
				present[c.info[i].Key] = true
			}
		}
	}
	var gone []*itemModel
	for _, it := range r.model.items {
		if !present[it.key] {
			gone = append(gone, it)
		}
	}
	return gone
}

// most is how long a call may take that the model says is complete.
const most = 30 * time.Second

// waits reports whether a call waits at the node, and not returns. If it waits, cancel must end it
// for its caller.
func (r *tableRun) waits(t *rapid.T, c *modelCall, returned <-chan error, cancel func()) bool {
	for end := time.Now().Add(most); !r.listed(t)[c.caller]; {
		select {
		case err := <-returned:
			require.NoError(t, err)
			return false
		default:
		}
		require.True(t, time.Now().Before(end), "the call of %s neither waits nor returns", c.caller)
	}
	cancel()
	err := <-returned
	require.ErrorIs(t, err, ErrBlocked)
	require.ErrorIs(t, err, context.Canceled)
	return true
}

// listed returns the callers that wait at the node.
func (r *tableRun) listed(t *rapid.T) map[string]bool {
	listed := make(map[string]bool)
	for _, b := range r.info(t).GetBlocked() {
		listed[b.GetCaller()] = true
	}
	return listed
}

// collect gets the results of the calls that do not wait any more.
func (r *tableRun) collect(t *rapid.T) {
	listed := r.listed(t)
	ctx, cancel := context.WithTimeout(t.Context(), most)
	defer cancel()
	for _, l := range r.learners {
		if l.call != nil && !l.call.returned && !listed[l.name] {
			b, err := l.s.Next(ctx)
			require.NoError(t, err)
			r.got(t, l, b)
		}
	}
	for _, w := range r.writers {
		if w.call != nil && !w.call.returned && !listed[w.name] {
			require.NoError(t, w.w.Flush(ctx))
			w.got(t)
		}
	}
}

// got checks the rows of a batch.
func (r *tableRun) got(t *rapid.T, l *runLearner, b *SampledBatch[pointColumns]) {
	require.Zero(t, b.Replaced)
	l.call.returned, l.call.info = true, b.Info
	for i, info := range b.Info {
		for k := range b.Length {
			row, want, mask := i*b.Length+k, int64(0), uint8(0)
			if k < len(info.Sequences) {
				want, mask = r.numbers[info.Sequences[k]], 1
			}
			require.Equal(t, []any{want, mask}, []any{b.Columns.N[row], b.Mask[row]})
		}
	}
}

func (w *runWriter) got(t *rapid.T) {
	var confirmed bool
	w.call.key, confirmed = w.pending.Get()
	require.True(t, confirmed)
	w.call.returned = true
}

// append writes rows, which may overwrite those of items.
func (r *tableRun) append(t *rapid.T) {
	w := rapid.SampledFrom(r.writers).Draw(t, "writer")
	for _, l := range r.learners {
		if l.call != nil && len(l.call.want) > 0 {
			return // an item that it has drawn, but not copied, would be replaced if its rows were overwritten
		}
	}
	numbers := make([]int64, rapid.SampledFrom([]int{1, 1, 2, 3, 7}).Draw(t, "rows"))
	for i := range numbers {
		numbers[i] = int64(len(r.numbers) + i + 1)
	}
	require.NoError(t, w.w.Append(t.Context(), len(numbers), points(numbers...)))
	sequences := slices.Clone(w.w.Sequences())
	require.Len(t, sequences, len(numbers))
	for i, s := range sequences {
		r.numbers[s] = numbers[i]
	}
	w.episode = append(w.episode, sequences...)
	r.do(t, func() { r.model.wrote(sequences[len(sequences)-1]) })
}

func (r *tableRun) end(t *rapid.T) {
	w := rapid.SampledFrom(r.writers).Draw(t, "writer")
	require.NoError(t, w.w.EndEpisode(t.Context()))
	w.episode = nil
}

// item creates an item.
func (r *tableRun) item(t *rapid.T) {
	w := rapid.SampledFrom(r.writers).Draw(t, "writer")
	rows := min(3, len(w.episode))
	if w.call != nil || random(r.model.remover) && len(r.model.inserters) > 0 {
		return // the model could not tell which item another one has replaced
	}
	if rows == 0 {
		_, err := w.w.Item(t.Context(), "t", 1, 1)
		require.ErrorIs(t, err, ErrItem)
		return
	}
	rows = rapid.IntRange(1, rows).Draw(t, "rows")
	w.call = &modelCall{caller: w.name, insert: true, total: 1, maximum: rapid.IntRange(0, 4).Draw(t, "maximum") == 0}
	w.call.item = itemModel{rows: slices.Clone(w.episode[len(w.episode)-rows:]), priority: drawPriority(t)}
	var options []ItemOption
	if w.call.maximum {
		options = append(options, AtMaximum())
	}
	var err error
	w.pending, err = w.w.Item(t.Context(), "t", rows, w.call.item.priority, options...)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	returned := make(chan error, 1)
	go func() { returned <- w.w.Flush(ctx) }()
	if !r.waits(t, w.call, returned, cancel) {
		w.got(t)
	}
	r.do(t, func() { r.model.call(w.call) })
}

func drawPriority(t *rapid.T) float64 {
	return rapid.SampledFrom([]float64{0, 0, 1, 2, 0.5, 7, 1e-3}).Draw(t, "priority")
}

// next samples.
func (r *tableRun) next(t *rapid.T) {
	l := rapid.SampledFrom(r.learners).Draw(t, "learner")
	m := r.model
	if l.call != nil {
		return
	}
	if unknown := random(m.sampler) || random(m.remover); unknown && l.batch > 1 && (m.limit() > 0 || len(m.samplers) > 0 || !m.maySample(l.batch, 0)) {
		return // the model could not tell which items the call has while it waits for the rest
	}
	l.call = &modelCall{caller: l.name, total: l.batch}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	returned := make(chan error, 1)
	var batch *SampledBatch[pointColumns]
	go func() {
		var err error
		batch, err = l.s.Next(ctx)
		returned <- err
	}()
	if !r.waits(t, l.call, returned, cancel) {
		r.got(t, l, batch)
	}
	r.do(t, func() {
		// What the call gets at once is not asked for again by the call that waits.
		if len(m.samplers) == 0 {
			m.advance(l.call)
		}
		if l.call.done == l.call.total {
			m.serve()
			return
		}
		m.serve()
		if got := l.call.done; got > 0 {
			l.call.done, l.call.total = 0, l.call.total-got
		}
		m.call(l.call)
	})
}

// errors compares the errors of all calls that wait with what Inspect says. Where the ring is not
// mapped, a writer gets to know a tenth of a second later what an item waits for.
func (r *tableRun) errors(t *rapid.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	texts := make(map[string]string)
	for i, c := range slices.Concat(r.model.inserters, r.model.samplers) {
		texts[c.caller] = r.model.blocked()[i]
	}
	requireText := func(name string, call func() error) {
		var err error
		for end := time.Now().Add(most); time.Now().Before(end); {
			err = call()
			require.ErrorIs(t, err, ErrBlocked)
			require.ErrorIs(t, err, context.Canceled)
			if regexp.MustCompile(regexp.QuoteMeta("for the limiter: " + texts[name] + ": ")).MatchString(durations.ReplaceAllString(err.Error(), "${1}D$2")) {
				return
			}
		}
		require.Failf(t, "another error", "%v instead of %s", err, texts[name])
	}
	for _, l := range r.learners {
		if l.call != nil {
			requireText(l.name, func() error {
				_, err := l.s.Next(ended)
				return err
			})
		}
	}
	for _, w := range r.writers {
		if w.call != nil {
			requireText(w.name, func() error { return w.w.Flush(ended) })
		}
	}
}

// drawKeys draws keys of which some items have left the table, or never were there.
func (r *tableRun) drawKeys(t *rapid.T) []Key {
	known := []Key{{}, {ring: "another", table: "t", number: 1 << 28}}
	for _, key := range r.keys {
		known = append(known, key, key, key, Key{ring: key.ring, table: "other", number: key.number}, Key{ring: "another", table: "t", number: key.number})
	}
	return rapid.SliceOfN(rapid.SampledFrom(known), 0, 5).Draw(t, "keys")
}

func (r *tableRun) update(t *rapid.T) {
	keys := r.drawKeys(t)
	priorities := make([]float64, len(keys))
	for i := range keys {
		priorities[i] = drawPriority(t)
	}
	stale, err := r.updater.Update(t.Context(), keys, priorities)
	require.NoError(t, err)
	r.do(t, func() { require.Equal(t, r.model.update(keys, priorities), stale) })
}

func (r *tableRun) delete(t *rapid.T) {
	keys := r.drawKeys(t)
	stale, err := r.client.Delete(t.Context(), "t", keys)
	require.NoError(t, err)
	r.do(t, func() { require.Equal(t, r.model.delete(keys), stale) })
}

// limit sets another limiter, or one that is refused.
func (r *tableRun) limit(t *rapid.T) {
	l := drawLimiterModel(t)
	err := r.client.SetLimiter(t.Context(), "t", l.option())
	require.Equal(t, r.model.possible(l), err == nil, "%v", err)
	r.do(t, func() {
		if err != nil {
			require.ErrorIs(t, err, ErrLimiter)
			return
		}
		r.model.setLimiter(l)
	})
}

// close ends a call that waits, by closing its sampler.
func (r *tableRun) close(t *rapid.T) {
	l := rapid.SampledFrom(r.learners).Draw(t, "learner")
	if l.call == nil {
		return
	}
	require.NoError(t, l.s.Close())
	for end := time.Now().Add(most); r.listed(t)[l.name]; {
		require.True(t, time.Now().Before(end), "%s still waits", l.name)
	}
	call := l.call
	l.call = nil
	p, err := As(r.client, pointRow())
	require.NoError(t, err)
	r.open(t, p, l)
	r.do(t, func() { r.model.abandon(call) })
}
