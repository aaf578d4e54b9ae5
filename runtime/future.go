package runtime

import "context"

// Future is the outcome of an async call, which may still be to come. Its methods may be called from any goroutine, any
// number of times; all see the same outcome.
type Future[T any] struct{}

// Get waits for the outcome. If ctx ends first it stops waiting and returns ctx's error; the call goes on.
func (f *Future[T]) Get(ctx context.Context) (T, error) { panic("not yet") }
