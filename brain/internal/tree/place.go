package tree

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/raylink/raylink/brain/internal/placement"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/internal/machine"
	"github.com/raylink/raylink/internal/nodename"
)

// This file contains the places of nodes: what is asked for, decided and given back. An allocation
// is a part of the node's record, and in the accounts as long as the record is in the tree.

// placement returns what a place asks for, for new children of a node; nil for no allocation.
func (x *Txn) placement(place *nodev1.Place, parent string, launcher *nodev1.HostInfo, count int) (*placement.Request, error) {
	if place == nil {
		return nil, nil //nolint:nilnil // documented
	}
	home, by := cmp.Or(launcher.GetMachine(), x.root().GetHost().GetMachine()), nodename.RootPath
	if n := x.node(parent); n != nil {
		home, by = cmp.Or(machineOf(n), home), n.rec.GetPath()
	}
	if err := machine.Resources(place.GetResources()).Check(); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, "the place is not valid: "+err.Error()).WithCause(err)
	}
	nothing := machine.Resources(place.GetResources()).IsZero() && len(place.GetLabels()) == 0 && place.GetOn() == "" &&
		place.GetNear() == "" && place.GetStrategy() == nodev1.PlaceStrategy_PLACE_STRATEGY_UNSPECIFIED
	if _, declared := x.accounts.Machine(home); nothing && !declared {
		return nil, nil //nolint:nilnil // documented
	}
	r := &placement.Request{
		Count: count, Resources: x.shared.resources(place.GetResources()), Labels: maps.Clone(place.GetLabels()),
		On: place.GetOn(), Parent: home, By: by, Strategy: placement.Strategy(place.GetStrategy()),
	}
	if nid := place.GetNear(); nid != "" {
		near, err := x.near(nid)
		if err != nil {
			return nil, err
		}
		r.Near = near
	}
	return r, nil
}

// near returns the machine of a node to be near to.
func (x *Txn) near(nid string) (string, error) {
	if root := x.root(); nid == root.GetNid() {
		if root.GetHost().GetMachine() == "" {
			return "", connect.NewError(connect.CodeFailedPrecondition, "the machine of Brain, to be near to, is not known")
		}
		return root.GetHost().GetMachine(), nil
	}
	n, err := x.find(nid)
	if err != nil {
		return "", connect.NewError(connect.CodeOf(err), "a node to be near to: "+connecterr.Text(err)).WithCause(err)
	}
	if at := machineOf(n); at != "" {
		return at, nil
	}
	return "", connect.Errorf(connect.CodeFailedPrecondition, "the machine of %s, to be near to, is not known", n.rec.GetPath())
}

// machineOf is the id of a node's machine, as far as it is known: that of its allocation, or else
// of the process where it is or is going to be.
func machineOf(n *node) string {
	return cmp.Or(n.rec.GetAllocation().GetMachine(), n.rec.GetHost().GetMachine(), n.launcher.GetMachine())
}

// lackingError is the error of a request for a place for which waiting can help.
type lackingError struct {
	request *placement.Request
	err     error
}

func (e *lackingError) Error() string { return e.err.Error() }

func (e *lackingError) Unwrap() error { return e.err }

// places decides where nodes go; r may be nil, for nodes without allocations. It fails with
// [lackingError] if waiting can help, and else with a connect error.
func (x *Txn) places(r *placement.Request) ([]placement.Allocation, error) {
	if r == nil {
		return nil, nil
	}
	places, err := x.accounts.Place(r)
	if err == nil {
		return places, nil
	}
	if isLacking(err) {
		return nil, &lackingError{request: r, err: err}
	}
	return nil, placeError(err)
}

func isLacking(err error) bool {
	_, lacking := errors.AsType[*placement.LackingError](err)
	_, expecting := errors.AsType[*placement.ExpectingError](err)
	return lacking || expecting
}

// placeError is the connect error for a request that can't be placed, and need not wait.
func placeError(err error) error {
	code := connect.CodeFailedPrecondition
	if _, invalid := errors.AsType[*placement.InvalidError](err); invalid {
		code = connect.CodeInvalidArgument
	}
	if _, full := errors.AsType[*placement.QueueFullError](err); full {
		code = connect.CodeResourceExhausted
	}
	return connect.NewError(code, err.Error()).WithCause(err)
}

// allocate enters what a node has into the accounts, and returns it for the node's record. places
// is empty if the nodes get no allocations; the others are those of one request, by position.
func (x *Txn) allocate(nid string, places []placement.Allocation, i int) (*nodev1.Allocation, error) {
	if len(places) == 0 {
		return nil, nil //nolint:nilnil // documented
	}
	given := places[i]
	if err := x.accounts.Allocate(nid, given); err != nil {
		return nil, connect.NewError(connect.CodeInternal, err.Error()).WithCause(err)
	}
	name := given.Machine
	if usage, ok := x.accounts.Machine(given.Machine); ok {
		name = usage.Name
	}
	return x.shared.allocation(&nodev1.Allocation{Machine: given.Machine, Name: name, Resources: given.Resources, Gpus: given.GPUs}), nil
}

// loadAllocation enters the allocation of a stored record, also if its machine is not there yet.
func (t *Tree) loadAllocation(rec *nodev1.NodeRecord) error {
	given := rec.GetAllocation()
	if given == nil {
		return nil
	}
	given.Machine, given.Name = t.shared.text(given.GetMachine()), t.shared.text(given.GetName())
	given.Resources = t.shared.resources(given.GetResources())
	given = t.shared.allocation(given)
	rec.Allocation = given
	return t.accounts.Allocate(rec.GetNid(), placement.Allocation{
		Machine: given.GetMachine(), Resources: given.GetResources(), GPUs: given.GetGpus(),
	})
}

// appendPlace appends a place in a canonical form: a short one as it is, or else its hash.
func appendPlace(b []byte, place *nodev1.Place) []byte {
	if place == nil {
		return b
	}
	start := len(b)
	b = appendMap(append(b, ' '), place.GetResources(), appendAmount)
	b = appendMap(append(b, ' '), place.GetLabels(), func(b []byte, name, value string) []byte {
		return strconv.AppendQuote(append(strconv.AppendQuote(b, name), ':'), value)
	})
	b = strconv.AppendQuote(append(b, ' '), place.GetOn())
	b = strconv.AppendQuote(append(b, ' '), place.GetNear())
	b = strconv.AppendInt(append(b, ' '), int64(place.GetStrategy()), 10)
	if text := b[start:]; len(text) > 256 {
		return fmt.Appendf(b[:start], " %x", sha256.Sum256(text))
	}
	return b
}

func appendAmount(b []byte, name string, amount int64) []byte {
	return strconv.AppendInt(append(append(b, name...), ':'), amount, 10)
}

// appendMap appends the entries of a map, sorted by key, as package fmt prints them.
func appendMap[V any](b []byte, m map[string]V, entry func(b []byte, key string, value V) []byte) []byte {
	b = append(b, "map["...)
	keys := make([]string, 0, 8)
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for i, key := range keys {
		if i > 0 {
			b = append(b, ' ')
		}
		b = entry(b, key, m[key])
	}
	return append(b, ']')
}

// shared has values that many records have in common, so that each is in memory once. They are
// immutable. It is used by the goroutine that changes the tree.
type shared struct {
	byText      map[string]placement.Resources
	hosts       map[string]*nodev1.HostInfo
	texts       map[string]string
	asked       map[string]string // what registrations ask for
	allocations map[allocationKey]*nodev1.Allocation
	// at is the last time that a node was created, and created its timestamp: the changes of a
	// group have the same.
	at      time.Time
	created *timestamppb.Timestamp
}

// allocationKey finds an allocation without GPUs. Those with equal keys may differ.
type allocationKey struct {
	machine, name string
	// first is the alphabetically first resource, of resources many.
	first     string
	amount    int64
	resources int
}

// maxShared bounds the values of each kind.
const maxShared = 1 << 14

func newShared() *shared {
	return &shared{
		byText: make(map[string]placement.Resources), hosts: make(map[string]*nodev1.HostInfo),
		texts: make(map[string]string), asked: make(map[string]string), allocations: make(map[allocationKey]*nodev1.Allocation),
	}
}

// text returns an equal string: types, services and machines repeat.
func (s *shared) text(text string) string { return sharedText(s.texts, text) }

// request returns an equal text of what a registration asks for: those of one program repeat.
func (s *shared) request(asked string) string { return sharedText(s.asked, asked) }

// time returns the timestamp of a time.
func (s *shared) time(now time.Time) *timestamppb.Timestamp {
	if s.created == nil || !now.Equal(s.at) {
		s.at, s.created = now, timestamppb.New(now)
	}
	return s.created
}

func sharedText(texts map[string]string, text string) string {
	if known, ok := texts[text]; ok {
		return known
	}
	if len(texts) >= maxShared {
		clear(texts)
	}
	texts[text] = text
	return text
}

// allocation returns an equal allocation: many nodes have as much of a machine as another one. The
// ownership of given passes to shared.
func (s *shared) allocation(given *nodev1.Allocation) *nodev1.Allocation {
	if len(given.GetGpus()) > 0 {
		return given // no other node has them
	}
	key := allocationKey{machine: given.GetMachine(), name: given.GetName(), resources: len(given.GetResources())}
	for name, amount := range given.GetResources() {
		if key.first == "" || name < key.first {
			key.first, key.amount = name, amount
		}
	}
	if known := s.allocations[key]; known != nil && maps.Equal(known.GetResources(), given.GetResources()) {
		return known
	}
	if len(s.allocations) >= maxShared {
		clear(s.allocations)
	}
	s.allocations[key] = given
	return given
}

// resources returns a copy without zeros.
func (s *shared) resources(resources map[string]int64) placement.Resources {
	if len(resources) == 0 {
		return nil
	}
	own := placement.Resources(maps.Clone(resources))
	maps.DeleteFunc(own, func(_ string, amount int64) bool { return amount == 0 })
	key := string(appendMap(nil, own, appendAmount))
	if known, ok := s.byText[key]; ok {
		return known
	}
	if len(s.byText) >= maxShared {
		clear(s.byText)
	}
	s.byText[key] = own
	return own
}

// host returns a copy of what describes a host; nil for nil.
func (s *shared) host(host *nodev1.HostInfo) *nodev1.HostInfo {
	if host == nil {
		return nil
	}
	if known := s.hosts[host.GetId()]; known != nil && proto.Equal(known, host) {
		return known
	}
	if len(s.hosts) >= maxShared {
		clear(s.hosts)
	}
	own := proto.CloneOf(host)
	s.hosts[own.GetId()] = own
	return own
}
