package runtime

import (
	"slices"
	"strconv"
	"strings"

	"connectrpc.com/connect/v2"
)

// chain is who waits for a call: each link is a turn held while its method waits for the next. It
// is a list from the innermost caller outwards, shared between calls and never changed.
//
// A call whose target holds, somewhere in the chain, all the turns it has can never run: that is a
// direct circle, and it is refused at once. Circles across several chains are not seen here.
type chain struct {
	nid    string
	path   string
	method string
	// overrides is what the link's node has otherwise than its schema says, see NodeType.overrides.
	overrides string
	outer     *chain
}

// maxChain bounds what is accepted from the wire, and so how deep calls may nest.
const maxChain = 256

// circle refuses a call to the node if the chain holds every one of its turns.
func (c *chain) circle(nid, path, method string, turns int) error {
	if c.holds(nid) < turns {
		return nil
	}
	return connect.Errorf(connect.CodeFailedPrecondition, "the call would wait for itself: %s -> %s %s, "+
		"whose turn is held until this call returns; make it with %sAsync and don't wait, or make the method concurrent",
		c, path, method, method[strings.LastIndexByte(method, '/')+1:])
}

// circleFrom is circle for the waiting caller's side, which knows of the node what its link in the
// chain says.
func (c *chain) circleFrom(nid, path string, m *Method) error {
	for link := c; link != nil; link = link.outer {
		if link.nid != nid {
			continue
		}
		turns, beside := parseOverrides(link.overrides, m)
		if beside {
			return nil
		}
		return c.circle(nid, path, m.fullName(), turns)
	}
	return nil
}

// overrides are the turns of the type's nodes and the methods that it makes concurrent, as "4 Peek
// Poke"; empty where the schema's hold.
func (t NodeType) overrides(c ServiceConfig) string {
	if c.MaxConcurrency == t.service.config.MaxConcurrency && len(t.beside) == 0 {
		return ""
	}
	return strings.Join(append([]string{strconv.Itoa(c.MaxConcurrency)}, t.beside...), " ")
}

// parseOverrides reads that for a method; a link that says nothing, or nonsense, leaves what the
// schema says.
func parseOverrides(overrides string, m *Method) (turns int, beside bool) {
	turns = m.service.config.MaxConcurrency
	words := strings.Split(overrides, " ")
	if n, err := strconv.Atoi(words[0]); err == nil && n > 0 {
		turns = n
	}
	return turns, slices.Contains(words[1:], m.name)
}

// holds counts the node's turns in the chain.
func (c *chain) holds(nid string) int {
	held := 0
	for link := c; link != nil; link = link.outer {
		if link.nid == nid {
			held++
		}
	}
	return held
}

// String writes the chain as a person reads it, outermost first.
func (c *chain) String() string {
	if c == nil {
		return ""
	}
	var links []string
	for link := c; link != nil; link = link.outer {
		links = append(links, link.path+" "+link.method)
	}
	slices.Reverse(links)
	return strings.Join(links, " -> ")
}

// appendTo encodes the chain for the wire: for each link, innermost first, four length-prefixed
// strings.
func (c *chain) appendTo(b []byte) []byte {
	for link := c; link != nil; link = link.outer {
		for _, s := range [...]string{link.nid, link.path, link.method, link.overrides} {
			b = appendString(b, s)
		}
	}
	return b
}

// parseChain reads what appendTo wrote.
func parseChain(b []byte) (*chain, error) {
	var links []*chain
	for len(b) > 0 {
		if len(links) == maxChain {
			return nil, connect.Errorf(connect.CodeResourceExhausted, "calls are nested more than %d deep", maxChain)
		}
		link := &chain{}
		for _, s := range [...]*string{&link.nid, &link.path, &link.method, &link.overrides} {
			var ok bool
			if *s, b, ok = cutString(b); !ok {
				return nil, connect.NewError(connect.CodeInvalidArgument, "the chain of calls is malformed")
			}
		}
		links = append(links, link)
	}
	for i := range len(links) - 1 {
		links[i].outer = links[i+1]
	}
	if len(links) == 0 {
		return nil, nil //nolint:nilnil // an empty chain is nil
	}
	return links[0], nil
}
