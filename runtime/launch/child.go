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

// Child is a launched process's end of the connection to its parent. Its methods may be called from
// any goroutine.
type Child struct {
	payload  []byte
	stop     chan struct{}
	orphaned chan struct{}
	heard    chan struct{}  // closed when listening has ended
	broken   chan os.Signal // swallows SIGPIPE
	from     *os.File

	mu sync.Mutex // guards to, so that frames don't mix
	to *os.File
}

// startTimeout is how long the parent may take to send what it launched the process for. It sends
// it at once.
const startTimeout = HelloTimeout

// Inherited returns this process's end of the connection to its parent, if it was launched as a
// host, and else nil. Call it early, and once: from then on this process's own children can't take
// themselves for launched ones, nor hold the connection open. When it has been called, hello is due
// ([Child.Hello]).
//
// From then on a write to stdout or stderr that fails because the parent is gone returns an error,
// where it would otherwise kill a Go program (SIGPIPE): an orphan is to end in good order.
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
		stop:     make(chan struct{}),
		orphaned: make(chan struct{}),
		heard:    make(chan struct{}),
		broken:   make(chan os.Signal, 1),
		from:     from,
		to:       to,
	}
	frames := bufio.NewReader(from)
	if err := c.start(frames); err != nil {
		return nil, errors.Join(fmt.Errorf("launch: reading what this process was launched for: %w", err), from.Close(), to.Close())
	}
	markSelf()
	signal.Notify(c.broken, syscall.SIGPIPE)
	go c.listen(frames)
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

// pipeFD is the number of an inherited pipe, now close-on-exec and ready for the poller.
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

// listen waits for what the parent has to say, and for its death.
func (c *Child) listen(frames *bufio.Reader) {
	defer close(c.heard)
	var stopped bool
	for {
		k, _, err := readFrame(frames)
		switch {
		case err == nil && k == kindStop:
			if !stopped {
				stopped = true
				close(c.stop)
			}
		case errors.Is(err, os.ErrClosed): // Close
			return
		default: // the end, or a parent that can't be understood
			close(c.orphaned)
			return
		}
	}
}

// Payload is what the parent launched this process for: [Spec.Payload].
func (c *Child) Payload() []byte { return c.payload }

// Hello tells the parent which build this process is: [Build]. It is due at once, since the parent
// doesn't wait for it longer than [HelloTimeout]. A parent of another build kills this process.
func (c *Child) Hello(build string) error { return c.send(kindHello, versioned([]byte(build))) }

// Ready tells the parent that this process is set up. The payload is what [Process.Ready] returns.
func (c *Child) Ready(payload []byte) error { return c.send(kindReady, payload) }

// Failed tells the parent that setting up has failed, and why. The process should then end; the
// parent gives it five seconds.
func (c *Child) Failed(payload []byte) error { return c.send(kindFailed, payload) }

// Goodbye tells the parent that this process, which was set up, has ended all that it was set up
// for, and whether it has reported that to Brain. A process that ends without a goodbye, with any
// exit code, has died.
func (c *Child) Goodbye(reported bool) error {
	if reported {
		return c.send(kindGoodbye, []byte{1})
	}
	return c.send(kindGoodbye, nil)
}

// Forward passes on a line that a process below this one has printed. It blocks while the parent is
// slow to take it. What is longer than [MaxLine] is cut.
func (c *Child) Forward(line Line) error { return c.send(kindLine, encodeLine(line)) }

func (c *Child) send(k kind, body []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return writeFrame(c.to, k, body)
}

// Stop is closed when the parent asks this process to stop.
func (c *Child) Stop() <-chan struct{} { return c.stop }

// Orphaned is closed when the parent is dead. Nobody waits for this process any more, and nobody
// reads what it prints.
func (c *Child) Orphaned() <-chan struct{} { return c.orphaned }

// Close closes this end of the connection. A process that goes on nevertheless can't be told to
// stop, nor notice its parent's death. Ending the process does the same.
func (c *Child) Close() error {
	signal.Stop(c.broken)
	fromErr, toErr := c.from.Close(), c.to.Close()
	<-c.heard
	if errors.Is(fromErr, os.ErrClosed) && errors.Is(toErr, os.ErrClosed) {
		return nil // called before
	}
	return errors.Join(fromErr, toErr)
}
