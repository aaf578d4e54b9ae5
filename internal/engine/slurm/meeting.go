package slurm

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/raylink/raylink/internal/backoff"
)

// place is what the file of a meeting says: where the head is, how it proves that it is the one,
// and what a task has to prove itself by. The file is readable by the user alone.
type place struct {
	Address     string `json:"address"`
	Fingerprint string `json:"fingerprint"` // SHA-256 of the head's certificate
	Secret      string `json:"secret"`
}

// placeFile is the name of the file in the meeting's directory.
const placeFile = "head.json"

// message is a line of a connection between a task and its head.
type message struct {
	// Secret, Number and Node are the first line of a task: which machine it is, on which node.
	Secret string `json:"secret,omitempty"`
	Number int    `json:"number,omitempty"`
	Node   string `json:"node,omitempty"`
	// Ended says how a task's agent has ended.
	Ended string `json:"ended,omitempty"`
	// Start is from the head: start an agent.
	Start *agentStart `json:"start,omitempty"`
	// Stop is from the head: stop the agent, and end.
	Stop bool `json:"stop,omitempty"`
}

// agentStart is what an agent is started with.
type agentStart struct {
	Name      string   `json:"name"`
	Brain     string   `json:"brain"`
	Token     string   `json:"token"`
	Flags     []string `json:"flags"`
	Resources string   `json:"resources"` // those that replace what Slurm has given
}

const (
	maxMessage = 64 << 10
	// helloTime bounds how long a connection may take until it has proven itself.
	helloTime = 10 * time.Second
	// strangers is how many connections may be there that have not.
	strangers = 64
	// writeTime bounds a write: lines are short, and fit the buffers of a connection that lives.
	writeTime = 20 * time.Second
)

// keepAlive finds out within half a minute that a node is silent.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4}
}

// meeting is the head's end: it listens for the tasks of a run, each of which holds a connection as
// long as it lives. So the loss of either side is noticed by the other at once.
type meeting struct {
	directory string
	listener  net.Listener
	place     place
	events    func(number int, node string, e event, cause string)
	unknown   chan struct{} // a slot for each connection that has not proven itself
	serving   sync.WaitGroup

	mu      sync.Mutex
	tasks   map[int]*member
	changed chan struct{} // closed and replaced after each change of tasks
}

// member is a task that is connected.
type member struct {
	conn net.Conn
	node string
}

// event is what becomes of a task.
type event int

const (
	arrived    event = iota
	agentEnded       // the agent has ended, and its task is there
	taskEnded        // the connection is lost
)

// openMeeting listens at an address of the head and writes the file.
func openMeeting(directory, host string, events func(number int, node string, e event, cause string)) (*meeting, error) {
	certificate, fingerprint, err := newCertificate()
	if err != nil {
		return nil, fmt.Errorf("slurm: making a certificate: %w", err)
	}
	config := net.ListenConfig{KeepAliveConfig: keepAlive()}
	listener, err := config.Listen(context.Background(), "tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, fmt.Errorf("slurm: listening for the tasks of the agents: %w", err)
	}
	m := &meeting{
		directory: directory, events: events, unknown: make(chan struct{}, strangers), tasks: make(map[int]*member), changed: make(chan struct{}),
		listener: tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13}),
		place:    place{Address: listener.Addr().String(), Fingerprint: fingerprint, Secret: rand.Text()},
	}
	if err := m.place.write(directory); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	m.serving.Go(m.accept)
	return m, nil
}

// write stores the file: readers see none or all of it, and no other user any.
func (p place) write(directory string) error {
	fail := func(err error) error {
		return fmt.Errorf("slurm: writing where the head is to a directory that all nodes share: %w", err)
	}
	// A directory of an earlier use that has the same name is another one's garbage.
	if err := os.RemoveAll(directory); err != nil {
		return fail(err)
	}
	if err := os.Mkdir(directory, 0o700); err != nil {
		return fail(err)
	}
	text, err := json.Marshal(p) //nolint:gosec // the file is readable by this user alone
	if err != nil {
		return fail(err)
	}
	if err := writeFile(filepath.Join(directory, placeFile), text); err != nil {
		return errors.Join(fail(err), os.RemoveAll(directory))
	}
	return nil
}

// writeFile replaces a file at once, and returns when the server of the file system has it.
func writeFile(path string, text []byte) (err error) {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// newCertificate makes a certificate that only this meeting has.
func newCertificate() (tls.Certificate, string, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	// The peer compares the whole certificate, so that nothing in it matters.
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().AddDate(10, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, fingerprint(der), nil
}

func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

func (m *meeting) accept() {
	retry := backoff.Backoff{First: 10 * time.Millisecond, Max: time.Second}
	for {
		conn, err := m.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Files or memory are used up at this moment; Accept says when the meeting is over.
			_ = retry.Wait(context.Background())
			continue
		}
		retry.Reset()
		select {
		case m.unknown <- struct{}{}:
			m.serving.Go(func() { m.serve(conn) })
		default:
			_ = conn.Close() // a task tries again
		}
	}
}

// serve reads what a task says until its connection ends.
func (m *meeting) serve(conn net.Conn) {
	defer conn.Close() //nolint:errcheck // nothing is lost
	number, in, ok := m.admit(conn)
	<-m.unknown
	if !ok {
		return
	}
	node := m.node(number)
	m.events(number, node, arrived, "")
	var err error
	for {
		var got message
		if got, err = receive(in); err != nil {
			break
		}
		if got.Ended != "" {
			m.events(number, node, agentEnded, got.Ended)
		}
	}
	m.mu.Lock()
	delete(m.tasks, number)
	m.notify()
	m.mu.Unlock()
	cause := "its task has ended on the node " + node
	if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) { // the kernel's word for a killed process
		cause = fmt.Sprintf("the connection to its task on the node %s is lost: %v", node, err)
	}
	m.events(number, node, taskEnded, cause)
}

// admit reads the first line of a connection, and returns the number of the task's machine.
func (m *meeting) admit(conn net.Conn) (int, *bufio.Reader, bool) {
	if conn.SetDeadline(time.Now().Add(helloTime)) != nil {
		return 0, nil, false
	}
	in := bufio.NewReaderSize(conn, maxMessage)
	hello, err := receive(in)
	if err != nil || subtle.ConstantTimeCompare([]byte(hello.Secret), []byte(m.place.Secret)) != 1 || conn.SetDeadline(time.Time{}) != nil {
		return 0, nil, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, twice := m.tasks[hello.Number]; twice {
		return 0, nil, false
	}
	m.tasks[hello.Number] = &member{conn: conn, node: hello.Node}
	m.notify()
	return hello.Number, in, true
}

func (m *meeting) notify() {
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *meeting) node(number int) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.tasks[number]; t != nil {
		return t.node
	}
	return ""
}

// tell sends a message to a task. One that is gone gets none, which its connection reports.
func (m *meeting) tell(number int, msg message) {
	m.mu.Lock()
	t := m.tasks[number]
	m.mu.Unlock()
	if t == nil {
		return
	}
	if err := send(t.conn, msg); err != nil {
		_ = t.conn.Close() // its reader reports the loss
	}
}

// release stops all tasks, and those that still arrive, until as many have been there as are
// expected, or ctx ends. It returns once all have gone.
func (m *meeting) release(ctx context.Context, gone func() bool) {
	told := make(map[*member]bool)
	tick := time.NewTicker(100 * time.Millisecond) // gone can come true as time passes
	defer tick.Stop()
	for {
		m.mu.Lock()
		changed := m.changed
		var left []int
		for number, t := range m.tasks {
			if !told[t] {
				told[t] = true
				left = append(left, number)
			}
		}
		empty := len(m.tasks) == 0
		m.mu.Unlock()
		for _, number := range left {
			m.tell(number, message{Stop: true})
		}
		if empty && gone() {
			return
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// close ends all connections, so that what is left of the tasks ends at once, and removes the file.
func (m *meeting) close() error {
	err := m.listener.Close()
	m.mu.Lock()
	for _, t := range m.tasks {
		_ = t.conn.Close() // its task ends
	}
	m.mu.Unlock()
	m.serving.Wait()
	return errors.Join(err, os.RemoveAll(m.directory))
}

func send(conn net.Conn, msg message) error {
	text, err := json.Marshal(msg) //nolint:gosec // it goes to a head that has proven itself by its certificate
	if err != nil {
		return err
	}
	if err := conn.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return err
	}
	_, err = conn.Write(append(text, '\n'))
	return err
}

func receive(in *bufio.Reader) (message, error) {
	var msg message
	line, err := in.ReadSlice('\n')
	if err != nil {
		return msg, err
	}
	return msg, json.Unmarshal(line, &msg)
}
