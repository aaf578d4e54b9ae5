package memnet

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// bufferBytes is the number of bytes that may be in flight in one direction, as in the buffers of a
// socket.
const bufferBytes = 256 << 10

// flow is one direction of a connection.
type flow struct {
	mu      sync.Mutex // guards the fields below
	changed *sync.Cond
	chunks  []chunk
	size    int
	delay   time.Duration
	stalled bool
	// stallAfter, if positive, is the number of bytes that may still arrive before the flow stalls.
	stallAfter int
	// rate is the number of bytes that arrive per second, 0 for no limit. free is the time at which
	// the next ones may arrive.
	rate int
	free time.Time
	// broken is set once the link was cut.
	broken bool
	// ended is set once the writing end is closed, readClosed once the reading end is.
	ended, readClosed bool
	reading, writing  deadline
}

type chunk struct {
	data []byte
	due  time.Time
}

// deadline unparks the flow's waiters when it passes.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func newFlow() *flow {
	f := &flow{}
	f.changed = sync.NewCond(&f.mu)
	return f
}

func (f *flow) wake() {
	f.mu.Lock()
	f.changed.Broadcast()
	f.mu.Unlock()
}

func (d *deadline) set(f *flow, t time.Time) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	if wait := time.Until(t); !t.IsZero() && wait > 0 {
		d.timer = time.AfterFunc(wait, f.wake)
	}
	f.changed.Broadcast()
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (f *flow) setReadDeadline(t time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reading.set(f, t)
}

func (f *flow) setWriteDeadline(t time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writing.set(f, t)
}

func (f *flow) read(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		switch {
		case f.readClosed:
			return 0, net.ErrClosed
		case f.broken:
			return 0, ErrCut
		case f.reading.passed():
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		}
		var timer *time.Timer
		if len(f.chunks) > 0 && !f.stalled {
			wait := time.Until(f.chunks[0].due)
			if f.rate > 0 {
				wait = max(wait, time.Until(f.free))
			}
			if wait <= 0 {
				return f.copyDue(b), nil
			}
			timer = time.AfterFunc(wait, f.wake)
		} else if f.ended && !f.stalled {
			return 0, io.EOF
		}
		f.changed.Wait()
		if timer != nil {
			timer.Stop()
		}
	}
}

// copyDue copies the data that is due, within the limits of the link.
func (f *flow) copyDue(b []byte) int {
	if f.rate > 0 {
		b = b[:min(len(b), max(f.rate/quantaPerSecond, 1))]
	}
	if f.stallAfter > 0 {
		b = b[:min(len(b), f.stallAfter)]
	}
	n := 0
	for n < len(b) && len(f.chunks) > 0 && time.Until(f.chunks[0].due) <= 0 {
		head := &f.chunks[0]
		got := copy(b[n:], head.data)
		n += got
		if head.data = head.data[got:]; len(head.data) == 0 {
			f.chunks = f.chunks[1:]
		}
	}
	f.size -= n
	if f.rate > 0 {
		f.free = latest(f.free, time.Now()).Add(time.Duration(n) * time.Second / time.Duration(f.rate))
	}
	if f.stallAfter > 0 {
		f.stallAfter -= n
		f.stalled = f.stallAfter == 0
	}
	f.changed.Broadcast()
	return n
}

// quantaPerSecond is the number of portions in which a second's bytes arrive on a link with a rate.
const quantaPerSecond = 1000

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (f *flow) write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for {
		switch {
		case f.ended:
			return n, net.ErrClosed
		case f.broken:
			return n, ErrCut
		case f.readClosed:
			return n, io.ErrClosedPipe
		case f.writing.passed():
			return n, os.ErrDeadlineExceeded
		case n == len(b):
			return n, nil
		}
		if room := bufferBytes - f.size; room > 0 {
			part := append([]byte(nil), b[n:min(n+room, len(b))]...)
			f.chunks = append(f.chunks, chunk{data: part, due: time.Now().Add(f.delay)})
			f.size += len(part)
			n += len(part)
			f.changed.Broadcast()
			continue
		}
		f.changed.Wait()
	}
}

// closeReading reports whether the end was still open.
func (f *flow) closeReading() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	open := !f.readClosed
	f.readClosed = true
	f.reading.set(f, time.Time{})
	return open
}

func (f *flow) closeWriting() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	f.writing.set(f, time.Time{})
}

func (f *flow) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = true
	f.chunks, f.size = nil, 0
	f.changed.Broadcast()
}

func (f *flow) setDelay(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delay = d
}

func (f *flow) setStalled(stalled bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stalled, f.stallAfter = stalled, 0
	f.changed.Broadcast()
}

func (f *flow) setStallAfter(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stalled, f.stallAfter = n == 0, n
	f.changed.Broadcast()
}

func (f *flow) setRate(rate int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rate, f.free = rate, time.Time{}
	f.changed.Broadcast()
}
