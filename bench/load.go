package main

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// kind is what a row does.
type kind string

const (
	unary  kind = "unary"
	async  kind = "async"
	stream kind = "stream"
)

// job is what a client is told to do.
type job struct {
	Kind     kind          `json:"kind"`
	Size     int           `json:"size"`
	Inflight int           `json:"inflight"`
	Duration time.Duration `json:"duration"`
}

// outcome is what came of a job.
type outcome struct {
	Ops     uint64  `json:"ops"`
	Seconds float64 `json:"seconds"`
	P50     float64 `json:"p50"` // nanoseconds
	P99     float64 `json:"p99"`
}

// load is a job with all that can be made ready before it is measured.
type load struct {
	job     job
	client  client
	payload []byte
	callers []func() error
}

func newLoad(c client, j job) (*load, error) {
	l := &load{job: j, client: c, payload: make([]byte, j.Size)}
	for i := range l.payload {
		l.payload[i] = byte(i*31 + 1)
	}
	if _, ok := c.(starter); j.Kind == unary || j.Kind == async && !ok {
		for range j.Inflight {
			l.callers = append(l.callers, c.caller(l.payload))
		}
	}
	return l, nil
}

// warmUp brings connections, windows, pools and buffers to the size that the load needs.
func (l *load) warmUp() error {
	const calls = 64
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
	}
	return outcome{}, fmt.Errorf("a client knows no %q", l.job.Kind)
}

// concurrently lets each caller call until the time is up, and waits for what is under way then: the time of that counts too.
func concurrently(callers []func() error, d time.Duration) (outcome, error) {
	var shards [16]shard
	errs := make([]error, len(callers))
	var all sync.WaitGroup
	begun := time.Now()
	for i, call := range callers {
		all.Go(func() {
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
	all.Wait()
	took := time.Since(begun)
	if err := errors.Join(errs...); err != nil {
		return outcome{}, err
	}
	h := new(histogram)
	for i := range shards {
		h.merge(&shards[i].histogram)
	}
	return outcomeOf(h, took), nil
}

// shard is a histogram that some of the callers share: one for each would cost more than it measures, where there are thousands.
type shard struct {
	mu sync.Mutex // guards histogram
	histogram
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
	begun := time.Now()
	err := s.start(l.payload, l.job.Inflight, func() bool { return time.Since(begun) < l.job.Duration }, func(took time.Duration) { h.record(int64(took)) })
	if err != nil {
		return outcome{}, err
	}
	return outcomeOf(h, time.Since(begun)), nil
}

func (l *load) stream() (outcome, error) {
	streams, ok := l.client.(streamer)
	if !ok {
		return outcome{}, errors.New("this system's client has no streams")
	}
	s, err := streams.stream(l.payload)
	if err != nil {
		return outcome{}, err
	}
	h := new(histogram)
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
		return outcome{}, fmt.Errorf("%d messages were sent, and %d arrived", h.total, n)
	}
	return outcomeOf(h, time.Since(begun)), nil
}
