package launch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// process is the parent's end of a process on this machine.
//
// Its goroutines: reap waits for the process to end; readFrames and writeFrames receive and send
// frames; two copy its output. All of them return when the process has ended, and done is closed
// last.
type process struct {
	spec    Spec
	options options
	cmd     *exec.Cmd
	mark    string // of the process and its descendants
	output  *output

	commands *os.File   // the control channel to the child
	pipes    []*os.File // the read ends of the child's pipes
	readers  sync.WaitGroup
	hello    *time.Timer // kills it if there is no hello in time
	freeSlot sync.Once
	release  func() // returns the start-up slot

	setupDone chan struct{} // closed when the child has reported the result of its set-up
	stopping  chan struct{} // closed to request it to stop
	exited    chan struct{} // closed when it has been reaped
	done      chan struct{} // closed when everything has ended
	askStop   sync.Once

	mu      sync.Mutex // guards the fields below
	talk    conversation
	refusal string // why the handshake failed
	reason  string // why this process killed it
	exit    Exit
}

// startProcess starts cmd with the control channel, and with its output connected to this process.
// Its environment is that of this process, with the variables of cmd.
// release is called once: when the process has sent hello or ended, or could not be started.
func startProcess(cmd *exec.Cmd, spec Spec, opts options, release func()) (_ *process, err error) {
	p := &process{
		release:   release,
		mark:      newMark(),
		spec:      spec,
		options:   opts,
		cmd:       cmd,
		output:    &output{name: spec.Name, receiver: spec.Output, stalled: spec.Stalled, stallLimit: opts.stallLimit},
		setupDone: make(chan struct{}),
		stopping:  make(chan struct{}),
		exited:    make(chan struct{}),
		done:      make(chan struct{}),
		talk:      conversation{build: opts.build},
	}
	defer func() {
		if err != nil {
			p.free()
		}
	}()
	var ours, theirs []*os.File
	closeAll := func(files []*os.File) {
		for _, f := range files {
			_ = f.Close() // pipes that have carried nothing yet
		}
	}
	defer func() { closeAll(theirs) }()
	// The first pipe is for reading by the child, the others for writing. All are close-on-exec, so
	// that no other child inherits them.
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
	cmd.Env = slices.Concat(childEnvironment("3,4", "5", p.mark), cmd.Env, spec.Env)
	cmd.Args = []string{title(cmd.Args, spec.Name)}
	cmd.Stdout, cmd.Stderr = theirs[2], theirs[3]
	defer writeArgs()
	if err := cmd.Start(); err != nil {
		closeAll(ours)
		_, logErr := p.output.close()
		return nil, errors.Join(fmt.Errorf("starting its process: %w", err), logErr)
	}
	p.hello = time.AfterFunc(opts.helloTimeout, p.overdue)
	p.readers.Go(func() { p.readFrames(p.pipes[0]) })
	p.readers.Go(func() { p.output.copy(p.pipes[1], Stdout) })
	p.readers.Go(func() { p.output.copy(p.pipes[2], Stderr) })
	go p.writeFrames()
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
func (p *process) Kill() error { return p.kill("it was requested") }

// kill kills the process. os.Process holds a pidfd where there are any, and otherwise its own lock,
// so that another process with the same id cannot be hit.
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
	return errors.Join(fmt.Errorf("launch: %s did not stop gracefully, and was killed: %w", p.spec.Name, err),
		p.end(fmt.Sprintf("it did not stop gracefully (%v)", err)))
}

// end kills the process and waits until everything has ended.
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
	case <-p.setupDone:
	case <-p.done:
	case <-ctx.Done():
		select {
		case <-p.setupDone: // and ctx has ended: the child's result takes precedence
		default:
			return nil, p.giveUp(context.Cause(ctx))
		}
	}
	p.mu.Lock()
	talk := p.talk
	p.mu.Unlock()
	switch {
	case !talk.setupDone:
		return nil, p.died()
	case !talk.failed:
		return talk.payload, nil
	}
	// The process should exit now.
	exit, cancel := context.WithTimeout(ctx, p.options.exitGrace)
	defer cancel()
	select {
	case <-p.done:
	case <-exit.Done():
		if err := p.end("its set-up had failed and it did not end"); err != nil {
			return nil, errors.Join(&FailedError{Name: p.spec.Name, Payload: talk.payload}, err)
		}
	}
	return nil, &FailedError{Name: p.spec.Name, Payload: talk.payload, Exit: p.Exit()}
}

// giveUp ends a process that has not been set up. If it has sent hello, it is requested to stop
// first, so that its set-up can clean up: it has cancelGrace for that.
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

// died is the error of a process that ended without reporting the result of its set-up.
func (p *process) died() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refusal != "" {
		return &HandshakeError{Name: p.spec.Name, PID: p.PID(), Reason: p.refusal, Exit: p.exit}
	}
	return &DiedError{Name: p.spec.Name, PID: p.PID(), Greeted: p.talk.greeted, Exit: p.exit}
}

// refuse kills the process because it violated the protocol.
func (p *process) refuse(reason string) {
	p.mu.Lock()
	if p.refusal == "" {
		p.refusal = reason
	}
	p.mu.Unlock()
	_ = p.kill(reason) // fails only if it is no longer our process, which then does not run our program either
}

// overdue refuses a process that has not sent hello in time.
func (p *process) overdue() {
	if p.greeted() {
		return
	}
	p.refuse(fmt.Sprintf("it did not say hello within %v of its start. Does the program call raylink.Init first of all? "+
		"If it needs longer to get there, allow it: WithStartTimeout or RAYLINK_START_TIMEOUT", p.options.helloTimeout))
}

// free returns the start-up slot.
func (p *process) free() { p.freeSlot.Do(p.release) }

func (p *process) greeted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.talk.greeted
}

// readFrames reads the child's frames until the channel ends.
func (p *process) readFrames(r *os.File) {
	defer func() { _ = r.Close() }() // the read end of a pipe: nothing can be lost
	frames := bufio.NewReader(r)
	for {
		k, body, err := readFrame(frames)
		if err == nil {
			err = p.receive(k, body)
		}
		var broken *protocolError
		switch {
		case err == nil:
		case errors.As(err, &broken):
			if !broken.truncated || !p.exits(p.options.exitGrace) {
				p.refuse(broken.text)
			}
			_, _ = io.Copy(io.Discard, r) // the child must not block on writing when it is requested to stop
			return
		default:
			p.hungUp()
			return
		}
	}
}

// receive processes the child's next frame.
func (p *process) receive(k kind, body []byte) error {
	p.mu.Lock()
	was := p.talk
	line, err := p.talk.receive(k, body)
	is := p.talk
	p.mu.Unlock()
	if err != nil {
		return err
	}
	if is.greeted && !was.greeted {
		p.hello.Stop()
		p.free()
	}
	if is.setupDone && !was.setupDone {
		close(p.setupDone)
	}
	if line != nil {
		p.output.forwarded(*line)
	}
	return nil
}

// hungUp is called when the child has closed its end of the channel: it has died, which reap is
// about to notice, or it is about to exit, or it is a program that closes unknown descriptors.
func (p *process) hungUp() {
	select {
	case <-p.setupDone:
		return
	default:
	}
	if !p.exits(p.options.exitGrace) {
		p.refuse("it closed its control channel without saying how its set-up went")
	}
}

// exits waits for the end of the process, for at most limit. Its pipes end before it does.
func (p *process) exits(limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.exited:
		return true
	case <-timer.C:
		return false
	}
}

// writeFrames writes the frames for the child: start, and later stop. A write fails only if the
// child is dead or about to die.
func (p *process) writeFrames() {
	if err := writeFrame(p.commands, kindStart, versioned(p.spec.Payload)); err != nil {
		return
	}
	select {
	case <-p.stopping:
		_ = writeFrame(p.commands, kindStop, nil) // see above
	case <-p.exited:
	}
}

// reap waits for the process's end, and then ends everything that belongs to it.
func (p *process) reap() {
	awaitExit(p.PID())
	_ = unix.Kill(-p.PID(), unix.SIGKILL) // its process group, which is usually empty
	waitErr := p.cmd.Wait()               // its state has the same information
	close(p.exited)
	swept := make(chan struct{})
	go func() {
		defer close(swept)
		left.kill(p.mark)
	}()
	p.hello.Stop()
	p.free()
	_ = p.commands.Close()
	// Its output is in the pipes, and so is their end, unless another process holds them open.
	deadline := time.Now().Add(p.options.outputGrace)
	for _, pipe := range p.pipes {
		_ = pipe.SetReadDeadline(deadline) // fails if it has been read to its end
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

// awaitReaders waits, for a limited time, until all output has been delivered: a stuck receiver
// must not delay the report of the process's death.
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
