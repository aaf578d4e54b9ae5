package storage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/raylink/raylink/internal/backoff"
)

// The pauses between the attempts of an update, which grow while other writers are faster.
const (
	firstUpdatePause = 500 * time.Microsecond
	maxUpdatePause   = 20 * time.Millisecond
)

// Update replaces a value by the result of fn, and returns it. A missing key counts as the zero
// value of its type. If the key is written or deleted meanwhile, Update calls fn again with the new
// value, until ctx ends; so fn should have no other effects. An error of fn ends the update, is
// returned as it is, and changes nothing. The value belongs to fn, which may modify and return it.
//
// If the write fails with Unavailable, it may have happened.
func Update[T Value](ctx context.Context, c *Client, key string, fn func(old T) (T, error), opts ...UpdateOption) (T, error) {
	var zero T
	return UpdateFrom(ctx, c, key, zero, fn, opts...)
}

// UpdateFrom is [Update] with another initial value for a missing key.
func UpdateFrom[T Value](
	ctx context.Context, c *Client, key string, initial T, fn func(old T) (T, error), opts ...UpdateOption,
) (T, error) {
	pause := backoff.Backoff{First: firstUpdatePause, Max: maxUpdatePause}
	for attempts := 1; ; attempts++ {
		value, changed, err := updateOnce(ctx, c, key, initial, fn, opts)
		if !changed {
			return value, err
		}
		if pause.Wait(ctx) != nil {
			return value, fmt.Errorf("update %q: it was changed meanwhile in each of %d attempts: %w", key, attempts, context.Cause(ctx))
		}
	}
}

// updateOnce is one attempt. It reports whether it has failed because the key was changed
// meanwhile.
func updateOnce[T Value](
	ctx context.Context, c *Client, key string, initial T, fn func(old T) (T, error), opts []UpdateOption,
) (_ T, changed bool, _ error) {
	var zero T
	condition := IfAbsent()
	old := cloned(initial)
	switch e, err := c.Entry(ctx, key); {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return zero, false, err
	default:
		condition = IfID(e.GetId())
		if old, err = As[T](e); err != nil {
			return zero, false, err
		}
	}
	value, err := fn(old)
	if err != nil {
		return zero, false, err
	}
	puts := []PutOption{condition}
	for _, o := range opts {
		puts = append(puts, o)
	}
	if _, err = Put(ctx, c, key, value, puts...); err != nil {
		var condition *ConditionError
		return zero, errors.As(err, &condition), err
	}
	return value, false, nil
}
