package runtime

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNodesServicesAndMethodsPrintTheirNames(t *testing.T) {
	t.Parallel()
	s := newCounter("counter", 1)
	for want, v := range map[string]any{
		"counter":                              s.node,
		"raylink.storage.v1.Storage/Incr":      &s.incr.m,
		"raylink.storage.v1.Storage":           s.node.service,
		"counter (raylink.storage.v1.Storage)": NodeType{service: s.node.service},
		"greedy (raylink.storage.v1.Storage)":  NodeType{service: s.node.service}.Named("greedy"),
		"no node type":                         NodeType{},
		"":                                     &Method{},
	} {
		require.Equal(t, want, fmt.Sprint(v))
	}
}

// TestFuturesPrintMethodAndState prints futures of calls that wait, have succeeded and have failed.
// Printing an error is not reading it.
func TestFuturesPrintMethodAndState(t *testing.T) {
	t.Parallel()
	s := newCounter("counter", 1)
	release := make(chan error)
	s.does(func(context.Context) error { return <-release })
	const method = "raylink.storage.v1.Storage/Incr"
	good, bad := s.future(t.Context()), s.future(t.Context())
	require.Equal(t, method+": pending", fmt.Sprint(good))
	release <- nil
	<-good.Done()
	require.Equal(t, method+": done", fmt.Sprint(good))
	release <- errors.New("no paper")
	<-bad.Done()
	require.Equal(t, method+": failed: unknown: no paper", fmt.Sprintf("%v", bad))
	require.False(t, bad.f.uncollected.collected.Load())
	_, err := bad.Get(t.Context())
	require.Error(t, err)
	require.Equal(t, "no call", fmt.Sprint(new(Future[int])))
}
