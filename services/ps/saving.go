package ps

import (
	"context"
	"errors"
	"maps"

	"connectrpc.com/connect/v2"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/ps/archive"
)

// Save writes the newest version of a tag to a directory, in place of what was saved there under
// the tag. See package archive for the files, which other programs can read too. If it fails, what
// was saved before is still there.
func (c *Client) Save(ctx context.Context, directory, tag string) (err error) {
	parameters, err := c.Pull(ctx, tag)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, parameters.Release()) }()
	return archive.Write(directory, parameters.Version(), parameters.Bytes())
}

// SaveAll saves all tags, one after another. It saves as many as it can, and returns all errors. A
// tag that is deleted meanwhile is left out. Saved tags that the captain does not have remain.
func (c *Client) SaveAll(ctx context.Context, directory string) error {
	versions, err := c.Tags(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, version := range versions {
		if ctx.Err() != nil {
			return errors.Join(append(errs, ctx.Err())...)
		}
		if err := c.Save(ctx, directory, version.GetTag()); err != nil && !errors.Is(err, ErrNoVersion) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Load pushes a saved tag with its info, and returns its new version. The version keeps its saved
// id if that is above the ids that the captain has given to the tag; so ids go on where they were
// when parameters are loaded into a new system.
func (c *Client) Load(ctx context.Context, directory, tag string, opts ...PushOption) (*psv1.Version, error) {
	saved, content, release, err := archive.Read(directory, tag)
	if err != nil {
		return nil, err
	}
	version, err := c.pushSaved(ctx, saved, content, opts)
	return version, errors.Join(err, release())
}

func (c *Client) pushSaved(ctx context.Context, saved *psv1.Version, content []byte, opts []PushOption) (*psv1.Version, error) {
	info := func(r *psv1.PushRequest) {
		if len(saved.GetInfo()) > 0 {
			r.Info = maps.Clone(saved.GetInfo())
		}
	}
	// Options of the caller come last, and add to the saved info.
	withInfo := append([]PushOption{info}, opts...)
	if saved.GetId() > 0 {
		version, err := c.Push(ctx, saved.GetTag(), content, append([]PushOption{At(saved.GetId())}, withInfo...)...)
		if connect.CodeOf(err) != connect.CodeAborted {
			return version, err
		}
	}
	return c.Push(ctx, saved.GetTag(), content, withInfo...)
}

// LoadAll loads all saved tags, one after another, and returns their new versions, sorted by tag.
// It loads as many as it can, and returns all errors.
func (c *Client) LoadAll(ctx context.Context, directory string, opts ...PushOption) ([]*psv1.Version, error) {
	tags, err := archive.List(directory)
	if err != nil {
		return nil, err
	}
	var versions []*psv1.Version
	var errs []error
	for _, tag := range tags {
		if ctx.Err() != nil {
			return versions, errors.Join(append(errs, ctx.Err())...)
		}
		version, err := c.Load(ctx, directory, tag, opts...)
		if version != nil {
			versions = append(versions, version)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return versions, errors.Join(errs...)
}
