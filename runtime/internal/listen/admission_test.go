package listen

import (
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// admitting makes connections for an admission, and knows which of them have been closed.
type admitting struct {
	*admission

	t *testing.T
}

func (a admitting) open() (p *pending, isOpen func() bool) {
	a.t.Helper()
	near, far := net.Pipe()
	a.t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	closed := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, far)
		close(closed)
	}()
	p = a.enter(a.t.Context(), near, nil)
	require.NotNil(a.t, p)
	return p, func() bool {
		synctest.Wait()
		select {
		case <-closed:
			return false
		default:
			return true
		}
	}
}

func TestConnectionThatIsNotAdmittedEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := admitting{newAdmission(), t}
		_, silentOpen := a.open()
		admitted, admittedOpen := a.open()
		admitted.admit()
		watching, watchingOpen := a.open()
		unwatch := watching.answers(true)
		asking, askingOpen := a.open()
		time.Sleep(PendingTime / 2) //nolint:forbidigo // in the bubble of synctest
		asking.answers(false)()
		time.Sleep(PendingTime/2 + time.Second) //nolint:forbidigo // in the bubble of synctest
		assert.False(t, silentOpen())
		assert.True(t, askingOpen())
		time.Sleep(PendingTime) //nolint:forbidigo // in the bubble of synctest
		assert.False(t, askingOpen())
		assert.True(t, admittedOpen())
		assert.True(t, watchingOpen())
		unwatch()
		time.Sleep(2 * PendingTime) //nolint:forbidigo // in the bubble of synctest
		assert.False(t, watchingOpen())
		assert.True(t, admittedOpen())
		assert.Zero(t, a.pending.Len())
	})
}

func TestOldestConnectionYieldsToTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := admitting{newAdmission(), t}
		begun := time.Now()
		_, firstOpen := a.open()
		second, secondOpen := a.open()
		second.admit()
		for range maxPending - 1 {
			a.open()
		}
		assert.True(t, firstOpen())
		assert.Zero(t, time.Since(begun))
		_, newestOpen := a.open()
		assert.GreaterOrEqual(t, time.Since(begun), pendingGrace, "a handshake may be under way")
		assert.False(t, firstOpen())
		assert.True(t, secondOpen(), "it is admitted")
		assert.True(t, newestOpen())
		assert.Equal(t, maxPending, a.pending.Len())

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for range maxPending - 1 {
			a.open() // the oldest are as old as it takes by now, those that take their place are not
		}
		near, far := net.Pipe()
		assert.Nil(t, a.enter(ctx, near, nil))
		_, err := far.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)

		a.close()
		assert.False(t, newestOpen())
		assert.True(t, secondOpen())
		assert.Zero(t, a.pending.Len())
		_, lateOpen := a.open()
		assert.False(t, lateOpen())
	})
}
