package storage

import (
	"iter"
	"math/bits"
	"math/rand/v2"
	"strings"
)

// keyList keeps keys in order: a skip list (Pugh, "Skip lists: a probabilistic alternative to balanced trees", 1990), with
// half of the keys on each level also on the one above.
type keyList struct {
	head keyNode
}

// maxLevel is enough for 2^32 keys.
const maxLevel = 32

type keyNode struct {
	key  string
	next []*keyNode
}

func newKeyList() *keyList { return &keyList{head: keyNode{next: make([]*keyNode, maxLevel)}} }

// before finds the last node before a key, on each level.
func (l *keyList) before(key string) [maxLevel]*keyNode {
	var path [maxLevel]*keyNode
	at := &l.head
	for level := maxLevel - 1; level >= 0; level-- {
		for at.next[level] != nil && at.next[level].key < key {
			at = at.next[level]
		}
		path[level] = at
	}
	return path
}

// insert adds a key that is not there.
func (l *keyList) insert(key string) {
	path := l.before(key)
	levels := 1 + bits.TrailingZeros32(rand.Uint32()|1<<(maxLevel-1)) //nolint:gosec // for balance, not for secrecy
	n := &keyNode{key: key, next: make([]*keyNode, levels)}
	for level, before := range path[:levels] {
		n.next[level] = before.next[level]
		before.next[level] = n
	}
}

// remove takes a key out.
func (l *keyList) remove(key string) {
	path := l.before(key)
	n := path[0].next[0]
	if n == nil || n.key != key {
		return
	}
	for level := range n.next {
		path[level].next[level] = n.next[level]
	}
}

// from gives the keys with a prefix that come after another key, in order. The list must not be changed meanwhile.
func (l *keyList) from(prefix, after string) iter.Seq[string] {
	return func(yield func(string) bool) {
		n := l.before(max(prefix, after))[0].next[0]
		if after != "" && n != nil && n.key == after {
			n = n.next[0]
		}
		for ; n != nil && strings.HasPrefix(n.key, prefix); n = n.next[0] {
			if !yield(n.key) {
				return
			}
		}
	}
}
