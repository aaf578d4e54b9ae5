package ps

import (
	"context"
	"errors"
	"fmt"
	"path"
)

// errPattern means that a pattern of Tensors is malformed.
var errPattern = errors.New("malformed pattern")

// Tensors restricts a follower to tensors whose names match one of the patterns, in the syntax of
// [path.Match]. On a machine without an officer only their bytes are transferred. The parameters
// must have the safetensors layout.
func Tensors(patterns ...string) FollowOption {
	return func(o *followOptions) { o.patterns = append(o.patterns, patterns...) }
}

// check checks the patterns.
func (o *followOptions) check() error {
	for _, p := range o.patterns {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("%w %q: %w", errPattern, p, err)
		}
	}
	return nil
}

// pullIfNewer is PullIfNewer for a follower.
func (c *Client) pullIfNewer(ctx context.Context, tag string, have uint64, o followOptions) (*Parameters, bool, error) {
	if err := o.check(); err != nil {
		return nil, false, err
	}
	return c.PullIfNewer(ctx, tag, have)
}
