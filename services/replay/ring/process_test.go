package ring

import (
	"bufio"
	"bytes"
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

// The tests below play with several processes: this binary, started again with a part to play in its environment.

const partVariable = "RING_TEST_PART"

// part is what a process is to do. It says on its standard output, a line of JSON each, what came of it.
type part struct {
	Name string `json:"name"`
	Path string `json:"path"`
	ID   string `json:"id"`
	Seed uint64 `json:"seed"`
	// Rows is how many rows to write or read altogether, in batches of Batch.
	Rows  int `json:"rows"`
	Batch int `json:"batch"`
}

// outcome is what a process says.
type outcome struct {
	// Ready is said by a process that now waits, and is killed or told to go on by a line on its standard input.
	Ready bool `json:"ready"`
	// Rows is how many rows were written or read; Torn is how many of those read were not as they had been written.
	Rows  int    `json:"rows"`
	Torn  int    `json:"torn"`
	Error string `json:"error"`
}

func TestMain(m *testing.M) {
	if text := os.Getenv(partVariable); text != "" {
		if err := play(text); err != nil {
			say(outcome{Error: err.Error()})
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func say(o outcome) {
	if err := json.NewEncoder(os.Stdout).Encode(o); err != nil {
		panic(err)
	}
}

func play(text string) error {
	var p part
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return fmt.Errorf("read part: %w", err)
	}
	parts := map[string]func(*Ring, part) (outcome, error){
		"write":           writeRows,
		"sample":          sampleRows,
		"newest":          newestRows,
		"hold":            holdRows,
		"stop in a row":   stopInRow,
		"stop with areas": stopWithAreas,
	}
	id, err := ParseID(p.ID)
	if err != nil {
		return err
	}
	r, err := Open(p.Path, id)
	if err != nil {
		return err
	}
	o, err := parts[p.Name](r, p)
	if err != nil {
		return err
	}
	say(o)
	return r.Close()
}

// A test row is a random text and its checksum, in two columns, with another one between them.
func testLayout(capacity uint64) Layout {
	return Layout{Capacity: capacity, Columns: []Column{
		{Name: "text", DType: Uint8, Shape: []uint64{2, 1000}},
		{Name: "scale", DType: Float32},
		{Name: "sum", DType: Int32},
	}}
}

// testRows fills a batch with rows.
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

// torn counts the rows that are not as they were written.
func torn(rows Rows) int {
	n := 0
	for i := range len(rows.Bytes(2)) / 4 {
		if binary.LittleEndian.Uint32(rows.Bytes(2)[4*i:]) != rowSum(rows, i) {
			n++
		}
	}
	return n
}

func writeRows(r *Ring, p part) (outcome, error) {
	w, err := r.Writer()
	if err != nil {
		return outcome{}, err
	}
	b, err := NewBatch(r.Layout(), p.Batch)
	if err != nil {
		return outcome{}, err
	}
	rng := rand.New(rand.NewPCG(p.Seed, 0))
	var o outcome
	for o.Rows < p.Rows {
		testRows(b, rng)
		n, err := w.Append(b)
		if err != nil {
			return o, err
		}
		o.Rows += n
	}
	return o, nil
}

func sampleRows(r *Ring, p part) (outcome, error) {
	rng := rand.New(rand.NewPCG(p.Seed, 0))
	return readRows(r, p, func(h *ReadHead, b *Batch) error { return h.Sample(rng, p.Batch, b) })
}

func newestRows(r *Ring, p part) (outcome, error) {
	return readRows(r, p, func(h *ReadHead, b *Batch) error { return h.Newest(p.Batch, b) })
}

func readRows(r *Ring, p part, read func(*ReadHead, *Batch) error) (outcome, error) {
	h, err := r.Reader()
	if err != nil {
		return outcome{}, err
	}
	b, err := NewBatch(r.Layout(), 0)
	if err != nil {
		return outcome{}, err
	}
	var o outcome
	for o.Rows < p.Rows {
		if err := read(h, b); err != nil {
			return o, err
		}
		o.Rows += b.Rows()
		o.Torn += torn(b)
	}
	return o, nil
}

// holdRows reads in place, each area twice: what it was must remain.
func holdRows(r *Ring, p part) (outcome, error) {
	h, err := r.Reader()
	if err != nil {
		return outcome{}, err
	}
	var o outcome
	for o.Rows < p.Rows {
		area, err := h.Hold(p.Batch)
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

// stopInRow claims a row, copies half of it, and waits. Told to go on, it finishes the row.
func stopInRow(r *Ring, p part) (outcome, error) {
	w, err := r.Writer()
	if err != nil {
		return outcome{}, err
	}
	b, err := NewBatch(r.Layout(), 1)
	if err != nil {
		return outcome{}, err
	}
	testRows(b, rand.New(rand.NewPCG(p.Seed, 0)))
	places := w.places(1)
	sequence, ok := places.next(1)
	if !ok {
		return outcome{}, ErrNoRoom
	}
	slot := sequence % r.Layout().Capacity
	c := r.head.geometry.columns[0]
	copy(r.rows[c.offset+slot*c.size:][:c.size/2], b.Bytes(0))
	if err := waitForWord(); err != nil {
		return outcome{}, err
	}
	w.fill(sequence, b, 0)
	w.publish(sequence)
	return outcome{Rows: 1}, nil
}

func stopWithAreas(r *Ring, p part) (outcome, error) {
	h, err := r.Reader()
	if err != nil {
		return outcome{}, err
	}
	for range p.Rows {
		if _, err := h.Hold(p.Batch); err != nil {
			return outcome{}, err
		}
	}
	return outcome{}, waitForWord()
}

func waitForWord() error {
	say(outcome{Ready: true})
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil && err != io.EOF {
		return fmt.Errorf("wait: %w", err)
	}
	return nil
}

// process is one that plays a part.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

func start(t *testing.T, r *Ring, p part) *process {
	t.Helper()
	p.Path, p.ID = r.Path(), r.ID().String()
	text, err := json.Marshal(p)
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), partVariable+"="+string(text))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	return &process{t: t, cmd: cmd, in: in, out: json.NewDecoder(out)}
}

// next is the next thing that the process says.
func (p *process) next() outcome {
	p.t.Helper()
	var o outcome
	require.NoError(p.t, p.out.Decode(&o))
	require.Empty(p.t, o.Error)
	return o
}

// end waits for the last thing that the process says, and for its end.
func (p *process) end() outcome {
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

// newRing makes a ring in a directory of the test's.
func newRing(t *testing.T, layout Layout) *Ring {
	t.Helper()
	r, err := Create(filepath.Join(t.TempDir(), "ring"), layout)
	if errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}
