package tree

import (
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/nodename"
	"github.com/raylink/raylink/internal/spelling"
)

// This file contains the errors of lookups that fail. Each names what was asked for, and what
// exists instead.

const (
	// shown bounds how many names an error lists.
	shown = 8
	// searched bounds how many names are compared with a misspelled one, so that an error does not
	// cost more than a successful lookup.
	searched = 4096
)

func (t *Tree) lookupPath(path string) (*nodev1.NodeRecord, error) {
	if path == nodename.RootPath {
		return t.self, nil
	}
	if len(path) > t.limits.MaxDepth*(nodename.MaxTypeBytes+20) {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "the path %q has %d bytes", clip(path), len(path))
	}
	above, nid := (*nodev1.NodeRecord)(nil), ""
	for rest, more := path, true; more; {
		var name string
		name, rest, more = strings.Cut(rest, "/")
		n := t.nodes[t.childrenByName[nid][name]]
		if n == nil {
			if !isAbsolute(path) {
				return nil, connect.Errorf(connect.CodeInvalidArgument,
					"%q is not an absolute path, names with single slashes between them; only a node can resolve relative ones", clip(path))
			}
			if d := t.tombPaths[path]; d != nil {
				return nil, deadError(d.rec)
			}
			return nil, t.unknownPath(path, above, name)
		}
		above, nid = n.rec, n.rec.GetNid()
	}
	return above, nil
}

// isAbsolute reports whether a path consists of names. A path by which a node was found does, since
// no node is called otherwise.
func isAbsolute(path string) bool {
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." || name == ".." {
			return false
		}
	}
	return true
}

// unknownPath is the error for a path whose first missing name is below above (nil: the root).
func (t *Tree) unknownPath(path string, above *nodev1.NodeRecord, missing string) error {
	place, parent := nodename.RootPath, ""
	if above != nil {
		place, parent = above.GetPath(), above.GetNid()
	}
	children := childrenInOrder(t, parent)
	names := make([]string, 0, len(children))
	for _, n := range children {
		names = append(names, n.rec.GetName())
	}
	var text strings.Builder
	fmt.Fprintf(&text, "there is no node at the path %q", clip(path))
	// A dead ancestor explains more than its living siblings.
	for p := path; ; {
		i := strings.LastIndexByte(p, '/')
		if i < 0 {
			break
		}
		p = p[:i]
		if d := t.tombPaths[p]; d != nil {
			fmt.Fprintf(&text, "; %s is dead: %s", p, d.rec.GetCause())
			return notFound(text.String())
		}
	}
	if len(names) == 0 {
		fmt.Fprintf(&text, "; %s has no children", place)
	} else {
		fmt.Fprintf(&text, "; %s has %s", place, some(names))
	}
	if near := similar(missing, slices.Values(names)); len(near) > 0 {
		prefix := ""
		if above != nil {
			prefix = above.GetPath() + "/"
		}
		for i := range near {
			near[i] = prefix + near[i]
		}
		fmt.Fprintf(&text, "; similar: %s", some(near))
	}
	return notFound(text.String())
}

func (t *Tree) unknownAlias(alias string) error {
	var text strings.Builder
	fmt.Fprintf(&text, "there is no node with the alias %q", clip(alias))
	near := similar(alias, func(yield func(string) bool) {
		for a := range t.aliases {
			if !yield(a) {
				return
			}
		}
	})
	switch {
	case len(near) > 0:
		fmt.Fprintf(&text, "; similar: %s", some(near))
	case len(t.aliases) == 0:
		text.WriteString("; no node has an alias")
	default:
		// The alphabetically first, without sorting a million.
		var all []string
		for a := range t.aliases {
			if all = append(all, a); len(all) == searched {
				break
			}
		}
		slices.Sort(all)
		fmt.Fprintf(&text, "; aliases: %s", some(all))
		if len(t.aliases) > len(all) {
			text.WriteString(", ...")
		}
	}
	// A type is the most likely thing to be confused with an alias.
	var names []string
	for _, n := range childrenInOrder(t, "") {
		if n.rec.GetType() == alias {
			names = append(names, n.rec.GetPath())
		}
	}
	if len(names) > 0 {
		fmt.Fprintf(&text, "; of the type %s there is %s", clip(alias), some(names))
	}
	return notFound(text.String())
}

func (t *Tree) unknownNid(nid string) error { return unknown(t, nid) }

// unknown is the error for an nid that no living node has.
func unknown(v view, nid string) error {
	if d := v.tomb(nid); d != nil {
		return deadError(d.rec)
	}
	if !IsUUID(nid) {
		return connect.Errorf(connect.CodeInvalidArgument, "%q is not an nid, which is a UUID", clip(nid))
	}
	return notFound(fmt.Sprintf("there is no node with the nid %s; the tree has %d nodes", nid, v.size()))
}

// deadError is the error for a dead node, with its cause. Its detail is the last record, for
// programs that decide by it.
func deadError(rec *nodev1.NodeRecord) error {
	err := connect.Errorf(connect.CodeNotFound, "the node %s (%s) is dead: %s", rec.GetPath(), rec.GetNid(), rec.GetCause())
	detail, marshalErr := connectproto.NewErrorDetail(rec)
	if marshalErr != nil {
		return err.WithCause(marshalErr)
	}
	return err.WithDetail(detail)
}

func notFound(text string) error { return connect.NewError(connect.CodeNotFound, text) }

// some lists the first few names.
func some(names []string) string {
	if len(names) <= shown {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
}

// similar returns names within an edit distance of two, nearest first.
func similar(asked string, names func(func(string) bool)) []string {
	if len(asked) > nodename.MaxAliasBytes {
		return nil
	}
	var near [3][]string
	count := 0
	for name := range names {
		if count++; count > searched {
			break
		}
		if d := spelling.Distance(asked, name); d < len(near) && (d < len(asked) && d < len(name)) {
			near[d] = append(near[d], name)
		}
	}
	slices.Sort(near[0])
	slices.Sort(near[1])
	slices.Sort(near[2])
	nearest := slices.Concat(near[0], near[1], near[2])
	return nearest[:min(len(nearest), 3)]
}
