package launch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
)

// RemoteStream is the launcher's end of a stream of MachineService.Launch. One goroutine may send
// while another one receives.
type RemoteStream interface {
	Send(req *machinev1.LaunchRequest) error
	Receive() (*machinev1.LaunchResponse, error)
	// Close ends the stream, also for calls of Send and Receive that are in progress.
	Close() error
}

// Remote launches processes on another machine, by a [Keeper] there. Its fields must be set, and
// must not be modified.
type Remote struct {
	// Machine is the name of the machine, for errors.
	Machine string
	// Open opens a stream to the keeper. The stream ends with ctx.
	Open func(ctx context.Context) (RemoteStream, error)
	// IsRefusal reports whether an error of a stream was returned by the keeper. Others mean that
	// the connection was lost.
	IsRefusal func(err error) bool
	// Pause waits before a lost stream is opened again for the attempt-th time in a row.
	Pause func(ctx context.Context, attempt int) error
	// Patience is how long a lost stream may take to be resumed. The keeper's is the same.
	Patience time.Duration

	stallLimit time.Duration // 0 means a second, see output
}

// Launch launches a process as what describes, and as a [Launcher] does: it returns once the
// process runs. It sets the fields of what that spec has.
//
// If the connection is lost meanwhile or later, the stream is opened again and the process goes on.
// After Patience without a connection the process counts as ended, and [Exit].Lost has the reason:
// the keeper ends it as well.
func (r *Remote) Launch(ctx context.Context, what *machinev1.LaunchSpec, spec Spec) (Process, error) {
	p, err := r.launch(ctx, what, spec)
	if err != nil {
		return nil, fmt.Errorf("launch: %s on %s: %w", spec.Name, r.Machine, err)
	}
	return p, nil
}

func (r *Remote) launch(ctx context.Context, what *machinev1.LaunchSpec, spec Spec) (*remoteProcess, error) {
	what.Node, what.Payload = spec.Name, spec.Payload
	p := &remoteProcess{
		remote: r, spec: spec, what: what, id: uuid.NewString(),
		output:  &output{name: spec.Name, receiver: spec.Output, stalled: spec.Stalled, stallLimit: cmp.Or(r.stallLimit, time.Second)},
		started: make(chan struct{}), setupDone: make(chan struct{}), done: make(chan struct{}),
		changed: make(chan struct{}, 1), lines: make(chan numberedLine, keptLines), printed: make(chan struct{}),
	}
	if spec.Log != "" {
		log, err := OpenLog(spec.Log)
		if err != nil {
			return nil, fmt.Errorf("opening its log: %w", err)
		}
		p.output.log = log
	}
	p.life, p.endLife = context.WithCancel(context.WithoutCancel(ctx))
	go p.print()
	go p.run()
	select {
	case <-p.started:
		return p, nil
	case <-p.done:
	case <-ctx.Done():
		err := p.giveUp(context.Cause(ctx))
		return nil, errors.Join(context.Cause(ctx), err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refused != nil {
		return nil, p.refused
	}
	return nil, errors.New(p.exit.String())
}

// remoteProcess is a process on another machine.
//
// Its goroutine run receives what the keeper sends, and opens the stream again when it was lost;
// for each stream another one sends requests. A third one delivers lines, so that a slow receiver
// delays nothing else.
type remoteProcess struct {
	remote *Remote
	spec   Spec
	what   *machinev1.LaunchSpec
	id     string
	output *output
	// life ends when nothing more is to be learned of the process.
	life    context.Context //nolint:containedctx // see above
	endLife context.CancelFunc

	started   chan struct{} // closed when the process runs
	setupDone chan struct{} // closed when it has reported the result of its set-up
	done      chan struct{} // closed when it has ended
	changed   chan struct{} // has an element if there is something to send
	lines     chan numberedLine
	linesEnd  sync.Once
	printed   chan struct{} // closed when all lines were delivered

	mu sync.Mutex // guards the fields below
	// received is how many messages of the keeper have arrived. Those before confirmed were
	// processed: lines were delivered.
	received, confirmed uint64
	pid                 int
	ready               *machinev1.Ready
	ended               *machinev1.Exit
	exit                Exit
	// refused is the keeper's error.
	refused error
	stop    bool
	kill    string
	// connected is set while there is a stream to the keeper.
	connected bool
}

// PID implements [Process].
func (p *remoteProcess) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// Done implements [Process].
func (p *remoteProcess) Done() <-chan struct{} { return p.done }

// Exit implements [Process].
func (p *remoteProcess) Exit() Exit {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit
}

// Kill implements [Process].
func (p *remoteProcess) Kill() error {
	p.killFor("it was requested")
	return nil
}

func (p *remoteProcess) killFor(reason string) {
	p.mu.Lock()
	if p.kill == "" {
		p.kill = reason
	}
	p.mu.Unlock()
	p.wake()
}

// wake has what changed be sent.
func (p *remoteProcess) wake() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// requestStop requests the process to stop.
func (p *remoteProcess) requestStop() {
	p.mu.Lock()
	p.stop = true
	p.mu.Unlock()
	p.wake()
}

// Stop implements [Process].
func (p *remoteProcess) Stop(ctx context.Context) error {
	p.requestStop()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
	}
	err := context.Cause(ctx)
	return errors.Join(fmt.Errorf("launch: %s did not stop gracefully, and was killed: %w", p.spec.Name, err),
		p.end(fmt.Sprintf("it did not stop gracefully (%v)", err)))
}

// remoteKillLimit bounds the wait for the end of a process that the keeper was requested to kill.
const remoteKillLimit = 10 * time.Second

// end kills the process and waits until it has ended.
func (p *remoteProcess) end(reason string) error {
	p.killFor(reason)
	limit := remoteKillLimit
	if !p.isConnected() {
		limit = 0
	}
	if p.endsWithin(limit) {
		return nil
	}
	p.endLife()
	<-p.done
	return fmt.Errorf("launch: %s: %s did not confirm within %v that it has killed process %d: it does so %v after the connection was lost",
		p.spec.Name, p.remote.Machine, limit, p.PID(), p.remote.Patience)
}

// endsWithin waits for the end of the process, for at most limit.
func (p *remoteProcess) endsWithin(limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.done:
		return true
	case <-timer.C:
		return false
	}
}

// isConnected reports whether there is a stream to the keeper.
func (p *remoteProcess) isConnected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connected
}

func (p *remoteProcess) setConnected(connected bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.connected = connected
}

// Ready implements [Process].
func (p *remoteProcess) Ready(ctx context.Context) ([]byte, error) {
	select {
	case <-p.setupDone:
	case <-p.done:
	case <-ctx.Done():
		select {
		case <-p.setupDone: // and ctx has ended: the result of the set-up takes precedence
		default:
			return nil, p.giveUp(context.Cause(ctx))
		}
	}
	p.mu.Lock()
	ready, ended, exit := p.ready, p.ended, p.exit
	p.mu.Unlock()
	switch {
	case ready == nil && ended.GetRefusal() != "":
		return nil, &HandshakeError{Name: p.spec.Name, PID: p.PID(), Reason: ended.GetRefusal(), Exit: exit}
	case ready == nil:
		return nil, &DiedError{Name: p.spec.Name, PID: p.PID(), Greeted: ended.GetGreeted(), Exit: exit}
	}
	if _, failed := ready.GetResult().(*machinev1.Ready_Failure); !failed {
		return ready.GetPayload(), nil
	}
	select {
	case <-p.done: // the keeper ensures it
	case <-ctx.Done():
		if err := p.end("its set-up had failed and it did not end"); err != nil {
			return nil, errors.Join(&FailedError{Name: p.spec.Name, Payload: ready.GetFailure()}, err)
		}
	}
	return nil, &FailedError{Name: p.spec.Name, Payload: ready.GetFailure(), Exit: p.Exit()}
}

// giveUp ends a process that has not been set up: it is requested to stop first, so that its set-up
// can clean up.
func (p *remoteProcess) giveUp(cause error) error {
	err := fmt.Errorf("launch: %s was not set up in time, and was ended: %w", p.spec.Name, cause)
	p.requestStop()
	if p.isConnected() && p.endsWithin(time.Second) {
		return err
	}
	return errors.Join(err, p.end(fmt.Sprintf("it was not set up in time (%v)", cause)))
}

// run receives what the keeper sends until the process has ended, or nothing more can be learned.
func (p *remoteProcess) run() {
	lost := ""
	defer func() { p.finish(lost) }()
	var since time.Time // of the lost connection
	for attempt := 0; ; attempt++ {
		before := p.count()
		err := p.converse()
		switch {
		case err == nil:
			return
		case p.life.Err() != nil:
			lost = "it was given up before " + p.remote.Machine + " answered"
			return
		case p.remote.IsRefusal(err):
			p.refuse(err)
			lost = fmt.Sprintf("%s has it no more: %v", p.remote.Machine, err)
			return
		}
		if now := time.Now(); since.IsZero() || p.count() > before {
			since, attempt = now, 0
		} else if away := now.Sub(since); away > p.remote.Patience {
			lost = fmt.Sprintf("%s could not be reached for %v (%v)", p.remote.Machine, p.remote.Patience, err)
			return
		}
		if p.remote.Pause(p.life, attempt) != nil {
			lost = "it was given up while the connection to " + p.remote.Machine + " was lost"
			return
		}
	}
}

// count returns how many messages were processed.
func (p *remoteProcess) count() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.received
}

// converse opens a stream, and uses it until its end. It returns nil when the process has ended.
func (p *remoteProcess) converse() error {
	ctx, cancel := context.WithCancel(p.life)
	defer cancel()
	stream, err := p.remote.Open(ctx)
	if err != nil {
		return err
	}
	defer stream.Close() //nolint:errcheck // nothing is lost: what was not confirmed is sent again
	if err := stream.Send(p.first()); err != nil {
		return streamError(stream, err)
	}
	p.setConnected(true)
	defer p.setConnected(false)
	sending, endSending := context.WithCancel(ctx)
	var sender sync.WaitGroup
	sender.Go(func() { p.send(sending, stream) })
	for last := false; !last && err == nil; {
		var res *machinev1.LaunchResponse
		if res, err = stream.Receive(); err == nil {
			last = p.process(res)
		}
	}
	endSending()
	if err != nil {
		cancel() // a sender may wait for the connection
	}
	sender.Wait()
	if err == nil {
		p.endLines()
		p.confirm(stream)
	}
	return err
}

// streamError returns why a stream has ended, after Send has failed.
func streamError(stream RemoteStream, err error) error {
	if _, received := stream.Receive(); received != nil {
		return received
	}
	return err
}

// first is the first message of a stream: it has the specification until the keeper has answered.
func (p *remoteProcess) first() *machinev1.LaunchRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	req := &machinev1.LaunchRequest{Id: p.id, Received: p.received, Stop: p.stop, Kill: p.kill}
	if p.received == 0 {
		req.Spec = p.what
	}
	return req
}

// send sends what the keeper should know, as it changes.
func (p *remoteProcess) send(ctx context.Context, stream RemoteStream) {
	for {
		select {
		case <-p.changed:
		case <-ctx.Done():
			return
		}
		p.confirm(stream)
	}
}

// confirm sends how much was processed, and what is requested.
func (p *remoteProcess) confirm(stream RemoteStream) {
	p.mu.Lock()
	req := &machinev1.LaunchRequest{Received: p.confirmed, Stop: p.stop, Kill: p.kill}
	p.mu.Unlock()
	_ = stream.Send(req) // the next stream begins with the same
}

// process processes a message, unless an earlier stream had it. It reports whether it was the last
// one.
func (p *remoteProcess) process(res *machinev1.LaunchResponse) (last bool) {
	number := p.count()
	if res.GetNumber() != number {
		return false
	}
	line := res.GetLine()
	if line != nil {
		p.lines <- numberedLine{number: number, Line: lineOf(line)}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if line == nil && p.confirmed == p.received {
		p.confirmed++
		defer p.wake()
	}
	p.received++
	switch what := res.GetWhat().(type) {
	case *machinev1.LaunchResponse_Started:
		if p.pid == 0 {
			p.pid = int(what.Started.GetPid())
			close(p.started)
		}
	case *machinev1.LaunchResponse_Ready:
		if p.ready == nil {
			p.ready = what.Ready
			close(p.setupDone)
		}
	case *machinev1.LaunchResponse_Exit:
		p.ended = what.Exit
		return true
	}
	return false
}

// numberedLine is a line with the number of its message.
type numberedLine struct {
	Line

	number uint64
}

// print delivers the lines. Each waits while the receiver is slow, for at most a second.
func (p *remoteProcess) print() {
	defer close(p.printed)
	for line := range p.lines {
		if line.Path == p.spec.Name {
			p.output.own(line.Stream, line.Text)
		} else {
			p.output.forwarded(line.Line)
		}
		p.mu.Lock()
		p.confirmed = line.number + 1
		if len(p.lines) == 0 {
			p.confirmed = max(p.confirmed, p.received) // what came after it was processed
		}
		p.mu.Unlock()
		p.wake()
	}
}

// endLines waits until all lines were delivered. There are no further ones.
func (p *remoteProcess) endLines() {
	p.linesEnd.Do(func() { close(p.lines) })
	<-p.printed
}

func (p *remoteProcess) refuse(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused = err
}

// finish records how the process has ended. lost is why that is not known, if it is not.
func (p *remoteProcess) finish(lost string) {
	p.endLines()
	limit := time.NewTimer(time.Second)
	defer limit.Stop()
	select {
	case <-p.output.finish():
	case <-limit.C:
		p.output.giveUp()
	}
	lines, err := p.output.close()
	if err != nil {
		lines = append(lines, Line{Path: p.spec.Name, Stream: Stderr, Text: fmt.Sprintf("launch: closing its log: %v", err)})
	}
	p.mu.Lock()
	if p.ended != nil {
		p.exit = exitFrom(p.ended)
	} else {
		p.exit = Exit{Code: -1, Lost: lost, ended: true}
	}
	p.exit.Lines = lines
	p.mu.Unlock()
	p.endLife()
	close(p.done)
}
