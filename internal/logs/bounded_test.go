package logs

import (
	"bytes"
	"context"
	"log/slog"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// hooked is a handler of text whose code is called with each message before that is written.
type hooked struct {
	slog.Handler

	before func(message string)
}

func (h hooked) Handle(ctx context.Context, r slog.Record) error {
	h.before(r.Message)
	return h.Handler.Handle(ctx, r)
}

func (h hooked) WithAttrs(attrs []slog.Attr) slog.Handler {
	return hooked{h.Handler.WithAttrs(attrs), h.before}
}

// TestHandlerThatBlocksDoesNotBlockCallers: a record waits for stallLimit, those after it do not.
// When the handler goes on it gets all that waited, in order, and a record with the number of lost
// ones.
func TestHandlerThatBlocksDoesNotBlockCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		gate := make(chan struct{})
		bounded := Bound(hooked{slog.NewTextHandler(&out, nil), func(string) { <-gate }})
		require.Same(t, bounded, Bound(bounded))
		stalled := 0
		bounded.OnStall(func(time.Time) { stalled++ })
		log := slog.New(bounded).With("of", "all")
		log.Debug("not shown")
		began := time.Now()
		log.Info("0")
		synctest.Wait()
		assert.Equal(t, stallLimit, time.Since(began))
		for i := 1; i <= maxPending+7; i++ {
			log.Info(strconv.Itoa(i))
			log.Debug("not shown")
		}
		assert.Equal(t, stallLimit, time.Since(began), "those after it do not wait")
		err := bounded.Flush()
		require.ErrorContains(t, err, "has not returned for 400ms: 256 records wait for it and 7 are lost")
		assert.Equal(t, 1, stalled)

		close(gate)
		require.NoError(t, bounded.Flush())
		var got []string
		for line := range strings.Lines(out.String()) {
			assert.Contains(t, line, "of=all")
			_, msg, _ := strings.Cut(line, "msg=")
			msg, _, _ = strings.Cut(msg, " ")
			got = append(got, msg)
		}
		require.Len(t, got, 1+maxPending+1)
		for i, msg := range got[:len(got)-1] {
			assert.Equal(t, strconv.Itoa(i), msg)
		}
		assert.Contains(t, out.String(), "lost=7")

		out.Reset()
		log.Info("as before")
		assert.Contains(t, out.String(), "as before", "it has been handled when the call returns")
	})
}

// TestHandlerThatDoesNotReturnLosesItsRecordAlone covers a handler that panics, and one that ends
// its goroutine, also while others wait.
func TestHandlerThatDoesNotReturnLosesItsRecordAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		gate := make(chan struct{})
		log := slog.New(Bound(hooked{slog.NewTextHandler(&out, nil), func(message string) {
			switch message {
			case "panic":
				panic("on purpose")
			case "goexit":
				runtime.Goexit()
			case "block":
				<-gate
			case "block, goexit":
				<-gate
				runtime.Goexit()
			}
		}}))
		for message, want := range map[string]string{"panic": "panicked: on purpose", "goexit": "ended its goroutine"} {
			err := log.Handler().Handle(t.Context(), slog.NewRecord(time.Now(), slog.LevelInfo, message, 0))
			require.ErrorContains(t, err, "the log's handler "+want)
			require.ErrorContains(t, err, "bounded_test.go", "the error has no stack")
		}
		for _, message := range []string{"panic", "goexit", "1", "block, goexit", "panic", "2", "goexit", "3"} {
			log.Info(message)
		}
		require.ErrorContains(t, log.Handler().(*Bounded).Flush(), "4 records wait")
		close(gate)
		synctest.Wait()
		for _, message := range []string{"1", "2", "3"} {
			assert.Contains(t, out.String(), "msg="+message)
		}
		assert.NotContains(t, out.String(), "on purpose")
	})
}

// TestHandlerIsNotAskedWhileItHandles: it may hold a lock that Enabled needs, too.
func TestHandlerIsNotAskedWhileItHandles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		lock := make(chan struct{}, 1)
		log := slog.New(Bound(locking{slog.DiscardHandler, lock, gate}))
		go log.Info("holds the lock")
		synctest.Wait()
		began := time.Now()
		log.Info("needs the lock")
		assert.LessOrEqual(t, time.Since(began), stallLimit)
		close(gate)
	})
}

// locking holds a lock while it handles, which Enabled takes, too.
type locking struct {
	slog.Handler

	lock chan struct{}
	gate chan struct{}
}

func (l locking) Enabled(context.Context, slog.Level) bool {
	l.lock <- struct{}{}
	<-l.lock
	return true
}

func (l locking) Handle(context.Context, slog.Record) error {
	l.lock <- struct{}{}
	<-l.gate
	<-l.lock
	return nil
}
