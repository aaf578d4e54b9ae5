package ps

import (
	"context"
	"errors"

	"github.com/raylink/raylink/services/ps/archive"
)

// Save writes the newest version of a tag to a directory, in place of what was saved there under
// the tag. See package archive for the files, which other programs can read too.
func (c *Client) Save(ctx context.Context, directory, tag string) (err error) {
	parameters, err := c.Pull(ctx, tag)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, parameters.Release()) }()
	return archive.Write(directory, parameters.Version(), parameters.Bytes())
}
