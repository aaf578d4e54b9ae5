package store

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
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
	// Path is the draft that a filler fills.
	Path string `json:"path"`
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
	// Deleted means that the tag "deleted" was deleted up to the last version.
	Deleted bool   `json:"deleted"`
	Error   string `json:"error"`
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
	switch p.Name {
	case "officer":
		return serve(p)
	case "publisher":
		return publish(p)
	case "filler":
		return fillAgain(p)
	}
	r, err := NewReader(p.Directory, "w")
	if err != nil {
		return err
	}
	var o result
	switch p.Name {
	case "slow reader":
		o, err = readInHalves(r)
	case "stalling reader":
		o, err = stall(r, p.Until, inputEnd())
	default:
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

// put writes and publishes a version of tag "w", and reports whether it was published.
func put(s *Store, id uint64, size int) (bool, error) {
	v := &psv1.Version{Tag: "w", Id: id, Size: uint64(size)}
	d, err := s.Reserve(v, "")
	if err != nil {
		return false, err
	}
	if err := write(d, 0, weights(id, size)); err != nil {
		return false, err
	}
	return s.Publish(d, v)
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

// fillAgain fills a draft again and again, until it is killed.
func fillAgain(p task) error {
	parameters := content(p.Until, p.Size)
	report(result{Ready: true})
	for {
		if _, err := Fill(p.Path, parameters); err != nil {
			return err
		}
	}
}

// publish takes a store over, and publishes versions until it is killed. It reports each id once it
// is published. Every fifth version it deletes the tag "deleted", and reports that too.
func publish(p task) error {
	s, err := Open(p.Directory, Options{Held: 1})
	if err != nil {
		return err
	}
	report(result{Ready: true, Last: s.Newest("w").GetId()})
	for id := s.Last("w") + 1; ; id++ {
		parameters := content(id, p.Size+int(id%3)*page)
		for _, tag := range []string{"w", "deleted"} {
			v := &psv1.Version{Tag: tag, Id: id, Size: uint64(len(parameters))}
			d, err := s.Reserve(v, "")
			if err != nil {
				return err
			}
			if err := write(d, 0, parameters); err != nil {
				return err
			}
			if stored, err := s.Publish(d, v); err != nil || !stored {
				return fmt.Errorf("version %d is published: %v, %w", id, stored, err)
			}
		}
		report(result{Last: id})
		if id%5 == 0 {
			if err := s.Delete("deleted", 0); err != nil {
				return err
			}
			report(result{Last: id, Deleted: true})
		}
	}
}

// stall pulls versions, and holds each for a random number of further versions before it reads it.
func stall(r *Reader, until uint64, ended <-chan struct{}) (result, error) {
	var o result
	var held []*Parameters
	check := func(p *Parameters) error {
		o.Pulled++
		if !bytes.Equal(p.Bytes(), content(p.Version().GetId(), len(p.Bytes()))) {
			o.Torn++
		}
		return p.Release()
	}
	for over := false; !over; {
		select {
		case <-ended:
			over = true
		default:
		}
		p, err := r.Pull()
		if errors.Is(err, ErrNoVersion) {
			continue
		}
		if err != nil {
			return o, err
		}
		if p.Version().GetId() < o.Last {
			o.Back++
		}
		o.Last = p.Version().GetId()
		held = append(held, p)
		for len(held) > 1+rand.IntN(4) {
			i := rand.IntN(len(held))
			if err := check(held[i]); err != nil {
				return o, err
			}
			held = slices.Delete(held, i, i+1)
		}
		over = over || o.Last == until
	}
	for _, p := range held {
		if err := check(p); err != nil {
			return o, err
		}
	}
	return o, nil
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
// At the test's end it closes the store, and checks that nothing of it is open or mapped.
func newStore(t *testing.T, options Options) *Store {
	t.Helper()
	return openStore(t, t.TempDir(), options)
}

func openStore(t *testing.T, directory string, options Options) *Store {
	t.Helper()
	before := goleak.IgnoreCurrent()
	s, err := Open(directory, options)
	if errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		require.Empty(t, openIn(t, directory), "open files and mappings")
		require.Empty(t, locksIn(t, directory), "locks")
		goleak.VerifyNone(t, before)
	})
	return s
}

// openIn returns this process's open files and mappings in a directory.
func openIn(t *testing.T, directory string) []string {
	t.Helper()
	var found []string
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, entry := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + entry.Name()); err == nil && strings.HasPrefix(target, directory+"/") {
			found = append(found, target)
		}
	}
	return append(found, mappedIn(t, directory)...)
}

// locksIn returns the files in a directory that any process has locked.
func locksIn(t *testing.T, directory string) []string {
	t.Helper()
	locks, err := os.ReadFile("/proc/locks")
	require.NoError(t, err)
	var found []string
	err = filepath.WalkDir(directory, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		require.NoError(t, err)
		info, err := os.Stat(path)
		require.NoError(t, err)
		stat, ok := info.Sys().(*syscall.Stat_t)
		if ok && strings.Contains(string(locks), fmt.Sprintf(":%d ", stat.Ino)) {
			found = append(found, path)
		}
		return nil
	})
	require.NoError(t, err)
	return found
}

// mappedIn returns this process's mappings of files in a directory.
func mappedIn(t *testing.T, directory string) []string {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	var found []string
	for line := range strings.Lines(string(maps)) {
		if _, path, ok := strings.Cut(line, directory+"/"); ok {
			found = append(found, "mapped "+strings.TrimSpace(path))
		}
	}
	return found
}
