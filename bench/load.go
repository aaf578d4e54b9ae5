package main

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"
)

// kind is what a row measures.
type kind string

const (
	unary  kind = "unary"
	async  kind = "async"
	stream kind = "stream"
	stuck  kind = "stuck"
	// The kinds below are calls within the client's process: of a node, or of a plain interface.
	mailbox    kind = "mailbox"
	concurrent kind = "concurrent"
	plain      kind = "plain"
	// The kinds below measure memory in bytes.
	connections kind = "connections"
	nodes       kind = "nodes"
	// The kinds below measure generated code: its size in a program, and the plugin's CPU time.
	codeNone     kind = "no code"
	codeImported kind = "imported code"
	codeUsed     kind = "used code"
	pluginTime   kind = "plugin"
	// The kinds below are those of the parameter server.
	psPull     kind = "pull"
	psPullRead kind = "pull and read"
	psPush     kind = "push"
	psDeliver  kind = "deliver"
	psSpread   kind = "push to machines"
	psMemory   kind = "memory of parameters"
	// storedKeys is that of a storage with many keys: its memory, and the time to open it.
	storedKeys kind = "stored keys"
	// The kinds below are those of the replay. replayMixed is what several processes do, and
	// replayHold what a process does that is not measured.
	replayWrite  kind = "write"
	replaySample kind = "sample"
	replayBorrow kind = "borrow"
	replayMixed  kind = "mixed"
	replayHold   kind = "hold"

	replayItems        kind = "items"
	replayFewItems     kind = "few-items"
	replayDraw         kind = "draw"
	replayUpdate       kind = "update"
	replayRemoteWrite  kind = "remote-write"
	replayRemoteSample kind = "remote-sample"
	// enginesUp is the time until the machines of an engine are there.
	enginesUp kind = "up"
	// The kinds below are those of machines, and of a Brain with many.
	machineCreate      kind = "create"
	machineCreateLocal kind = "create here"
	machineGang        kind = "create a gang"
	machineProgram     kind = "send a program"
	registered         kind = "register"
	memoryOfNodes      kind = "memory of nodes"
	lookedUp           kind = "look up"
	recovered          kind = "recover"
)

// job is the work of a client.
type job struct {
	Kind     kind          `json:"kind"`
	Size     int           `json:"size"`
	Inflight int           `json:"inflight"`
	Duration time.Duration `json:"duration"`
	// BytesPerSecond limits the sending side of each machine; 0 means no limit.
	BytesPerSecond int `json:"bytes_per_second,omitempty"`
}

// outcome is the result of a job.
type outcome struct {
	Ops     uint64  `json:"ops"`
	Seconds float64 `json:"seconds"`
	P50     float64 `json:"p50"` // nanoseconds
	P99     float64 `json:"p99"`
	// Mallocs is the number of the client's allocations during the measurement.
	Mallocs uint64 `json:"mallocs"`
	// Ratio is the result of a row that measures a ratio.
	Ratio float64 `json:"ratio"`
	// Goroutines is the maximum number of the client's goroutines.
	Goroutines int `json:"goroutines"`
}

// load is a job with everything that can be prepared before the measurement.
type load struct {
	job     job
	client  client
	payload []byte
	callers []func() error
	// keepAlive references objects that must not be collected.
	keepAlive any
}

func newLoad(c client, j job) *load {
	l := &load{job: j, client: c, payload: make([]byte, j.Size)}
	for i := range l.payload {
		l.payload[i] = byte(i*31 + 1)
	}
	if sh, ok := c.(sharer); ok && j.Kind == stuck {
		one := sh.shared()
		l.keepAlive = one
		for range j.Inflight {
			l.callers = append(l.callers, one.caller(l.payload))
		}
	}
	if _, ok := c.(starter); j.Kind == unary || j.Kind == async && !ok {
		for range j.Inflight {
			l.callers = append(l.callers, c.caller(l.payload))
		}
	}
	return l
}

// warmUp grows connections, windows, pools and buffers to the size that the load needs.
func (l *load) warmUp() error {
	const calls = 64
	if l.job.Kind == stuck || l.job.Kind == connections || l.job.Kind == nodes {
		return nil
	}
	if len(l.callers) > 0 {
		n := min(len(l.callers), calls)
		_, err := concurrently(l.callers[:n], l.job.Duration/10)
		return err
	}
	warm := *l
	warm.job.Duration /= 10
	_, err := warm.run()
	return err
}

func (l *load) run() (outcome, error) {
	switch l.job.Kind {
	case unary:
		return concurrently(l.callers, l.job.Duration)
	case async:
		if s, ok := l.client.(starter); ok {
			return l.start(s)
		}
		return concurrently(l.callers, l.job.Duration)
	case stream:
		return l.stream()
	case stuck:
		return l.stuck()
	case mailbox, concurrent, plain:
		return l.local()
	case connections:
		i, ok := l.client.(idler)
		if !ok {
			return outcome{}, errors.New("the client of this system can't hold idle connections")
		}
		return outcome{Ops: uint64(l.job.Inflight)}, i.idle(l.job.Inflight)
	case nodes:
		return l.nodes()
	case codeNone, codeImported, codeUsed, pluginTime: // not measured by a client
	case psPull, psPullRead, psPush, psDeliver, psSpread, psMemory, storedKeys: // likewise
	case replayWrite, replaySample, replayBorrow, replayMixed, replayHold: // likewise
	case machineCreate, machineCreateLocal, machineGang, machineProgram, registered, memoryOfNodes, lookedUp, recovered, enginesUp: // likewise
	case replayItems, replayFewItems, replayDraw, replayUpdate, replayRemoteWrite, replayRemoteSample: // likewise
	}
	return outcome{}, fmt.Errorf("unknown kind of load %q", l.job.Kind)
}

// concurrently calls each caller in a loop until the time is up, and waits for the calls in flight,
// which are included in the result.
func concurrently(callers []func() error, d time.Duration) (outcome, error) {
	var shards [16]shard
	errs := make([]error, len(callers))
	var all sync.WaitGroup
	var begun time.Time
	begin := make(chan struct{})
	for i, call := range callers {
		all.Go(func() {
			<-begin
			for since := time.Duration(0); since < d; {
				if errs[i] = call(); errs[i] != nil {
					return
				}
				now := time.Since(begun)
				shards[i%len(shards)].record(int64(now - since))
				since = now
			}
		})
	}
	before := mallocs()
	begun = time.Now()
	close(begin)
	all.Wait()
	took := time.Since(begun)
	after := mallocs()
	if err := errors.Join(errs...); err != nil {
		return outcome{}, err
	}
	h := new(histogram)
	for i := range shards {
		h.merge(&shards[i].histogram)
	}
	o := outcomeOf(h, took)
	o.Mallocs = after - before
	return o, nil
}

// shard is a histogram shared by some of the callers: with thousands of callers, one for each would
// cost more than what it measures.
type shard struct {
	histogram

	mu sync.Mutex // guards the histogram
}

func (s *shard) record(ns int64) {
	s.mu.Lock()
	s.histogram.record(ns)
	s.mu.Unlock()
}

func outcomeOf(h *histogram, took time.Duration) outcome {
	return outcome{Ops: h.total, Seconds: took.Seconds(), P50: h.quantile(0.5), P99: h.quantile(0.99)}
}

func (l *load) start(s starter) (outcome, error) {
	h := new(histogram)
	calls, goroutines := 0, 0
	before := mallocs()
	begun := time.Now()
	more := func() bool {
		if calls++; calls%1024 == 0 {
			goroutines = max(goroutines, runtime.NumGoroutine())
		}
		return time.Since(begun) < l.job.Duration
	}
	if err := s.start(l.payload, l.job.Inflight, more, func(took time.Duration) { h.record(int64(took)) }); err != nil {
		return outcome{}, err
	}
	o := outcomeOf(h, time.Since(begun))
	o.Goroutines, o.Mallocs = goroutines, mallocs()-before
	return o, nil
}

func (l *load) stream() (outcome, error) {
	streams, ok := l.client.(streamer)
	if !ok {
		return outcome{}, errors.New("the client of this system has no streams")
	}
	s, err := streams.stream(l.payload)
	if err != nil {
		return outcome{}, err
	}
	h := new(histogram)
	before := mallocs()
	begun := time.Now()
	for since := time.Duration(0); since < l.job.Duration; {
		if err := s.send(); err != nil {
			_, ferr := s.finish()
			return outcome{}, errors.Join(err, ferr)
		}
		now := time.Since(begun)
		h.record(int64(now - since))
		since = now
	}
	n, err := s.finish()
	if err != nil {
		return outcome{}, err
	}
	if n != h.total {
		return outcome{}, fmt.Errorf("%d messages were sent, but %d arrived", h.total, n)
	}
	o := outcomeOf(h, time.Since(begun))
	o.Mallocs = mallocs() - before
	return o, nil
}
