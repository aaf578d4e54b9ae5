package proctest

import (
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Order is what a test has a worker do: a line of JSON at the worker's standard input.
type Order[O any] interface {
	// Numbered returns the order with a number, which the answer repeats.
	Numbered(id int) O
	// String says what is to be done, for messages.
	String() string
}

// Answer is a worker's answer to an order, or an event: a line of JSON at its standard output.
type Answer[A any] interface {
	// Number is that of the order, or 0 for an event.
	Number() int
	// What is the event; [Serving] is the first one.
	What() string
	// Err is the text of the error, or empty.
	Err() string
	// Failed returns an answer with an error, in place of a worker that does not answer.
	Failed(code, text string) A
}

// Serving is the event of a worker that is ready for orders.
const Serving = "serving"

// Worker is a process that executes orders. It is safe for concurrent use.
type Worker[O Order[O], A Answer[A]] struct {
	*Process

	mu      sync.Mutex // guards the fields below, and writes to the input
	next    int
	waiting map[int]chan A
}

// StartWorker starts a process that executes orders, and returns when it is ready for them. Its
// name has its id. event gets its events, one at a time.
func StartWorker[O Order[O], A Answer[A]](t testing.TB, name string, cmd *exec.Cmd, event func(process string, a A)) *Worker[O, A] {
	t.Helper()
	w := &Worker[O, A]{waiting: make(map[int]chan A)}
	serving := make(chan struct{})
	w.Process = Start(t, cmd, func(child *Process, out io.Reader) {
		child.Name = fmt.Sprintf("%s(%d)", name, child.PID())
		_ = Lines(out, func(a A) {
			switch {
			case a.Number() != 0:
				w.mu.Lock()
				c := w.waiting[a.Number()]
				delete(w.waiting, a.Number())
				w.mu.Unlock()
				c <- a
			case a.What() == Serving:
				close(serving)
			default:
				event(child.Name, a)
			}
		})
	})
	select {
	case <-serving:
	case <-w.Ended():
		require.NoError(t, w.Err(), "%s ended", w.Name)
	case <-time.After(Patience):
		require.Fail(t, "a process does not serve", w.Name)
	}
	return w
}

// Begin gives an order, whose answer is received later.
func (w *Worker[O, A]) Begin(o O) <-chan A {
	c := make(chan A, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next++
	w.waiting[w.next] = c
	line, err := json.Marshal(o.Numbered(w.next))
	if err == nil {
		_, err = w.Input.Write(append(line, '\n'))
	}
	if err != nil {
		var none A
		c <- none.Failed("dead", fmt.Sprintf("%s takes no orders: %v", w.Name, err))
	}
	return c
}

// Do gives an order, and returns the answer.
func (w *Worker[O, A]) Do(o O) A {
	var none A
	select {
	case a := <-w.Begin(o):
		return a
	case <-w.Ended():
		return none.Failed("dead", w.Name+" has ended")
	case <-time.After(Patience + 5*time.Second):
		return none.Failed("silent", fmt.Sprintf("%s did not answer the order to %s", w.Name, o))
	}
}

// Must gives an order that must succeed.
func (w *Worker[O, A]) Must(o O) A {
	w.t.Helper()
	a := w.Do(o)
	require.Empty(w.t, a.Err(), "%s: %s", w.Name, o)
	return a
}

// Eventually repeats an order until its answer is as expected.
func (w *Worker[O, A]) Eventually(limit time.Duration, o O, ok func(A) bool, what string) A {
	w.t.Helper()
	var a A
	for begin := time.Now(); time.Since(begin) < limit; Pause(Poll) {
		if a = w.Do(o); ok(a) {
			return a
		}
	}
	require.Fail(w.t, what, "%s: %s, within %v; at last: %+v", w.Name, o, limit, a)
	return a
}
