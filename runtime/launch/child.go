package launch

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Child is a launched process's end of the connection to its parent. Its methods are safe for
// concurrent use.
type Child struct {
	payload     []byte
	stop        chan struct{}
	orphaned    chan struct{}
	readingDone chan struct{}  // closed when readFrames has returned
	broken      chan os.Signal // receives and ignores SIGPIPE
	from        *os.File

	mu sync.Mutex // guards to, so that frames are not interleaved
	to *os.File
}

// startTimeout bounds the wait for the parent's start frame, which it sends at once.
const startTimeout = HelloTimeout

// Launched reports whether this process was launched as a host, and [Inherited] was not called yet.
func Launched() bool {
	_, ok := os.LookupEnv(marker)
	return ok
}

// Inherited returns this process's end of the connection to its parent, or nil if it was not
// launched as a host. Call it early, and once: afterwards this process's own children neither
// consider themselves launched nor keep the connection open. The parent then expects [Child.Hello].
//
// From then on a write to stdout or stderr that fails because the parent is gone returns an error,
// instead of killing the program by SIGPIPE as in other Go programs: an orphan ends gracefully.
func Inherited() (*Child, error) {
	value, ok := os.LookupEnv(marker)
	if !ok {
		return nil, nil //nolint:nilnil // not being a host is no error
	}
	if err := os.Unsetenv(marker); err != nil {
		return nil, fmt.Errorf("launch: removing %s from the environment: %w", marker, err)
	}
	from, to, err := inheritedPipes(value)
	if err != nil {
		return nil, fmt.Errorf("launch: %s is %q, which only a process's launcher should set: %w", marker, value, err)
	}
	c := &Child{
		stop:        make(chan struct{}),
		orphaned:    make(chan struct{}),
		readingDone: make(chan struct{}),
		broken:      make(chan os.Signal, 1),
		from:        from,
		to:          to,
	}
	frames := bufio.NewReader(from)
	if err := c.start(frames); err != nil {
		return nil, errors.Join(fmt.Errorf("launch: reading what this process was launched for: %w", err), from.Close(), to.Close())
	}
	markSelf()
	signal.Notify(c.broken, syscall.SIGPIPE)
	go c.readFrames(frames)
	return c, nil
}

// inheritedPipes opens the two pipes that the marker names.
func inheritedPipes(value string) (from, to *os.File, err error) {
	fromText, toText, _ := strings.Cut(value, ",")
	fromFD, fromErr := pipeFD(fromText)
	toFD, toErr := pipeFD(toText)
	if err := errors.Join(fromErr, toErr); err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fromFD), "control channel from the parent"), os.NewFile(uintptr(toFD), "control channel to the parent"), nil
}

// pipeFD parses the number of an inherited pipe, and makes the pipe close-on-exec and non-blocking.
func pipeFD(text string) (int, error) {
	fd, err := strconv.Atoi(text)
	if err != nil || fd <= syscall.Stderr {
		return 0, fmt.Errorf("%q is not the number of an inherited file", text)
	}
	unix.CloseOnExec(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return 0, fmt.Errorf("file descriptor %d: %w", fd, err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFIFO {
		return 0, fmt.Errorf("file descriptor %d is not a pipe", fd)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return 0, fmt.Errorf("file descriptor %d: %w", fd, err)
	}
	return fd, nil
}

// start reads the parent's first frame.
func (c *Child) start(frames *bufio.Reader) error {
	if err := c.from.SetReadDeadline(time.Now().Add(startTimeout)); err != nil {
		return fmt.Errorf("setting a deadline: %w", err)
	}
	k, body, err := readFrame(frames)
	if errors.Is(err, io.EOF) {
		return errors.New("the parent has died")
	}
	if err != nil {
		return err
	}
	if k != kindStart {
		return protocolErrorf("got a %s, not a start", k)
	}
	if c.payload, err = unversioned(k, body); err != nil {
		return err
	}
	return c.from.SetReadDeadline(time.Time{})
}

// readFrames reads the parent's frames until the channel ends, which means that the parent has
// died.
func (c *Child) readFrames(frames *bufio.Reader) {
	defer close(c.readingDone)
	var stopped bool
	for {
		k, _, err := readFrame(frames)
		switch {
		case err == nil && k == kindStop:
			if !stopped {
				stopped = true
				close(c.stop)
			}
		case errors.Is(err, os.ErrClosed): // Close was called
			return
		default: // the end of the channel, or an invalid frame
			close(c.orphaned)
			return
		}
	}
}

// Payload returns [Spec.Payload] as the parent has set it.
func (c *Child) Payload() []byte { return c.payload }

// Hello reports this process's build, [Build], to the parent. Call it without delay: the parent
// waits for it no longer than [HelloTimeout]. A parent of another build kills this process.
func (c *Child) Hello(build string) error { return c.send(kindHello, versioned([]byte(build))) }

// Ready reports that this process is set up. [Process.Ready] returns the payload in the parent.
func (c *Child) Ready(payload []byte) error { return c.send(kindReady, payload) }

// Failed reports that set-up has failed; the payload is the reason. The process should then exit
// within five seconds, or else the parent kills it.
func (c *Child) Failed(payload []byte) error { return c.send(kindFailed, payload) }

// Goodbye reports that this process, which was set up, has ended everything that it was set up for.
// reported is whether Brain has acknowledged that. A process that exits without a goodbye, with any
// exit code, has died.
func (c *Child) Goodbye(reported bool) error {
	if reported {
		return c.send(kindGoodbye, []byte{1})
	}
	return c.send(kindGoodbye, nil)
}

// Forward sends the parent a line that a descendant of this process has printed. It blocks while
// the parent is slow. Lines longer than [MaxLine] are truncated.
func (c *Child) Forward(line Line) error { return c.send(kindLine, encodeLine(line)) }

func (c *Child) send(k kind, body []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return writeFrame(c.to, k, body)
}

// Stop is closed when the parent requests this process to stop.
func (c *Child) Stop() <-chan struct{} { return c.stop }

// Orphaned is closed when the parent has died: its output is no longer read.
func (c *Child) Orphaned() <-chan struct{} { return c.orphaned }

// Close closes this end of the connection. A process that continues to run afterwards cannot be
// asked to stop, and does not notice its parent's death. Exiting has the same effect as Close.
func (c *Child) Close() error {
	signal.Stop(c.broken)
	fromErr, toErr := c.from.Close(), c.to.Close()
	<-c.readingDone
	if errors.Is(fromErr, os.ErrClosed) && errors.Is(toErr, os.ErrClosed) {
		return nil // already closed
	}
	return errors.Join(fromErr, toErr)
}
