package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/internal/assemble"
	"github.com/raylink/raylink/services/ps/safetensors"
)

// psApp is the command `raylink ps`, with the flags that its commands share.
type psApp struct {
	*app

	path string // the captain's path, alias or nid
}

func (a *app) psCommand() *cobra.Command {
	p := &psApp{app: a}
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "Show, fetch and push the parameters of a parameter server",
		Long: `ps shows the parameters of a parameter server, fetches them to files and pushes files. Without
--captain, it is the system's own, ps-0.

Parameters of any size go in chunks: no command holds them in memory.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("there is no command %q; the commands of %s are %s", args[0], cmd.CommandPath(), commandNames(cmd))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		p.tagsCommand(), p.infoCommand(), p.pullCommand(), p.pushCommand(), p.saveCommand(), p.loadCommand(), p.officersCommand())
	return cmd
}

// finish adds the flags that all commands of `raylink ps` have.
func (p *psApp) finish(cmd *cobra.Command) *cobra.Command {
	p.clientFlags(cmd)
	cmd.Flags().StringVar(&p.path, "captain", assemble.CaptainPath, "the parameter server's captain, by path, alias or nid")
	completeFlag(cmd, "captain", func(cmd *cobra.Command, _ []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return p.complete(completeCaptain)(cmd, nil, begun)
	})
	return cmd
}

// completeCaptain offers the paths and aliases of all captains.
func completeCaptain(ctx context.Context, s *system, _ []string) []cobra.Completion {
	return s.completeNodes(ctx, func(rec *nodev1.NodeRecord) bool { return rec.GetService() == psv1raylink.CaptainName })
}

// completeTag offers the captain's tags that are no arguments yet.
func (p *psApp) completeTag(ctx context.Context, s *system, args []string) []cobra.Completion {
	versions, err := s.captain(p.path).tags(ctx)
	if err != nil {
		return nil
	}
	var all []cobra.Completion
	for _, v := range versions {
		if !slices.Contains(args, v.GetTag()) {
			all = append(all, cobra.CompletionWithDesc(v.GetTag(), summary(v)))
		}
	}
	return all
}

// completeTagThenFile completes the arguments TAG FILE.
func (p *psApp) completeTagThenFile(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 1 {
		return nil, cobra.ShellCompDirectiveDefault // the shell's own completion of files
	}
	return p.complete(p.completeTag)(cmd, args, begun)
}

func (p *psApp) tagsCommand() *cobra.Command {
	return p.finish(&cobra.Command{
		Use:   "tags",
		Short: "List the tags with their newest versions",
		Long: `tags lists the tags, each with its newest version, its size, when it was pushed, and the pusher's information.

With -o json it prints one object whose "versions" are the versions.`,
		Args: between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return p.tags(cmd.Context()) },
	})
}

func (p *psApp) tags(ctx context.Context) error {
	c, err := p.captain(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	versions, err := c.tags(ctx)
	if err != nil {
		return err
	}
	if p.output == outputJSON {
		list := make([]versionInfoJSON, len(versions))
		for i, v := range versions {
			list[i] = describe(v)
		}
		return p.writeJSON(map[string][]versionInfoJSON{"versions": list})
	}
	if len(versions) == 0 {
		return p.write("nothing was pushed to " + p.path + "\n")
	}
	rows := [][]string{{"TAG", "VERSION", "SIZE", "PUSHED", "INFO"}}
	for _, v := range versions {
		rows = append(rows, []string{printable(v.GetTag()), id(v), formatSize(v.GetSize()), pushed(v), information(v.GetInfo(), " ")})
	}
	return p.write(table(rows))
}

func (p *psApp) infoCommand() *cobra.Command {
	return p.finish(&cobra.Command{
		Use:   "info TAG",
		Short: "Describe a tag's newest version",
		Long: `info describes a tag's newest version. If the parameters have the layout of safetensors, it lists the tensors;
only the chunks with their header are fetched.

With -o json it prints one object: "version", "tensors" and the "metadata" of the layout.`,
		Example:           "  raylink ps info policy/best",
		Args:              between(1, 1, "TAG"),
		ValidArgsFunction: p.complete(p.completeTag),
		RunE:              func(cmd *cobra.Command, args []string) error { return p.info(cmd.Context(), args[0]) },
	})
}

// tensorInfo describes a tensor in JSON.
type tensorInfo struct {
	Name  string `json:"name"`
	DType string `json:"dtype"`
	Shape []int  `json:"shape"`
	Size  uint64 `json:"size"` // in bytes
}

func (p *psApp) info(ctx context.Context, tag string) error {
	c, err := p.captain(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	version, file, err := c.layout(ctx, tag)
	if err != nil {
		return err
	}
	var tensors []tensorInfo
	for _, t := range file.Tensors() {
		size, err := t.Size()
		if err != nil {
			return &localError{err}
		}
		tensors = append(tensors, tensorInfo{Name: t.Name, DType: t.DType, Shape: t.Shape, Size: size})
	}
	if p.output == outputJSON {
		return p.writeJSON(struct {
			Version  versionInfoJSON   `json:"version"`
			Tensors  []tensorInfo      `json:"tensors,omitempty"`
			Metadata map[string]string `json:"metadata,omitempty"`
		}{describe(version), tensors, file.Metadata()})
	}
	text := facts([][2]string{
		{"tag", printable(version.GetTag())},
		{"version", id(version)},
		{"size", exactSize(version.GetSize())},
		{"pushed", pushed(version)},
		{"checksum", checksumText(version.GetChecksum())},
		{"info", information(version.GetInfo(), "\n"+strings.Repeat(" ", len("checksum  ")))},
		{"metadata", information(file.Metadata(), "\n"+strings.Repeat(" ", len("checksum  ")))},
	})
	if len(tensors) > 0 {
		rows := [][]string{{"TENSOR", "TYPE", "SHAPE", "SIZE"}}
		for _, t := range tensors {
			rows = append(rows, []string{printable(t.Name), t.DType, shape(t.Shape), formatSize(t.Size)})
		}
		text += "\n" + table(rows)
	}
	return p.write(text)
}

// layout describes a tag's newest version, and the tensors in it: none unless it has the layout of
// safetensors.
func (c *captain) layout(ctx context.Context, tag string) (*psv1.Version, *safetensors.File, error) {
	h := &header{}
	version, err := c.fetch(ctx, tag, func(v *psv1.Version) error { h.content = v.GetSize(); return nil }, h)
	if err != nil && !errors.Is(err, errEnough) {
		return nil, nil, err
	}
	file, err := safetensors.ParseHeader(h.first, h.content)
	if err != nil {
		return version, &safetensors.File{}, nil //nolint:nilerr // the parameters have another layout
	}
	return version, file, nil
}

// errEnough ends a fetch before the parameters are complete.
var errEnough = errors.New("no more is needed")

// header collects the beginning of parameters up to the end of the header of safetensors.
type header struct {
	content uint64 // the size of all parameters
	first   []byte
}

// Write implements io.Writer. It returns errEnough once the header is complete, and for content
// without one.
func (h *header) Write(chunk []byte) (int, error) {
	h.first = append(h.first, chunk...)
	size, err := safetensors.HeaderSize(h.first)
	if err != nil || size > h.content || size <= uint64(len(h.first)) || len(h.first) > prefixSize && h.first[prefixSize] != '{' {
		return 0, errEnough
	}
	return len(chunk), nil
}

// prefixSize is the size of what precedes the JSON in a header of safetensors.
const prefixSize = 8

func (p *psApp) officersCommand() *cobra.Command {
	return p.finish(&cobra.Command{
		Use:   "officers",
		Short: "List the machines that have a copy of the parameters",
		Long: `officers lists the captain's officers, that of its own machine first: each keeps its machine's copy. LAG is how many
versions of all tags together the copy is behind, BEHIND which tags are, and SEEN when the officer last responded.

With -o json it prints one object whose "officers" have "versions", the newest of each tag by id.`,
		Args: between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return p.officers(cmd.Context()) },
	})
}

// officerInfo describes an officer in JSON.
type officerInfo struct {
	Machine  string            `json:"machine"`
	Home     bool              `json:"home"`
	Node     string            `json:"node"` // its path
	NID      string            `json:"nid"`
	Lag      uint64            `json:"lag"`
	Versions map[string]uint64 `json:"versions"`
	Seen     string            `json:"seen,omitempty"`
}

func (p *psApp) officers(ctx context.Context) error {
	c, err := p.captain(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	res := &psv1.ListOfficersResponse{}
	if err := c.call(ctx, "ListOfficers", &psv1.ListOfficersRequest{}, res); err != nil {
		return err
	}
	list := make([]officerInfo, len(res.GetOfficers()))
	newest := make(map[string]uint64)
	for i, o := range res.GetOfficers() {
		list[i] = officerInfo{
			Machine: o.GetMachine(), Home: o.GetHome(), Node: o.GetOfficer().GetPath(), NID: o.GetOfficer().GetNid(),
			Lag: o.GetLag(), Versions: o.GetVersions(),
		}
		if list[i].Versions == nil {
			list[i].Versions = make(map[string]uint64)
		}
		if o.GetSeen() != nil {
			list[i].Seen = o.GetSeen().AsTime().Format(timeFormat)
		}
		if o.GetHome() {
			newest = o.GetVersions()
		}
	}
	if p.output == outputJSON {
		return p.writeJSON(map[string][]officerInfo{"officers": list})
	}
	rows := [][]string{{"MACHINE", "NODE", "TAGS", "LAG", "BEHIND", "SEEN"}}
	for _, o := range list {
		machine := printable(o.Machine)
		if o.Home {
			machine += " (home)"
		}
		rows = append(rows, []string{
			machine, printable(o.Node), strconv.Itoa(len(o.Versions)), strconv.FormatUint(o.Lag, 10), behind(o.Versions, newest), o.Seen,
		})
	}
	return p.write(table(rows))
}

// behind lists the tags of which a machine does not have the newest version.
func behind(has, newest map[string]uint64) string {
	var tags []string
	for _, tag := range slices.Sorted(maps.Keys(newest)) {
		if has[tag] < newest[tag] {
			tags = append(tags, fmt.Sprintf("%s (%d of %d)", word(tag), has[tag], newest[tag]))
		}
	}
	return strings.Join(tags, ", ")
}

// versionInfoJSON describes a version in JSON, as the files of package archive do.
type versionInfoJSON struct {
	Tag      string            `json:"tag"`
	ID       uint64            `json:"id"`
	Size     uint64            `json:"size"` // in bytes
	Info     map[string]string `json:"info,omitempty"`
	Pushed   string            `json:"pushed,omitempty"`
	Checksum string            `json:"checksum"`
}

func describe(v *psv1.Version) versionInfoJSON {
	return versionInfoJSON{
		Tag: v.GetTag(), ID: v.GetId(), Size: v.GetSize(), Info: v.GetInfo(), Pushed: pushed(v), Checksum: checksumText(v.GetChecksum()),
	}
}

// timeFormat formats times, in UTC.
const timeFormat = time.RFC3339

func pushed(v *psv1.Version) string {
	if v.GetPushed() == nil {
		return ""
	}
	return v.GetPushed().AsTime().Format(timeFormat)
}

func checksumText(sum uint32) string { return fmt.Sprintf("crc32c:%08x", sum) }

func id(v *psv1.Version) string { return strconv.FormatUint(v.GetId(), 10) }

// summary is a version's id and size.
func summary(v *psv1.Version) string { return "version " + id(v) + ", " + formatSize(v.GetSize()) }

// exactSize is a size with the number of bytes.
func exactSize(n uint64) string {
	if n < unitStep {
		return formatSize(n)
	}
	return fmt.Sprintf("%s (%d bytes)", formatSize(n), n)
}

// information formats entries as key=value, sorted by key.
func information(entries map[string]string, separator string) string {
	parts := make([]string, 0, len(entries))
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		parts = append(parts, word(key)+"="+word(entries[key]))
	}
	return strings.Join(parts, separator)
}

func shape(sizes []int) string {
	parts := make([]string, len(sizes))
	for i, n := range sizes {
		parts[i] = strconv.Itoa(n)
	}
	return "[" + strings.Join(parts, " ") + "]"
}

// writeJSON writes a command's result as JSON on one line.
func (a *app) writeJSON(result any) error {
	text, err := json.Marshal(result)
	if err != nil {
		return &localError{err}
	}
	return a.write(string(text) + "\n")
}
