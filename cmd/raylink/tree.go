package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/nodename"
)

func (a *app) treeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tree [NODE]",
		Short: "Show the nodes of a system, or those below one",
		Long: `tree shows the nodes of a system, each with its type, state, process, address, alias and attributes. NODE is a path, an
alias or an nid; without one the whole tree is shown, from BRAIN.

With -o json it prints one object whose "nodes" are the records, parents before children.`,
		Args:              between(0, 1, "[NODE]"),
		ValidArgsFunction: a.complete(completeNode),
		RunE: func(cmd *cobra.Command, args []string) error {
			node := nodename.RootPath
			if len(args) > 0 {
				node = args[0]
			}
			return a.tree(cmd.Context(), node)
		},
	}
	a.clientFlags(cmd)
	return cmd
}

func (a *app) tree(ctx context.Context, node string) error {
	s, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	top, err := s.lookup(ctx, node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	req := &brainv1.ListRequest{}
	if top.GetPath() != nodename.RootPath {
		req.Root = top.GetNid()
	}
	res, err := s.brain.List(ctx, req)
	if err != nil {
		return err
	}
	records := res.GetNodes()
	if top.GetPath() == nodename.RootPath {
		records = append([]*nodev1.NodeRecord{top}, records...)
	}
	if a.output == outputJSON {
		return a.treeJSON(records)
	}
	_, err = fmt.Fprint(a.out, drawTree(records))
	return err
}

func (a *app) treeJSON(records []*nodev1.NodeRecord) error {
	nodes := make([]json.RawMessage, len(records))
	for i, rec := range records {
		var err error
		if nodes[i], err = compactJSON(nil, rec); err != nil {
			return err
		}
	}
	text, err := json.Marshal(map[string][]json.RawMessage{"nodes": nodes})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.out, "%s\n", text)
	return err
}

// drawTree formats records as a table whose first column is a tree. The first record is the root,
// and parents precede their children.
func drawTree(records []*nodev1.NodeRecord) string {
	if len(records) == 0 {
		return ""
	}
	top := records[0]
	children := make(map[string][]*nodev1.NodeRecord)
	for _, rec := range records[1:] {
		parent := rec.GetParent()
		if parent == "" {
			parent = top.GetNid()
		}
		children[parent] = append(children[parent], rec)
	}
	machines := machineNames(records)
	rows := [][]string{{"NODE", "TYPE", "STATE", "MACHINE", "PID", "HOST", "ALIAS", "ATTRIBUTES"}}
	var draw func(rec *nodev1.NodeRecord, head, indent string)
	draw = func(rec *nodev1.NodeRecord, head, indent string) {
		name := rec.GetName()
		if rec == top {
			name = rec.GetPath()
		}
		pid := ""
		if rec.GetHost().GetPid() != 0 {
			pid = strconv.Itoa(int(rec.GetHost().GetPid()))
		}
		where := ""
		if len(machines) > 1 {
			where = printable(machines[machineOf(rec)])
		}
		rows = append(rows, []string{
			head + printable(name), printable(rec.GetType()), stateName(rec), where, pid, printable(rec.GetHost().GetAddress()),
			printable(rec.GetAlias()), attributes(rec.GetAttributes()),
		})
		siblings := children[rec.GetNid()]
		for i, child := range siblings {
			if i < len(siblings)-1 {
				draw(child, indent+"├─ ", indent+"│  ")
			} else {
				draw(child, indent+"└─ ", indent+"   ")
			}
		}
	}
	draw(top, "", "")
	return table(rows)
}

// machineOf is the id of a node's machine; "" if it is not known.
func machineOf(rec *nodev1.NodeRecord) string {
	return cmp.Or(rec.GetAllocation().GetMachine(), rec.GetHost().GetMachine())
}

// machineNames returns the names of the nodes' machines by id. One on which Brain has placed none
// of the nodes has its id.
func machineNames(records []*nodev1.NodeRecord) map[string]string {
	names := make(map[string]string)
	for _, rec := range records {
		if id := machineOf(rec); id != "" && (names[id] == "" || rec.GetAllocation() != nil) {
			names[id] = cmp.Or(rec.GetAllocation().GetName(), id)
		}
	}
	return names
}

// table aligns columns and omits those without an entry. Its first row has the headings.
func table(rows [][]string) string {
	widths := make([]int, len(rows[0]))
	for _, row := range rows[1:] {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			if widths[i] == 0 {
				continue
			}
			width := max(widths[i], utf8.RuneCountInString(rows[0][i]))
			line.WriteString(cell + strings.Repeat(" ", width-utf8.RuneCountInString(cell)+2))
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}

func stateName(rec *nodev1.NodeRecord) string {
	name := strings.ToLower(strings.TrimPrefix(rec.GetState().String(), "NODE_STATE_"))
	if rec.GetIncarnation() > 1 && rec.GetPath() != nodename.RootPath {
		name += fmt.Sprintf(" (life %d)", rec.GetIncarnation())
	}
	return name
}

// attributes formats attributes as key=value, sorted by key.
func attributes(values map[string]*nodev1.Value) string {
	parts := make([]string, 0, len(values))
	for _, key := range slices.Sorted(maps.Keys(values)) {
		parts = append(parts, word(key)+"="+attribute(values[key]))
	}
	return strings.Join(parts, " ")
}

func attribute(v *nodev1.Value) string {
	switch kind := v.GetKind().(type) {
	case *nodev1.Value_Int64Value:
		return strconv.FormatInt(kind.Int64Value, 10)
	case *nodev1.Value_DoubleValue:
		return strconv.FormatFloat(kind.DoubleValue, 'g', -1, 64)
	case *nodev1.Value_BoolValue:
		return strconv.FormatBool(kind.BoolValue)
	case *nodev1.Value_StringValue:
		return word(kind.StringValue)
	case *nodev1.Value_BytesValue:
		return fmt.Sprintf("(%d bytes)", len(kind.BytesValue))
	}
	return "?"
}

// word quotes a text that is not one word.
func word(s string) string {
	if s == "" || strconv.Quote(s) != `"`+s+`"` || strings.ContainsAny(s, " =") {
		return strconv.Quote(s)
	}
	return s
}
