package nettest

import (
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Quality is that of a link, the same in both directions. Zero fields are those of a link that is
// not slow.
type Quality struct {
	// Rate limits how much passes in bits per second, headers of Ethernet included.
	Rate int64
	// Delay is how long a frame takes in one direction: a round trip takes twice as long.
	Delay time.Duration
	// Loss is the probability that a frame is lost, from 0 to 1.
	Loss float64
}

func (q Quality) check() error {
	if q.Rate < 0 || q.Delay < 0 || !(q.Loss >= 0 && q.Loss <= 1) { // so that NaN is refused too
		return fmt.Errorf("nettest: a link can't have the quality %+v: rate and delay are not negative, and loss is from 0 to 1", q)
	}
	return nil
}

const (
	// maxQueue and minQueue bound the frames that wait for a rate, as a switch's buffer does: more
	// than both are dropped. minQueue is in octets; some full frames must fit at low rates too.
	maxQueue = 200 * time.Millisecond
	minQueue = 32 << 10
	// maxFrames bounds the frames under way in one direction: those of 100 ms at 2 Gbit/s.
	maxFrames = 1 << 14
	// maxFrame is more than a frame of Ethernet can have, in octets.
	maxFrame = 1 << 16
)

// shaper decides when the frames of one direction arrive. It has no clock.
type shaper struct {
	// free is when the last frame that waits for the rate will have been sent.
	free time.Time
}

// admit returns when a frame of a size in octets arrives that is sent now, or false if it is lost.
// chance is from 0, below 1.
func (s *shaper) admit(q Quality, now time.Time, size int, chance float64) (arrival time.Time, ok bool) {
	if chance < q.Loss {
		return time.Time{}, false
	}
	sent := now
	if q.Rate > 0 {
		if s.free.Before(now) {
			s.free = now
		}
		waiting := s.free.Sub(now)
		if waiting > maxQueue && waiting.Seconds()*float64(q.Rate)/8 > minQueue {
			return time.Time{}, false
		}
		s.free = s.free.Add(time.Duration(float64(size) * 8 / float64(q.Rate) * float64(time.Second)))
		sent = s.free
	}
	return sent.Add(q.Delay), true
}

// relay passes frames between two TAP devices, with the quality of a slow link.
type relay struct {
	quality atomic.Pointer[Quality]
	devices [2]io.Closer
	closed  chan struct{}
	pumps   sync.WaitGroup
}

// newRelay starts a relay, which owns the devices until it is closed.
func newRelay(a, b io.ReadWriteCloser, q Quality) *relay {
	r := &relay{devices: [2]io.Closer{a, b}, closed: make(chan struct{})}
	r.quality.Store(&q)
	r.pump(a, b)
	r.pump(b, a)
	return r
}

// close closes the devices. Frames under way are lost.
func (r *relay) close() {
	close(r.closed)
	for _, device := range r.devices {
		_ = device.Close()
	}
	r.pumps.Wait()
}

type frame struct {
	data    []byte
	arrival time.Time
}

// pump passes the frames of one direction: one goroutine reads them, another writes them when they
// arrive.
func (r *relay) pump(from io.Reader, to io.Writer) {
	frames := make(chan frame, maxFrames)
	r.pumps.Go(func() {
		defer close(frames)
		var s shaper
		buffer := make([]byte, maxFrame)
		for {
			n, err := from.Read(buffer)
			if err != nil {
				return // the relay was closed
			}
			//nolint:gosec // chance decides what is lost
			arrival, ok := s.admit(*r.quality.Load(), time.Now(), n, rand.Float64())
			if !ok {
				continue
			}
			select {
			case frames <- frame{data: append([]byte(nil), buffer[:n]...), arrival: arrival}:
			default: // more are under way than the link has room for
			}
		}
	})
	r.pumps.Go(func() {
		for f := range frames {
			select {
			case <-r.closed:
				return
			case <-time.After(time.Until(f.arrival)):
			}
			// A device that does not accept a frame loses it, as networks do.
			_, _ = to.Write(f.data)
		}
	})
}
