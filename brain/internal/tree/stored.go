package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/records"
)

// The tree on disk is a set of entries:
//
//	n/<nid>             a StoredNode
//	i/<parent>/<type>   the next index, 8 bytes big-endian; the parent is empty for the root
//	t/<revision>        a StoredTombstone; revisions are 8 bytes big-endian, so that the oldest comes first
//	q/<revision>        a StoredRequest
//	r                   the revision, 8 bytes big-endian
//
// The store adds a prefix to all keys. Aliases, children and hosts are derived from the nodes.
const (
	keyNode     = "n/"
	keyIndex    = "i/"
	keyTomb     = "t/"
	keyRequest  = "q/"
	keyRevision = "r"
)

// Write is one entry to store or, with a nil value, to delete.
type Write struct {
	Key   string
	Value []byte
}

// Writes returns what must be on disk before the transaction is merged into the tree. It is empty
// if there is nothing to store.
func (x *Txn) Writes() ([]Write, error) {
	t, ok := x.base.(*Tree)
	if !ok {
		return nil, errors.New("only the outermost transaction is written")
	}
	var writes []Write
	var failed error
	put := func(key string, msg proto.Message) {
		value, err := proto.Marshal(msg)
		if err != nil {
			failed = fmt.Errorf("write %q: %w", key, err)
			return
		}
		// An empty message is still an entry.
		writes = append(writes, Write{Key: key, Value: append([]byte{}, value...)})
	}
	for nid, n := range x.nodes {
		switch {
		case n != nil:
			value, err := appendNode(make([]byte, 0, storedBytes), n)
			if err != nil {
				failed = fmt.Errorf("write %q: %w", keyNode+nid, err)
			}
			writes = append(writes, Write{Key: keyNode + nid, Value: value})
		case t.nodes[nid] != nil:
			writes = append(writes, Write{Key: keyNode + nid})
		}
	}
	for parent, kinds := range x.indices {
		for kind, next := range kinds {
			write := Write{Key: keyIndex + parent + "/" + kind}
			if next != 0 {
				write.Value = binary.BigEndian.AppendUint64(nil, next)
			}
			writes = append(writes, write)
		}
	}
	for _, d := range x.tombList {
		put(tombKey(d), &brainv1.StoredTombstone{Record: d.rec, Died: timestamppb.New(d.died)})
	}
	for i := range x.dropTombs {
		writes = append(writes, Write{Key: tombKey(nth(t.tombQueue, x.tombList, i))})
	}
	for _, r := range x.reqList {
		put(requestKey(r), &brainv1.StoredRequest{Id: r.id, Asked: r.asked, Nids: r.nids, Done: timestamppb.New(r.done)})
	}
	for i := range x.dropRequests {
		writes = append(writes, Write{Key: requestKey(nth(t.requestQueue, x.reqList, i))})
	}
	if x.revision != t.revision {
		writes = append(writes, Write{Key: keyRevision, Value: binary.BigEndian.AppendUint64(nil, x.revision)})
	}
	return writes, failed
}

// storedBytes is the usual size of a stored node, in bytes.
const storedBytes = 512

// The numbers of the fields of [brainv1.StoredNode].
const (
	storedRecord   = 1
	storedBorn     = 2
	storedLauncher = 3
)

// appendNode appends the fields of a [brainv1.StoredNode].
func appendNode(b []byte, n *node) ([]byte, error) {
	b, err := records.Append(b, storedRecord, n.rec)
	if err == nil && n.launcher != nil {
		b, err = records.AppendHost(b, storedLauncher, n.launcher)
	}
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller names the node
	}
	return protowire.AppendVarint(protowire.AppendTag(b, storedBorn, protowire.VarintType), n.born), nil
}

func tombKey(d *tombstone) string  { return keyTomb + revisionKey(d.rec.GetRevision()) }
func requestKey(r *request) string { return keyRequest + revisionKey(r.seq) }

func revisionKey(revision uint64) string { return string(binary.BigEndian.AppendUint64(nil, revision)) }

// Load restores a tree from its entries in the order of their keys. An entry that is invalid is an
// error that names it: Brain must not start with a guess. The hosts of the nodes are expected to
// attach again, and to declare their machines.
func Load(root *nodev1.NodeRecord, limits Limits, entries iter.Seq2[Write, error]) (*Tree, error) {
	t := New(root, limits)
	for entry, err := range entries {
		if err != nil {
			return nil, err
		}
		if err := t.load(entry.Key, entry.Value); err != nil {
			return nil, fmt.Errorf("the entry %q: %w", entry.Key, err)
		}
	}
	for _, host := range t.Owners() {
		t.expected[host.GetId()] = struct{}{}
	}
	t.accounts.Expect(len(t.expected) > 0)
	return t, t.check()
}

func (t *Tree) load(key string, value []byte) error {
	switch {
	case key == keyRevision:
		return loadNumber(value, &t.revision)
	case strings.HasPrefix(key, keyNode):
		var stored brainv1.StoredNode
		if err := proto.Unmarshal(value, &stored); err != nil {
			return fmt.Errorf("read a node: %w", err)
		}
		n := &node{rec: stored.GetRecord(), born: stored.GetBorn(), launcher: t.shared.host(stored.GetLauncher())}
		nid := n.rec.GetNid()
		if key != keyNode+nid {
			return fmt.Errorf("holds the node %q", nid)
		}
		t.share(n.rec)
		if err := t.loadAllocation(n.rec); err != nil {
			return err
		}
		t.nodes[nid] = n
		putNested(t.childrenByName, n.rec.GetParent(), n.rec.GetName(), nid)
		if alias := n.rec.GetAlias(); alias != "" {
			t.aliases[alias] = nid
		}
		for host := range n.mentions() {
			putNested(t.hosts, host, nid, struct{}{})
		}
		return nil
	case strings.HasPrefix(key, keyIndex):
		parent, kind, ok := strings.Cut(strings.TrimPrefix(key, keyIndex), "/")
		if !ok {
			return errors.New("names no parent and type")
		}
		var next uint64
		if err := loadNumber(value, &next); err != nil {
			return err
		}
		putNested(t.indices, parent, kind, next)
		return nil
	case strings.HasPrefix(key, keyTomb):
		var stored brainv1.StoredTombstone
		if err := proto.Unmarshal(value, &stored); err != nil {
			return fmt.Errorf("read a tombstone: %w", err)
		}
		t.addTombstone(&tombstone{rec: stored.GetRecord(), died: stored.GetDied().AsTime()})
		return nil
	case strings.HasPrefix(key, keyRequest):
		var stored brainv1.StoredRequest
		if err := proto.Unmarshal(value, &stored); err != nil {
			return fmt.Errorf("read a request: %w", err)
		}
		seq, err := parseRevision(strings.TrimPrefix(key, keyRequest))
		if err != nil {
			return err
		}
		r := &request{id: stored.GetId(), asked: t.shared.request(stored.GetAsked()), nids: stored.GetNids(), done: stored.GetDone().AsTime(), seq: seq}
		t.requests[r.id] = r
		t.requestQueue = append(t.requestQueue, r)
		return nil
	}
	return errors.New("is of no kind that this version knows")
}

// share replaces what a stored record has in common with others.
func (t *Tree) share(rec *nodev1.NodeRecord) {
	rec.Host = t.shared.host(rec.GetHost())
	rec.Type, rec.Service, rec.Parent = t.shared.text(rec.GetType()), t.shared.text(rec.GetService()), t.shared.text(rec.GetParent())
	if rec.GetPath() == rec.GetName() { // a child of the root
		rec.Path = rec.GetName()
	}
}

func parseRevision(s string) (uint64, error) {
	var n uint64
	err := loadNumber([]byte(s), &n)
	return n, err
}

func loadNumber(value []byte, n *uint64) error {
	if len(value) != 8 {
		return fmt.Errorf("has %d bytes where a number has 8", len(value))
	}
	*n = binary.BigEndian.Uint64(value)
	return nil
}
