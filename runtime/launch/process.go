package launch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// process is a process of this machine, as its parent sees it.
//
// Its goroutines: reap waits for it; listen reads what it says; tell writes what it is told; two
// copy its output. All end when the process has, and done is closed last.
type process struct {
	spec    Spec
	options options
	cmd     *exec.Cmd
	mark    string // of it and its descendants
	output  *output

	commands *os.File   // the control channel's way to the child
	pipes    []*os.File // what is read from the child
	readers  sync.WaitGroup
	hello    *time.Timer // kills it if there is no hello
	freeSlot sync.Once
	release  func() // gives the slot back that the start-up took

	settled  chan struct{} // closed when the child has said how its set-up went
	stopping chan struct{} // closed when it shall be asked to stop
	exited   chan struct{} // closed when it has been reaped
	done     chan struct{} // closed when all is over
	askStop  sync.Once

	mu      sync.Mutex // guards what follows
	talk    conversation
	refusal string // what the handshake failed for
	reason  string // why this process killed it
	exit    Exit
}

// startProcess starts cmd with the control channel, and its output piped here.
// release is called once: when the process has said hello or ended, or could not be started.
func startProcess(cmd *exec.Cmd, spec Spec, opts options, release func()) (_ *process, err error) {
	p := &process{
		release:  release,
		mark:     newMark(),
		spec:     spec,
		options:  opts,
		cmd:      cmd,
		output:   &output{name: spec.Name, receiver: spec.Output, stalled: spec.Stalled, stallLimit: opts.stallLimit},
		settled:  make(chan struct{}),
		stopping: make(chan struct{}),
		exited:   make(chan struct{}),
		done:     make(chan struct{}),
		talk:     conversation{build: opts.build},
	}
	defer func() {
		if err != nil {
			p.free()
		}
	}()
	var ours, theirs []*os.File
	closeAll := func(files []*os.File) {
		for _, f := range files {
			_ = f.Close() // pipes that carried nothing yet
		}
	}
	defer func() { closeAll(theirs) }()
	// The ends that the child reads from, and those that it writes to. All are close-on-exec, so
	// that no other child gets them.
	for i := range 4 {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(ours)
			return nil, fmt.Errorf("making a pipe: %w", err)
		}
		if i == 0 {
			ours, theirs = append(ours, w), append(theirs, r)
		} else {
			ours, theirs = append(ours, r), append(theirs, w)
		}
	}
	p.commands, p.pipes = ours[0], ours[1:]
	if spec.Log != "" {
		log, err := OpenLog(spec.Log)
		if err != nil {
			closeAll(ours)
			return nil, fmt.Errorf("opening its log: %w", err)
		}
		p.output.log = log
	}
	args, writeArgs, err := passArguments(cmd.Args)
	if err != nil {
		closeAll(ours)
		_, logErr := p.output.close()
		return nil, errors.Join(err, logErr)
	}
	theirs = append(theirs, args)
	cmd.ExtraFiles = []*os.File{theirs[0], theirs[1], args} // they become 3, 4 and 5
	cmd.Env = childEnvironment("3,4", "5", p.mark)
	cmd.Args = []string{title(cmd.Args, spec.Name)}
	cmd.Stdout, cmd.Stderr = theirs[2], theirs[3]
	defer writeArgs()
	if err := cmd.Start(); err != nil {
		closeAll(ours)
		_, logErr := p.output.close()
		return nil, errors.Join(fmt.Errorf("starting its process: %w", err), logErr)
	}
	p.hello = time.AfterFunc(opts.helloTimeout, p.overdue)
	p.readers.Go(func() { p.listen(p.pipes[0]) })
	p.readers.Go(func() { p.output.copy(p.pipes[1], Stdout) })
	p.readers.Go(func() { p.output.copy(p.pipes[2], Stderr) })
	go p.tell()
	go p.reap()
	return p, nil
}

// PID implements [Process].
func (p *process) PID() int { return p.cmd.Process.Pid }

// Done implements [Process].
func (p *process) Done() <-chan struct{} { return p.done }

// Exit implements [Process].
func (p *process) Exit() Exit {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit
}

// Kill implements [Process].
func (p *process) Kill() error { return p.kill("it was told to") }

// kill kills the process. os.Process holds a pidfd where there are any, and its own lock where not,
// so that no other process that has got the same id can be hit.
func (p *process) kill(reason string) error {
	p.mu.Lock()
	if p.reason == "" {
		p.reason = reason
	}
	p.mu.Unlock()
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("launch: %s: killing process %d: %w", p.spec.Name, p.PID(), err)
	}
	return nil
}

// Stop implements [Process].
func (p *process) Stop(ctx context.Context) error {
	p.askStop.Do(func() { close(p.stopping) })
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
	}
	err := context.Cause(ctx)
	return errors.Join(fmt.Errorf("launch: %s did not stop in good order, and was killed: %w", p.spec.Name, err),
		p.end(fmt.Sprintf("it did not stop in good order (%v)", err)))
}

// end kills the process and waits until all is over.
func (p *process) end(reason string) error {
	if err := p.kill(reason); err != nil {
		return err
	}
	limit := time.NewTimer(p.options.reapLimit)
	defer limit.Stop()
	select {
	case <-p.done:
		return nil
	case <-limit.C:
		return fmt.Errorf("launch: %s: process %d was killed, but has not ended within %v: it is stuck in the kernel",
			p.spec.Name, p.PID(), p.options.reapLimit)
	}
}

// Ready implements [Process].
func (p *process) Ready(ctx context.Context) ([]byte, error) {
	select {
	case <-p.settled:
	case <-p.done:
	case <-ctx.Done():
		select {
		case <-p.settled: // and ctx has ended: what the child said counts
		default:
			return nil, p.giveUp(context.Cause(ctx))
		}
	}
	p.mu.Lock()
	talk := p.talk
	p.mu.Unlock()
	switch {
	case !talk.settled:
		return nil, p.died()
	case !talk.failed:
		return talk.payload, nil
	}
	// It has nothing left to do but to end.
	patience, cancel := context.WithTimeout(ctx, p.options.exitGrace)
	defer cancel()
	select {
	case <-p.done:
	case <-patience.Done():
		if err := p.end("its set-up had failed and it did not end"); err != nil {
			return nil, errors.Join(&FailedError{Name: p.spec.Name, Payload: talk.payload}, err)
		}
	}
	return nil, &FailedError{Name: p.spec.Name, Payload: talk.payload, Exit: p.Exit()}
}

// giveUp ends a process that has not been set up. One that has said hello is asked to stop first,
// so that what its set-up has begun can be ended, too: it gets cancelGrace for that.
func (p *process) giveUp(cause error) error {
	err := fmt.Errorf("launch: %s was not set up in time, and was ended: %w", p.spec.Name, cause)
	if p.greeted() {
		p.askStop.Do(func() { close(p.stopping) })
		limit := time.NewTimer(p.options.cancelGrace)
		defer limit.Stop()
		select {
		case <-p.done:
			return err
		case <-limit.C:
		}
	}
	return errors.Join(err, p.end(fmt.Sprintf("it was not set up in time (%v)", cause)))
}

// died is the error of a process that ended without saying how its set-up went.
func (p *process) died() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refusal != "" {
		return &HandshakeError{Name: p.spec.Name, PID: p.PID(), Reason: p.refusal, Exit: p.exit}
	}
	return &DiedError{Name: p.spec.Name, PID: p.PID(), Greeted: p.talk.greeted, Exit: p.exit}
}

// refuse kills the process because of what it does on the control channel.
func (p *process) refuse(reason string) {
	p.mu.Lock()
	if p.refusal == "" {
		p.refusal = reason
	}
	p.mu.Unlock()
	_ = p.kill(reason) // only fails if it is not ours any more to kill, and then it is not running our program either
}

// overdue refuses a process that has not said hello.
func (p *process) overdue() {
	if p.greeted() {
		return
	}
	p.refuse(fmt.Sprintf("it did not say hello within %v of its start. Does the program call raylink.Init first of all? "+
		"If it needs longer to get there, allow it: WithStartTimeout or RAYLINK_START_TIMEOUT", p.options.helloTimeout))
}

// free gives the start-up's slot back.
func (p *process) free() { p.freeSlot.Do(p.release) }

func (p *process) greeted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.talk.greeted
}

// listen reads what the child says, until it has nothing more to say.
func (p *process) listen(r *os.File) {
	defer func() { _ = r.Close() }() // a pipe's read end: nothing can be lost
	frames := bufio.NewReader(r)
	for {
		k, body, err := readFrame(frames)
		if err == nil {
			err = p.hear(k, body)
		}
		var broken *protocolError
		switch {
		case err == nil:
		case errors.As(err, &broken):
			if !broken.cut || !p.exits(p.options.exitGrace) {
				p.refuse(broken.text)
			}
			_, _ = io.Copy(io.Discard, r) // it isn't to block, should it be stopped while it writes
			return
		default:
			p.hungUp()
			return
		}
	}
}

// hear takes the child's next frame.
func (p *process) hear(k kind, body []byte) error {
	p.mu.Lock()
	was := p.talk
	line, err := p.talk.hear(k, body)
	is := p.talk
	p.mu.Unlock()
	if err != nil {
		return err
	}
	if is.greeted && !was.greeted {
		p.hello.Stop()
		p.free()
	}
	if is.settled && !was.settled {
		close(p.settled)
	}
	if line != nil {
		p.output.forwarded(*line)
	}
	return nil
}

// hungUp is called when the child has closed its end of the channel: it has died, which reap is
// about to see, or it is about to, or it is a program that closes what it doesn't know.
func (p *process) hungUp() {
	select {
	case <-p.settled:
		return
	default:
	}
	if !p.exits(p.options.exitGrace) {
		p.refuse("it closed its control channel without saying how its set-up went")
	}
}

// exits waits until the process has ended, but not longer than limit. The end of its pipes comes
// before that.
func (p *process) exits(limit time.Duration) bool {
	patience := time.NewTimer(limit)
	defer patience.Stop()
	select {
	case <-p.exited:
		return true
	case <-patience.C:
		return false
	}
}

// tell writes what the child is told: what it is, and to stop. If it can't be told, it is dead or
// about to be.
func (p *process) tell() {
	if err := writeFrame(p.commands, kindStart, versioned(p.spec.Payload)); err != nil {
		return
	}
	select {
	case <-p.stopping:
		_ = writeFrame(p.commands, kindStop, nil) // see above
	case <-p.exited:
	}
}

// reap waits for the process's end and then sees to it that everything else ends, too.
func (p *process) reap() {
	awaitExit(p.PID())
	_ = unix.Kill(-p.PID(), unix.SIGKILL) // its process group; mostly there is nothing left of it
	waitErr := p.cmd.Wait()               // says how it ended, which its state says as well
	close(p.exited)
	swept := make(chan struct{})
	go func() {
		defer close(swept)
		left.kill(p.mark)
	}()
	p.hello.Stop()
	p.free()
	_ = p.commands.Close()
	// What it printed is in the pipes, and their end is, too, unless another process holds them
	// open.
	deadline := time.Now().Add(p.options.outputGrace)
	for _, pipe := range p.pipes {
		_ = pipe.SetReadDeadline(deadline) // fails if it has already been read to its end
	}
	p.awaitReaders()
	lines, err := p.output.close()
	if err != nil {
		lines = append(lines, Line{Path: p.spec.Name, Stream: Stderr, Text: fmt.Sprintf("launch: closing its log: %v", err)})
	}
	p.mu.Lock()
	p.exit = exitOf(p.cmd.ProcessState, p.reason, lines)
	p.exit.Goodbye, p.exit.Reported = p.talk.goodbye, p.talk.reported
	if p.cmd.ProcessState == nil {
		p.exit.Reason = fmt.Sprint(waitErr)
	}
	p.mu.Unlock()
	<-swept
	close(p.done)
}

// awaitReaders waits until all output has been delivered, but not for ever: a receiver that is
// stuck must not hide the process's death.
func (p *process) awaitReaders() {
	delivered := make(chan struct{})
	go func() {
		p.readers.Wait()
		<-p.output.finish()
		close(delivered)
	}()
	limit := time.NewTimer(p.options.outputGrace + 750*time.Millisecond)
	defer limit.Stop()
	select {
	case <-delivered:
	case <-limit.C:
		p.output.giveUp()
	}
}
