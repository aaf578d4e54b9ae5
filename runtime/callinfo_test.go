package runtime

import (
	"context"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
)

// TestAbandonedWaitLeavesCallInfoAlone reads the CallInfo of calls after waits that have returned
// without the outcome, while the calls end. The race detector checks that nothing is written to it
// meanwhile.
func TestAbandonedWaitLeavesCallInfoAlone(t *testing.T) {
	type future = Future[*storagev1.IncrResponse]
	for name, abandon := range map[string]func(ctx context.Context, f *future) error{
		"Get": func(ctx context.Context, f *future) error {
			_, err := f.Get(ctx)
			return err
		},
		"Wait": func(ctx context.Context, f *future) error {
			_, _, err := Wait(ctx, 1, f)
			return err
		},
		"Gather": func(ctx context.Context, f *future) error {
			_, err := Gather(ctx, f)
			return err
		},
	} {
		test := func(t *testing.T, interceptors ...ClientInterceptor) {
			t.Helper()
			s := newCounter("a", 1)
			s.ref = s.ref.Intercepted(interceptors...)
			release := make(chan struct{})
			s.does(func(ctx context.Context) error {
				<-release
				CallFrom(ctx).SetHeader("answer", "42")
				return nil
			})
			ctx, info := connect.NewClientContext(t.Context())
			f := s.future(ctx)
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			require.ErrorIs(t, abandon(ended, f), context.Canceled)

			close(release)
			require.Empty(t, info.ResponseHeader().Get("answer"))
			<-f.Done()
			require.Empty(t, info.ResponseHeader().Get("answer"), "only a wait delivers it now")
			_, err := f.Get(t.Context())
			require.NoError(t, err)
			require.Equal(t, "42", info.ResponseHeader().Get("answer"))
		}
		t.Run(name, func(t *testing.T) { test(t) })
		t.Run(name+" intercepted", func(t *testing.T) {
			test(t, func(next ClientInvoke) ClientInvoke { return next })
		})
	}
}
