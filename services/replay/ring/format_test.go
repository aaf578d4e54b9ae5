package ring_test

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/services/replay/ring"
)

var python = flag.String("python", "", "the Python that must have NumPy; without it, the tests look for one, and may skip")

// page is docs/replay-format.md. These tests know the format from there only: they use no constant
// of package ring.
type page string

func formatPage(t *testing.T) page {
	t.Helper()
	text, err := os.ReadFile(filepath.FromSlash("../../../docs/replay-format.md"))
	require.NoError(t, err)
	return page(text)
}

// table returns the rows of the first table below a heading that has the given column names first.
func (p page) table(t *testing.T, heading string, names ...string) [][]string {
	t.Helper()
	_, text, ok := strings.Cut(string(p), "\n"+heading+"\n")
	require.True(t, ok, "the page has no %q", heading)
	_, text, ok = strings.Cut(text, "\n| "+strings.Join(names, " | ")+" |")
	require.True(t, ok, "%q has no table of %v", heading, names)
	var rows [][]string
	for i, line := range strings.Split(text, "\n") {
		if i == 0 || strings.HasPrefix(line, "| ---") {
			continue
		}
		if !strings.HasPrefix(line, "|") {
			break
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for k := range cells {
			cells[k] = strings.TrimSpace(cells[k])
		}
		rows = append(rows, cells)
	}
	require.NotEmpty(t, rows)
	return rows
}

// number returns the number in a cell of the row with a given other cell.
func number(t *testing.T, rows [][]string, key int, name string, value int) uint64 {
	t.Helper()
	for _, row := range rows {
		if row[key] == name {
			n, err := strconv.ParseUint(strings.Fields(row[value])[0], 10, 64)
			require.NoError(t, err)
			return n
		}
	}
	require.Fail(t, "the page has no such row", name)
	return 0
}

// file is a ring's file, parsed by the page.
type file struct {
	t     *testing.T
	page  page
	bytes []byte

	// wordFields is the page's table of a word.
	wordFields                                             [][]string
	capacity, counters, areas, participants, blocks, words uint64
	columns                                                map[string]column
}

type column struct {
	offset, size uint64
	dtype, rank  uint64
}

func (f *file) u64(offset uint64) uint64 { return binary.LittleEndian.Uint64(f.bytes[offset:]) }

// parseByPage parses a file in use.
func parseByPage(t *testing.T, path string) *file {
	t.Helper()
	le := binary.LittleEndian
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	f := &file{t: t, page: formatPage(t), bytes: text, columns: make(map[string]column)}
	f.wordFields = f.page.table(t, "## Words", "bits", "field")

	fields := f.page.table(t, "## Header", "offset", "type", "field")
	at := func(name string) uint64 { return number(t, fields, 2, name, 0) }
	constants := f.page.table(t, "## Parts", "constant", "value")
	constant := func(name string) uint64 { return number(t, constants, 0, name, 1) }
	up := func(n uint64, to string) uint64 { m := constant(to); return (n + m - 1) / m * m }

	require.Equal(t, "RLRING\r\n", string(text[at("magic"):][:8]))
	require.Equal(t, uint32(2), le.Uint32(text[at("version"):]))
	length := uint64(le.Uint32(text[at("length"):]))
	require.Equal(t, crc32.Checksum(text[at("columns"):length], crc32.MakeTable(crc32.Castagnoli)), le.Uint32(text[at("checksum"):]))
	f.capacity = f.u64(at("capacity"))

	f.counters = up(length, "page")
	f.areas = f.counters + up(constant("counters")*constant("line"), "page")
	f.participants = f.areas + constant("areas")*constant("area")
	f.blocks = up(f.participants+constant("participants")*constant("participant"), "page")
	f.words = up(f.blocks+(f.capacity+constant("block")-1)/constant("block")*constant("summary"), "page")
	require.Equal(t, f.words, f.u64(at("words")))

	types := f.page.table(t, "## Header", "dtype", "name", "size")
	description := f.page.table(t, "The description of a column, one after the other without padding:", "offset", "type", "field")
	end, next := f.words+f.capacity*constant("word"), at("descriptions")
	for range le.Uint32(text[at("columns"):]) {
		c := column{
			offset: up(end, "line"), dtype: uint64(text[next+number(t, description, 2, "dtype", 0)]),
			rank: uint64(text[next+number(t, description, 2, "rank", 0)]),
		}
		nameLength := uint64(le.Uint16(text[next+number(t, description, 2, "name length", 0):]))
		c.size = number(t, types, 0, strconv.FormatUint(c.dtype, 10), 2)
		shape := next + number(t, description, 2, "shape", 0)
		for i := range c.rank {
			c.size *= f.u64(shape + 8*i)
		}
		next = shape + 8*c.rank + nameLength
		f.columns[string(text[next-nameLength:next])] = c
		end = c.offset + f.capacity*c.size
	}
	require.Equal(t, length, next)
	require.Equal(t, up(end, "page"), f.u64(at("size")))
	require.Len(t, text, int(up(end, "page")))
	return f
}

// counter returns a counter.
func (f *file) counter(name string) uint64 {
	f.t.Helper()
	index := number(f.t, f.page.table(f.t, "## Counters", "index", "name"), 1, name, 0)
	return f.u64(f.counters + index*number(f.t, f.page.table(f.t, "## Parts", "constant", "value"), 0, "line", 1))
}

// word returns the fields of a word.
func (f *file) word(slot uint64) map[string]uint64 {
	f.t.Helper()
	w, fields := f.u64(f.words+8*slot), make(map[string]uint64)
	for _, row := range f.wordFields {
		low, high, ok := strings.Cut(row[0], " to ")
		if !ok {
			high = low
		}
		from, err := strconv.Atoi(low)
		require.NoError(f.t, err)
		to, err := strconv.Atoi(high)
		require.NoError(f.t, err)
		fields[row[1]] = w << (63 - to) >> (63 - to + from)
	}
	return fields
}

// formatRing returns a ring that has gone around, with columns of several types.
func formatRing(t *testing.T) *ring.Ring {
	t.Helper()
	r, err := ring.Create(filepath.Join(t.TempDir(), "format.ring"), ring.Layout{Capacity: 5000, Columns: []ring.Column{
		{Name: "frame", DType: ring.Uint8, Shape: []uint64{3, 5}},
		{Name: "reward", DType: ring.Float32},
		{Name: "größe", DType: ring.Int64, Shape: []uint64{2}},
		{Name: "last", DType: ring.Bool},
		{Name: "half", DType: ring.Float16},
	}})
	if errors.Is(err, ring.ErrUnsupported) {
		t.Skip(err)
	}
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	batch, err := ring.NewBatch(r.Layout(), 1000)
	require.NoError(t, err)
	w, err := r.Writer()
	require.NoError(t, err)
	for i := range 7 {
		for row := range 1000 {
			n := 1000*i + row
			for k := range 15 {
				batch.Bytes(0)[15*row+k] = byte(n + k)
			}
			binary.LittleEndian.PutUint32(batch.Bytes(1)[4*row:], math.Float32bits(float32(n)/2))
			binary.LittleEndian.PutUint64(batch.Bytes(2)[16*row:], uint64(n))
			binary.LittleEndian.PutUint64(batch.Bytes(2)[16*row+8:], uint64(-n))
			batch.Bytes(3)[row] = byte(n % 2)
			binary.LittleEndian.PutUint16(batch.Bytes(4)[2*row:], uint16(0x3c00+n%1000))
		}
		_, err := w.Append(t.Context(), batch)
		require.NoError(t, err)
	}
	return r
}

// TestFileIsWhatItsPageSays parses a file in use by the tables of docs/replay-format.md, and
// compares rows, words, counters, participants, areas and blocks with what the package says.
func TestFileIsWhatItsPageSays(t *testing.T) {
	r := formatRing(t)
	h, err := r.Reader()
	require.NoError(t, err)
	area, err := h.Hold(t.Context(), 10)
	require.NoError(t, err)
	defer func() { require.NoError(t, area.Release()) }()
	f := parseByPage(t, r.Path())
	id := number(t, f.page.table(t, "## Header", "offset", "type", "field"), 2, "id", 0)
	require.Equal(t, r.ID().String(), hex.EncodeToString(f.bytes[id:id+16]))
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	require.NoError(t, err)
	bootAt := number(t, f.page.table(t, "## Header", "offset", "type", "field"), 2, "boot", 0)
	require.Equal(t, strings.ReplaceAll(strings.TrimSpace(string(boot)), "-", ""), hex.EncodeToString(f.bytes[bootAt:bootAt+16]))

	require.Len(t, f.columns, 5)
	batch, err := ring.NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	require.NoError(t, h.Newest(t.Context(), 5000, batch))
	require.Equal(t, 5000, batch.Rows())
	for i, sequence := range batch.Sequences() {
		slot := sequence % f.capacity
		word := f.word(slot)
		require.Equal(t, []uint64{0, sequence + 1}, []uint64{word["writing"], word["sequence + 1"]})
		for k, c := range r.Layout().Columns {
			parsed := f.columns[c.Name]
			require.Equal(t, uint64(c.DType), parsed.dtype)
			row := f.bytes[parsed.offset+slot*parsed.size:][:parsed.size]
			require.Equal(t, batch.Bytes(k)[i*len(row):(i+1)*len(row)], row)
		}
	}
	require.Equal(t, uint64(0), f.word(0)["participant"], "the creator wrote them")
	types := f.page.table(t, "## Header", "dtype", "name", "size")
	for _, row := range types {
		n, err := strconv.ParseUint(row[0], 10, 8)
		require.NoError(t, err)
		dtype := ring.DType(n)
		require.Equal(t, []string{row[1], row[2]}, []string{dtype.String(), strconv.Itoa(dtype.Size())})
	}
	require.Zero(t, ring.DType(len(types)+1).Size(), "the page has all types")

	require.GreaterOrEqual(t, f.counter("head"), uint64(7000))
	require.Equal(t, uint64(1), f.counter("active"))
	require.Positive(t, f.counter("epoch"))
	require.Equal(t, uint64(1), f.counter("participants"))
	require.Zero(t, f.counter("ended"))
	require.NoError(t, r.RaiseMark(77))
	f = parseByPage(t, r.Path())
	require.Equal(t, []uint64{77, 0}, []uint64{f.counter("mark"), f.counter("takeovers")})
	require.Equal(t, []uint64{0, 0}, []uint64{f.counter("loading"), f.counter("given up")})
	entry := func(heading, name string) uint64 {
		return number(t, f.page.table(t, heading, "offset", "type", "field"), 2, name, 0)
	}
	require.Equal(t, uint64(os.Getpid()), f.u64(f.participants+entry("## Participants", "process")))
	require.Equal(t, uint64(7000), f.u64(f.participants+entry("## Participants", "written")))
	owner := f.u64(f.areas + entry("## Areas", "owner"))
	require.Equal(t, []uint64{f.counter("stamp"), 0}, []uint64{owner >> 12, owner & (1<<12 - 1)})
	require.Equal(t, area.Spans()[0].First()%f.capacity, f.u64(f.areas+entry("## Areas", "first")))
	require.Equal(t, uint64(10), f.u64(f.areas+entry("## Areas", "rows")))
	require.Positive(t, f.u64(f.areas+entry("## Areas", "since")))
	require.Equal(t, uint64(2), f.u64(f.blocks+entry("## Blocks", "round")))
	require.Equal(t, uint64(4096), f.u64(f.blocks+entry("## Blocks", "filled")))
	require.Equal(t, f.capacity-4096, f.u64(f.blocks+16+entry("## Blocks", "filled")))

	require.NoError(t, r.End())
	require.Equal(t, uint64(1), parseByPage(t, r.Path()).counter("ended"))
}

// pageProgram returns the page's program in Python.
func pageProgram(t *testing.T) string {
	t.Helper()
	found := regexp.MustCompile("(?s)\n```python\n(.*?)\n```\n").FindStringSubmatch(string(formatPage(t)))
	require.NotNil(t, found, "the page has a program")
	return found[1]
}

// TestNumPyMapsColumns runs the program of docs/replay-format.md on a ring in use, and compares
// what it reads with the rows.
func TestNumPyMapsColumns(t *testing.T) {
	name := *python
	if name == "" {
		found, err := exec.LookPath("python3")
		if err != nil {
			t.Skip("skipped: there is no python3; make test-clients runs this test with one")
		}
		if out, err := exec.CommandContext(t.Context(), found, "-c", "import numpy").CombinedOutput(); err != nil {
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			t.Skipf("skipped: %s lacks NumPy (%s); make test-clients runs this test with it", found, lines[len(lines)-1])
		}
		name = found
	}
	r := formatRing(t)
	h, err := r.Reader()
	require.NoError(t, err)
	batch, err := ring.NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	require.NoError(t, h.Newest(t.Context(), 5000, batch))
	read := func(column string, rows any) []uint64 {
		t.Helper()
		command := exec.CommandContext(t.Context(), name, "-c", pageProgram(t), r.Path(), column)
		var stderr strings.Builder
		command.Stderr = &stderr
		out, err := command.Output()
		require.NoError(t, err, stderr.String())
		result := struct {
			Sequences []uint64 `json:"sequences"`
			Rows      any      `json:"rows"`
		}{Rows: rows}
		require.NoError(t, json.Unmarshal(out, &result))
		return result.Sequences
	}
	var rewards []float32
	require.Equal(t, batch.Sequences(), read("reward", &rewards))
	want, err := ring.Values[float32](batch, "reward")
	require.NoError(t, err)
	require.Equal(t, want, rewards)

	var sizes [][]int64
	require.Equal(t, batch.Sequences(), read("größe", &sizes))
	ints, err := ring.Values[int64](batch, "größe")
	require.NoError(t, err)
	var frames [][3][5]uint8
	require.Equal(t, batch.Sequences(), read("frame", &frames))
	bytes, err := ring.Values[uint8](batch, "frame")
	require.NoError(t, err)
	for i := range batch.Rows() {
		require.Equal(t, ints[2*i:2*i+2], sizes[i])
		for k := range 15 {
			require.Equal(t, bytes[15*i+k], frames[i][k/5][k%5])
		}
	}
	var halves []float64
	read("half", &halves)
	require.InDelta(t, 1+1./1024, halves[1], 1e-9)
	if runtime.GOARCH == "amd64" {
		readWhileWritten(t, r, read)
	}
}

// readWhileWritten lets the program read a column while rows are written, whose values are their
// sequence numbers.
func readWhileWritten(t *testing.T, r *ring.Ring, read func(column string, rows any) []uint64) {
	t.Helper()
	w, err := r.Writer()
	require.NoError(t, err)
	batch, err := ring.NewBatch(r.Layout(), 100)
	require.NoError(t, err)
	_, err = w.TryAppend(batch)
	require.NoError(t, err)
	first := batch.Sequences()[99] + 1
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for next := first; ; next += 100 {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			for row := range uint64(100) {
				binary.LittleEndian.PutUint64(batch.Bytes(2)[16*row:], next+row)
				binary.LittleEndian.PutUint64(batch.Bytes(2)[16*row+8:], -(next + row))
			}
			_, err := w.TryAppend(batch)
			if err == nil && batch.Sequences()[0] != next {
				err = fmt.Errorf("the only writer wrote %d instead of %d", batch.Sequences()[0], next)
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	for range 3 {
		var sizes [][2]int64
		sequences := read("größe", &sizes)
		require.Len(t, sizes, len(sequences))
		for i, pair := range sizes {
			if sequences[i] < first {
				continue
			}
			require.Equal(t, [2]int64{int64(sequences[i]), -int64(sequences[i])}, pair, "the contents of another row")
		}
	}
	close(stop)
	require.NoError(t, <-done)
}
