package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/internal/connecterr"
)

// replayApp is the command `raylink replay`, with the flags that its commands share.
type replayApp struct {
	*app

	path string // the replay's path, alias or nid; empty for the only one
}

func (a *app) replayCommand() *cobra.Command {
	r := &replayApp{app: a}
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Show and copy replays, and change limiters",
		Long: `replay shows the replays of a system, their tables and items, copies them to disk, and changes the limiters of tables.
Without --replay, it is the only one of the system.

What is shown is not scanned: a replay that is in use does not notice.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("there is no command %q; the commands of %s are %s", args[0], cmd.CommandPath(), commandNames(cmd))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(r.listCommand(), r.statsCommand(), r.itemsCommand(), r.checkpointCommand(), r.limitCommand())
	return cmd
}

// finish adds the flags that all commands of one replay have.
func (r *replayApp) finish(cmd *cobra.Command) *cobra.Command {
	r.clientFlags(cmd)
	cmd.Flags().StringVar(&r.path, "replay", "", "the replay, by path, alias or nid (default: the only one of the system)")
	completeFlag(cmd, "replay", func(cmd *cobra.Command, _ []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return r.complete(func(ctx context.Context, s *system, _ []string) []cobra.Completion {
			return s.completeNodes(ctx, isReplay)
		})(cmd, nil, begun)
	})
	return cmd
}

func isReplay(rec *nodev1.NodeRecord) bool { return rec.GetService() == replayv1raylink.ReplayName }

// replays returns the records of all replays.
func (s *system) replays(ctx context.Context) ([]*nodev1.NodeRecord, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	res, err := s.brain.List(ctx, &brainv1.ListRequest{})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(res.GetNodes(), func(rec *nodev1.NodeRecord) bool { return !isReplay(rec) }), nil
}

// replay returns a handle of a replay, by way of Brain's gateway.
func (s *system) replay(node string) *replayv1raylink.Replay {
	return replayv1raylink.NewReplayTunnel(s.client(node))
}

// find returns the path of the replay that the flags name.
func (r *replayApp) find(ctx context.Context, s *system) (string, error) {
	if r.path != "" {
		rec, err := s.lookup(ctx, r.path)
		if err == nil && !isReplay(rec) {
			err = usagef("%s is a node of type %s (%s): --replay takes a replay (%s)",
				rec.GetPath(), rec.GetType(), rec.GetService(), replayv1raylink.ReplayName)
		}
		return rec.GetPath(), err
	}
	all, err := s.replays(ctx)
	if err != nil {
		return "", err
	}
	names := make([]string, len(all))
	for i, rec := range all {
		names[i] = printable(rec.GetPath())
	}
	switch len(all) {
	case 0:
		return "", usagef("the system has no replay")
	case 1:
		return all[0].GetPath(), nil
	}
	return "", usagef("the system has %d replays: choose one of %s by --replay", len(all), strings.Join(names, ", "))
}

// call has do make a call that the replay answers from memory.
func (r *replayApp) call(ctx context.Context, do func(ctx context.Context, path string, handle *replayv1raylink.Replay) error) error {
	s, err := r.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	path, err := r.find(ctx, s)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return do(ctx, path, s.replay(path))
}

// completeTable offers the tables of the replay.
func (r *replayApp) completeTable(ctx context.Context, s *system, _ []string) []cobra.Completion {
	path, err := r.find(ctx, s)
	if err != nil {
		return nil
	}
	res, err := s.replay(path).Inspect(ctx, &replayv1.InspectRequest{})
	if err != nil {
		return nil
	}
	var all []cobra.Completion
	for _, t := range res.GetTables() {
		all = append(all, cobra.CompletionWithDesc(printable(t.GetConfig().GetName()), fmt.Sprintf("%d items", t.GetSize())))
	}
	return all
}

func (r *replayApp) listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the replays of the system",
		Long: `list lists the replays of the system, each with its rows, the size of its file, how many rows areas hold, and its tables.

With -o json it prints one object whose "replays" are the replays.`,
		Args: between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return r.list(cmd.Context()) },
	}
	r.clientFlags(cmd)
	return cmd
}

// replayInfo describes a replay in JSON.
type replayInfo struct {
	Node   string    `json:"node"` // its path
	Alias  string    `json:"alias,omitempty"`
	NID    string    `json:"nid"`
	State  string    `json:"state"`
	Ring   *ringInfo `json:"ring,omitempty"`
	Tables []string  `json:"tables,omitempty"`
	// Error is why the replay does not answer.
	Error string `json:"error,omitempty"`
}

func (r *replayApp) list(ctx context.Context) error {
	s, err := r.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	records, err := s.replays(ctx)
	if err != nil {
		return err
	}
	list := make([]replayInfo, len(records))
	var all sync.WaitGroup
	for i, rec := range records {
		all.Go(func() { list[i] = s.describeReplay(ctx, rec) })
	}
	all.Wait()
	if r.output == outputJSON {
		return r.writeJSON(map[string][]replayInfo{"replays": list})
	}
	if len(list) == 0 {
		return r.write("the system has no replay\n")
	}
	rows := [][]string{{"REPLAY", "ALIAS", "STATE", "ROWS", "CAPACITY", "FILE", "HELD", "TABLES"}}
	for _, info := range list {
		row := []string{printable(info.Node), printable(info.Alias), info.State, "", "", "", "", ""}
		if info.Error != "" {
			row[2] += " (" + printable(info.Error) + ")"
		}
		if ring := info.Ring; ring != nil {
			row[3], row[4], row[5], row[6] = number(ring.Rows), number(ring.Capacity), formatSize(ring.FileBytes), number(ring.Held)
		}
		names := make([]string, len(info.Tables))
		for i, name := range info.Tables {
			names[i] = word(name)
		}
		row[7] = strings.Join(names, ", ")
		rows = append(rows, row)
	}
	return r.write(table(rows))
}

func plural(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }

// describeReplay asks a replay what it has.
func (s *system) describeReplay(ctx context.Context, rec *nodev1.NodeRecord) replayInfo {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	info := replayInfo{Node: rec.GetPath(), Alias: rec.GetAlias(), NID: rec.GetNid(), State: stateName(rec)}
	res, err := s.replay(rec.GetPath()).Inspect(ctx, &replayv1.InspectRequest{})
	if err != nil {
		info.Error = connecterr.Text(err)
		if errors.Is(err, context.DeadlineExceeded) {
			info.Error = fmt.Sprintf("it does not answer within %v", answerTimeout)
		}
		return info
	}
	info.Ring = describeRing(res.GetRing())
	for _, t := range res.GetTables() {
		info.Tables = append(info.Tables, t.GetConfig().GetName())
	}
	return info
}

// ringInfo describes a ring in JSON.
type ringInfo struct {
	ID        string `json:"id"`
	File      string `json:"file"`
	FileBytes uint64 `json:"file_bytes"`
	Capacity  uint64 `json:"capacity"` // in rows
	Rows      uint64 `json:"rows"`
	RowBytes  uint64 `json:"row_bytes"`
	Written   uint64 `json:"written"`
	// Held is the number of rows in areas, Areas that of their parts, and Holders have them.
	Held      uint64       `json:"held"`
	Areas     uint64       `json:"areas"`
	Holders   []holderInfo `json:"holders,omitempty"`
	Skipped   uint64       `json:"skipped"`
	Refused   uint64       `json:"refused"`
	TakenOver uint64       `json:"taken_over"`
}

type holderInfo struct {
	PID  int64   `json:"pid"`
	Rows uint64  `json:"rows"`
	Age  float64 `json:"age_seconds"`
}

func describeRing(ring *replayv1.RingInfo) *ringInfo {
	info := &ringInfo{
		ID: ring.GetId(), File: ring.GetFile(), FileBytes: ring.GetFileBytes(), Capacity: ring.GetCapacity(), Rows: ring.GetRows(),
		RowBytes: ring.GetRowBytes(), Written: ring.GetWritten(), Held: ring.GetHeld(), Areas: ring.GetAreas(),
		Skipped: ring.GetSkipped(), Refused: ring.GetRefused(), TakenOver: ring.GetTakenOver(),
	}
	for _, h := range ring.GetHolders() {
		info.Holders = append(info.Holders, holderInfo{h.GetPid(), h.GetRows(), seconds(h.GetAgeNs())})
	}
	return info
}

// itemsInfo describes in JSON how the items of a replay with a file are saved.
type itemsInfo struct {
	File  string  `json:"file"`
	Saved float64 `json:"saved_seconds"` // how long ago
	// Problem is why they could not be saved since.
	Problem string `json:"problem,omitempty"`

	ago uint64 // in nanoseconds
}

// describeItems returns nil for a replay without a file.
func describeItems(file *replayv1.FileStatus) *itemsInfo {
	if file == nil {
		return nil
	}
	return &itemsInfo{File: file.GetItems(), Saved: seconds(file.GetSavedNs()), Problem: file.GetProblem(), ago: file.GetSavedNs()}
}

func (i *itemsInfo) text() string {
	switch {
	case i == nil:
		return ""
	case i.Problem != "":
		return fmt.Sprintf("not saved for %s in %s: %s", age(i.ago), printable(i.File), printable(i.Problem))
	default:
		return fmt.Sprintf("saved %s ago in %s", age(i.ago), printable(i.File))
	}
}

func seconds(ns uint64) float64 { return time.Duration(ns).Seconds() } //nolint:gosec // an age

// age formats a time in nanoseconds for a person.
func age(ns uint64) string {
	d := time.Duration(ns) //nolint:gosec // an age
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(time.Second / 10).String() //nolint:mnd // one decimal
	default:
		return d.Round(time.Second).String()
	}
}

func (r *replayApp) statsCommand() *cobra.Command {
	return r.finish(&cobra.Command{
		Use:   "stats [TABLE]",
		Short: "Show the rows, holders and tables of a replay",
		Long: `stats shows the rows of a replay, the processes that hold areas of them, and its tables: their items, the items inserted and sampled, also
per second in the last ten, and how many calls wait. With TABLE it shows one table: quantiles of its priorities and of how often its
items were sampled, why items left it, its limiter, and which calls wait for what.

Of a replay with a file it shows where its items are saved, and why they can't be.

With -o json it prints one object with "node", "ring", "items" and "tables", which have all of that.`,
		Example:           "  raylink replay stats\n  raylink replay stats per -o json | jq '.tables[].blocked'",
		Args:              between(0, 1, "[TABLE]"),
		ValidArgsFunction: r.complete(r.completeTable),
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.call(cmd.Context(), func(ctx context.Context, path string, handle *replayv1raylink.Replay) error {
				return r.stats(ctx, path, handle, strings.Join(args, ""))
			})
		},
	})
}

func (r *replayApp) stats(ctx context.Context, path string, handle *replayv1raylink.Replay, name string) error {
	res, err := handle.Inspect(ctx, &replayv1.InspectRequest{Table: name})
	if err != nil {
		return err
	}
	ring, items, tables := describeRing(res.GetRing()), describeItems(res.GetFile()), make([]tableInfo, len(res.GetTables()))
	for i, t := range res.GetTables() {
		tables[i] = describeTable(t)
	}
	if r.output == outputJSON {
		return r.writeJSON(struct {
			Node   string      `json:"node"`
			Ring   *ringInfo   `json:"ring"`
			Items  *itemsInfo  `json:"items,omitempty"`
			Tables []tableInfo `json:"tables"`
		}{path, ring, items, tables})
	}
	if name != "" && len(tables) == 1 {
		return r.write(tables[0].text())
	}
	text := facts([][2]string{
		{"replay", printable(path)},
		{"rows", fmt.Sprintf("%d of at most %d, %d written", ring.Rows, ring.Capacity, ring.Written)},
		{"size", fmt.Sprintf("%s a row, %s in %s", formatSize(ring.RowBytes), formatSize(ring.FileBytes), printable(ring.File))},
		{"held", plural(ring.Held, "row") + ", in " + plural(ring.Areas, "area")},
		{"items", items.text()},
		{"writers", fmt.Sprintf("%d rows skipped, %d writes refused, %d rows taken over", ring.Skipped, ring.Refused, ring.TakenOver)},
	})
	if len(ring.Holders) > 0 {
		rows := [][]string{{"HOLDER", "ROWS", "SINCE"}}
		for i, h := range ring.Holders {
			rows = append(rows, []string{"process " + strconv.FormatInt(h.PID, 10), number(h.Rows), age(res.GetRing().GetHolders()[i].GetAgeNs())})
		}
		text += "\n" + table(rows)
	}
	if len(tables) > 0 {
		rows := [][]string{{"TABLE", "ITEMS", "MAXIMUM", "SAMPLER", "LIMITER", "INSERTED", "SAMPLED", "WAITING"}}
		for _, t := range tables {
			waiting := ""
			if len(t.Blocked) > 0 {
				waiting = strconv.Itoa(len(t.Blocked))
			}
			rows = append(rows, []string{
				word(t.Name), number(t.Size), number(t.MaxItems), t.Sampler, t.Limiter,
				fmt.Sprintf("%d (%s/s)", t.Inserted, rate(t.InsertsPerSecond)), fmt.Sprintf("%d (%s/s)", t.Sampled, rate(t.SamplesPerSecond)),
				waiting,
			})
		}
		text += "\n" + table(rows)
	}
	return r.write(text)
}

// facts formats names and what they name. Those of nothing are omitted.
func facts(of [][2]string) string {
	width := 0
	for _, f := range of {
		width = max(width, len(f[0]))
	}
	var text strings.Builder
	for _, f := range of {
		if f[1] != "" {
			fmt.Fprintf(&text, "%-*s  %s\n", width, f[0], f[1])
		}
	}
	return text.String()
}

func rate(perSecond float64) string { return strconv.FormatFloat(perSecond, 'f', 1, 64) }

// tableInfo describes a table in JSON.
type tableInfo struct {
	Name       string `json:"name"`
	Size       uint64 `json:"size"`
	MaxItems   uint64 `json:"max_items"`
	MaxSampled uint32 `json:"max_sampled,omitempty"`
	Sampler    string `json:"sampler"`
	Remover    string `json:"remover"`
	Limiter    string `json:"limiter"`

	Inserted         uint64  `json:"inserted"`
	Sampled          uint64  `json:"sampled"`
	Window           float64 `json:"window_seconds"`
	InsertsPerSecond float64 `json:"inserts_per_second"`
	SamplesPerSecond float64 `json:"samples_per_second"`

	Overwritten uint64 `json:"overwritten"`
	Evicted     uint64 `json:"evicted"`
	Exhausted   uint64 `json:"exhausted"`
	Deleted     uint64 `json:"deleted"`
	Late        uint64 `json:"late"`
	Stale       uint64 `json:"stale"`
	Returned    uint64 `json:"returned"`

	// Priorities and TimesSampled are the minimum, the quantiles of 10, 25, 50, 75 and 90 percent,
	// and the maximum.
	Priorities   []float64 `json:"priorities,omitempty"`
	TimesSampled []float64 `json:"times_sampled,omitempty"`

	// Due is how many samples are due, of a limiter with samples per insert, and Bounds are those
	// of that.
	Due    *float64    `json:"due,omitempty"`
	Bounds *[2]float64 `json:"bounds,omitempty"`
	// InsertNeeds and SampleNeeds are what an insert and a sample of one item would wait for.
	InsertNeeds string        `json:"insert_needs,omitempty"`
	SampleNeeds string        `json:"sample_needs,omitempty"`
	Blocked     []blockedInfo `json:"blocked,omitempty"`
}

type blockedInfo struct {
	Caller    string  `json:"caller,omitempty"`
	Operation string  `json:"operation"`
	Done      uint64  `json:"done"`
	Total     uint64  `json:"total"`
	Waited    float64 `json:"waited_seconds"`
	Text      string  `json:"text"`
}

func describeTable(t *replayv1.TableInfo) tableInfo {
	c := t.GetConfig()
	info := tableInfo{
		Name: c.GetName(), Size: t.GetSize(), MaxItems: c.GetMaxItems(), MaxSampled: c.GetMaxSampled(),
		Sampler: selectorText(c.GetSampler()), Remover: selectorText(c.GetRemover()), Limiter: limiterText(c.GetLimiter()),
		Inserted: t.GetInserted(), Sampled: t.GetSampled(), Window: seconds(t.GetWindowNs()),
		InsertsPerSecond: t.GetInsertsPerSecond(), SamplesPerSecond: t.GetSamplesPerSecond(),
		Overwritten: t.GetOverwritten(), Evicted: t.GetEvicted(), Exhausted: t.GetExhausted(), Deleted: t.GetDeleted(),
		Late: t.GetLate(), Stale: t.GetStale(), Returned: t.GetReturned(),
		Priorities: t.GetPriorities(), TimesSampled: t.GetTimesSampled(),
		InsertNeeds: t.GetInsertNeeds().GetText(), SampleNeeds: t.GetSampleNeeds().GetText(),
	}
	if c.GetLimiter().GetRule() == replayv1.LimiterRule_LIMITER_RULE_SAMPLES_PER_INSERT {
		info.Due, info.Bounds = new(t.GetDifference()), &[2]float64{t.GetLow(), t.GetHigh()}
	}
	for _, b := range t.GetBlocked() {
		info.Blocked = append(info.Blocked, blockedInfo{
			b.GetCaller(), b.GetOperation(), b.GetDone(), b.GetTotal(), seconds(b.GetWaitedNs()), b.GetText(),
		})
	}
	return info
}

// text describes a table for a person.
func (t tableInfo) text() string {
	sampled := ""
	if t.MaxSampled > 0 {
		sampled = ", each sampled at most " + plural(uint64(t.MaxSampled), "time")
	}
	due := ""
	if t.Due != nil {
		due = fmt.Sprintf("%g samples; inserts wait above %g, samples below %g", *t.Due, t.Bounds[1], t.Bounds[0])
	}
	text := facts([][2]string{
		{"table", word(t.Name)},
		{"items", fmt.Sprintf("%d of at most %d%s", t.Size, t.MaxItems, sampled)},
		{"sampler", t.Sampler},
		{"remover", t.Remover},
		{"limiter", t.Limiter},
		{"due", due},
		{"inserted", fmt.Sprintf("%d, %s per second", t.Inserted, rate(t.InsertsPerSecond))},
		{"sampled", fmt.Sprintf("%d, %s per second, %d given back", t.Sampled, rate(t.SamplesPerSecond), t.Returned)},
		{"left", fmt.Sprintf("%d overwritten, %d evicted, %d exhausted, %d deleted", t.Overwritten, t.Evicted, t.Exhausted, t.Deleted)},
		{"too late", fmt.Sprintf("%d inserts, %d updates and deletions", t.Late, t.Stale)},
		{"an insert", needsText(t.InsertNeeds)},
		{"a sample", needsText(t.SampleNeeds)},
	})
	if len(t.Priorities) > 0 {
		rows := [][]string{{"", "MINIMUM", "10 %", "25 %", "50 %", "75 %", "90 %", "MAXIMUM"}}
		for i, values := range [][]float64{t.Priorities, t.TimesSampled} {
			row := []string{[]string{"priority", "times sampled"}[i]}
			for _, v := range values {
				row = append(row, strconv.FormatFloat(v, 'g', 6, 64)) //nolint:mnd // digits for a person
			}
			if len(row) == len(rows[0]) {
				rows = append(rows, row)
			}
		}
		text += "\n" + table(rows)
	}
	var blocked strings.Builder
	for _, b := range t.Blocked {
		blocked.WriteString("\n" + printable(b.Text))
	}
	if blocked.Len() > 0 {
		text += blocked.String() + "\n"
	}
	return text
}

func needsText(needs string) string {
	if needs == "" {
		return ""
	}
	return "would wait for " + printable(needs)
}

// selectorText names a selector as package replay does.
func selectorText(s *replayv1.Selector) string {
	name := strings.ToLower(strings.TrimPrefix(s.GetKind().String(), "SELECTOR_KIND_"))
	if s.GetKind() == replayv1.SelectorKind_SELECTOR_KIND_PRIORITIZED {
		name += fmt.Sprintf("(%g)", s.GetExponent())
	}
	return name
}
