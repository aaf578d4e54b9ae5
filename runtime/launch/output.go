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

// splitter splits a stream of bytes into lines of at most max bytes.
type splitter struct {
	max  int
	emit func(text string)
	rest []byte // the beginning of an incomplete line
}

// write processes the stream's next bytes.
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

// grow appends p, which contains no line end, to the line, and emits what exceeds max.
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

// flush emits an incomplete last line.
func (s *splitter) flush() {
	if len(s.rest) > 0 {
		s.line(s.rest)
	}
	s.rest = nil
}

func (s *splitter) line(text []byte) { s.emit(string(bytes.TrimSuffix(text, []byte("\r")))) }

// wholeRunes is how many bytes of p can be emitted without splitting a character: all, or all but
// an incomplete last character.
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

// The size of a tail.
const (
	tailLines    = 50
	tailLineSize = 1 << 10
	crashLines   = 20
)

// tail keeps a process's last output, for the error that describes its death. The last lines of a
// Go crash are the stack of some goroutine, while its first lines give the reason, so the tail
// keeps these too.
type tail struct {
	ring  [tailLines]Line
	count int // of all lines so far

	crash   [crashLines]Line
	crashAt int // the number of the crash's first line
	crashed int // how many lines of it are kept
}

func (t *tail) add(line Line) {
	if len(line.Text) > tailLineSize {
		line.Text = strings.Clone(line.Text[:tailLineSize]) + "..." // cloned, so that the tail does not keep the whole line in memory
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

// output delivers a process's lines to the receiver, the log and the tail.
//
// The receiver is called by one goroutine, which starts with the first line. A line waits for the
// receiver for up to stallLimit. After that the receiver has stalled: further lines are counted
// instead of delivered until it has received those that are queued.
type output struct {
	name       string
	receiver   func(Line)
	stallLimit time.Duration
	// stalled is called when the receiver stalls, and when it has caught up.
	stalled func(bool)

	delivery sync.Mutex // guards the fields below
	lines    chan Line  // nil before the first line
	over     bool       // no further lines
	skipped  int        // lines that were not delivered since the receiver stalled; 0 if it has not
	late     bool       // the process ended, and its end no longer waits for the receiver
	// delivered is closed when the receiver has received all lines.
	delivered chan struct{}

	record sync.Mutex // guards the fields below
	log    *LogFile
	tail   tail
}

// own processes a line that the process itself printed.
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

// forwarded processes a line that the process forwards.
func (o *output) forwarded(line Line) {
	o.delivery.Lock()
	defer o.delivery.Unlock()
	o.deliver(line)
}

// linesWaiting bounds the lines that are queued for the receiver.
const linesWaiting = 16

// deliver queues a line for the receiver. o.delivery is held.
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

// resume reports whether the receiver, which had stalled, has caught up. If so, it gets a line with
// the number of missing ones. o.delivery is held.
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

// gap is the line that stands for those that were not delivered.
func (o *output) gap() Line {
	return Line{Path: o.name, Stream: Stderr, Text: fmt.Sprintf(
		"launch: %d lines are missing here, for the receiver of the output did not return; the process's log has its own", o.skipped)}
}

// receive calls the receiver until there are no further lines.
func (o *output) receive(lines <-chan Line, delivered chan<- struct{}) {
	over := false
	defer func() {
		if !over {
			go o.receive(lines, delivered) // the receiver has ended this goroutine
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

// giveUp is called when the process has ended and its end no longer waits for the receiver.
func (o *output) giveUp() {
	o.delivery.Lock()
	defer o.delivery.Unlock()
	select {
	case <-o.delivered: // nil, and so not ready, if no line has come
		return
	default:
	}
	if o.lines != nil && o.skipped == 0 && !o.late && o.stalled != nil {
		o.late = true
		o.stalled(true)
	}
}

// finish ends the lines. The returned channel is closed when the receiver has received all of them.
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

// keep adds the line to the tail and the log. After an error, the log is closed and no longer used.
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

// close closes the log and returns the last output.
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

// copy reads lines from r until its end or its deadline, and closes it.
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
	_ = r.Close() // the read end of a pipe: nothing can be lost
}

// drainLimit is the largest buffer of a pipe that an unprivileged user can set on Linux
// (/proc/sys/fs/pipe-max-size).
const drainLimit = 1 << 20

// drain reads what is in the pipe without blocking. The process has ended, so all of its output is
// there; the pipe is still open because another process holds it.
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
