// Raylink-kubernetes is what `raylink run --on kubernetes` calls the API server by. It is found
// beside raylink, or in PATH. See package wire for what goes between both, and
// docs/clusters-kubernetes.md for users.
//
//	manifests.go  the objects of a run
//	cluster.go    server-side apply, deletion
//	observe.go    what becomes of its pods, in words
//	logs.go       what its program prints
//	run.go        the life of a run, and runs that were left behind
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/raylink/raylink/internal/engine/kubernetes/wire"
)

func main() {
	report := os.NewFile(wire.ResultFD, "result")
	err := serve(os.Stdin, os.Stdout, os.Stderr, report)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v: it is started by raylink run --on kubernetes\n", wire.Program, err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

// serve reads a request, and writes its result to report.
func serve(in io.Reader, out, problems, report io.Writer) error {
	r := bufio.NewReader(in)
	line, err := r.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("reading the request: %w", err)
	}
	var request wire.Request
	if err := json.Unmarshal(line, &request); err != nil {
		return fmt.Errorf("reading the request: %w", err)
	}
	stop, dead := make(chan struct{}), make(chan struct{})
	go listen(r, stop, dead)
	say := func(line string) { fmt.Fprintf(problems, "raylink run: %s\n", line) }
	result := handle(context.Background(), &request, out, say, stop, dead)
	return json.NewEncoder(report).Encode(result)
}

// listen closes stop after a line that asks for it, and dead at the end of the input.
func listen(r *bufio.Reader, stop, dead chan<- struct{}) {
	for stopped := false; ; {
		line, err := r.ReadString('\n')
		if err != nil {
			close(dead)
			return
		}
		if strings.TrimSpace(line) == wire.StopLine && !stopped {
			stopped = true
			close(stop)
		}
	}
}

func handle(ctx context.Context, request *wire.Request, out io.Writer, say func(string), stop, dead <-chan struct{}) wire.Result {
	p := &plan{run: request.Run, target: request.Target}
	fail := func(err error) wire.Result { return wire.Result{Target: p.target, Error: err.Error()} }
	if p.run == nil {
		p.run = new(wire.Run)
	}
	if request.Operation == wire.Start || request.Operation == wire.Plan {
		if err := p.check(); err != nil {
			return fail(err)
		}
	}
	if request.Operation == wire.Plan {
		if err := p.print(out); err != nil {
			return fail(err)
		}
		return wire.Result{Target: p.target}
	}
	c, err := connect(&p.target)
	if err != nil {
		return fail(err)
	}
	s := &session{cluster: c, plan: p, out: out, say: say, stop: stop, dead: dead, beat: time.Duration(lease) * time.Second / 10}
	switch request.Operation {
	case wire.Start:
		return s.start(ctx)
	case wire.State:
		return s.state(ctx)
	case wire.Follow:
		return s.follow(ctx)
	case wire.Stop, wire.Remove:
		return s.end(ctx, request.Operation == wire.Stop)
	default:
		return fail(errors.New("no operation: " + string(request.Operation)))
	}
}

// print writes the manifests as YAML. What is secret is made for each run, and not shown.
func (p *plan) print(w io.Writer) error {
	hidden := *p
	run := *p.run
	hidden.run = &run
	run.Token, run.PKI = "(made for the run)", map[string][]byte{}
	for _, object := range append([]runtime.Object{hidden.driver(lease)}, hidden.owned(nil)...) {
		text, err := yaml.Marshal(object)
		if err == nil {
			_, err = fmt.Fprintf(w, "---\n%s", text)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
