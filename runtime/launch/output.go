package launch

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// splitter cuts a stream of bytes into lines of at most max bytes.
type splitter struct {
	max  int
	emit func(text string)
	rest []byte // the beginning of a line whose end has not come
}

// write takes the stream's next bytes.
func (s *splitter) write(p []byte) {
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		if end < 0 {
			s.grow(p)
			return
		}
		s.grow(p[:end])
		s.line(s.rest)
		s.rest = s.rest[:0]
		p = p[end+1:]
	}
}

// grow adds to the line, which has no end among p, and emits what is too long of it.
func (s *splitter) grow(p []byte) {
	for len(s.rest)+len(p) > s.max {
		room := s.max - len(s.rest)
		s.rest = append(s.rest, p[:room]...)
		p = p[room:]
		cut := wholeRunes(s.rest)
		s.emit(string(s.rest[:cut]))
		s.rest = append(s.rest[:0], s.rest[cut:]...)
	}
	s.rest = append(s.rest, p...)
}

// flush emits what came after the last line's end.
func (s *splitter) flush() {
	if len(s.rest) > 0 {
		s.line(s.rest)
	}
	s.rest = nil
}

func (s *splitter) line(text []byte) { s.emit(string(bytes.TrimSuffix(text, []byte("\r")))) }

// wholeRunes is how much of p can be emitted without cutting a character in two: all of it, or all
// but the beginning of its last character.
func wholeRunes(p []byte) int {
	for back := 1; back < utf8.UTFMax && back < len(p); back++ {
		if at := len(p) - back; utf8.RuneStart(p[at]) {
			if !utf8.FullRune(p[at:]) {
				return at
			}
			break
		}
	}
	return len(p)
}

// How much a tail keeps.
const (
	tailLines    = 50
	tailLineSize = 1 << 10
	crashLines   = 20
)

// tail keeps what a process printed last, for the error that says how it died. The last lines of a
// crash are the stack of some goroutine; what the crash was is said by its first lines, so the tail
// holds on to these as well.
type tail struct {
	ring  [tailLines]Line
	count int // of all lines so far

	crash   [crashLines]Line
	crashAt int // the number of the crash's first line
	crashed int // how many lines of it are kept
}

func (t *tail) add(line Line) {
	if len(line.Text) > tailLineSize {
		line.Text = strings.Clone(line.Text[:tailLineSize]) + "..." // cloned, so that the tail doesn't keep the whole line
	}
	capturing := t.crashed > 0 && t.crashed < crashLines
	if !capturing && line.Stream == Stderr && (strings.HasPrefix(line.Text, "panic: ") || strings.HasPrefix(line.Text, "fatal error: ")) {
		t.crashAt, t.crashed, capturing = t.count, 0, true
	}
	if capturing && t.count == t.crashAt+t.crashed {
		t.crash[t.crashed] = line
		t.crashed++
	}
	t.ring[t.count%tailLines] = line
	t.count++
}

func (t *tail) lines() []Line {
	first := max(0, t.count-tailLines)
	var kept []Line
	if t.crashed > 0 && t.crashAt < first {
		kept = append(kept, t.crash[:t.crashed]...)
		after := t.crashAt + t.crashed
		first = max(first, after)
		if skipped := first - after; skipped > 0 {
			kept = append(kept, Line{Path: kept[0].Path, Stream: Stderr, Text: fmt.Sprintf("... %d lines more ...", skipped)})
		}
	}
	for i := first; i < t.count; i++ {
		kept = append(kept, t.ring[i%tailLines])
	}
	return kept
}

// output is where a process's lines go: to the receiver, the log and the tail.
//
// The receiver is called from one goroutine, deliver's, which begins with the first line. A line
// waits for the receiver for up to stallLimit. Then the receiver has stalled: lines are not handed
// over any more, but counted, until it has taken those that wait.
type output struct {
	name       string
	receiver   func(Line)
	stallLimit time.Duration
	// stalled is called when the receiver stalls, and when it has gone on.
	stalled func(bool)

	delivery sync.Mutex // guards what follows
	lines    chan Line  // nil before the first line
	over     bool       // no further lines
	skipped  int        // lines that were not handed over since the receiver stalled; 0 where it has not
	late     bool       // the end of the process was not to wait for the receiver any more
	// delivered is closed when the receiver has got all lines.
	delivered chan struct{}

	record sync.Mutex // guards what follows
	log    *LogFile
	tail   tail
}

// own takes a line that the process itself printed.
func (o *output) own(stream Stream, text string) {
	line := Line{Path: o.name, Stream: stream, Text: text}
	o.delivery.Lock()
	defer o.delivery.Unlock()
	err := o.keep(line)
	o.deliver(line)
	if err != nil {
		o.deliver(Line{Path: o.name, Stream: Stderr, Text: fmt.Sprintf("launch: what follows is not kept in the log: %v", err)})
	}
}

// forwarded takes a line that the process passes on.
func (o *output) forwarded(line Line) {
	o.delivery.Lock()
	defer o.delivery.Unlock()
	o.deliver(line)
}

// linesWaiting is how many lines may wait for the receiver.
const linesWaiting = 16

// deliver hands a line over. o.delivery is held.
func (o *output) deliver(line Line) {
	if o.receiver == nil || o.over {
		return
	}
	if o.lines == nil {
		o.lines, o.delivered = make(chan Line, linesWaiting), make(chan struct{})
		go o.receive(o.lines, o.delivered)
	}
	if o.skipped > 0 && !o.resume() {
		o.skipped++
		return
	}
	select {
	case o.lines <- line:
		return
	default:
	}
	timer := time.NewTimer(o.stallLimit)
	defer timer.Stop()
	select {
	case o.lines <- line:
	case <-timer.C:
		o.skipped = 1
		if o.stalled != nil {
			o.stalled(true)
		}
	}
}

// resume says whether the receiver, which had stalled, takes lines again. If so, it gets one that
// says what it has missed. o.delivery is held.
func (o *output) resume() bool {
	if len(o.lines) > 0 {
		return false
	}
	select {
	case o.lines <- o.gap():
	default:
		return false
	}
	o.skipped = 0
	if o.stalled != nil {
		o.stalled(false)
	}
	return true
}

// gap is the line that stands for those that were not handed over.
func (o *output) gap() Line {
	return Line{Path: o.name, Stream: Stderr, Text: fmt.Sprintf(
		"launch: %d lines are missing here, for the receiver of the output did not return; the process's log has its own", o.skipped)}
}

// receive calls the receiver until there are no further lines.
func (o *output) receive(lines <-chan Line, delivered chan<- struct{}) {
	over := false
	defer func() {
		if !over {
			go o.receive(lines, delivered) // the receiver has ended its goroutine
		}
	}()
	for line := range lines {
		o.receiver(line)
	}
	o.delivery.Lock()
	skipped, gap, resumed := o.skipped > 0, o.gap(), o.skipped > 0 || o.late
	o.skipped, o.late = 0, false
	o.delivery.Unlock()
	if skipped {
		o.receiver(gap)
	}
	if resumed && o.stalled != nil {
		o.stalled(false)
	}
	over = true
	close(delivered)
}

// giveUp is called when the process has ended and the receiver is not waited for any more.
func (o *output) giveUp() {
	o.delivery.Lock()
	defer o.delivery.Unlock()
	select {
	case <-o.delivered: // nil, and not ready, where no line has come
		return
	default:
	}
	if o.lines != nil && o.skipped == 0 && !o.late && o.stalled != nil {
		o.late = true
		o.stalled(true)
	}
}

// finish says that no further lines come. It returns a channel that is closed when the receiver has
// got all.
func (o *output) finish() <-chan struct{} {
	o.delivery.Lock()
	defer o.delivery.Unlock()
	if !o.over && o.lines != nil {
		close(o.lines)
	}
	o.over = true
	if o.delivered == nil {
		o.delivered = make(chan struct{})
		close(o.delivered)
	}
	return o.delivered
}

// keep records the line. Its error says that the log has been given up.
func (o *output) keep(line Line) error {
	o.record.Lock()
	defer o.record.Unlock()
	o.tail.add(line)
	if o.log == nil {
		return nil
	}
	if _, err := o.log.Write(stamped(line.Text)); err != nil {
		err = errors.Join(err, o.log.Close())
		o.log = nil
		return err
	}
	return nil
}

// close closes the log and returns what was printed last.
func (o *output) close() ([]Line, error) {
	o.record.Lock()
	defer o.record.Unlock()
	log := o.log
	o.log = nil
	if log == nil {
		return o.tail.lines(), nil
	}
	return o.tail.lines(), log.Close()
}

// copy hands over what comes from r, until its end or its deadline, and closes it.
func (o *output) copy(r *os.File, stream Stream) {
	split := splitter{max: MaxLine, emit: func(text string) { o.own(stream, text) }}
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		split.write(buf[:n])
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				drain(r, buf, split.write)
			}
			break
		}
	}
	split.flush()
	_ = r.Close() // a pipe's read end: nothing can be lost
}

// drainLimit is the largest size of a pipe's buffer that a user without privileges gets on Linux
// (/proc/sys/fs/pipe-max-size).
const drainLimit = 1 << 20

// drain takes what is in the pipe, without waiting for more. The process has ended, so that what it
// printed is all there; what keeps the pipe open is another process.
func drain(r *os.File, buf []byte, take func([]byte)) {
	if r.SetReadDeadline(time.Time{}) != nil {
		return
	}
	raw, err := r.SyscallConn()
	if err != nil {
		return
	}
	for total := 0; total < drainLimit; {
		var n int
		var readErr error
		err := raw.Read(func(fd uintptr) bool {
			n, readErr = unix.Read(int(fd), buf)
			return true
		})
		if err != nil || readErr != nil || n <= 0 {
			return
		}
		take(buf[:n])
		total += n
	}
}
