package runtime

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"connectrpc.com/connect/v2"
)

// chain is the calls that a call is made on behalf of and that wait for it: each entry is a turn
// that is held while its method waits for the next call. It is a list from the innermost caller
// outwards, shared between calls and immutable.
//
// A call whose target holds all of its turns somewhere in the chain can never run: that is a direct
// cycle, and it is refused at once. Cycles across several chains are not detected.
type chain struct {
	nid    string
	path   string
	method string
	// overrides is how the entry's node differs from its schema, see NodeType.overrides.
	overrides string
	outer     *chain
}

// maxChain bounds the length of a chain from the wire, and so the depth of nested calls.
const maxChain = 256

// refuseCycle refuses a call that would complete a cycle: the chain holds every turn of the node.
func (c *chain) refuseCycle(nid, path, method string, turns int) error {
	if c.holds(nid) < turns {
		return nil
	}
	return connect.Errorf(connect.CodeFailedPrecondition, "the call would wait for itself: %s -> %s %s, "+
		"whose turn is held until this call returns; make it with %sAsync and don't wait, or make the method concurrent",
		c, path, method, method[strings.LastIndexByte(method, '/')+1:])
}

// refuseCycleFrom is refuseCycle on the caller's side, which knows the node's turns only from its
// entry in the chain.
func (c *chain) refuseCycleFrom(nid, path string, m *Method) error {
	for entry := c; entry != nil; entry = entry.outer {
		if entry.nid != nid {
			continue
		}
		turns, concurrent := parseOverrides(entry.overrides, m)
		if concurrent {
			return nil
		}
		return c.refuseCycle(nid, path, m.fullName(), turns)
	}
	return nil
}

// overrides encodes the number of turns of the type's nodes and the methods that it makes
// concurrent, such as "4 Peek Poke"; it is empty if they are those of the schema.
func (t NodeType) overrides(c serviceConfig) string {
	if c.MaxConcurrency == t.service.config.MaxConcurrency && len(t.concurrent) == 0 {
		return ""
	}
	return strings.Join(append([]string{strconv.Itoa(c.MaxConcurrency)}, t.concurrent...), " ")
}

// parseOverrides decodes overrides for a method. Where they are empty or malformed, the schema
// applies.
func parseOverrides(overrides string, m *Method) (turns int, concurrent bool) {
	turns = m.service.config.MaxConcurrency
	words := strings.Split(overrides, " ")
	if n, err := strconv.Atoi(words[0]); err == nil && n > 0 {
		turns = n
	}
	return turns, slices.Contains(words[1:], m.name)
}

// holds counts how many turns of the node the chain holds.
func (c *chain) holds(nid string) int {
	held := 0
	for entry := c; entry != nil; entry = entry.outer {
		if entry.nid == nid {
			held++
		}
	}
	return held
}

// String formats the chain, outermost call first.
func (c *chain) String() string {
	if c == nil {
		return ""
	}
	var entries []string
	for entry := c; entry != nil; entry = entry.outer {
		entries = append(entries, entry.path+" "+entry.method)
	}
	slices.Reverse(entries)
	return strings.Join(entries, " -> ")
}

// appendTo encodes the chain for the wire: for each entry, innermost first, four length-prefixed
// strings.
func (c *chain) appendTo(b []byte) []byte {
	for entry := c; entry != nil; entry = entry.outer {
		for _, s := range [...]string{entry.nid, entry.path, entry.method, entry.overrides} {
			b = appendString(b, s)
		}
	}
	return b
}

// parseChain decodes what appendTo encoded.
func parseChain(b []byte) (*chain, error) {
	var entries []*chain
	for len(b) > 0 {
		if len(entries) == maxChain {
			return nil, connect.Errorf(connect.CodeResourceExhausted, "calls are nested more than %d deep", maxChain)
		}
		entry := &chain{}
		for _, s := range [...]*string{&entry.nid, &entry.path, &entry.method, &entry.overrides} {
			var ok bool
			if *s, b, ok = cutString(b); !ok {
				return nil, connect.NewError(connect.CodeInvalidArgument, "the chain of calls is malformed")
			}
		}
		entries = append(entries, entry)
	}
	for i := range len(entries) - 1 {
		entries[i].outer = entries[i+1]
	}
	if len(entries) == 0 {
		return nil, nil //nolint:nilnil // an empty chain is nil
	}
	return entries[0], nil
}

// chainOf returns the calls that wait for a call made with ctx: the turn that the current method
// holds, and the calls that wait for that.
func chainOf(ctx context.Context) *chain {
	cc := callContextOf(ctx)
	if cc == nil {
		return nil
	}
	if cc.turn == nil || !cc.turn.Held() {
		return cc.chain
	}
	method := "Do"
	if cc.call.method != nil {
		method = cc.call.method.fullName()
	}
	return &chain{nid: cc.node.nid, path: cc.node.path, method: method, overrides: cc.node.overrides, outer: cc.chain}
}
