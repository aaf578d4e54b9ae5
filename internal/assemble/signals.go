package assemble

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// ignoredAtStart reports which signals were ignored when the process started: a shell script starts
// its background jobs (`prog &`) with SIGINT ignored. Such a signal ends the driver nevertheless.
// But signal.Reset ignores it again, so that the process has to end by an exit code instead.
//
//nolint:gochecknoglobals // there is one start to remember
var ignoredAtStart = map[os.Signal]bool{os.Interrupt: signal.Ignored(os.Interrupt), syscall.SIGTERM: signal.Ignored(syscall.SIGTERM)}

// SignalContext returns a context that ends when the process is interrupted or terminated. A second
// signal ends the process at once. stop ends the context and the handling of signals.
func SignalContext(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(parent)
	return ctx, onSignals(func(os.Signal) { cancel() }, cancel)
}

// onSignals calls first, on a goroutine of its own, when the process is interrupted or terminated.
// A second signal ends the process at once, even while first blocks. stop ends the handling of
// signals and calls stopped.
func onSignals(first func(os.Signal), stopped func()) (stop func()) {
	signals := make(chan os.Signal, 2)
	over := make(chan struct{})
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		for n := 0; ; n++ {
			select {
			case s := <-signals:
				if n > 0 {
					endBySignal(s)
				}
				go first(s)
			case <-over:
				return
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(over)
		stopped()
	}
}

// endBySignal ends the process as the signal would by default.
func endBySignal(s os.Signal) {
	signal.Reset(s)
	if p, err := os.FindProcess(os.Getpid()); err == nil && !ignoredAtStart[s] {
		if p.Signal(s) == nil {
			// The signal is delivered at once, unless something else handles or ignores it.
			time.Sleep(time.Second) //nolint:forbidigo // there is no notice of an undelivered signal
		}
	}
	code := 1
	if number, ok := s.(syscall.Signal); ok {
		code = 128 + int(number)
	}
	os.Exit(code) //nolint:forbidigo // the signal is to end the process
}
