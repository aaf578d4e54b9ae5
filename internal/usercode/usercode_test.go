package usercode_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/raylink/raylink/internal/usercode"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errOwn = errors.New("its own error")

// hostile is a panic's value whose String method is user code, too.
type hostile struct{ text func() string }

func (h hostile) String() string { return h.text() }

func TestAwaitReportsEveryEnd(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fn     func() error
		text   string
		goexit bool
	}{
		"returns":                       {fn: func() error { return errOwn }, text: "its own error"},
		"panics":                        {fn: func() error { panic("ouch") }, text: "panicked: ouch"},
		"panics with nil":               {fn: func() error { panic(nil) }, text: "panicked: panic called with nil"},
		"ends its goroutine":            {fn: func() error { runtime.Goexit(); return nil }, text: "ended its goroutine", goexit: true},
		"panics, and its text panics":   {fn: func() error { panic(hostile{func() string { panic("again") }}) }, text: "panicked: "},
		"panics, and its text ends all": {fn: func() error { panic(hostile{func() string { runtime.Goexit(); return "" }}) }, goexit: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			over, err := usercode.Await(ctx, 0, test.fn)
			require.True(t, over)
			require.ErrorContains(t, err, test.text)
			if f, failed := errors.AsType[*usercode.UnreturnedError](err); failed {
				require.Equal(t, test.goexit, f.Goexit)
				var log bytes.Buffer
				f.Log(slog.New(slog.NewTextHandler(&log, nil)), "a test", "of", name)
				require.Contains(t, log.String(), "usercode_test.go", "the stack is not the code's")
			}
		})
	}
	over, err := usercode.Await(t.Context(), 0, func() error { return nil })
	require.NoError(t, err)
	require.True(t, over)
}

func TestAwaitReturnsThoughTheCodeDoesNot(t *testing.T) {
	t.Parallel()
	forever := make(chan struct{})
	defer close(forever)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	over, _ := usercode.Await(ctx, time.Millisecond, func() error { <-forever; return nil })
	require.False(t, over)
}
