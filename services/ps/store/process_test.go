package store

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
)

// Tests with several processes re-execute this binary, with a task in its environment.
const taskVariable = "STORE_TEST_TASK"

// task is what a subprocess has to do.
type task struct {
	Name      string `json:"name"`
	Directory string `json:"directory"`
	// Until is the version that a reader stops at.
	Until uint64 `json:"until"`
	// Size is the size of parameters in bytes.
	Size int `json:"size"`
}

// result is what a subprocess reports.
type result struct {
	// Ready means that the subprocess is blocked until it gets input or is killed.
	Ready bool `json:"ready"`
	// Pulled counts the versions that were pulled, Torn those that were corrupt, and Back those
	// that were older than a version pulled before.
	Pulled int    `json:"pulled"`
	Torn   int    `json:"torn"`
	Back   int    `json:"back"`
	Last   uint64 `json:"last"`
	Error  string `json:"error"`
}

func TestMain(m *testing.M) {
	text := os.Getenv(taskVariable)
	if text == "" {
		goleak.VerifyTestMain(m)
		return
	}
	if err := runTask(text); err != nil {
		report(result{Error: err.Error()})
	}
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
	if p.Name == "officer" {
		return serve(p)
	}
	r, err := NewReader(p.Directory, "w")
	if err != nil {
		return err
	}
	var o result
	if p.Name == "slow reader" {
		o, err = readInHalves(r)
	} else {
		o, err = followUntil(r, p.Until, inputEnd())
	}
	if err != nil {
		return err
	}
	report(o)
	return r.Close()
}

// weights returns a version's parameters: each byte is derived from the id.
func weights(id uint64, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(id)
	}
	return b
}

// torn reports whether parameters are corrupt.
func torn(p *Parameters) bool {
	for _, b := range p.Bytes() {
		if b != byte(p.Version().GetId()) {
			return true
		}
	}
	return p.Verify() != nil
}

func put(s *Store, id uint64, size int) (bool, error) {
	return s.Put(&psv1.Version{Tag: "w", Id: id}, weights(id, size))
}

// inputEnd returns a channel that is closed at the end of the input: when the test has stored all
// versions, or is dead.
func inputEnd() <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	return ended
}

// followUntil pulls each new version until it has pulled a certain one. After the end of the input
// no newer one is expected.
func followUntil(r *Reader, until uint64, ended <-chan struct{}) (result, error) {
	var o result
	var have uint64
	for have != until {
		over := false
		select {
		case <-ended:
			over = true
		default:
		}
		id, err := r.ID()
		if err != nil {
			return o, err
		}
		if id == have {
			if over {
				break
			}
			continue
		}
		if id < have {
			o.Back++
		}
		p, err := r.Pull()
		if errors.Is(err, ErrFormat) || errors.Is(err, os.ErrNotExist) { // only without the guards
			o.Torn++
			have = id
			continue
		}
		if err != nil {
			return o, err
		}
		o.Pulled++
		if torn(p) {
			o.Torn++
		}
		have = p.Version().GetId()
		if err := p.Release(); err != nil {
			return o, err
		}
	}
	o.Last = have
	return o, nil
}

// readInHalves reads the first half of the parameters, waits for input, and reads the second half.
func readInHalves(r *Reader) (result, error) {
	p, err := r.Pull()
	if err != nil {
		return result{}, err
	}
	half := len(p.Bytes()) / 2
	whole := bytes.Clone(p.Bytes()[:half])
	if err := waitForInput(); err != nil {
		return result{}, err
	}
	var o result
	whole = append(whole, p.Bytes()[half:]...)
	if Checksum(whole) != p.Version().GetChecksum() || torn(p) {
		o.Torn++
	}
	o.Pulled++
	return o, p.Release()
}

// serve stores a version, and waits to be killed.
func serve(p task) error {
	s, err := Open(p.Directory, Options{})
	if err != nil {
		return err
	}
	if _, err := put(s, p.Until, p.Size); err != nil {
		return err
	}
	return waitForInput()
}

func waitForInput() error {
	report(result{Ready: true})
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait: %w", err)
	}
	return nil
}

// process is a subprocess that runs a task.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

func start(t *testing.T, p task) *process {
	t.Helper()
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

func (p *process) next() result {
	p.t.Helper()
	var o result
	require.NoError(p.t, p.out.Decode(&o))
	require.Empty(p.t, o.Error)
	return o
}

func (p *process) end() result {
	p.t.Helper()
	o := p.next()
	require.NoError(p.t, p.cmd.Wait())
	return o
}

// newStore opens a store in a temporary directory, or skips the test where stores are unsupported.
func newStore(t *testing.T, options Options) *Store {
	t.Helper()
	s, err := Open(t.TempDir(), options)
	if errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}
