package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/internal/assemble"
	"github.com/raylink/raylink/services/storage"
)

// storageApp is the command `raylink storage`, with the flags that its commands share.
type storageApp struct {
	*app

	path string // the storage's path, alias or nid
}

func (a *app) storageCommand() *cobra.Command {
	s := &storageApp{app: a}
	cmd := &cobra.Command{
		Use:   "storage",
		Short: "Read, write, watch, save and load the values of a storage",
		Long: `storage reads and writes the values of a storage, watches them, and saves them to a directory. Without --storage, it is
the system's own, storage-0.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("there is no command %q; the commands of %s are %s", args[0], cmd.CommandPath(), commandNames(cmd))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		s.getCommand(), s.putCommand(), s.incrCommand(), s.listCommand(), s.watchCommand(), s.saveCommand(), s.loadCommand())
	return cmd
}

// finish adds the flags that all commands of `raylink storage` have.
func (s *storageApp) finish(cmd *cobra.Command) *cobra.Command {
	s.clientFlags(cmd)
	cmd.Flags().StringVar(&s.path, "storage", assemble.StoragePath, "the storage, by path, alias or nid")
	completeFlag(cmd, "storage", func(cmd *cobra.Command, _ []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return s.complete(func(ctx context.Context, sys *system, _ []string) []cobra.Completion {
			return sys.completeNodes(ctx, func(rec *nodev1.NodeRecord) bool { return rec.GetService() == storagev1raylink.StorageName })
		})(cmd, nil, begun)
	})
	return cmd
}

// client connects to the storage that the flags name. The caller must call done.
func (s *storageApp) client(ctx context.Context) (_ *storage.Client, done func(), _ error) {
	sys, err := s.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	rec, err := sys.lookup(ctx, s.path)
	if err == nil && rec.GetService() != storagev1raylink.StorageName {
		err = usagef("%s is a node of type %s (%s): --storage takes a storage (%s)",
			rec.GetPath(), rec.GetType(), rec.GetService(), storagev1raylink.StorageName)
	}
	if err != nil {
		sys.close()
		return nil, nil, err
	}
	return storage.New(storagev1raylink.NewStorageTunnel(sys.client(s.path))), sys.close, nil
}

// call has do make a call that the storage answers soon.
func (s *storageApp) call(ctx context.Context, do func(context.Context, *storage.Client) error) error {
	c, done, err := s.client(ctx)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return do(ctx, c)
}

// completeKeys offers the keys that begin with what is typed.
func (s *storageApp) completeKeys(cmd *cobra.Command, _ []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return s.complete(func(ctx context.Context, sys *system, _ []string) []cobra.Completion {
		res, err := storagev1raylink.NewStorageTunnel(sys.client(s.path)).List(ctx, &storagev1.ListRequest{Prefix: begun})
		if err != nil {
			return nil
		}
		var all []cobra.Completion
		for _, e := range res.GetEntries() {
			all = append(all, cobra.CompletionWithDesc(printable(e.GetKey()), shortValue(e.GetValue())))
		}
		return all
	})(cmd, nil, begun)
}

// completeKey completes the argument KEY.
func (s *storageApp) completeKey(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return s.completeKeys(cmd, nil, begun)
}

func (s *storageApp) getCommand() *cobra.Command {
	return s.finish(&cobra.Command{
		Use:   "get KEY",
		Short: "Print a value",
		Long: `get prints a value: a number, a bool and a string as text, bytes as they are, a message and JSON as JSON.

With -o json it prints one object with "key", "type", "value", "id" and "expires".`,
		Example:           "  raylink storage get run/state\n  raylink storage get picture > picture.png",
		Args:              between(1, 1, "KEY"),
		ValidArgsFunction: s.completeKey,
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.call(cmd.Context(), func(ctx context.Context, c *storage.Client) error {
				e, err := c.Entry(ctx, args[0])
				switch {
				case err != nil:
					return err
				case s.output == outputJSON:
					return s.writeJSON(describeEntry(e))
				}
				if b, ok := e.GetValue().GetKind().(*storagev1.Value_BytesValue); ok {
					return s.write(string(b.BytesValue))
				}
				return s.write(printable(valueText(e.GetValue())) + "\n")
			})
		},
	})
}

// valueFlags are the flags that give a value.
type valueFlags struct {
	cmd                                       *cobra.Command
	integer, double, boolean, text, file, raw string
}

// numbers adds the flags for numbers, others those for all other values.
func (f *valueFlags) numbers(cmd *cobra.Command, what string) {
	f.cmd = cmd
	cmd.Flags().StringVar(&f.integer, "int", "", what+", an int64")
	cmd.Flags().StringVar(&f.double, "double", "", what+", a double")
}

func (f *valueFlags) others() {
	flags := f.cmd.Flags()
	flags.StringVar(&f.boolean, "bool", "", "the value, true or false")
	flags.StringVar(&f.text, "string", "", "the value, a string")
	flags.StringVar(&f.file, "bytes", "", "the value, the bytes of a file; - for standard input")
	flags.StringVar(&f.raw, "json", "", "the value, in JSON")
}

// value returns the value that is given, or nil if none is.
func (f *valueFlags) value(in io.Reader) (*storagev1.Value, error) {
	var (
		given []string
		value storagev1.Value
		err   error
	)
	for _, name := range []string{"int", "double", "bool", "string", "bytes", "json"} {
		if flag := f.cmd.Flags().Lookup(name); flag != nil && flag.Changed {
			given = append(given, "--"+name)
		}
	}
	if len(given) > 1 {
		return nil, usagef("%s are given: a value has one type", strings.Join(given, " and "))
	}
	if len(given) == 0 {
		return nil, nil //nolint:nilnil // documented
	}
	switch given[0] {
	case "--int":
		var n int64
		if n, err = strconv.ParseInt(f.integer, 10, 64); err != nil {
			err = fmt.Errorf("%q is no int64", f.integer)
		}
		value.Kind = &storagev1.Value_Int64Value{Int64Value: n}
	case "--double":
		var x float64
		if x, err = strconv.ParseFloat(f.double, 64); err != nil {
			err = fmt.Errorf("%q is no double", f.double)
		}
		value.Kind = &storagev1.Value_DoubleValue{DoubleValue: x}
	case "--bool":
		var b bool
		if b, err = strconv.ParseBool(f.boolean); err != nil {
			err = fmt.Errorf("%q is neither true nor false", f.boolean)
		}
		value.Kind = &storagev1.Value_BoolValue{BoolValue: b}
	case "--string":
		value.Kind = &storagev1.Value_StringValue{StringValue: f.text}
	case "--bytes":
		var b []byte
		if f.file == standardStream {
			b, err = io.ReadAll(in)
		} else {
			b, err = os.ReadFile(f.file)
		}
		if err != nil {
			return nil, &localError{fmt.Errorf("reading the value: %w", err)}
		}
		value.Kind = &storagev1.Value_BytesValue{BytesValue: b}
	case "--json":
		parsed := &structpb.Value{}
		if err := protojson.Unmarshal([]byte(f.raw), parsed); err != nil {
			return nil, usagef("--json: it is not JSON: %s", jsonReason(err))
		}
		value.Kind = &storagev1.Value_JsonValue{JsonValue: parsed}
	}
	if err != nil {
		return nil, usagef("%s: %v", given[0], err)
	}
	return &value, nil
}

// putFlags are the flags of the command.
type putFlags struct {
	value    valueFlags
	ifAbsent bool
	ifID     uint64
	ttl      time.Duration
	sync     bool
}

func (s *storageApp) putCommand() *cobra.Command {
	var f putFlags
	cmd := s.finish(&cobra.Command{
		Use:   "put KEY",
		Short: "Store a value",
		Long: `put stores a value, which one of --int, --double, --bool, --string, --bytes and --json gives, and prints the id of the write.

With --if-absent or --if-id it is stored only if the key is missing, or its last write has that id; otherwise the code is aborted.`,
		Example: `  raylink storage put learning-rate --double 0.001
  raylink storage put lock --string "$(hostname)" --if-absent --ttl 1m
  raylink storage put config --json '{"layers": [64, 64]}' --sync`,
		Args:              between(1, 1, "KEY"),
		ValidArgsFunction: s.completeKey,
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.put(cmd.Context(), &f, args[0])
		},
	})
	f.value.numbers(cmd, "the value")
	f.value.others()
	flags := cmd.Flags()
	flags.BoolVar(&f.ifAbsent, "if-absent", false, "fail if the key exists")
	flags.Uint64Var(&f.ifID, "if-id", 0, "fail unless the key's last write has this id")
	flags.DurationVar(&f.ttl, "ttl", 0, "remove the key after this time, e.g. 1m (default: never)")
	flags.BoolVar(&f.sync, "sync", false, "return when the value is on the disk")
	return cmd
}

// written is the result of a write in JSON.
type written struct {
	ID    uint64          `json:"id"`
	Value json.RawMessage `json:"value,omitempty"`
}

func (s *storageApp) put(ctx context.Context, f *putFlags, key string) error {
	value, err := f.value.value(s.in)
	if err != nil {
		return err
	}
	changed := f.value.cmd.Flags().Changed
	switch {
	case value == nil:
		return usagef("give a value by --int, --double, --bool, --string, --bytes or --json")
	case f.ifAbsent && changed("if-id"):
		return usagef("--if-absent and --if-id are given: a key that is missing has no id")
	case changed("ttl") && f.ttl <= 0:
		return usagef("--ttl is not positive")
	}
	var opts []storage.PutOption
	if f.ifAbsent {
		opts = append(opts, storage.IfAbsent())
	}
	if changed("if-id") {
		opts = append(opts, storage.IfID(f.ifID))
	}
	if f.ttl > 0 {
		opts = append(opts, storage.TTL(f.ttl))
	}
	if f.sync {
		opts = append(opts, storage.Sync())
	}
	return s.call(ctx, func(ctx context.Context, c *storage.Client) error {
		id, err := c.PutValue(ctx, key, value, opts...)
		switch {
		case err != nil:
			return err
		case s.output == outputJSON:
			return s.writeJSON(written{ID: id})
		}
		return s.write(fmt.Sprintf("%s: id %d\n", printable(key), id))
	})
}

func (s *storageApp) incrCommand() *cobra.Command {
	var (
		f      valueFlags
		synced bool
	)
	cmd := s.finish(&cobra.Command{
		Use:   "incr KEY",
		Short: "Add to a number and print the sum",
		Long: `incr atomically adds one, or what --int or --double gives, to a number of the same type, and prints the sum. A missing key counts
as zero.`,
		Example:           "  raylink storage incr episodes\n  raylink storage incr balance --double -0.5",
		Args:              between(1, 1, "KEY"),
		ValidArgsFunction: s.completeKey,
		RunE: func(cmd *cobra.Command, args []string) error {
			by, err := f.value(s.in)
			if err != nil {
				return err
			}
			req := &storagev1.IncrRequest{Key: args[0], By: by}
			if synced {
				req.Durability = storagev1.Durability_DURABILITY_SYNC
			}
			return s.call(cmd.Context(), func(ctx context.Context, c *storage.Client) error {
				res, err := c.Handle().Incr(ctx, req)
				switch {
				case err != nil:
					return err
				case s.output == outputJSON:
					return s.writeJSON(written{res.GetId(), valueJSON(res.GetValue())})
				}
				return s.write(valueText(res.GetValue()) + "\n")
			})
		},
	})
	f.numbers(cmd, "what is added")
	cmd.Flags().BoolVar(&synced, "sync", false, "return when the sum is on the disk")
	return cmd
}

func (s *storageApp) listCommand() *cobra.Command {
	var reverse bool
	var limit uint
	cmd := s.finish(&cobra.Command{
		Use:   "list [PREFIX]",
		Short: "List the entries whose keys have a prefix",
		Long: `list lists the entries whose keys begin with PREFIX, or all, sorted by key. Long values are shortened.

With -o json it prints one object a line, with the whole value.`,
		Example:           "  raylink storage list run/\n  raylink storage list --reverse --limit 10 -o json",
		Args:              between(0, 1, "[PREFIX]"),
		ValidArgsFunction: s.completeKey,
		RunE: func(cmd *cobra.Command, args []string) error {
			var opts []storage.ScanOption
			if reverse {
				opts = append(opts, storage.Reverse())
			}
			return s.list(cmd.Context(), strings.Join(args, ""), limit, opts)
		},
	})
	cmd.Flags().BoolVar(&reverse, "reverse", false, "begin with the highest key")
	cmd.Flags().UintVar(&limit, "limit", 0, "list at most so many entries (default: all)")
	return cmd
}

func (s *storageApp) list(ctx context.Context, prefix string, limit uint, opts []storage.ScanOption) error {
	c, done, err := s.client(ctx)
	if err != nil {
		return err
	}
	defer done()
	rows := [][]string{{"KEY", "TYPE", "VALUE", "ID", "EXPIRES"}}
	n := uint(0)
	for e, err := range c.Scan(ctx, prefix, opts...) {
		if err != nil {
			return err
		}
		if s.output == outputJSON {
			if err := s.writeJSON(describeEntry(e)); err != nil {
				return err
			}
		} else {
			rows = append(rows, []string{
				word(printable(e.GetKey())), storage.TypeName(e.GetValue()), shortValue(e.GetValue()),
				strconv.FormatUint(e.GetId(), 10), expires(e.GetExpires()),
			})
		}
		if n++; n == limit {
			break
		}
	}
	switch {
	case s.output == outputJSON:
		return nil
	case len(rows) == 1:
		return s.write(fmt.Sprintf("%s has no key with the prefix %q\n", printable(s.path), prefix))
	}
	return s.write(table(rows))
}

func (s *storageApp) watchCommand() *cobra.Command {
	var (
		exact bool
		since uint64
	)
	cmd := s.finish(&cobra.Command{
		Use:   "watch [PREFIX]",
		Short: "Print changes as they happen",
		Long: `watch prints one line for each change of a key that begins with PREFIX, or of any key, until it is interrupted: its id, the key, and
the value, or that the key was removed. While the storage is started again it waits, and goes on with the next change.

--since ID begins with the first change after that id; if some of them are not known any more, the code is out_of_range.

With -o json it prints one object a line.`,
		Example:           "  raylink storage watch run/\n  raylink storage watch --exact lock --since 41",
		Args:              between(0, 1, "[PREFIX]"),
		ValidArgsFunction: s.completeKey,
		RunE: func(cmd *cobra.Command, args []string) error {
			var opts []storage.WatchOption
			if exact {
				opts = append(opts, storage.Exact())
			}
			if cmd.Flags().Changed("since") {
				opts = append(opts, storage.Since(since))
			}
			return s.watch(cmd.Context(), strings.Join(args, ""), opts)
		},
	})
	cmd.Flags().BoolVar(&exact, "exact", false, "only the key that equals PREFIX")
	cmd.Flags().Uint64Var(&since, "since", 0, "begin with the changes after this id (default: from now on)")
	return cmd
}

// changeInfo describes a change in JSON.
type changeInfo struct {
	entryInfo

	Removed bool `json:"removed,omitempty"`
	Expired bool `json:"expired,omitempty"`
}

func (s *storageApp) watch(ctx context.Context, prefix string, opts []storage.WatchOption) error {
	c, done, err := s.client(ctx)
	if err != nil {
		return err
	}
	defer done()
	for change, err := range c.Watch(ctx, prefix, opts...) {
		if err != nil {
			if ctx.Err() != nil {
				return nil // the user's signal is how it ends
			}
			return err
		}
		if s.output == outputJSON {
			err = s.writeJSON(changeInfo{
				describeEntry(&storagev1.Entry{Key: change.GetKey(), Value: change.GetValue(), Id: change.GetId(), Expires: change.GetExpires()}),
				change.GetValue() == nil, change.GetExpired(),
			})
		} else {
			text := "removed"
			switch {
			case change.GetExpired():
				text = "expired"
			case change.GetValue() != nil:
				text = storage.TypeName(change.GetValue()) + " " + shortValue(change.GetValue())
			}
			err = s.write(fmt.Sprintf("%d %s %s\n", change.GetId(), word(printable(change.GetKey())), text))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entryInfo describes an entry in JSON.
type entryInfo struct {
	Key     string          `json:"key"`
	Type    string          `json:"type,omitempty"`
	Value   json.RawMessage `json:"value,omitempty"`
	ID      uint64          `json:"id"`
	Expires string          `json:"expires,omitempty"`
}

func describeEntry(e *storagev1.Entry) entryInfo {
	info := entryInfo{Key: e.GetKey(), ID: e.GetId(), Expires: expires(e.GetExpires())}
	if e.GetValue() != nil {
		info.Type, info.Value = storage.TypeName(e.GetValue()), valueJSON(e.GetValue())
	}
	return info
}

func expires(at *timestamppb.Timestamp) string {
	if at == nil {
		return ""
	}
	return at.AsTime().Format(time.RFC3339)
}

// valueJSON returns a value in JSON: bytes in base64, a message as protobuf's JSON, or as its type
// and its bytes if this program does not know it.
func valueJSON(v *storagev1.Value) json.RawMessage {
	var plain any
	switch k := v.GetKind().(type) {
	case *storagev1.Value_Int64Value:
		plain = k.Int64Value
	case *storagev1.Value_DoubleValue:
		plain = k.DoubleValue
		if math.IsNaN(k.DoubleValue) || math.IsInf(k.DoubleValue, 0) {
			plain = strconv.FormatFloat(k.DoubleValue, 'g', -1, 64)
		}
	case *storagev1.Value_BoolValue:
		plain = k.BoolValue
	case *storagev1.Value_StringValue:
		plain = k.StringValue
	case *storagev1.Value_BytesValue:
		plain = k.BytesValue
	case *storagev1.Value_MessageValue:
		if text, err := compactJSON(nil, k.MessageValue); err == nil {
			return text
		}
		plain = struct {
			Type  string `json:"@type"`
			Bytes []byte `json:"base64"`
		}{k.MessageValue.GetTypeUrl(), k.MessageValue.GetValue()}
	case *storagev1.Value_JsonValue:
		if text, err := compactJSON(nil, k.JsonValue); err == nil {
			return text
		}
	}
	text, err := json.Marshal(plain)
	if err != nil {
		return json.RawMessage("null")
	}
	return text
}

// valueText returns a value as text.
func valueText(v *storagev1.Value) string {
	switch k := v.GetKind().(type) {
	case *storagev1.Value_DoubleValue:
		return strconv.FormatFloat(k.DoubleValue, 'g', -1, 64)
	case *storagev1.Value_StringValue:
		return k.StringValue
	case *storagev1.Value_BytesValue:
		return fmt.Sprintf("%q", k.BytesValue)
	}
	return string(valueJSON(v))
}

// shortValue returns the beginning of a value, on one line.
func shortValue(v *storagev1.Value) string {
	const most = 60
	var text string
	switch k := v.GetKind().(type) {
	case *storagev1.Value_StringValue:
		text = strconv.Quote(k.StringValue)
	case *storagev1.Value_BytesValue:
		return formatSize(uint64(len(k.BytesValue)))
	default:
		text = printable(valueText(v))
	}
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most-3]) + "..."
	}
	return text
}
