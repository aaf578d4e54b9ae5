package launch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
)

// KeeperStream is the keeper's end of a stream of MachineService.Launch. One goroutine may send
// while another one receives.
type KeeperStream interface {
	Send(res *machinev1.LaunchResponse) error
	Receive() (*machinev1.LaunchRequest, error)
}

// Keeper launches processes on this machine for hosts on others, whose end of this is [Remote]. It
// must be closed.
//
// A process belongs to the stream that launched it: when that is lost and nothing resumes it for
// Patience, the process is requested to stop, and killed if it does not. All processes end with the
// process that the keeper is in, as those of any launcher.
type Keeper struct {
	config KeeperConfig
	// life is canceled by Close.
	life    context.Context //nolint:containedctx // see above
	endLife context.CancelFunc
	running sync.WaitGroup

	mu   sync.Mutex // guards the fields below
	kept map[string]*keptProcess
	over bool
}

// KeeperConfig is what a [Keeper] needs.
type KeeperConfig struct {
	// Launch launches a process. Its error is returned to the launcher.
	Launch func(ctx context.Context, what *machinev1.LaunchSpec, spec Spec) (Process, error)
	// Unknown is the error for a launch to be resumed that the keeper does not have.
	Unknown func(id string) error
	// Closed is the error for a launch after Close.
	Closed func() error
	// LogOf is the path of the log of a node's process; empty for none.
	LogOf func(node string) (string, error)
	// Patience is how long a lost stream may take to be resumed.
	Patience time.Duration
	// StopLimit bounds how long a process whose launcher is lost may take to stop.
	StopLimit time.Duration
	Log       *slog.Logger
}

// NewKeeper returns a keeper without processes.
func NewKeeper(config KeeperConfig) *Keeper {
	k := &Keeper{config: config, kept: make(map[string]*keptProcess)}
	k.life, k.endLife = context.WithCancel(context.Background())
	return k
}

// keptProcess is a process that was launched for another host, with what that has not confirmed.
type keptProcess struct {
	keeper *Keeper
	id     string
	node   string

	mu sync.Mutex // guards the fields below
	// process is nil until it runs.
	process Process
	// refused is why it does not.
	refused error
	// queue has the messages from number base on. bytes is the size of their lines.
	queue []*machinev1.LaunchResponse
	base  uint64
	bytes int
	ended bool
	// changed is closed, and replaced, when there are more messages, room for lines, or another
	// stream.
	changed chan struct{}
	// stream counts the streams: the newest one has the process. attached is set while there is
	// one.
	stream   int
	attached bool
	// lost ends the process when no stream resumes it.
	lost *time.Timer
	// stop is set if the process was requested to stop, and kill is why it was to be killed. Both
	// may come before the process runs.
	stop bool
	kill string
	// stalled is set while lines of the process wait for longer than a second.
	stalled bool
}

// What the lines that were not confirmed may occupy. A process that prints more waits, as for a
// slow terminal.
const (
	keptLines = 512
	keptBytes = 1 << 20
)

// Serve serves one stream. It returns when the launcher has confirmed the end of the process, when
// the stream is lost, or with the error of the launch.
func (k *Keeper) Serve(ctx context.Context, stream KeeperStream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	p, err := k.processOf(first)
	if err != nil {
		return err
	}
	number := p.attach()
	defer p.detach(number)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.obey(first)
	go func() { // until the stream ends, which it does when this method returns
		defer cancel()
		for {
			req, err := stream.Receive()
			if err != nil {
				return
			}
			p.obey(req)
		}
	}()
	return p.send(ctx, stream, number, first.GetReceived())
}

// processOf returns the process of a stream's first message: a new one, or one to resume.
func (k *Keeper) processOf(first *machinev1.LaunchRequest) (*keptProcess, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p := k.kept[first.GetId()]; p != nil {
		return p, nil
	}
	switch {
	case k.over:
		return nil, k.config.Closed()
	case first.GetSpec() == nil:
		return nil, k.config.Unknown(first.GetId())
	}
	p := &keptProcess{keeper: k, id: first.GetId(), node: first.GetSpec().GetNode(), changed: make(chan struct{})}
	k.kept[p.id] = p
	k.running.Go(func() { p.run(first.GetSpec()) })
	return p, nil
}

// Close ends all processes: it requests them to stop, and kills those that have not when ctx ends.
func (k *Keeper) Close(ctx context.Context) error {
	k.mu.Lock()
	k.over = true
	all := make([]*keptProcess, 0, len(k.kept))
	for _, p := range k.kept {
		all = append(all, p)
	}
	k.mu.Unlock()
	errs := make([]error, len(all))
	var stopping sync.WaitGroup
	for i, p := range all {
		stopping.Go(func() {
			if process := p.launched(); process != nil {
				errs[i] = process.Stop(ctx)
			}
		})
	}
	stopping.Wait()
	k.endLife()
	k.running.Wait()
	return errors.Join(errs...)
}

// run launches the process, and passes on what becomes of it.
func (p *keptProcess) run(what *machinev1.LaunchSpec) {
	spec := Spec{Name: what.GetNode(), Payload: what.GetPayload(), Output: p.print, Stalled: p.setStalled}
	err := func() (err error) {
		if p.keeper.config.LogOf != nil {
			if spec.Log, err = p.keeper.config.LogOf(spec.Name); err != nil {
				return err
			}
		}
		process, err := p.keeper.config.Launch(p.keeper.life, what, spec)
		if err == nil {
			p.runs(process)
		}
		return err
	}()
	if err != nil {
		p.mu.Lock()
		p.refused = err
		p.signal()
		p.mu.Unlock()
		p.keeper.forgetLater(p)
		return
	}
	process := p.launched()
	exit := new(machinev1.Exit)
	payload, err := process.Ready(p.keeper.life)
	switch err := err.(type) { //nolint:errorlint // the package's own types
	case nil:
		p.setUp(&machinev1.Ready{Result: &machinev1.Ready_Payload{Payload: payload}})
		select {
		case <-process.Done():
		case <-p.keeper.life.Done():
			_ = process.Kill() // Close has stopped it, or it came too late for that
			<-process.Done()
		}
	case *FailedError:
		p.setUp(&machinev1.Ready{Result: &machinev1.Ready_Failure{Failure: err.Payload}})
	case *DiedError:
		exit.Greeted = err.Greeted
	case *HandshakeError:
		exit.Refusal = err.Reason
	}
	<-process.Done()
	p.awaitOutput()
	message := exitMessage(process.Exit())
	message.Greeted, message.Refusal = exit.GetGreeted(), exit.GetRefusal()
	p.mu.Lock()
	p.ended = true
	p.append(&machinev1.LaunchResponse{What: &machinev1.LaunchResponse_Exit{Exit: message}})
	p.mu.Unlock()
	p.keeper.forgetLater(p)
}

func (p *keptProcess) setStalled(stalled bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stalled = stalled
	p.signal()
}

// outputLimit bounds the wait for the last lines of a process that has ended. They do not wait for
// the launcher any more.
const outputLimit = 5 * time.Second

// awaitOutput waits until all lines of a process that has ended are queued.
func (p *keptProcess) awaitOutput() {
	limit := time.NewTimer(outputLimit)
	defer limit.Stop()
	for {
		p.mu.Lock()
		stalled, changed := p.stalled, p.changed
		p.mu.Unlock()
		if !stalled {
			return
		}
		select {
		case <-changed:
		case <-limit.C:
			return
		}
	}
}

// forgetLater forgets a process that has ended, once its launcher has confirmed that, or has been
// lost for long enough.
func (k *Keeper) forgetLater(p *keptProcess) {
	limit := time.NewTimer(k.config.Patience)
	defer limit.Stop()
	for {
		p.mu.Lock()
		confirmed, changed := p.refused == nil && len(p.queue) == 0, p.changed
		p.mu.Unlock()
		if !confirmed {
			select {
			case <-changed:
				continue
			case <-limit.C:
			case <-k.life.Done():
				return // a stream may still be there, for the last messages
			}
		}
		k.mu.Lock()
		delete(k.kept, p.id)
		k.mu.Unlock()
		p.mu.Lock()
		if !confirmed && p.refused == nil {
			p.refused = k.config.Unknown(p.id) // for a stream that has not confirmed the end
		}
		p.signal()
		p.mu.Unlock()
		return
	}
}

func (p *keptProcess) launched() Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.process
}

// runs records that the process runs.
func (p *keptProcess) runs(process Process) {
	p.mu.Lock()
	p.process = process
	stop, kill := p.stop, p.kill
	started := &machinev1.Started{Pid: int32(process.PID())} //nolint:gosec // process ids fit
	p.append(&machinev1.LaunchResponse{What: &machinev1.LaunchResponse_Started{Started: started}})
	p.mu.Unlock()
	p.end(process, stop, kill)
}

// end stops or kills the process, as its launcher has requested.
func (p *keptProcess) end(process Process, stop bool, kill string) {
	if kill != "" {
		killFor(process, kill)
		return
	}
	if !stop {
		return
	}
	p.keeper.mu.Lock()
	defer p.keeper.mu.Unlock()
	if !p.keeper.over { // else Close stops it
		p.keeper.running.Go(func() { _ = process.Stop(p.keeper.life) }) // its end is reported as that of each
	}
}

// signal notifies all that wait for a change. It is called with mu.
func (p *keptProcess) signal() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// setUp passes on the result of the set-up.
func (p *keptProcess) setUp(ready *machinev1.Ready) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.append(&machinev1.LaunchResponse{What: &machinev1.LaunchResponse_Ready{Ready: ready}})
}

// append adds a message for the launcher. It is called with mu.
func (p *keptProcess) append(res *machinev1.LaunchResponse) {
	res.Number = p.base + uint64(len(p.queue))
	p.queue = append(p.queue, res)
	p.bytes += len(res.GetLine().GetText())
	p.signal()
}

// print adds a line. It blocks while the launcher has not confirmed earlier ones: see
// [Spec].Output.
func (p *keptProcess) print(line Line) {
	p.mu.Lock()
	for len(p.queue) >= keptLines || p.bytes >= keptBytes {
		changed := p.changed
		var done <-chan struct{}
		if p.process != nil {
			done = p.process.Done()
		}
		p.mu.Unlock()
		over := false
		select {
		case <-changed:
		case <-done: // what is left fits into the buffers of its pipes
			over = true
		case <-p.keeper.life.Done():
			over = true
		}
		p.mu.Lock()
		if over {
			break
		}
	}
	p.append(&machinev1.LaunchResponse{What: &machinev1.LaunchResponse_Line{Line: lineMessage(line)}})
	p.mu.Unlock()
}

// attach gives the process to a new stream.
func (p *keptProcess) attach() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stream++
	p.attached = true
	if p.lost != nil {
		p.lost.Stop()
		p.lost = nil
	}
	p.signal()
	return p.stream
}

// detach records that a stream has ended.
func (p *keptProcess) detach(number int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if number != p.stream {
		return
	}
	p.attached = false
	if !p.ended {
		p.lost = time.AfterFunc(p.keeper.config.Patience, func() { p.abandoned(number) })
	}
}

// abandoned ends the process: its launcher has been lost for too long.
func (p *keptProcess) abandoned(number int) {
	p.mu.Lock()
	gone := number == p.stream && !p.attached && !p.ended
	process := p.process
	p.mu.Unlock()
	if !gone {
		return
	}
	p.keeper.config.Log.Warn("a process ends, because the host that has launched it could not be reached",
		slog.String("node", p.node), slog.Duration("for", p.keeper.config.Patience))
	if process == nil {
		p.obey(&machinev1.LaunchRequest{Kill: "its launcher was lost"})
		return
	}
	ctx, cancel := context.WithTimeout(p.keeper.life, p.keeper.config.StopLimit)
	defer cancel()
	if err := process.Stop(ctx); err != nil {
		p.keeper.config.Log.Warn("a process whose launcher is lost did not stop", slog.String("node", p.node), slog.Any("error", err))
	}
}

// obey does what a message requests.
func (p *keptProcess) obey(req *machinev1.LaunchRequest) {
	p.mu.Lock()
	if n := req.GetReceived(); n > p.base && n <= p.base+uint64(len(p.queue)) {
		for _, res := range p.queue[:n-p.base] {
			p.bytes -= len(res.GetLine().GetText())
		}
		p.queue = append(p.queue[:0:0], p.queue[n-p.base:]...)
		p.base = n
		p.signal()
	}
	stop := req.GetStop() && !p.stop
	p.stop = p.stop || stop
	kill := ""
	if p.kill == "" {
		p.kill, kill = req.GetKill(), req.GetKill()
	}
	process := p.process
	p.mu.Unlock()
	if process != nil {
		p.end(process, stop, kill)
	}
}

// killFor kills a process, which reports why if it is one of this package.
func killFor(p Process, reason string) {
	if own, ok := p.(*process); ok {
		_ = own.kill(reason) // its end is reported as that of each
		return
	}
	_ = p.Kill() // likewise
}

// send sends messages to the launcher, from the one with the given number on, until the last one is
// confirmed, or another stream has the process.
func (p *keptProcess) send(ctx context.Context, stream KeeperStream, number int, next uint64) error {
	for {
		p.mu.Lock()
		next = max(next, p.base)
		var res *machinev1.LaunchResponse
		if at := next - p.base; at < uint64(len(p.queue)) {
			res = p.queue[at]
		}
		refused, confirmed, changed, mine := p.refused, p.ended && len(p.queue) == 0, p.changed, p.stream == number
		p.mu.Unlock()
		switch {
		case refused != nil:
			return refused
		case confirmed:
			return nil
		case !mine:
			return fmt.Errorf("the launch of %s was resumed by another stream", p.node)
		case res != nil:
			if err := stream.Send(res); err != nil {
				return err
			}
			next++
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
