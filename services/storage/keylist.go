package storage

import (
	"iter"
	"math/bits"
	"math/rand/v2"
	"strings"
)

// keyList is a sorted set of keys: a skip list (Pugh, "Skip lists: a probabilistic alternative to
// balanced trees", 1990), in which half of the keys on each level are also on the next.
type keyList struct {
	head keyNode
}

// maxLevel suffices for 2^32 keys.
const maxLevel = 32

type keyNode struct {
	key  string
	next []*keyNode
}

func newKeyList() *keyList { return &keyList{head: keyNode{next: make([]*keyNode, maxLevel)}} }

// before returns the last node before a key, on each level.
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

// insert adds a key that is not in the list.
func (l *keyList) insert(key string) {
	path := l.before(key)
	levels := 1 + bits.TrailingZeros32(rand.Uint32()|1<<(maxLevel-1)) //nolint:gosec // balancing needs no cryptographic randomness
	n := &keyNode{key: key, next: make([]*keyNode, levels)}
	for level, before := range path[:levels] {
		n.next[level] = before.next[level]
		before.next[level] = n
	}
}

// remove removes a key, if it is in the list.
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

// from iterates over the keys with a prefix that follow another key, in order. The list must not be
// modified meanwhile.
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
