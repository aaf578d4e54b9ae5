package assemble

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// ignoredAtStart are the signals that were ignored when the process started, as a shell has its background jobs (`prog &` in a script) ignore SIGINT.
// They end the driver all the same, and entirely: whoever sends them means it. But Go goes back to ignoring such a signal, so it is by its exit
// code that the process ends then.
//
//nolint:gochecknoglobals // there is one start to remember
var ignoredAtStart = map[os.Signal]bool{os.Interrupt: signal.Ignored(os.Interrupt), syscall.SIGTERM: signal.Ignored(syscall.SIGTERM)}

// SignalContext is a context that ends when the process is interrupted or terminated. A second signal ends the process at once. stop ends
// both.
func SignalContext(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(parent)
	return ctx, onSignals(func(os.Signal) { cancel() }, cancel)
}

// onSignals calls first, on a goroutine of its own, when the process is interrupted or terminated. A second signal ends the process at once, whatever
// hangs. What it returns ends all this, and then calls stopped.
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

// endBySignal ends the process as the signal does by default.
func endBySignal(s os.Signal) {
	signal.Reset(s)
	if p, err := os.FindProcess(os.Getpid()); err == nil && !ignoredAtStart[s] {
		if p.Signal(s) == nil {
			// It comes at once, unless something took it or it was to be ignored after all.
			time.Sleep(time.Second) //nolint:forbidigo // nothing says that a signal was not taken
		}
	}
	code := 1
	if number, ok := s.(syscall.Signal); ok {
		code = 128 + int(number)
	}
	os.Exit(code) //nolint:forbidigo // the process was told to end
}
