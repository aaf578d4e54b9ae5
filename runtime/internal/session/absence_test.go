package session

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
)

// lockedBuffer is a buffer for several goroutines.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestBrainsAbsenceAndReturnAreLoggedOnceEach whatever is tried in between.
func TestBrainsAbsenceAndReturnAreLoggedOnceEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var away atomic.Bool
		leave := make(chan struct{})
		s, _ := start(t, &fakeBrain{attach: func(ctx context.Context, st brainv1connect.BrainServiceAttachServerStream) error {
			if away.Load() {
				return errors.New("not now")
			}
			if _, err := st.Receive(); err != nil {
				return err
			}
			if err := st.Send(&brainv1.AttachResponse{Lease: durationpb.New(time.Second)}); err != nil {
				return err
			}
			go func() {
				for {
					if _, err := st.Receive(); err != nil {
						return
					}
				}
			}()
			select {
			case <-leave:
			case <-ctx.Done():
			}
			return errors.New("gone")
		}}, time.Second)
		var out lockedBuffer
		s.config.Log = slog.New(slog.NewTextHandler(&out, nil))
		ctx, cancel := context.WithCancel(t.Context())
		first := make(chan error, 1)
		go s.attach(ctx, first)
		require.NoError(t, <-first)
		require.Empty(t, out.String())
		for round := range 2 {
			away.Store(true)
			leave <- struct{}{}
			<-time.After(10 * time.Second) // dozens of attempts
			away.Store(false)
			<-time.After(10 * time.Second)
			require.Equal(t, round+1, strings.Count(out.String(), "Brain is away"), out.String())
			require.Equal(t, round+1, strings.Count(out.String(), "Brain is back"), out.String())
		}
		cancel()
		<-s.left
	})
}
