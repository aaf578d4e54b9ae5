package tunnel

import (
	"errors"
	"io"
	"net"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

// To be put to sleep and woken again costs a processor more than a small call does, on both sides:
// the one that wakes pays as well. So who reads looks again and again for a moment, before it
// waits, where something may come at once: the side that serves, which has just answered, and a
// caller that reads its own answer. A moment in which nothing came makes the next ones rarer, so a
// connection on which little happens costs what it did; and no more than half of the processors
// look at any time, so that there is one for who is to answer.

// polling is a connection's part in that. It belongs to who reads.
type polling struct {
	raw  syscall.RawConn
	look func(fd uintptr) bool
	buf  []byte
	n    int
	err  error
	// budget is how long it looks; 0 for not at all. most is how many readers of this process may
	// look at once.
	budget time.Duration
	most   int32
	// skip is how many reads are to go without; missed, how many there were the last time.
	skip, missed int
}

const (
	// defaultBusyPoll is several times what a small call takes on one machine, and about what it
	// costs to wake a processor.
	defaultBusyPoll = 50 * time.Microsecond
	// mostMissed is the largest number of reads that go without, after several moments in vain.
	mostMissed = 63
)

// pollers are the readers of this process that are looking.
var pollers atomic.Int32 //nolint:gochecknoglobals // processors are the process's

func (p *polling) init(nc net.Conn, budget time.Duration) {
	p.most = int32(runtime.GOMAXPROCS(0) / 2) //nolint:gosec // a small number
	if budget <= 0 || p.most == 0 {
		return
	}
	p.budget, p.raw = budget, rawConn(nc)
	p.look = func(fd uintptr) bool {
		p.n, p.err = syscall.Read(int(fd), p.buf)
		return true // never wait
	}
}

// read looks for what can be read into b. Nothing, and no error, means that the reader has to wait.
func (p *polling) read(b []byte) (int, error) {
	if p.raw == nil {
		return 0, nil
	}
	if p.skip > 0 {
		p.skip--
		return 0, nil
	}
	defer pollers.Add(-1)
	if pollers.Add(1) > p.most {
		return 0, nil
	}
	p.buf = b
	defer func() { p.buf = nil }()
	for begin := monotonic(); ; {
		if err := p.raw.Read(p.look); err != nil {
			return 0, err //nolint:wrapcheck // it is the connection's, as if it had been read from
		}
		switch {
		case p.n > 0:
			p.missed = 0
			return p.n, nil
		case p.err == nil:
			return 0, io.EOF
		case !errors.Is(p.err, syscall.EAGAIN) && !errors.Is(p.err, syscall.EINTR):
			return 0, nil // the ordinary way will say what is wrong
		}
		if monotonic()-begin > p.budget {
			p.missed = min(2*p.missed+1, mostMissed)
			p.skip = p.missed
			return 0, nil
		}
		runtime.Gosched() // whoever else can run goes first
	}
}

// rawConn is a socket's descriptor; nil for a connection that is no socket.
func rawConn(nc net.Conn) syscall.RawConn {
	switch nc.(type) {
	case *net.TCPConn, *net.UnixConn:
	default:
		return nil
	}
	socket, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil // the ordinary way will say what is wrong
	}
	return raw
}

var started = time.Now() //nolint:gochecknoglobals // an origin, never changed

// monotonic is the time since some origin. It costs half of what time.Now does.
func monotonic() time.Duration { return time.Since(started) }
