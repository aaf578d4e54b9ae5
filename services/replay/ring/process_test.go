package ring

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// Tests with several processes re-execute this binary, with a task in its environment.

const taskVariable = "RING_TEST_TASK"

// task is what a subprocess has to do. The subprocess writes results to its standard output, one
// line of JSON each.
type task struct {
	Name string `json:"name"`
	Path string `json:"path"`
	ID   string `json:"id"`
	Seed uint64 `json:"seed"`
	// Rows is the total number of rows to write or read, in batches of Batch.
	Rows  int `json:"rows"`
	Batch int `json:"batch"`
	// Every is the number of rows to write after each area.
	Every int `json:"every"`
}

// result is what a subprocess reports.
type result struct {
	// Ready means that the subprocess is blocked until a line arrives on its standard input.
	Ready bool `json:"ready"`
	// Rows is the number of rows written or read; Torn is how many of those read were corrupt.
	Rows  int    `json:"rows"`
	Torn  int    `json:"torn"`
	Error string `json:"error"`
	// ID is that of a ring that the subprocess created.
	ID string `json:"id"`
}

func TestMain(m *testing.M) {
	if text := os.Getenv(taskVariable); text != "" {
		if err := runTask(text); err != nil {
			report(result{Error: err.Error()})
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func report(o result) {
	if err := json.NewEncoder(os.Stdout).Encode(o); err != nil {
		panic(err)
	}
}

func runTask(text string) error {
	var p task
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return fmt.Errorf("parse task: %w", err)
	}
	if p.Name == "create" {
		return createRing(p)
	}
	tasks := map[string]func(*Ring, task) (result, error){
		"write":           writeRows,
		"sample":          sampleRows,
		"newest":          newestRows,
		"hold":            holdRows,
		"stop mid-row":    stopMidRow,
		"stop mid-batch":  stopMidBatch,
		"stop with areas": stopWithAreas,
		"stop in place":   stopInPlace,
		"stop mid-change": stopMidChange,
		"change":          changeRows,
		"write in place":  writeInPlace,

		"change a large row": changeLargeRow,
	}
	id, err := ParseID(p.ID)
	if err != nil {
		return err
	}
	r, err := Open(p.Path, id)
	if err != nil {
		return err
	}
	o, err := tasks[p.Name](r, p)
	if err != nil {
		return err
	}
	report(o)
	return r.Close()
}

// testLayout is the layout of rows that consist of random text and its checksum, with another
// column in between.
func testLayout(capacity uint64) Layout {
	return Layout{Capacity: capacity, Columns: []Column{
		{Name: "text", DType: Uint8, Shape: []uint64{2, 1000}},
		{Name: "scale", DType: Float32},
		{Name: "sum", DType: Int32},
	}}
}

// testRows fills a batch with random rows.
func testRows(b *Batch, rng *rand.Rand) {
	text := b.Bytes(0)
	fill := byte(rng.Uint32())
	for i := range text {
		text[i] = fill + byte(i/2000)
	}
	for i := range b.Rows() {
		binary.LittleEndian.PutUint32(b.Bytes(1)[4*i:], rng.Uint32())
		binary.LittleEndian.PutUint32(b.Bytes(2)[4*i:], rowSum(b, i))
	}
}

func rowSum(rows Rows, i int) uint32 {
	sum := crc32.ChecksumIEEE(rows.Bytes(0)[2000*i : 2000*(i+1)])
	return crc32.Update(sum, crc32.IEEETable, rows.Bytes(1)[4*i:4*(i+1)])
}

// torn counts the rows whose checksum does not match.
func torn(rows Rows) int {
	n := 0
	for i := range len(rows.Bytes(2)) / 4 {
		if binary.LittleEndian.Uint32(rows.Bytes(2)[4*i:]) != rowSum(rows, i) {
			n++
		}
	}
	return n
}

func writeRows(r *Ring, p task) (result, error) {
	w, err := r.Writer()
	if err != nil {
		return result{}, err
	}
	b, err := NewBatch(r.Layout(), p.Batch)
	if err != nil {
		return result{}, err
	}
	rng := rand.New(rand.NewPCG(p.Seed, 0))
	var o result
	for o.Rows < p.Rows {
		if len(r.Layout().Columns) == 3 { // that of testLayout
			testRows(b, rng)
		}
		n, err := w.TryAppend(b)
		if err != nil {
			return o, err
		}
		o.Rows += n
	}
	return o, nil
}

func sampleRows(r *Ring, p task) (result, error) {
	rng := rand.New(rand.NewPCG(p.Seed, 0))
	return readRows(r, p, func(h *ReadHead, b *Batch) error { return h.Sample(context.Background(), rng, p.Batch, b) })
}

func newestRows(r *Ring, p task) (result, error) {
	return readRows(r, p, func(h *ReadHead, b *Batch) error { return h.Newest(context.Background(), p.Batch, b) })
}

func readRows(r *Ring, p task, read func(*ReadHead, *Batch) error) (result, error) {
	h, err := r.Reader()
	if err != nil {
		return result{}, err
	}
	b, err := NewBatch(r.Layout(), 0)
	if err != nil {
		return result{}, err
	}
	var o result
	for o.Rows < p.Rows {
		if err := read(h, b); err != nil {
			return o, err
		}
		o.Rows += b.Rows()
		o.Torn += torn(b)
	}
	return o, nil
}

// stopInPlace writes half of its rows in place, then waits for a line before it writes the rest.
func stopInPlace(r *Ring, p task) (result, error) {
	w, err := r.InPlace()
	if err != nil {
		return result{}, err
	}
	rng := rand.New(rand.NewPCG(p.Seed, 0))
	err = w.TryAppend(p.Rows, func(columns [][]byte) {
		clear(columns[0])
		report(result{Ready: true})
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		fillColumns(rng)(columns)
	})
	return result{Rows: len(w.Sequences())}, err
}

// writeInPlace reports its first write, and writes runs of up to Batch rows.
func writeInPlace(r *Ring, p task) (result, error) {
	w, err := r.InPlace()
	if err != nil {
		return result{}, err
	}
	rng := rand.New(rand.NewPCG(p.Seed, 0))
	var o result
	for o.Rows < p.Rows {
		if err := w.Append(context.Background(), 1+rng.IntN(p.Batch), fillColumns(rng)); err != nil {
			return o, err
		}
		if o.Rows == 0 {
			report(result{Ready: true})
		}
		o.Rows += len(w.Sequences())
	}
	return o, nil
}

// holdRows reads areas in place, each twice, and counts rows that are corrupt or change meanwhile.
func holdRows(r *Ring, p task) (result, error) {
	h, err := r.Reader()
	if err != nil {
		return result{}, err
	}
	var o result
	for o.Rows < p.Rows {
		area, err := h.Hold(context.Background(), p.Batch)
		if err != nil {
			return o, err
		}
		o.Rows += area.Rows()
		for _, span := range area.Spans() {
			before := bytes.Clone(span.Bytes(0))
			o.Torn += torn(span)
			if !bytes.Equal(before, span.Bytes(0)) {
				o.Torn++
			}
		}
		if err := area.Release(); err != nil {
			return o, err
		}
	}
	return o, nil
}

// stopMidRow claims a row, copies half of it, and blocks. After input it completes the row.
func stopMidRow(r *Ring, p task) (result, error) {
	w, err := r.Writer()
	if err != nil {
		return result{}, err
	}
	b, err := NewBatch(r.Layout(), 1)
	if err != nil {
		return result{}, err
	}
	testRows(b, rand.New(rand.NewPCG(p.Seed, 0)))
	positions := w.allocate(1)
	sequence, ok := positions.next(1)
	if !ok {
		return result{}, ErrNoRoom
	}
	slot := sequence % r.Layout().Capacity
	c := r.head.geometry.columns[0]
	copy(r.rows[c.offset+slot*c.size:][:c.size/2], b.Bytes(0))
	if err := waitForInput(); err != nil {
		return result{}, err
	}
	w.fill(sequence, b, 0)
	w.publish(sequence)
	return result{Rows: 1}, nil
}

// stopMidBatch writes some rows of a batch, and blocks after it allocated positions for the others.
func stopMidBatch(r *Ring, p task) (result, error) {
	if _, err := writeRows(r, task{Rows: p.Rows, Batch: p.Rows}); err != nil {
		return result{}, err
	}
	w, err := r.Writer()
	if err != nil {
		return result{}, err
	}
	positions := w.allocate(p.Batch)
	if !positions.reserve(uint64(p.Batch)) {
		return result{}, ErrNoRoom
	}
	return result{}, waitForInput()
}

// createRing creates a ring of ten rows, fills it, holds them all and blocks.
func createRing(p task) error {
	r, err := Create(p.Path, testLayout(10))
	if err != nil {
		return err
	}
	if _, err := writeRows(r, task{Rows: 10, Batch: 1}); err != nil {
		return err
	}
	report(result{ID: r.ID().String()})
	return waitForInput()
}

func stopWithAreas(r *Ring, p task) (result, error) {
	h, err := r.Reader()
	if err != nil {
		return result{}, err
	}
	for range p.Rows {
		if _, err := h.Hold(context.Background(), p.Batch); err != nil {
			return result{}, err
		}
		if p.Every > 0 {
			if _, err := writeRows(r, task{Rows: p.Every, Batch: 1}); err != nil {
				return result{}, err
			}
		}
	}
	return result{}, waitForInput()
}

func waitForInput() error {
	report(result{Ready: true})
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil && err != io.EOF {
		return fmt.Errorf("wait: %w", err)
	}
	return nil
}

// process is a subprocess that runs a task.
type process struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// start runs a task in a subprocess.
func start(t testing.TB, r *Ring, p task) *process {
	t.Helper()
	if r != nil {
		p.Path, p.ID = r.Path(), r.ID().String()
	}
	text, err := json.Marshal(p)
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), taskVariable+"="+string(text))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	return &process{t: t, cmd: cmd, in: in, out: json.NewDecoder(out)}
}

// next returns the subprocess's next result.
func (p *process) next() result {
	p.t.Helper()
	var o result
	require.NoError(p.t, p.out.Decode(&o))
	require.Empty(p.t, o.Error)
	return o
}

// end returns the subprocess's last result, and waits for it to exit.
func (p *process) end() result {
	p.t.Helper()
	o := p.next()
	require.NoError(p.t, p.cmd.Wait())
	return o
}

func (p *process) kill() {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Kill())
	require.Error(p.t, p.cmd.Wait())
}

// ageRows fills a ring such that some of its rows are older than others by so many rounds, as if
// areas had held them meanwhile.
func ageRows(t testing.TB, r *Ring, rounds uint64) {
	t.Helper()
	capacity := r.Layout().Capacity
	put := func(n uint64) {
		_, err := writeRows(r, task{Rows: int(n), Batch: 1})
		require.NoError(t, err)
	}
	h, err := r.Reader()
	require.NoError(t, err)
	put(capacity)
	var areas []*Area
	for range 6 {
		area, err := h.Hold(t.Context(), 1)
		require.NoError(t, err)
		areas = append(areas, area)
		r.counter(counterHead).Add(rounds * capacity)
		put(3)
	}
	put(capacity - 6)
	for _, area := range areas {
		require.NoError(t, area.Release())
	}
}

// loseRows writes n rows, and allocates all others like a writer that died before it claimed them.
func loseRows(t testing.TB, r *Ring, n int) {
	t.Helper()
	_, err := writeRows(r, task{Rows: n, Batch: 1})
	require.NoError(t, err)
	w, err := r.Writer()
	require.NoError(t, err)
	lost := r.Layout().Capacity - uint64(n)
	positions := w.allocate(int(lost))
	require.True(t, positions.reserve(lost))
}

// newRing makes a ring in a temporary directory, or skips the test where rings are unsupported.
func newRing(t testing.TB, layout Layout) *Ring {
	t.Helper()
	r, err := Create(filepath.Join(t.TempDir(), "ring"), layout)
	if errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}
