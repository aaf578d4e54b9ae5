package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/ps/archive"
)

func (p *psApp) saveCommand() *cobra.Command {
	return p.finish(&cobra.Command{
		Use:   "save DIR [TAG]...",
		Short: "Save the newest versions of tags in a directory",
		Long: `save stores the newest version of each TAG, or of all, in a directory, in place of the version that is there: the
parameters in TAG.safetensors if they have that layout, else in TAG.bin, and what describes them in TAG.json. The slashes of a tag
become folders. raylink ps load pushes them again.`,
		Example: "  raylink ps save /models policy policy/best",
		Args:    atLeastOne("DIR [TAG]..."),
		ValidArgsFunction: completeDirectoryThen(func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
			tags := func(ctx context.Context, s *system, _ []string) []cobra.Completion {
				return p.completeTag(ctx, s, args[1:])
			}
			return p.complete(tags)(cmd, nil, begun)
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.save(cmd.Context(), args[0], args[1:])
		},
	})
}

// atLeastOne requires a command's first argument.
func atLeastOne(usage string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usagef("wrong number of arguments (0); usage: %s", cmd.CommandPath()+" "+usage)
		}
		return nil
	}
}

// completeDirectoryThen completes a directory, and further arguments by another function.
func completeDirectoryThen(rest cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return nil, cobra.ShellCompDirectiveFilterDirs
		}
		return rest(cmd, args, begun)
	}
}

func (p *psApp) save(ctx context.Context, directory string, tags []string) error {
	c, err := p.captain(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	all := len(tags) == 0
	if all {
		versions, err := c.tags(ctx)
		if err != nil {
			return err
		}
		for _, v := range versions {
			tags = append(tags, v.GetTag())
		}
	}
	for _, tag := range tags {
		version, err := c.save(ctx, directory, tag)
		if all && connect.CodeOf(err) == connect.CodeNotFound {
			continue // it was deleted meanwhile
		}
		if err != nil {
			return err
		}
		if err := p.report(version, "saved in "+directory); err != nil {
			return err
		}
	}
	return nil
}

// report prints a version that was saved or loaded.
func (p *psApp) report(version *psv1.Version, what string) error {
	if p.output == outputJSON {
		return p.writeJSON(transferred{Version: describe(version)})
	}
	return p.write(fmt.Sprintf("%s: %s, %s\n", printable(version.GetTag()), summary(version), printable(what)))
}

// save fetches a tag's newest version to a file, and saves it from there.
func (c *captain) save(ctx context.Context, directory, tag string) (_ *psv1.Version, err error) {
	if err := os.MkdirAll(directory, 0o777); err != nil { //nolint:gosec // less the user's umask
		return nil, localise(err)
	}
	file, err := os.CreateTemp(directory, ".raylink-*.part")
	if err != nil {
		return nil, localise(err)
	}
	defer func() { err = errors.Join(err, localise(file.Close())) }()
	if err := os.Remove(file.Name()); err != nil {
		return nil, localise(err)
	}
	version, err := c.fetch(ctx, tag, func(*psv1.Version) error { return nil }, &localWriter{file, directory})
	if err != nil {
		return nil, err
	}
	var content []byte
	if size := int(version.GetSize()); size > 0 { //nolint:gosec // that of a file
		if content, err = unix.Mmap(int(file.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED); err != nil {
			return nil, localise(fmt.Errorf("mapping the parameters: %w", err))
		}
		defer func() { err = errors.Join(err, localise(unix.Munmap(content))) }()
	}
	return version, localise(archive.Write(directory, version, content))
}

func (p *psApp) loadCommand() *cobra.Command {
	return p.finish(&cobra.Command{
		Use:   "load DIR [TAG]...",
		Short: "Push versions that were saved in a directory",
		Long: `load pushes each TAG, or all, from a directory in which raylink ps save has stored them, with the information that
was saved. A version keeps its id if that is above all that the tag has had; else it gets the next one.`,
		Example: "  raylink ps load /models policy/best",
		Args:    atLeastOne("DIR [TAG]..."),
		ValidArgsFunction: completeDirectoryThen(func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			saved, _ := archive.List(args[0]) // there is nothing to offer if it fails
			return slices.DeleteFunc(saved, func(tag string) bool { return slices.Contains(args[1:], tag) }), cobra.ShellCompDirectiveNoFileComp
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.load(cmd.Context(), args[0], args[1:])
		},
	})
}

func (p *psApp) load(ctx context.Context, directory string, tags []string) error {
	if len(tags) == 0 {
		var err error
		if tags, err = archive.List(directory); err != nil {
			return localise(err)
		}
		if len(tags) == 0 {
			return localise(fmt.Errorf("%s has no saved parameters", directory))
		}
	}
	c, err := p.captain(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	for _, tag := range tags {
		version, err := c.load(ctx, directory, tag)
		if err != nil {
			return err
		}
		if err := p.report(version, "loaded from "+directory); err != nil {
			return err
		}
	}
	return nil
}

// load pushes a saved version, under its id unless that is too low.
func (c *captain) load(ctx context.Context, directory, tag string) (_ *psv1.Version, err error) {
	saved, content, release, err := archive.Read(directory, tag)
	if err != nil {
		return nil, localise(err)
	}
	defer func() { err = errors.Join(err, localise(release())) }()
	push := &psv1.PushRequest{Tag: tag, Info: saved.GetInfo(), Version: saved.GetId()}
	version, err := c.upload(ctx, push, uint64(len(content)), bytes.NewReader(content))
	if push.GetVersion() > 0 && connect.CodeOf(err) == connect.CodeAborted {
		push.Version = 0
		return c.upload(ctx, push, uint64(len(content)), bytes.NewReader(content))
	}
	return version, err
}
