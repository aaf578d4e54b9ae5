package programs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// modelBound is the bound of the caches of models, in bytes: the largest program does not fit, and
// any three others do not fit together.
const modelBound = 100

func modelPrograms() []program {
	var all []program
	for i, size := range []int{1, 40, 50, 60, 61, 99, 100, 101} {
		all = append(all, makeProgram(fmt.Sprint("p", i), size))
	}
	return all
}

// model is what two caches of one directory have, which are like two processes to each other.
type model struct {
	dir      string
	caches   [2]*Cache
	programs []program
	now      int
	there    map[int]*modelFile // by program, complete or partial
	uses     []modelUse
}

type modelFile struct {
	partial bool
	content []byte
	damaged bool // since it was complete
	used    int
}

type modelUse struct {
	use     *Use
	program int
	file    *modelFile
}

func (m *model) inUse(f *modelFile) bool {
	return slices.ContainsFunc(m.uses, func(u modelUse) bool { return u.file == f })
}

// makeRoom returns the programs that leave for another one, or false.
func (m *model) makeRoom(program int) ([]int, bool) {
	free := modelBound - len(m.programs[program].content)
	var order []int
	for i := range m.there {
		if i != program {
			order = append(order, i)
			free -= len(m.programs[i].content)
		}
	}
	slices.SortFunc(order, func(a, b int) int { return m.there[a].used - m.there[b].used })
	var leaving []int
	for _, i := range order {
		if free < 0 && !m.inUse(m.there[i]) {
			leaving = append(leaving, i)
			free += len(m.programs[i].content)
		}
	}
	return leaving, free >= 0
}

// Outcomes of a Get.
const (
	got      = "got"
	noSpace  = "no space"
	cutOff   = "cut"
	tooMuch  = "too much"
	wrongSum = "wrong"
	ended    = "ended early"
)

// get changes the model as a Get does. It returns the outcome, and at which offsets is fetched.
func (m *model) get(program int, sent []byte, after int) (outcome string, offsets []int64) {
	p := m.programs[program]
	f := m.there[program]
	m.now++
	switch {
	case len(p.content) > modelBound:
		return noSpace, nil
	case f != nil && !f.partial && !f.damaged:
		f.used = m.now
		return got, nil
	case f != nil && f.damaged:
		delete(m.there, program)
		f = nil
	}
	leaving, ok := m.makeRoom(program)
	if !ok {
		return noSpace, nil
	}
	for _, i := range leaving {
		delete(m.there, i)
	}
	if f == nil {
		f = &modelFile{partial: true}
	}
	f.used = m.now
	m.there[program] = f
	outcome, offsets = m.receive(p, f, sent, after)
	switch {
	case outcome == got:
		// What was open at the partial file's path is not in use.
		m.there[program] = &modelFile{content: p.content, used: m.now}
	case outcome == wrongSum, outcome == tooMuch, len(f.content) == 0:
		delete(m.there, program)
	}
	return outcome, offsets
}

func (m *model) receive(p program, f *modelFile, sent []byte, after int) (outcome string, offsets []int64) {
	for {
		resumed := len(f.content) > 0
		if len(f.content) < len(p.content) {
			offsets = append(offsets, int64(len(f.content)))
			rest := sent[min(len(f.content), len(sent)):]
			complete := after >= len(rest)
			rest = rest[:min(after, len(rest))]
			if len(f.content)+len(rest) > len(p.content) {
				return tooMuch, offsets
			}
			f.content = append(slices.Clone(f.content), rest...)
			if len(f.content) < len(p.content) {
				if complete {
					return ended, offsets
				}
				return cutOff, offsets
			}
		}
		switch {
		case bytes.Equal(f.content, p.content):
			return got, offsets
		case !resumed:
			return wrongSum, offsets
		}
		f.content = nil
	}
}

func outcomeOf(err error) string {
	var space *SpaceError
	var wrong *HashError
	switch {
	case err == nil:
		return got
	case errors.As(err, &space):
		return noSpace
	case errors.As(err, &wrong):
		return wrongSum
	case errors.Is(err, errTooLong):
		return tooMuch
	case errors.Is(err, errCut):
		return cutOff
	case errors.Is(err, io.ErrUnexpectedEOF):
		return ended
	}
	return err.Error()
}

// chunksOf is a source that sends what there is from an offset, in one chunk or byte by byte.
func chunksOf(content []byte, single bool) Source {
	return Source{Name: "head", Fetch: func(_ context.Context, offset int64, into io.Writer) error {
		rest := content[min(int(offset), len(content)):]
		n := len(rest)
		if single {
			n = 1
		}
		for chunk := range slices.Chunk(rest, max(n, 1)) {
			if _, err := into.Write(chunk); err != nil {
				return err
			}
		}
		return nil
	}}
}

func (m *model) check(t require.TestingT) {
	expected := []string{}
	total := 0
	for i, f := range m.there {
		p := m.programs[i]
		total += len(p.content)
		name := p.complete()
		if f.partial {
			name = p.partial()
		}
		expected = append(expected, name)
		if !f.damaged {
			content, err := os.ReadFile(filepath.Join(m.dir, name))
			require.NoError(t, err)
			require.Equal(t, f.content, content)
		}
	}
	require.ElementsMatch(t, expected, files(t, m.dir))
	require.LessOrEqual(t, total, modelBound)
}

func TestCacheAgreesWithItsModel(t *testing.T) {
	base := t.TempDir()
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		m := &model{dir: filepath.Join(base, strconv.Itoa(run)), programs: modelPrograms(), there: make(map[int]*modelFile)}
		reopen := func(i int) {
			if m.caches[i] != nil {
				m.caches[i].Close()
			}
			c, err := Open(context.Background(), m.dir, modelBound)
			require.NoError(t, err)
			m.caches[i] = c
		}
		reopen(0)
		reopen(1)
		defer func() {
			for _, c := range m.caches {
				c.Close()
			}
			for _, u := range m.uses {
				u.use.Release()
			}
			require.NoError(t, os.RemoveAll(m.dir))
		}()
		fetch := func(t *rapid.T, sent []byte, program, after int) {
			single := rapid.Bool().Draw(t, "byte by byte")
			// A chunk that is too large is refused as a whole, but does not stay in any case.
			outcome, offsets := m.get(program, sent, after)
			var asked []int64
			source := chunksOf(sent, single)
			use, err := m.caches[rapid.IntRange(0, 1).Draw(t, "cache")].Get(context.Background(), m.programs[program].id, Source{
				Name: "head", Fetch: func(ctx context.Context, offset int64, into io.Writer) error {
					asked = append(asked, offset)
					return source.cut(after).Fetch(ctx, offset, into)
				},
			})
			require.Equal(t, outcome, outcomeOf(err), "%v", err)
			require.Equal(t, offsets, asked)
			if err == nil {
				m.uses = append(m.uses, modelUse{use: use, program: program, file: m.there[program]})
			}
		}
		aProgram := func(t *rapid.T) int { return rapid.IntRange(0, len(m.programs)-1).Draw(t, "program") }
		aFile := func(t *rapid.T, partial bool) int {
			var of []int
			for i := range m.programs {
				if f := m.there[i]; f != nil && f.partial == partial {
					of = append(of, i)
				}
			}
			if len(of) == 0 {
				t.Skip("there is none")
			}
			return rapid.SampledFrom(of).Draw(t, "file")
		}
		const whole = 1 << 20
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) { m.check(t) },
			"get": func(t *rapid.T) {
				p := aProgram(t)
				fetch(t, m.programs[p].content, p, whole)
			},
			"get interrupted": func(t *rapid.T) {
				p := aProgram(t)
				fetch(t, m.programs[p].content, p, rapid.IntRange(0, len(m.programs[p].content)).Draw(t, "after"))
			},
			"get wrong bytes": func(t *rapid.T) {
				p := aProgram(t)
				sent := slices.Clone(m.programs[p].content)
				sent[rapid.IntRange(0, len(sent)-1).Draw(t, "wrong")] ^= 1
				fetch(t, sent, p, rapid.SampledFrom([]int{whole, len(sent) / 2}).Draw(t, "after"))
			},
			"get more or less": func(t *rapid.T) {
				p := aProgram(t)
				sent := append(slices.Clone(m.programs[p].content), 1, 2, 3)
				fetch(t, sent[:rapid.IntRange(0, len(sent)).Draw(t, "length")], p, whole)
			},
			"release": func(t *rapid.T) {
				if len(m.uses) == 0 {
					t.Skip("there is none")
				}
				i := rapid.IntRange(0, len(m.uses)-1).Draw(t, "use")
				u := m.uses[i]
				m.uses = slices.Delete(m.uses, i, i+1)
				u.use.Release()
				m.now++
				// Its file may be another one meanwhile: it is the program that was used.
				if f := m.there[u.program]; f != nil && !f.partial {
					f.used = m.now
				}
			},
			"restart": func(t *rapid.T) { reopen(rapid.IntRange(0, 1).Draw(t, "cache")) },
			"damage a program": func(t *rapid.T) {
				p := aFile(t, false)
				f := m.there[p]
				if f.damaged {
					t.Skip("it is")
				}
				f.damaged = true
				tamper(t, filepath.Join(m.dir, m.programs[p].complete()))
			},
			"damage a partial file": func(t *rapid.T) {
				p := aFile(t, true)
				f := m.there[p]
				f.content = slices.Clone(f.content)
				f.content[len(f.content)/2] ^= 1
				m.now++
				f.used = m.now
				path := filepath.Join(m.dir, m.programs[p].partial())
				tamper(t, path)
				touchModified(t, path)
			},
		})
	})
}

// TestCacheUnderConcurrentUse has several caches of one directory, callers that come and go, and
// sources that fail.
func TestCacheUnderConcurrentUse(t *testing.T) {
	dir := cacheDir(t)
	programs := modelPrograms()[:6]
	caches := []*Cache{open(t, dir, modelBound), open(t, dir, modelBound), open(t, dir, modelBound)}
	var all sync.WaitGroup
	for worker := range 12 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(worker)))
			for range 60 {
				p := programs[random.IntN(len(programs))]
				source := p.source()
				source.Name = fmt.Sprint("head-", random.IntN(2))
				switch random.IntN(4) {
				case 0:
					source = source.cut(random.IntN(len(p.content)))
				case 1:
					source = sends("wrong", append([]byte{p.content[0] ^ 1}, p.content[1:]...))
				}
				ctx, cancel := context.WithCancel(t.Context())
				if random.IntN(3) == 0 {
					go cancel()
				}
				use, err := caches[random.IntN(len(caches))].Get(ctx, p.id, source)
				cancel()
				outcome := outcomeOf(err)
				if err == nil {
					content, _ := os.ReadFile(use.Path())
					assert.Equal(t, p.content, content)
					use.Release()
				} else if !errors.Is(err, context.Canceled) {
					assert.Contains(t, []string{noSpace, cutOff, wrongSum}, outcome)
				}
			}
		})
	}
	all.Wait()
	for _, c := range caches {
		c.Close()
	}
	total := 0
	for _, name := range files(t, dir) {
		i := slices.IndexFunc(programs, func(p program) bool { return name == p.complete() || name == p.partial() })
		require.GreaterOrEqual(t, i, 0, "%s was left", name)
		total += len(programs[i].content)
	}
	require.LessOrEqual(t, total, modelBound)
}
