package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
)

// standardStream stands for standard input or output instead of a file.
const standardStream = "-"

func (p *psApp) pullCommand() *cobra.Command {
	return p.finish(&cobra.Command{
		Use:   "pull TAG [FILE]",
		Short: "Fetch a tag's newest parameters to a file",
		Long: `pull fetches a tag's newest parameters to FILE, or to standard output if FILE is -. Without FILE, it is named for the
last part of the tag, with .safetensors if the parameters have that layout, else .bin; an existing one is not replaced.

The parameters are written to a temporary file beside FILE. It gets that name, in place of an existing file, once they are complete
and their checksum has proven right.`,
		Example: `  raylink ps pull policy/best
  raylink ps pull policy/best /models/best.safetensors
  raylink ps pull policy/best - | sha256sum`,
		Args:              between(1, 2, "TAG [FILE]"), //nolint:mnd // as the usage says
		ValidArgsFunction: p.completeTagThenFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.pull(cmd.Context(), args[0], args[1:])
		},
	})
}

// transferred is the result of a transfer in JSON.
type transferred struct {
	Version versionInfoJSON `json:"version"`
	// File is where the parameters are.
	File string `json:"file,omitempty"`
}

func (p *psApp) pull(ctx context.Context, tag string, file []string) error {
	c, err := p.captain(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	var path string
	if len(file) > 0 {
		path = file[0]
	} else if path, err = c.unusedName(ctx, tag); err != nil {
		return err
	}
	if path == standardStream {
		_, err := c.fetch(ctx, tag, func(*psv1.Version) error { return nil }, &localWriter{p.out, "standard output"})
		return err
	}
	d := &destination{path: path}
	version, err := c.fetch(ctx, tag, func(*psv1.Version) error { return d.open() }, d)
	if err = d.finish(err); err != nil {
		return err
	}
	if p.output == outputJSON {
		return p.writeJSON(transferred{describe(version), path})
	}
	return p.write(fmt.Sprintf("%s: %s, in %s\n", printable(tag), summary(version), printable(path)))
}

// unusedName returns the name of a file for a tag's parameters that does not exist.
func (c *captain) unusedName(ctx context.Context, tag string) (string, error) {
	version, file, err := c.layout(ctx, tag)
	if err != nil {
		return "", err
	}
	name := version.GetTag()[strings.LastIndexByte(version.GetTag(), '/')+1:]
	if name == "" || name[0] == '.' || name[0] == '-' || filepath.Base(name) != name {
		return "", usagef("tag %q does not end in the name of a file: give a FILE", tag)
	}
	if len(file.Names()) > 0 {
		name += ".safetensors"
	} else {
		name += ".bin"
	}
	if _, err := os.Lstat(name); err == nil {
		return "", usagef("%s exists: to replace it, give it as FILE", name)
	}
	return name, nil
}

// localWriter writes to a local file; its errors are local ones.
type localWriter struct {
	w    io.Writer
	name string
}

// Write implements io.Writer.
func (l *localWriter) Write(b []byte) (int, error) {
	n, err := l.w.Write(b)
	if err != nil {
		err = &localError{fmt.Errorf("writing to %s: %w", l.name, err)}
	}
	return n, err
}

// destination is a file that is written beside its path and gets its name when it is complete.
// Something that is no regular file, such as a pipe, is written to in place.
type destination struct {
	path string

	file *os.File
	// part is the path of the file until it is complete; empty for one that is written in place.
	part string
}

// open creates the file.
func (d *destination) open() error {
	mode := fs.FileMode(0)
	info, err := os.Stat(d.path)
	switch {
	case err == nil && info.IsDir():
		return usagef("%s is a directory: give the name of a file", d.path)
	case err == nil && !info.Mode().IsRegular():
		d.file, err = os.OpenFile(d.path, os.O_WRONLY, 0)
		return localise(err)
	case err == nil:
		mode = info.Mode().Perm()
		if d.path, err = filepath.EvalSymlinks(d.path); err != nil {
			return localise(err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return localise(err)
	}
	part := filepath.Join(filepath.Dir(d.path), ".raylink-"+rand.Text()+".part")
	d.file, err = os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666) //nolint:gosec // less the user's umask
	if err != nil {
		return localise(err)
	}
	d.part = part
	if mode != 0 {
		return localise(d.file.Chmod(mode))
	}
	return nil
}

// Write implements io.Writer.
func (d *destination) Write(b []byte) (int, error) {
	return (&localWriter{d.file, d.path}).Write(b)
}

// finish closes the file, and gives it its name if err, the error of what was done with it, is nil.
// Otherwise it removes the file, and returns err.
func (d *destination) finish(err error) error {
	if d.file == nil {
		return err
	}
	if err == nil && d.part != "" {
		err = localise(d.file.Sync())
	}
	if cerr := d.file.Close(); err == nil {
		err = localise(cerr)
	}
	if d.part == "" {
		return err
	}
	if err == nil {
		err = localise(os.Rename(d.part, d.path))
	}
	if err != nil {
		_ = os.Remove(d.part) // err says more
	}
	return err
}

// localise makes an error that of this program rather than of a call.
func localise(err error) error {
	if err == nil {
		return nil
	}
	return &localError{err}
}

// pushFlags are the flags of the command.
type pushFlags struct {
	info    []string
	wait    string
	timeout time.Duration
}

// waitLevels are the values of --wait.
var waitLevels = map[string]psv1.WaitFor{ //nolint:gochecknoglobals // constant
	"home": psv1.WaitFor_WAIT_FOR_HOME, "quorum": psv1.WaitFor_WAIT_FOR_QUORUM, "all": psv1.WaitFor_WAIT_FOR_ALL,
}

func (p *psApp) pushCommand() *cobra.Command {
	var f pushFlags
	cmd := p.finish(&cobra.Command{
		Use:   "push TAG FILE",
		Short: "Push a file as a tag's next version",
		Long: `push makes the content of FILE the newest version of a tag. If FILE is -, it is standard input, whose content is stored
in a temporary file first, unless it is a file itself.

--wait says which machines have the version when push returns: the captain's (home, the default), more than half of those that have an
officer (quorum), or all of them. If --timeout ends before, the version was pushed nevertheless: the error says which machines lack it.`,
		Example: `  raylink ps push policy best.safetensors --info step=100 --wait all --timeout 10s
  generate | raylink ps push policy -`,
		Args:              between(2, 2, "TAG FILE"), //nolint:mnd // as the usage says
		ValidArgsFunction: p.completeTagThenFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.push(cmd.Context(), f, args[0], args[1])
		},
	})
	flags := cmd.Flags()
	flags.StringArrayVar(&f.info, "info", nil, "information to store with the version, as key=value; may be repeated")
	flags.StringVar(&f.wait, "wait", "home", "the machines that have the version when push returns: home, quorum or all")
	completeFlag(cmd, "wait", cobra.FixedCompletions([]string{"home", "quorum", "all"}, cobra.ShellCompDirectiveNoFileComp))
	flags.DurationVar(&f.timeout, "timeout", 0, "the push's deadline, e.g. 10s (default: none)")
	return cmd
}

func (p *psApp) push(ctx context.Context, f pushFlags, tag, path string) error {
	push := &psv1.PushRequest{Tag: tag, Content: rand.Text()}
	var ok bool
	if push.WaitFor, ok = waitLevels[f.wait]; !ok {
		return usagef("--wait is home, quorum or all, not %q", f.wait)
	}
	if f.timeout < 0 {
		return usagef("--timeout is negative")
	}
	var err error
	if push.Info, err = parseInfo(f.info); err != nil {
		return err
	}
	source, size, err := p.source(ctx, path)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }()
	c, err := p.captain(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	if f.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.timeout)
		defer cancel()
	}
	version, err := c.upload(ctx, push, size, source)
	if err != nil {
		return err
	}
	if p.output == outputJSON {
		return p.writeJSON(transferred{Version: describe(version)})
	}
	return p.write(printable(tag) + ": " + summary(version) + "\n")
}

func parseInfo(given []string) (map[string]string, error) {
	info := make(map[string]string, len(given))
	for _, entry := range given {
		key, value, ok := strings.Cut(entry, "=")
		if !ok || key == "" {
			return nil, usagef("--info is given as key=value, not as %q", entry)
		}
		if _, twice := info[key]; twice {
			return nil, usagef("--info gives %q twice", key)
		}
		info[key] = value
	}
	return info, nil
}

// source opens a file, or standard input, whose size it returns. What is no regular file is stored
// in a temporary one first.
func (p *psApp) source(ctx context.Context, path string) (_ io.ReadCloser, size uint64, err error) {
	r := p.in
	file, ok := p.in.(*os.File)
	if path != standardStream {
		if file, err = os.Open(path); err != nil {
			return nil, 0, localise(err)
		}
		r, ok = file, true
	}
	if ok {
		info, err := file.Stat()
		if err == nil && info.IsDir() {
			err = fmt.Errorf("%s is a directory: give a file", path)
		}
		if err != nil {
			return nil, 0, localise(errors.Join(err, file.Close()))
		}
		if info.Mode().IsRegular() {
			at, err := file.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, 0, localise(errors.Join(err, file.Close()))
			}
			return file, uint64(max(0, info.Size()-at)), nil
		}
	}
	spool, size, err := spool(ctx, r)
	if err != nil {
		return nil, 0, localise(fmt.Errorf("storing standard input: %w", err))
	}
	return spool, size, nil
}

// spool stores what r has in a temporary file, which ends with its last descriptor.
func spool(ctx context.Context, r io.Reader) (*os.File, uint64, error) {
	file, err := os.CreateTemp("", "raylink-push-*")
	if err != nil {
		return nil, 0, err
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	type copied struct {
		size int64
		err  error
	}
	done := make(chan copied, 1)
	// If ctx ends first, this goroutine may block in reading until the process exits.
	go func() {
		size, err := io.Copy(file, r)
		done <- copied{size, err}
	}()
	select {
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	case c := <-done:
		if c.err == nil {
			_, c.err = file.Seek(0, io.SeekStart)
		}
		if c.err != nil {
			return nil, 0, errors.Join(c.err, file.Close())
		}
		return file, uint64(c.size), nil //nolint:gosec // >= 0
	}
}
