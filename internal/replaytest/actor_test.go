package replaytest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink"
	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/replay"
	"github.com/raylink/raylink/services/replay/ring"
)

// serveBrain is the main function of Brain's process, and of those of its own nodes.
func serveBrain() error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	return raylink.ServeBrain(ctx, raylink.BrainOptions{
		Listen: os.Getenv(listen),
		Serving: func(string, string, string) {
			// The process was not launched as a node's, so its input is the test's.
			go func() {
				proctest.UntilEnd(os.Stdin)
				stop()
			}()
			fmt.Println(proctest.Serving)
		},
	})
}

// Tables of a replay.
const (
	perTable = iota
	allTable
	queueTable
	// starvedTable has no items.
	starvedTable
)

func tableNames() []string { return []string{"per", "all", "queue", "starved"} }

const (
	// capacity is that of the ring in rows: more than a block has, and no power of two. history is
	// that of writers of items.
	capacity = 4_219
	history  = 8
	// stepLimit bounds one call of a task, which is then made again.
	stepLimit = 5 * time.Second
	// queueBatch is how many items of the queue a reader gets at once.
	queueBatch = 8
)

// actor is a process that executes orders. It opens one replay after the other.
type actor struct {
	rt *join.Runtime
	// calls numbers the calls that change items.
	calls atomic.Uint64
	// remote is set if the process goes through the node.
	remote bool
	record *recorder

	out sync.Mutex // guards the standard output

	mu   sync.Mutex // guards life
	life *life
}

// life is a replay that an actor has opened, and the tasks that use it.
type life struct {
	*actor

	number uint64
	// file is set if the ring outlives its node.
	file  bool
	typed *replay.Typed[columns]

	ctx  context.Context //nolint:containedctx // of the tasks
	stop func()
	run  sync.WaitGroup
	// closing is set if the replay may be dead.
	closing atomic.Bool
	// aged is what the task of that name goes on with.
	aged *ager
	// calm is set while tasks write so slowly that rows stay in the ring for seconds.
	calm atomic.Bool
}

// task is one that runs.
type task struct {
	*life

	name   string
	random *rand.Rand
	count  atomic.Int64
	// last is the error that was reported last.
	last string
	// drawn is a time after which the items of a queue's next batch are drawn.
	drawn int64
}

// hideFile hides the ring's file from a client, as that of another machine.
func hideFile(next runtime.ClientInvoke) runtime.ClientInvoke {
	return func(ctx context.Context, in *runtime.ClientInvocation) error {
		if err := next(ctx, in); err != nil {
			return err
		}
		if description, ok := in.Response.(*replayv1.DescribeResponse); ok {
			description = proto.CloneOf(description)
			description.File = "/nonexistent"
			in.Response = description
		}
		return nil
	}
}

// serveActor is the main function of an actor's process, and of those of its nodes. It ends with
// its input.
func serveActor(remote bool) error {
	options := []join.Option{replay.Type()}
	if remote {
		options = append(options, raylink.WithClientInterceptor(hideFile))
	}
	rt, err := join.Init(context.Background(), options...)
	if err != nil {
		return err
	}
	a := &actor{rt: rt, remote: remote, record: &recorder{dir: os.Getenv(records)}}
	a.tell(answer{Event: proctest.Serving})
	var orders sync.WaitGroup
	err = proctest.Lines(os.Stdin, func(o order) {
		orders.Go(func() { a.execute(o) })
	})
	// The test may have died while an order is executed.
	time.AfterFunc(proctest.Patience, func() { os.Exit(2) })
	orders.Wait()
	if err = errors.Join(err, a.close(true), a.record.close(), rt.Close()); err != nil {
		return err
	}
	if mapped, err := mappings(); err != nil || mapped > 0 {
		return errors.Join(err, fmt.Errorf("%d mappings of rings are left", mapped))
	}
	return goleak.Find()
}

// mappings returns the number of mappings of rings.
func mappings() (int, error) {
	text, err := os.ReadFile("/proc/self/maps")
	return bytes.Count(text, []byte(".ring")), err
}

// tell writes a line.
func (a *actor) tell(what answer) {
	a.out.Lock()
	defer a.out.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(what) // if it fails, the test is dead
}

func fail(a answer, err error) answer {
	if err != nil {
		a.Error, a.Code = err.Error(), connect.CodeOf(err).String()
	}
	return a
}

func (a *actor) execute(o order) {
	ctx, cancel := context.WithTimeout(context.Background(), proctest.Patience)
	defer cancel()
	res, err := a.try(ctx, o)
	res.ID = o.ID
	a.tell(fail(res, err))
}

func (a *actor) try(ctx context.Context, o order) (res answer, err error) {
	switch o.Do {
	case "create":
		handle, err := replayv1raylink.CreateReplay(ctx, a.rt, configuration(o))
		if err != nil {
			return res, err
		}
		res.Path = handle.Ref().Path()
		info, err := handle.Ref().Info(ctx)
		res.PID = int(info.GetRecord().GetHost().GetPid())
		return res, err
	case "end":
		handle, err := replayv1raylink.FindReplay(ctx, a.rt, runtime.Path(o.Path))
		if err != nil {
			return res, err
		}
		return res, handle.Ref().Stop(ctx)
	case "open":
		return res, a.open(ctx, o)
	case "close", "leave":
		return res, a.close(o.Do == "leave")
	}
	a.mu.Lock()
	l := a.life
	a.mu.Unlock()
	if l == nil {
		return res, errors.New("no replay is open")
	}
	switch o.Do {
	case "start":
		l.start(o)
	case "quiet":
		l.quiet()
	case "audit":
		res, err = l.audit(ctx, o.Lost, o.Kills)
	case "bounded":
		res.Faults, err = l.bounded(o.First)
	case "ages":
		res.Faults, res.Text, err = l.ages(ctx, o.Kills)
	case "calm":
		l.calm.Store(true)
	case "fill":
		res.Text, err = l.fill(ctx, o.First)
	default:
		err = fmt.Errorf("unknown order %q", o.Do)
	}
	return res, err
}

func configuration(o order) *replayv1.ReplayConfig {
	if o.Aged {
		return agedConfiguration(o)
	}
	names := tableNames()
	return &replayv1.ReplayConfig{
		Columns: rowType().Columns(), Capacity: capacity, Directory: o.Directory, File: o.File, Tables: []*replayv1.TableConfig{
			replay.Table(names[perTable], replay.Prioritized(0.6), replay.SamplesPerInsert(4, 100, 400)),
			replay.Table(names[allTable], replay.Epoch()),
			replay.Table(names[queueTable], replay.FIFO(), replay.Queue(64)),
			replay.Table(names[starvedTable]),
		},
	}
}

// open opens a replay, and starts tasks.
func (a *actor) open(ctx context.Context, o order) error {
	handle, err := replayv1raylink.FindReplay(ctx, a.rt, runtime.Path(o.Path))
	if err != nil {
		return err
	}
	typed, err := replay.Open(ctx, handle, rowType())
	if err != nil {
		return err
	}
	if typed.Client().Mapped() == a.remote {
		return errors.Join(fmt.Errorf("the ring is mapped: %t", typed.Client().Mapped()), typed.Close())
	}
	if err := a.record.begin(o.Life); err != nil {
		return errors.Join(err, typed.Close())
	}
	l := &life{actor: a, number: o.Life, file: o.File != "", typed: typed, stop: func() {}}
	a.mu.Lock()
	a.life = l
	a.mu.Unlock()
	l.start(o)
	return nil
}

// close ends the tasks, and closes the replay. dead is set if the replay may be dead.
func (a *actor) close(dead bool) error {
	a.mu.Lock()
	l := a.life
	a.life = nil
	a.mu.Unlock()
	if l == nil {
		return nil
	}
	l.closing.Store(dead)
	l.quiet()
	if err := l.typed.Close(); err != nil {
		return err
	}
	if mapped, err := mappings(); err != nil || mapped > 0 {
		return errors.Join(err, fmt.Errorf("%d mappings of rings are left after the client was closed", mapped))
	}
	return nil
}

// start starts tasks.
func (l *life) start(o order) {
	if len(o.Tasks) == 0 {
		return
	}
	l.calm.Store(o.Calm)
	l.ctx, l.stop = context.WithCancel(context.Background())
	tasks := make([]*task, len(o.Tasks))
	var running sync.WaitGroup
	for i, name := range o.Tasks {
		t := &task{life: l, name: name, random: rand.New(rand.NewPCG(o.Seed, o.First+uint64(i)))}
		tasks[i] = t
		first := o.First + 2*uint64(i)
		running.Go(func() { t.execute(first) })
	}
	ended := make(chan struct{})
	l.run.Go(func() {
		running.Wait()
		close(ended)
	})
	l.run.Go(func() { // until the last task has ended
		for over := false; !over; {
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ended:
				over = true
			}
			counts := make(map[string]int64)
			for _, t := range tasks {
				counts[t.name] = t.count.Load()
			}
			l.tell(answer{Event: progressEvent, Counts: counts})
		}
	})
}

// quiet ends the tasks, and waits for their end.
func (l *life) quiet() {
	l.stop()
	l.run.Wait()
}

// execute runs the task. The ids of its writers begin with first.
func (t *task) execute(first uint64) {
	kinds := map[string]func(first uint64) error{
		"rows": t.writeRows, "items": t.writeItems, "queue": t.writeQueue,
		"read": t.read, "per": t.samplePrioritized, "all": t.sampleAll, "consume": t.consume, "starve": t.starve,
		"age": t.age,
	}
	if err := kinds[t.name](first); err != nil {
		t.fault(err)
	}
}

// step makes one call, bounded by a deadline. It reports whether it succeeded.
func (t *task) step(call func(ctx context.Context) error) bool {
	ctx, cancel := context.WithTimeout(t.ctx, stepLimit)
	defer cancel()
	err := call(ctx)
	if err == nil {
		t.count.Add(1)
		return true
	}
	t.troubled(err)
	t.rest(5 * time.Millisecond)
	return false
}

// troubled reports an error. Those that deny what was asked are faults.
func (t *task) troubled(err error) {
	for _, never := range []error{ring.ErrBatch, ring.ErrLayout, ring.ErrFormat, replay.ErrItem, replay.ErrPriority, replay.ErrTable, replay.ErrArgument} {
		if errors.Is(err, never) {
			t.fault(err)
			return
		}
	}
	if text := err.Error(); text != t.last && t.ctx.Err() == nil {
		t.last = text
		t.tell(fail(answer{Event: troubleEvent}, fmt.Errorf("%s: %w", t.name, err)))
	}
}

func (t *task) fault(err error) {
	t.tell(fail(answer{Event: faultEvent}, fmt.Errorf("%s in life %d: %w", t.name, t.number, err)))
}

// pause waits for a random time, which is much longer while all is calm.
func (t *task) pause(most time.Duration) {
	if t.calm.Load() {
		most = 100 * time.Millisecond
	}
	t.rest(time.Duration(t.random.Int64N(int64(most))))
}

// rest waits, or until the tasks are ended.
func (t *task) rest(d time.Duration) {
	select {
	case <-t.ctx.Done():
	case <-time.After(d):
	}
}
