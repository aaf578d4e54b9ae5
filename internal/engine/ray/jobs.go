package ray

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/raylink/raylink/internal/engine"
)

// Jobs are runs that were submitted as jobs of Ray's: their heads run on the cluster. Record.Job is
// the submission id.
type Jobs struct{}

// Submission is what a job runs: `raylink run` with Flags, and the program with its arguments.
type Submission struct {
	Raylink, Program string
	Flags, Args      []string
}

// files are what travels in the folder bin of the job's working directory, by name.
func (s Submission) files() (files map[string]string, program string) {
	program = filepath.Base(s.Program)
	if program == "raylink" { // the name of the other one
		program = "program"
	}
	return map[string]string{"raylink": s.Raylink, program: s.Program}, program
}

// Entrypoint is the command of the job, which Ray gives to a shell. python is used where the
// shell's own has no Ray, as on clusters that were started from a virtual environment.
func (s Submission) Entrypoint(python string) string {
	_, program := s.files()
	words := append([]string{"exec", "bin/raylink", "run", "--on", "ray"}, s.Flags...)
	words = append(append(words, "--", "bin/"+program), s.Args...)
	for i, word := range words {
		words[i] = quote(word)
	}
	const find = `python3 -c 'import importlib.util as u; exit(not u.find_spec("ray"))' || export ` + PythonEnv + `=%s; %s`
	return fmt.Sprintf(find, quote(python), strings.Join(words, " "))
}

// quote quotes a word for a shell.
func quote(word string) string {
	if word != "" && strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=,@%+") == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// IsDashboard reports whether RAY_ADDRESS is that of a dashboard, to which runs are submitted.
func IsDashboard() bool {
	address := os.Getenv(addressEnv)
	return strings.HasPrefix(address, "http://") || strings.HasPrefix(address, "https://")
}

// place is where the job of a record is.
type place struct {
	Address string `json:"address"`
	Job     string `json:"job"`
}

// Submit submits a run, and sets Record.Job. The record must have been created. Ray may have the
// job when ctx ends: then Submit waits for its answer, and the caller stops the job.
func (Jobs) Submit(ctx context.Context, record *engine.Record, s Submission) error {
	python, err := findPython()
	if err != nil {
		return err
	}
	files, program := s.files()
	request := map[string]any{
		"address": "", "entrypoint": s.Entrypoint(python), "files": files, "name": program, "submission_id": "raylink-" + record.ID,
	}
	var answer place
	if err := ask(ctx, "submit", request, &answer); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("ray: interrupted while the job raylink-%s was submitted; if Ray has it, ray job stop raylink-%s stops it: %w", record.ID, record.ID, err)
		}
		return err
	}
	record.Job = answer.Job
	text, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	if err := os.WriteFile(placeFile(record), text, 0o600); err != nil {
		return fmt.Errorf("ray: storing where the job is: %w", err)
	}
	return record.Save()
}

func placeFile(record *engine.Record) string { return filepath.Join(record.Directory(), "ray.json") }

// placeOf returns where the job of a record is.
func placeOf(record *engine.Record) (place, error) {
	p := place{Job: record.Job}
	text, err := os.ReadFile(placeFile(record))
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	if err != nil {
		return p, fmt.Errorf("ray: where the job of the run %s is: %w", record.ID, err)
	}
	return p, nil
}

// submitTime is how long a submission that is interrupted may take.
const submitTime = 15 * time.Second

// command is a process of Python that does something with jobs. A Ctrl-C at the terminal does not
// reach it.
func command(ctx context.Context, verb string, request any) (*exec.Cmd, error) {
	python, err := findPython()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, python, "-m", "raylink.ray", verb)
	cmd.Stdin = bytes.NewReader(append(text, '\n'))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	return cmd, nil
}

// failure says why a process of Python has failed.
func failure(ctx context.Context, cmd *exec.Cmd, said string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	lines := strings.Split(strings.TrimSpace(said), "\n")
	last := lines[len(lines)-1]
	switch {
	case strings.Contains(last, "No module named"):
		return errors.New("ray: " + withoutPackage(cmd.Path, last))
	case last == "":
		return fmt.Errorf("ray: Python: %w", err)
	}
	return errors.New("ray: " + last)
}

// ask has Python do something with jobs, and parses its answer.
func ask(ctx context.Context, verb string, request, answer any) error {
	cmd, err := command(ctx, verb, request)
	if err != nil {
		return err
	}
	if verb == "submit" {
		cmd.Cancel, cmd.WaitDelay = func() error { return os.ErrProcessDone }, submitTime
	}
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return failure(ctx, cmd, said.String(), err)
	}
	// Ray may have printed something before.
	lines := bytes.Split(bytes.TrimSpace(out.Bytes()), []byte("\n"))
	return json.Unmarshal(lines[len(lines)-1], answer)
}

// Update sets the state of a record, and of a job that has ended the exit code.
func (Jobs) Update(ctx context.Context, record *engine.Record) error {
	if record.State != engine.Running {
		return nil
	}
	where, err := placeOf(record)
	if err != nil {
		return err
	}
	var answer struct {
		State engine.State `json:"state"`
		Exit  int          `json:"exit"`
		Error string       `json:"error"`
	}
	if err := ask(ctx, "state", where, &answer); err != nil {
		return err
	}
	record.State, record.Exit, record.Error = answer.State, answer.Exit, answer.Error
	return record.Save()
}

// Follow copies what a job prints to w, from the beginning, until the job or ctx ends.
func (j Jobs) Follow(ctx context.Context, record *engine.Record, w io.Writer) error {
	where, err := placeOf(record)
	if err != nil {
		return err
	}
	cmd, err := command(ctx, "follow", where)
	if err != nil {
		return err
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &said
	if err := cmd.Run(); err != nil {
		return failure(ctx, cmd, said.String(), err)
	}
	return engine.AwaitEnd(ctx, j, record)
}

// Stop asks a run to stop in order. Ray has one way to stop a job: all of its processes are asked
// by a signal, and are killed if they do not end (see jobs.py).
func (Jobs) Stop(ctx context.Context, record *engine.Record, _ bool) error {
	where, err := placeOf(record)
	if err != nil {
		return err
	}
	var answer struct{}
	return ask(ctx, "stop", where, &answer)
}
