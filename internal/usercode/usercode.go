// Package usercode runs code that is not the runtime's own (set-up functions, methods, callbacks,
// transports) and reports how it ended. Such code returns, panics, ends its goroutine by
// runtime.Goexit, or never ends; a waiter must learn of each.
//
// [Run] and [Outcome] handle the first three on the current goroutine, [Await] handles all four.
package usercode

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"
)

// UnreturnedError reports that user code ended without returning.
type UnreturnedError struct {
	// Goexit is set if the code ended its goroutine; otherwise it panicked.
	Goexit bool
	// Text is the value of the panic, formatted when it was recovered. The value's own methods run
	// only then, and not again when the failure is logged.
	Text  string
	stack string
}

// Error describes how the code ended. The text follows the name of the code.
func (f *UnreturnedError) Error() string {
	if f.Goexit {
		return "ended its goroutine (runtime.Goexit) instead of returning"
	}
	return "panicked: " + f.Text
}

// Stack is the stack of the goroutine at the panic, or where it ended, as [debug.Stack] formats it.
func (f *UnreturnedError) Stack() string { return f.stack }

// Log logs the failure with its stack. what names the code.
func (f *UnreturnedError) Log(log *slog.Logger, what string, attrs ...any) {
	if f.Goexit {
		log.Error(what+" ended its goroutine", append(attrs, slog.String("stack", f.stack))...)
		return
	}
	log.Error(what+" panicked", append(attrs, slog.String("panic", f.Text), slog.String("stack", f.stack))...)
}

// Outcome converts the end of user code to an error. It is called in a deferred function, with the
// result of recover and whether the code has returned. It returns nil for code that has returned.
// Formatting the panic's value may run foreign methods that panic or end the goroutine in turn, so
// a caller with a waiter needs a second deferred function outside the first.
func Outcome(returned bool, recovered any) *UnreturnedError {
	switch {
	case recovered != nil:
		return &UnreturnedError{Text: fmt.Sprint(recovered), stack: string(debug.Stack())}
	case !returned:
		return &UnreturnedError{Goexit: true, stack: string(debug.Stack())}
	}
	return nil
}

// Run calls fn, and then calls end with fn's error or an [*UnreturnedError]. end is called exactly
// once, unless fn never ends. If fn ends its goroutine, Run does not return.
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

// Await runs fn on its own goroutine and waits for it until ctx ends, and for the duration late
// after that, since code that honours ctx needs a moment to return. If fn is still running then,
// over is false: fn continues, since a goroutine cannot be stopped, and its error is lost.
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

// quick is how long Await waits before it uses its context. Calling Done on a context may make its
// parents allocate a channel and a table for the rest of their lives, as a node's context does;
// most code returns sooner.
const quick = 5 * time.Millisecond
