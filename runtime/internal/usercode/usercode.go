// Package usercode runs code that is not the runtime's own (set-up functions, methods, callbacks,
// transports) where something waits for its end. Such code returns, panics, ends its goroutine by
// runtime.Goexit, or does none of that; whoever waits must hear of each.
//
// [Run] and [Outcome] see to the first three on the goroutine at hand, [Await] to all four.
package usercode

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"
)

// UnreturnedError is how user code ended that did not return.
type UnreturnedError struct {
	// Goexit says that it ended its goroutine; else it panicked.
	Goexit bool
	// Text is the panic's value, made when it was recovered: a value's own methods run then, and
	// not again wherever the failure is logged.
	Text  string
	stack string
}

// Error says how it ended, to stand after its name.
func (f *UnreturnedError) Error() string {
	if f.Goexit {
		return "ended its goroutine (runtime.Goexit) instead of returning"
	}
	return "panicked: " + f.Text
}

// Log tells the owner of the code, which what names, with the stack.
func (f *UnreturnedError) Log(log *slog.Logger, what string, attrs ...any) {
	if f.Goexit {
		log.Error(what+" ended its goroutine", append(attrs, slog.String("stack", f.stack))...)
		return
	}
	log.Error(what+" panicked", append(attrs, slog.String("panic", f.Text), slog.String("stack", f.stack))...)
}

// Outcome is for a deferred function that knows whether the code has returned, and passes on what
// recover has said. It is nil for code that has returned. What the code can do here (a panic's
// value may have methods) it can do to the deferred function: another must stand outside of that
// one where something waits.
func Outcome(returned bool, recovered any) *UnreturnedError {
	switch {
	case recovered != nil:
		return &UnreturnedError{Text: fmt.Sprint(recovered), stack: string(debug.Stack())}
	case !returned:
		return &UnreturnedError{Goexit: true, stack: string(debug.Stack())}
	}
	return nil
}

// Run calls fn, and then end with its error, or with a [*UnreturnedError]. end is called once,
// whatever fn does, as long as it ends at all. Where fn ends its goroutine Run does not return.
func Run(fn func() error, end func(error)) {
	var err error
	settled := false
	defer func() {
		if !settled {
			err = Outcome(false, nil)
		}
		end(err)
	}()
	defer func() {
		if value := recover(); value != nil {
			err = Outcome(true, value)
			settled = true
		}
	}()
	err = fn()
	settled = true
}

// Await runs fn on a goroutine of its own, and waits for it until ctx ends, and for as long as late
// after that: code that heeds ctx needs a moment to return. If it is not over then fn goes on, for
// there is no way to end it, and its error is lost.
func Await(ctx context.Context, late time.Duration, fn func() error) (over bool, err error) {
	ended := make(chan error, 1)
	go Run(fn, func(err error) { ended <- err })
	timer := time.NewTimer(quick)
	defer timer.Stop()
	select {
	case err := <-ended:
		return true, err
	case <-timer.C:
	}
	select {
	case err := <-ended:
		return true, err
	case <-ctx.Done():
	}
	timer.Reset(late)
	select {
	case err := <-ended:
		return true, err
	case <-timer.C:
		return false, nil
	}
}

// quick is for how long Await does not look at its context. Asking a context for its Done may make
// its parents allocate a channel and a table that they keep as long as they live, as a node's does:
// most code returns sooner.
const quick = 5 * time.Millisecond
