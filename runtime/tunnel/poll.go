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

// Parking a goroutine in the netpoller and unparking it costs more CPU than a small call does, on
// both sides: the side that unparks pays too. The reader therefore busy-polls the socket before it
// blocks, where data is likely to arrive soon: on the serving side, which has just answered, and in
// a caller that reads its own answer. Misses back off exponentially, so that a connection with
// little traffic pays almost nothing. At most GOMAXPROCS/2 readers of a process spin at once, which
// leaves CPUs for the goroutines that produce the answers.

// polling is the busy-poll state of a connection. It is owned by the connection's reader.
type polling struct {
	raw  syscall.RawConn
	look func(fd uintptr) bool
	buf  []byte
	n    int
	err  error
	// budget is how long one busy-poll lasts; 0 disables it. most is how many readers of this
	// process may spin at once.
	budget time.Duration
	most   int32
	// skip is how many further reads go without a busy-poll. missed is the length of the last such
	// run.
	skip, missed int
}

const (
	// defaultBusyPoll is several times the duration of a small call on one machine, and about the
	// cost of waking an idle CPU.
	defaultBusyPoll = 50 * time.Microsecond
	// mostMissed limits the backoff: the number of reads without a busy-poll after repeated misses.
	mostMissed = 63
)

// pollers is the number of readers of this process that spin.
var pollers atomic.Int32 //nolint:gochecknoglobals // CPUs are shared by the process

func (p *polling) init(nc net.Conn, budget time.Duration) {
	p.most = int32(runtime.GOMAXPROCS(0) / 2) //nolint:gosec // a small number
	if budget <= 0 || p.most == 0 {
		return
	}
	p.budget, p.raw = budget, rawConn(nc)
	p.look = func(fd uintptr) bool {
		p.n, p.err = syscall.Read(int(fd), p.buf)
		return true // never park
	}
}

// read busy-polls the socket for data to read into b. It returns 0 and no error if the reader has
// to block.
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
			return 0, err //nolint:wrapcheck // return the connection's error as a plain read does
		}
		switch {
		case p.n > 0:
			p.missed = 0
			return p.n, nil
		case p.err == nil:
			return 0, io.EOF
		case !errors.Is(p.err, syscall.EAGAIN) && !errors.Is(p.err, syscall.EINTR):
			return 0, nil // a blocking read will report the error
		}
		if monotonic()-begin > p.budget {
			p.missed = min(2*p.missed+1, mostMissed)
			p.skip = p.missed
			return 0, nil
		}
		runtime.Gosched() // let other runnable goroutines go first
	}
}

// rawConn returns the descriptor of a socket, or nil for a connection that is not a socket.
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
		return nil // a blocking read will report the error
	}
	return raw
}

var started = time.Now() //nolint:gochecknoglobals // a fixed origin

// monotonic returns the time since a fixed origin. It costs half as much as time.Now.
func monotonic() time.Duration { return time.Since(started) }
