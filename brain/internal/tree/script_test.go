package tree

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

var rewriteScripts = flag.Bool("rewrite", false, "rewrite the expected output in testdata")

// TestScripts runs the scripts in testdata. Each command is followed by `----`, its expected output
// and an empty line, and is a transaction of its own, which is stored and merged.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			s := newScript(t)
			var out strings.Builder
			for block := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n\n") {
				command, _, _ := strings.Cut(block, "\n----")
				fmt.Fprintf(&out, "%s\n----\n%s\n", command, s.run(command))
			}
			got := strings.TrimSuffix(out.String(), "\n")
			if *rewriteScripts {
				require.NoError(t, os.WriteFile(file, []byte(got), 0o600))
				return
			}
			require.Equal(t, string(text), got)
		})
	}
}

type script struct {
	t      *testing.T
	tree   *Tree
	limits Limits
	now    time.Time
	disk   disk
	// names replaces the random nids in the output.
	names []string
}

func newScript(t *testing.T) *script {
	t.Helper()
	s := &script{t: t, now: time.Unix(1_700_000_000, 0), disk: make(disk)}
	s.tree = New(testRoot(), s.limits)
	return s
}

// run runs one command and returns its output.
func (s *script) run(command string) string {
	var lines []string
	for line := range strings.SplitSeq(command, "\n") {
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	words := strings.Fields(strings.Join(lines, " "))
	if len(words) == 0 {
		return ""
	}
	args := make(map[string]string)
	for _, word := range words[1:] {
		key, value, _ := strings.Cut(word, "=")
		args[key] = strings.ReplaceAll(value, "_", " ")
	}
	return strings.NewReplacer(s.names...).Replace(s.do(words[0], args))
}

func (s *script) do(command string, args map[string]string) string {
	switch command {
	case "register":
		return s.commit(func(x *Txn) ([]*nodev1.NodeRecord, error) {
			_, restarts := args["restarts"]
			return x.Register(&brainv1.RegisterRequest{
				Parent: s.nid(args["parent"]), Type: args["type"], Count: uint32(number(args["count"])), Alias: args["alias"],
				Launcher: testHost(args["launcher"]), RequestId: uuid(args["request"]), Restarts: restarts, Attributes: testValues(args["set"]),
			})
		})
	case "update":
		return s.commit(func(x *Txn) ([]*nodev1.NodeRecord, error) {
			var deleted []string
			if args["delete"] != "" {
				deleted = strings.Split(args["delete"], ",")
			}
			var changes []*brainv1.Change
			for path := range strings.SplitSeq(args["node"], ",") {
				changes = append(changes, &brainv1.Change{
					Nid: s.nid(path), Incarnation: uint64(number(args["incarnation"])),
					State: nodev1.NodeState(nodev1.NodeState_value["NODE_STATE_"+strings.ToUpper(args["state"])]),
					Host:  testHost(args["host"]), Cause: args["cause"], SetAttributes: testValues(args["set"]), DeleteAttributes: deleted,
				})
			}
			return x.Update(changes)
		})
	case "remove":
		return s.commit(func(x *Txn) ([]*nodev1.NodeRecord, error) {
			var nids []string
			for path := range strings.SplitSeq(args["node"], ",") {
				nids = append(nids, s.nid(path))
			}
			return x.Remove(nids, args["cause"])
		})
	case "withdraw":
		return s.commit(func(x *Txn) ([]*nodev1.NodeRecord, error) {
			var ids []string
			for id := range strings.SplitSeq(args["request"], ",") {
				ids = append(ids, uuid(id))
			}
			return x.Withdraw(ids, args["cause"])
		})
	case "host-died":
		return s.commit(func(x *Txn) ([]*nodev1.NodeRecord, error) {
			return x.HostDied(testHost(args["host"]), args["cause"]), nil
		})
	case "host-ended":
		return s.commit(func(x *Txn) ([]*nodev1.NodeRecord, error) { return x.HostEnded(testHost(args["host"])), nil })
	case "host-back":
		var refs []*nodev1.NodeRef
		for path := range strings.SplitSeq(args["nodes"], ",") {
			refs = append(refs, &nodev1.NodeRef{Nid: s.nid(path), Incarnation: uint64(number(args["incarnation"]))})
		}
		var unknown []string
		s.commit(func(x *Txn) ([]*nodev1.NodeRecord, error) {
			unknown = x.HostBack(testHost(args["host"]), refs)
			return nil, nil
		})
		return "unknown: " + strings.Join(unknown, ", ") + "\n"
	case "lookup":
		rec, err := s.tree.Lookup(ByAny, args["where"])
		return printed([]*nodev1.NodeRecord{rec}, err)
	case "list":
		_, children := args["children"]
		list, err := s.tree.List(s.nid(args["root"]), children)
		return printed(list, err)
	case "advance":
		by, err := time.ParseDuration(args["by"])
		require.NoError(s.t, err)
		s.now = s.now.Add(by)
		return ""
	case "limit":
		s.limits = Limits{
			MaxNodes: number(args["nodes"]), MaxCount: number(args["count"]), MaxDepth: number(args["depth"]),
			Tombstones: number(args["tombstones"]), Requests: number(args["requests"]), MaxAttributeBytes: number(args["attributes"]),
		}
		s.reload()
		return ""
	case "reload":
		s.reload()
		return fmt.Sprintf("%d nodes, revision %d\n", s.tree.Len(), s.tree.Revision())
	}
	s.t.Fatalf("no such command: %s", command)
	return ""
}

func (s *script) commit(change func(*Txn) ([]*nodev1.NodeRecord, error)) string {
	x := s.tree.Begin(s.now)
	inner := x.Begin()
	records, err := change(inner)
	if err == nil {
		inner.Merge()
	}
	x.Expire()
	s.disk.write(s.t, x)
	for _, rec := range x.Changed() {
		s.names = append(s.names, rec.GetNid(), "#"+rec.GetPath())
	}
	x.Merge()
	require.NoError(s.t, s.tree.check())
	return printed(records, err)
}

func (s *script) reload() {
	loaded, err := Load(testRoot(), s.limits, s.disk.entries())
	require.NoError(s.t, err)
	s.tree = loaded
}

// nid returns the nid of the node, living or dead, at a path. It returns other texts unchanged.
func (s *script) nid(path string) string {
	if rec, err := s.tree.Lookup(ByAny, path); err == nil {
		return rec.GetNid()
	}
	if d := s.tree.tombPaths[path]; d != nil {
		return d.rec.GetNid()
	}
	return path
}

func printed(records []*nodev1.NodeRecord, err error) string {
	if err != nil {
		return err.Error() + "\n"
	}
	var out strings.Builder
	for _, rec := range records {
		fmt.Fprintf(&out, "%s", rec.GetPath())
		if rec.GetAlias() != "" {
			fmt.Fprintf(&out, " alias=%s", rec.GetAlias())
		}
		fmt.Fprintf(&out, " %s", strings.ToLower(strings.TrimPrefix(rec.GetState().String(), "NODE_STATE_")))
		if rec.GetIncarnation() != 1 {
			fmt.Fprintf(&out, " incarnation=%d", rec.GetIncarnation())
		}
		if rec.GetHost() != nil {
			fmt.Fprintf(&out, " pid=%d", rec.GetHost().GetPid())
		}
		var keys []string
		for key, value := range rec.GetAttributes() {
			keys = append(keys, fmt.Sprintf(" %s:%s", key, value.GetStringValue()))
		}
		slices.Sort(keys)
		fmt.Fprintf(&out, "%s revision=%d", strings.Join(keys, ""), rec.GetRevision())
		if rec.GetCause() != "" {
			fmt.Fprintf(&out, " cause: %s", rec.GetCause())
		}
		out.WriteString("\n")
	}
	return out.String()
}

func number(s string) int {
	n, _ := strconv.Atoi(s) // an empty text is 0
	return n
}

// uuid returns a fixed UUID for a small number.
func uuid(number string) string {
	if number == "" {
		return ""
	}
	return "00000000-0000-4000-9000-" + strings.Repeat("0", 12-len(number)) + number
}

func testHost(pid string) *nodev1.HostInfo {
	if pid == "" {
		return nil
	}
	return &nodev1.HostInfo{Id: uuid(pid), Pid: int32(number(pid)), Machine: "m1"}
}

func testValues(set string) map[string]*nodev1.Value {
	if set == "" {
		return nil
	}
	values := make(map[string]*nodev1.Value)
	for pair := range strings.SplitSeq(set, ",") {
		key, value, _ := strings.Cut(pair, ":")
		values[key] = &nodev1.Value{Kind: &nodev1.Value_StringValue{StringValue: value}}
	}
	return values
}
