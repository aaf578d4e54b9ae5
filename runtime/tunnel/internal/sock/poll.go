package sock

import (
	"errors"
	"io"
	"net"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

// Poller busy-polls a socket. It is owned by the goroutine that reads the socket.
//
// Parking a goroutine in the netpoller and unparking it costs more CPU than a small call does, on
// both sides: the side that unparks pays too. A reader therefore spins before it blocks, where data
// is likely to arrive soon. Misses back off exponentially, so that a connection with little traffic
// pays almost nothing. At most GOMAXPROCS/2 readers of a process spin at once, which leaves CPUs
// for the goroutines that produce the data.
type Poller struct {
	raw     syscall.RawConn
	tryRead func(fd uintptr) bool
	buf     []byte
	n       int
	err     error
	// through, if set, reads the socket instead.
	through TryReader
	// budget is how long one busy-poll lasts; 0 disables it. maxSpinning is how many readers of
	// this process may spin at once.
	budget      time.Duration
	maxSpinning int32
	// skip is how many further reads go without a busy-poll. backoff is the length of the last such
	// run.
	skip, backoff int
}

const (
	// DefaultBusyPoll is the default budget of a busy-poll. It is several times the duration of a
	// small call on one machine, and about the cost of waking an idle CPU.
	DefaultBusyPoll = 50 * time.Microsecond
	// maxBackoff limits the number of reads without a busy-poll after repeated misses.
	maxBackoff = 63
)

// spinning is the number of readers of this process that spin.
var spinning atomic.Int32 //nolint:gochecknoglobals // CPUs are shared by the process

// TryReader reads what has arrived, and never blocks: it returns 0 and no error if nothing has.
type TryReader interface {
	TryRead(b []byte) (int, error)
}

// InitThrough is Init for a socket that is read through another layer, r, and by nothing else.
func (p *Poller) InitThrough(nc net.Conn, budget time.Duration, r TryReader) {
	p.Init(nc, budget)
	p.through = r
}

// Init prepares for reading nc, with busy-polls that last up to budget. If nc is not a socket, the
// budget is not positive or the process has one CPU, Read never finds anything.
func (p *Poller) Init(nc net.Conn, budget time.Duration) {
	p.maxSpinning = int32(runtime.GOMAXPROCS(0) / 2) //nolint:gosec // a small number
	if budget <= 0 || p.maxSpinning == 0 {
		return
	}
	p.budget, p.raw = budget, rawConn(nc)
	p.tryRead = func(fd uintptr) bool {
		p.n, p.err = syscall.Read(int(fd), p.buf)
		return true // never park
	}
}

// Read busy-polls the socket for data to read into b. It returns 0 and no error if the reader has
// to block. The end of the stream is io.EOF; an expired read deadline and a closed connection have
// the errors of a plain read.
func (p *Poller) Read(b []byte) (int, error) {
	if p.raw == nil {
		return 0, nil
	}
	if p.skip > 0 {
		p.skip--
		return 0, nil
	}
	defer spinning.Add(-1)
	if spinning.Add(1) > p.maxSpinning {
		return 0, nil
	}
	p.buf = b
	defer func() { p.buf = nil }()
	for begin := monotonic(); ; {
		if err := p.try(); err != nil {
			return 0, err
		}
		switch {
		case p.n > 0:
			p.backoff = 0
			return p.n, nil
		case p.err == nil:
			return 0, io.EOF
		case !errors.Is(p.err, syscall.EAGAIN) && !errors.Is(p.err, syscall.EINTR):
			return 0, nil // a blocking read will report the error
		}
		if monotonic()-begin > p.budget {
			p.backoff = min(2*p.backoff+1, maxBackoff)
			p.skip = p.backoff
			return 0, nil
		}
		runtime.Gosched() // let other runnable goroutines go first
	}
}

// try reads once, into n and err.
func (p *Poller) try() error {
	if p.through == nil {
		return p.raw.Read(p.tryRead) //nolint:wrapcheck // return the connection's error as a plain read does
	}
	n, err := p.through.TryRead(p.buf)
	p.n, p.err = n, syscall.EAGAIN
	return err //nolint:wrapcheck // likewise
}

var started = time.Now() //nolint:gochecknoglobals // a fixed origin

// monotonic returns the time since a fixed origin. It costs half as much as time.Now.
func monotonic() time.Duration { return time.Since(started) }
