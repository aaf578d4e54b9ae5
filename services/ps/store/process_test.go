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

// The tests below play with several processes: this binary, started again with a part to play in its environment.

const partVariable = "STORE_TEST_PART"

type part struct {
	Name      string `json:"name"`
	Directory string `json:"directory"`
	// Until is the version with which a reader ends.
	Until uint64 `json:"until"`
	// Size is the size of parameters.
	Size int `json:"size"`
}

type outcome struct {
	// Ready is said by a process that now waits, to be killed or to be told to go on.
	Ready bool `json:"ready"`
	// Pulled counts the versions that were pulled; Torn those that were not as they were pushed; Back those that were older
	// than one before.
	Pulled int    `json:"pulled"`
	Torn   int    `json:"torn"`
	Back   int    `json:"back"`
	Error  string `json:"error"`
}

func TestMain(m *testing.M) {
	text := os.Getenv(partVariable)
	if text == "" {
		goleak.VerifyTestMain(m)
		return
	}
	if err := play(text); err != nil {
		say(outcome{Error: err.Error()})
	}
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
	if p.Name == "officer" {
		return serve(p)
	}
	r, err := NewReader(p.Directory, "w")
	if err != nil {
		return err
	}
	var o outcome
	if p.Name == "slow reader" {
		o, err = readSlowly(r)
	} else {
		o, err = follow(r, p.Until)
	}
	if err != nil {
		return err
	}
	say(o)
	return r.Close()
}

// weights are the parameters of a version: every byte says which one it is.
func weights(id uint64, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(id)
	}
	return b
}

// torn says whether parameters are other than they were pushed.
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

// follow pulls whenever there is a new version, until a certain one.
func follow(r *Reader, until uint64) (outcome, error) {
	var o outcome
	var have uint64
	for have != until {
		id, err := r.ID()
		if err != nil {
			return o, err
		}
		if id == have {
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
	return o, nil
}

// readSlowly has read half of the parameters when it is told to go on with the rest.
func readSlowly(r *Reader) (outcome, error) {
	p, err := r.Pull()
	if err != nil {
		return outcome{}, err
	}
	half := len(p.Bytes()) / 2
	whole := bytes.Clone(p.Bytes()[:half])
	if err := wait(); err != nil {
		return outcome{}, err
	}
	var o outcome
	whole = append(whole, p.Bytes()[half:]...)
	if Checksum(whole) != p.Version().GetChecksum() || torn(p) {
		o.Torn++
	}
	o.Pulled++
	return o, p.Release()
}

// serve stores a version, and waits to be killed.
func serve(p part) error {
	s, err := Open(p.Directory, Options{})
	if err != nil {
		return err
	}
	if _, err := put(s, p.Until, p.Size); err != nil {
		return err
	}
	return wait()
}

func wait() error {
	say(outcome{Ready: true})
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait: %w", err)
	}
	return nil
}

type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

func start(t *testing.T, p part) *process {
	t.Helper()
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

func (p *process) next() outcome {
	p.t.Helper()
	var o outcome
	require.NoError(p.t, p.out.Decode(&o))
	require.Empty(p.t, o.Error)
	return o
}

func (p *process) end() outcome {
	p.t.Helper()
	o := p.next()
	require.NoError(p.t, p.cmd.Wait())
	return o
}

// newStore opens a store in a directory of the test's.
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
