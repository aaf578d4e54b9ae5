package store

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
)

// model is what a store must have.
type model struct {
	directory string
	options   Options
	store     *Store
	readers   map[string]*Reader
	// newest and last are the state of each tag that was ever written.
	newest map[string]*psv1.Version
	last   map[string]uint64
	pushed map[string][]byte // by content
	drafts []*draftModel
	held   []*Parameters
	source []*Source
}

type draftModel struct {
	draft      *Draft
	parameters []byte
	lent       bool
}

const modelTags = 3

func (m *model) open(t *rapid.T) {
	var err error
	m.store, err = Open(m.directory, m.options)
	require.NoError(t, err)
}

// live returns the tags that have versions or drafts.
func (m *model) live() map[string]bool {
	live := make(map[string]bool)
	for name := range m.newest {
		live[name] = true
	}
	for _, d := range m.drafts {
		live[d.draft.Tag()] = true
	}
	return live
}

func (m *model) reserve(t *rapid.T) {
	name := rapid.SampledFrom(modelNames()).Draw(t, "tag")
	size := rapid.SampledFrom([]int{0, 1, 100, page, ChunkSize + 1}).Draw(t, "size")
	info := map[string]string{"n": name}
	d, err := m.store.Reserve(&psv1.Version{Tag: name, Size: uint64(size), Info: info}, "")
	info["n"] = "modified after Reserve"
	if live := m.live(); !live[name] && len(live) == modelTags {
		require.ErrorIs(t, err, ErrNoRoom)
		return
	}
	if refused := (*RoomError)(nil); errors.As(err, &refused) && refused.Bound == boundTotal {
		require.Greater(t, m.required()+layout{size: uint64(size), description: 200}.file(), m.options.MaxTotalBytes, "old versions keep the room")
		return
	}
	require.NoError(t, err)
	seed := rapid.Uint64().Draw(t, "seed")
	m.drafts = append(m.drafts, &draftModel{draft: d, parameters: content(seed, size)})
}

// required returns the size of the files that must not be removed for others, at most.
func (m *model) required() uint64 {
	required := m.store.Usage().Retired
	for _, t := range m.store.Usage().Tags {
		required += t.Bytes
	}
	files := make(map[string]bool)
	for _, v := range m.newest {
		files[v.GetContent()] = true
	}
	for _, d := range m.drafts {
		files[d.draft.Content()] = true
	}
	for _, p := range m.held {
		files[p.Version().GetContent()] = true
	}
	for _, x := range m.source {
		files[x.Version().GetContent()] = true
	}
	m.store.mu.Lock()
	defer m.store.mu.Unlock()
	for content, f := range m.store.files {
		if !files[content] {
			required -= f.size()
		}
	}
	return required
}

// pick returns a draft, or skips the action.
func (m *model) pick(t *rapid.T) *draftModel {
	if len(m.drafts) == 0 {
		t.Skip("no draft")
	}
	return m.drafts[rapid.IntRange(0, len(m.drafts)-1).Draw(t, "draft")]
}

func (m *model) write(t *rapid.T) {
	d := m.pick(t)
	i := d.draft.Written()
	if d.lent || i == d.draft.Chunks() {
		t.Skip("nothing to write")
	}
	chunk := d.parameters[i*ChunkSize : min(len(d.parameters), (i+1)*ChunkSize)]
	require.NoError(t, d.draft.WriteChunk(i, chunk, Checksum(chunk)))
}

func (m *model) fill(t *rapid.T) {
	d := m.pick(t)
	if d.draft.Written() > 0 {
		require.ErrorIs(t, d.draft.Lend(), ErrVersion)
		return
	}
	require.NoError(t, d.draft.Lend())
	d.lent = true
	half := len(d.parameters) / 2
	sum, err := Fill(d.draft.Path(), d.parameters[:half], d.parameters[half:])
	require.NoError(t, err)
	if rapid.Bool().Draw(t, "reclaim") {
		require.NoError(t, d.draft.Reclaim(sum))
		d.lent = false
	}
}

func (m *model) publish(t *rapid.T) {
	d := m.pick(t)
	name := d.draft.Tag()
	v := &psv1.Version{Tag: name, Size: d.draft.Size(), Id: m.last[name] + rapid.Uint64Range(0, 2).Draw(t, "above")}
	published, err := m.store.Publish(d.draft, v)
	if v.GetId() == 0 || d.lent || d.draft.Written() < d.draft.Chunks() {
		require.ErrorIs(t, err, ErrVersion)
		return
	}
	require.NoError(t, err)
	require.Equal(t, v.GetId() > m.last[name], published)
	m.forgetDraft(d)
	if published {
		v.Info, v.Content, v.Checksum = map[string]string{"n": name}, d.draft.Content(), Checksum(d.parameters)
		m.newest[name], m.last[name], m.pushed[v.GetContent()] = v, v.GetId(), d.parameters
	}
}

func (m *model) forgetDraft(d *draftModel) {
	m.drafts = slices.DeleteFunc(m.drafts, func(e *draftModel) bool { return e == d })
}

func (m *model) discard(t *rapid.T) {
	d := m.pick(t)
	require.NoError(t, d.draft.Discard())
	m.forgetDraft(d)
}

func (m *model) delete(t *rapid.T) {
	name := rapid.SampledFrom(modelNames()).Draw(t, "tag")
	floor := rapid.Uint64Range(0, 9).Draw(t, "floor")
	require.NoError(t, m.store.Delete(name, floor))
	delete(m.newest, name)
	m.last[name] = max(m.last[name], floor)
}

func (m *model) hold(t *rapid.T) {
	name := rapid.SampledFrom(modelNames()).Draw(t, "tag")
	p, err := m.readers[name].Pull()
	v := m.newest[name]
	if v == nil {
		require.ErrorIs(t, err, ErrNoVersion)
		return
	}
	require.NoError(t, err)
	require.Equal(t, v.String(), p.Version().String())
	m.held = append(m.held, p)
}

func (m *model) release(t *rapid.T) {
	if len(m.held) == 0 {
		t.Skip("nothing held")
	}
	i := rapid.IntRange(0, len(m.held)-1).Draw(t, "held")
	require.NoError(t, m.held[i].Release())
	m.held = slices.Delete(m.held, i, i+1)
}

func (m *model) read(t *rapid.T) {
	name := rapid.SampledFrom(modelNames()).Draw(t, "tag")
	x, err := m.store.SourceOf(name)
	if m.newest[name] == nil {
		require.ErrorIs(t, err, ErrNoVersion)
		return
	}
	require.NoError(t, err)
	m.source = append(m.source, x)
}

func (m *model) endRead(t *rapid.T) {
	if len(m.source) == 0 {
		t.Skip("no source")
	}
	require.NoError(t, m.source[0].Release())
	m.source = m.source[1:]
}

func (m *model) takeOver(t *rapid.T) {
	require.NoError(t, m.store.Close())
	m.drafts = nil
	m.open(t)
}

func (m *model) sweep(t *rapid.T) {
	require.NoError(t, m.store.Sweep())
	if len(m.held)+len(m.source) > 0 {
		return
	}
	usage := m.store.Usage()
	require.Zero(t, usage.Retired)
	require.LessOrEqual(t, usage.Files, len(m.newest)*(1+m.options.Held)+len(m.drafts))
}

func (m *model) check(t *rapid.T) {
	require.Len(t, m.store.Versions(), len(m.newest))
	var size uint64
	for _, name := range modelNames() {
		require.Equal(t, m.newest[name].String(), m.store.Newest(name).String())
		require.Equal(t, m.last[name], m.store.Last(name))
		id, err := m.readers[name].ID()
		require.NoError(t, err)
		require.Equal(t, m.newest[name].GetId(), id)
		if m.newest[name] == nil && m.last[name] > 0 {
			require.Equal(t, m.last[name], m.store.Floors()[name])
		}
	}
	for _, p := range m.held {
		require.True(t, bytes.Equal(m.pushed[p.Version().GetContent()], p.Bytes()), "what a reader holds has changed")
	}
	for _, x := range m.source {
		require.True(t, bytes.Equal(m.pushed[x.Version().GetContent()], x.Bytes()), "what a source holds has changed")
	}
	usage := m.store.Usage()
	for _, tag := range usage.Tags {
		size += tag.Bytes
	}
	require.Equal(t, usage.Bytes, size+usage.Retired)
	require.Equal(t, len(m.drafts), usage.Drafts)
	if m.options.MaxTotalBytes > 0 {
		require.LessOrEqual(t, usage.Bytes, m.options.MaxTotalBytes)
	}
}

func modelNames() []string { return []string{"w", "..", "a/b", "%", "ö"} }

func TestStoreMatchesModel(t *testing.T) {
	newStore(t, Options{}) // skips the test where stores are unsupported
	directory := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		require.NoError(t, os.RemoveAll(directory))
		m := &model{
			directory: directory, options: Options{Held: rapid.IntRange(1, 3).Draw(t, "held"), MaxTags: modelTags, MaxTotalBytes: rapid.SampledFrom([]uint64{0, 600 << 10, 900 << 10}).Draw(t, "room")},
			readers: make(map[string]*Reader), newest: make(map[string]*psv1.Version), last: make(map[string]uint64), pushed: make(map[string][]byte),
		}
		m.open(t)
		for _, name := range modelNames() {
			r, err := NewReader(directory, name)
			require.NoError(t, err)
			m.readers[name] = r
		}
		t.Repeat(map[string]func(*rapid.T){
			"reserve": m.reserve, "write": m.write, "fill": m.fill, "publish": m.publish, "discard": m.discard, "delete": m.delete,
			"hold": m.hold, "release": m.release, "read": m.read, "end read": m.endRead, "take over": m.takeOver, "sweep": m.sweep, "": m.check,
		})
		for _, p := range m.held {
			require.NoError(t, p.Release())
		}
		for _, x := range m.source {
			require.NoError(t, x.Release())
		}
		for _, r := range m.readers {
			require.NoError(t, r.Close())
		}
		require.NoError(t, m.store.Close())
	})
	require.Empty(t, openIn(t, directory))
}
