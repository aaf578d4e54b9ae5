package tree

import (
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/raylink/raylink/brain/internal/placement"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/machine"
)

// This file contains the machines of the system: which there are, and which hosts keep them. They
// are not stored: hosts attach again after a restart, and declare them again. Until all hosts have
// done so or were declared dead, no request for a place is refused as impossible.

const (
	maxMachineName  = 128
	maxMachineBytes = 16 << 10
)

// keeper is a host that keeps a machine, with what it declares. It is immutable.
type keeper struct {
	host    *nodev1.HostInfo
	machine *machinev1.Machine
	joined  time.Time
}

// CheckMachine refuses what a host declares about the machine that it keeps if it is invalid, too
// large, or about another machine than the host's. Nil, for no machine, is valid.
func CheckMachine(host *nodev1.HostInfo, m *machinev1.Machine) error {
	if m == nil {
		return nil
	}
	refuse := func(format string, args ...any) error {
		return connect.Errorf(connect.CodeInvalidArgument, "the machine %q (%q) is not valid: "+format, append([]any{clip(m.GetName()), clip(m.GetId())}, args...)...)
	}
	if size := proto.Size(m); size > maxMachineBytes {
		return refuse("its description has %d bytes; the bound is %d", size, maxMachineBytes)
	}
	if err := CheckText(m); err != nil {
		return err
	}
	switch name := m.GetName(); {
	case m.GetId() == "" || m.GetId() != host.GetMachine():
		return refuse("its keeper is on the machine %q", clip(host.GetMachine()))
	case name == "" || len(name) > maxMachineName:
		return refuse("a name has 1 to %d bytes", maxMachineName)
	case strings.ContainsFunc(name, func(c rune) bool { return !unicode.IsGraphic(c) || unicode.IsSpace(c) }):
		return refuse("a name has no spaces or control characters")
	}
	if err := machine.Labels(m.GetLabels()).Check(); err != nil {
		return refuse("%w", err)
	}
	if err := machine.Resources(m.GetResources()).Check(); err != nil {
		return refuse("%w", err)
	}
	if total, gpus := m.GetResources()[machine.GPU], int64(len(m.GetGpus())); total != gpus*machine.Unit {
		return refuse("it has %s, but lists %d GPUs", machine.Resources{machine.GPU: total}, gpus)
	}
	// The accounts have bounds of their own.
	if err := placement.New().Join(placed(m)); err != nil {
		return refuse("%w", err)
	}
	return nil
}

// placed is a machine as the accounts have it: GPUs are positions in the declared list.
func placed(m *machinev1.Machine) placement.Machine {
	gpus := make([]uint32, len(m.GetGpus()))
	for i := range gpus {
		gpus[i] = uint32(i)
	}
	return placement.Machine{
		ID: m.GetId(), Name: m.GetName(), Platform: m.GetPlatform().GetOs() + "/" + m.GetPlatform().GetArch(),
		Total: m.GetResources(), GPUs: gpus, Labels: m.GetLabels(),
	}
}

// inEffect is the keeper whose declaration is in effect: an agent, or else the oldest. It is nil if
// there is none.
func inEffect(keepers []*keeper) *keeper {
	for _, k := range keepers {
		if k.machine.GetAgent() {
			return k
		}
	}
	if len(keepers) == 0 {
		return nil
	}
	return keepers[0]
}

// Keep sets the machine that an attached host keeps; nil if it keeps none. The declaration must be
// valid, see [CheckMachine].
func (x *Txn) Keep(host *nodev1.HostInfo, m *machinev1.Machine) error {
	old := x.keeps(host.GetId())
	if m == nil {
		x.unkeep(host.GetId())
		return nil
	}
	if old == nil && x.keeping >= x.limits.Machines {
		return connect.Errorf(connect.CodeResourceExhausted, "%d machines have been declared, which is the bound", x.keeping)
	}
	now := &keeper{host: proto.CloneOf(host), machine: proto.CloneOf(m), joined: x.now}
	keepers := x.keepers(m.GetId())
	if old != nil && old.machine.GetId() == m.GetId() {
		// The host has attached again: it keeps its rank.
		now.joined = old.joined
		if proto.Equal(old.machine, m) && proto.Equal(old.host, host) {
			return nil
		}
		keepers = slices.Clone(keepers)
		keepers[slices.Index(keepers, old)] = now
	} else {
		x.unkeep(host.GetId())
		keepers = append(slices.Clone(keepers), now)
		x.keeping++
	}
	x.setKeeps(host.GetId(), now)
	return x.setKeepers(m.GetId(), keepers)
}

// unkeep ends the declaration of a host, if it has one.
func (x *Txn) unkeep(host string) {
	old := x.keeps(host)
	if old == nil {
		return
	}
	x.keeping--
	x.setKeeps(host, nil)
	id := old.machine.GetId()
	keepers := slices.DeleteFunc(slices.Clone(x.keepers(id)), func(k *keeper) bool { return k == old })
	// What was declared before was accepted by the accounts.
	_ = x.setKeepers(id, keepers)
}

func (x *Txn) setKeeps(host string, k *keeper) {
	if x.keepsByHost == nil {
		x.keepsByHost = make(map[string]*keeper)
	}
	x.keepsByHost[host] = k
}

// setKeepers sets the keepers of a machine, the oldest first, and enters into the accounts the
// declaration that is in effect.
func (x *Txn) setKeepers(id string, keepers []*keeper) error {
	before, after := inEffect(x.keepers(id)), inEffect(keepers)
	if x.keepersByMachine == nil {
		x.keepersByMachine = make(map[string][]*keeper)
	}
	x.keepersByMachine[id] = keepers
	if before == after {
		return nil
	}
	x.machinesChanged = true
	if after == nil {
		x.accounts.Leave(id)
		return nil
	}
	if before != nil && proto.Equal(before.machine, after.machine) {
		return nil
	}
	if err := x.accounts.Join(placed(after.machine)); err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err.Error()).WithCause(err)
	}
	return nil
}

// arrived notes that a host that was known before a restart has attached again, or will not any
// more. Once all have, requests that no machine can serve are impossible.
func (x *Txn) arrived(host string) {
	if !x.expects(host) {
		return
	}
	if x.back == nil {
		x.back = make(map[string]struct{})
	}
	x.back[host] = struct{}{}
	if x.expecting--; x.expecting == 0 {
		x.accounts.Expect(false)
	}
}

// Uses returns the machines of the allocations of records, once each, in the order of the records.
func (x *Txn) Uses(records []*nodev1.NodeRecord) []*brainv1.MachineUse {
	var uses []*brainv1.MachineUse
	seen := make(map[string]struct{})
	for _, rec := range records {
		given := rec.GetAllocation()
		if given == nil {
			continue
		}
		if _, ok := seen[given.GetMachine()]; ok {
			continue
		}
		seen[given.GetMachine()] = struct{}{}
		usage, ok := x.accounts.Machine(given.GetMachine())
		if !ok {
			uses = append(uses, &brainv1.MachineUse{Machine: &machinev1.Machine{Id: given.GetMachine(), Name: given.GetName()}})
			continue
		}
		uses = append(uses, use(usage, inEffect(x.keepers(usage.ID))))
	}
	return uses
}

// Machines returns the machines with a name or an id, or all for an empty one, by name, then by id.
// If there is none with it, the error says which there are.
func (t *Tree) Machines(name string) ([]*brainv1.MachineUse, error) {
	found := t.accounts.Machines(name)
	uses := make([]*brainv1.MachineUse, 0, len(found))
	var known []string
	for _, usage := range found {
		uses = append(uses, use(usage, inEffect(t.keepersByMachine[usage.ID])))
	}
	if name == "" || len(uses) > 0 {
		return uses, nil
	}
	for _, usage := range t.accounts.Machines("") {
		known = append(known, clip(usage.Name))
	}
	switch {
	case len(known) == 0:
		return nil, connect.Errorf(connect.CodeNotFound, "no machine has the name or the id %q: no machine has joined", clip(name))
	default:
		return nil, connect.Errorf(connect.CodeNotFound, "no machine has the name or the id %q; there are %s", clip(name), some(known))
	}
}

// use is a machine that is there, as it is sent. It shares the declaration, which is immutable.
func use(usage placement.Usage, k *keeper) *brainv1.MachineUse {
	return &brainv1.MachineUse{
		Machine: k.machine, Keeper: k.host, Joined: timestamppb.New(k.joined),
		Used: usage.Used, Nodes: uint64(usage.Nodes), //nolint:gosec // not negative
	}
}

// keepers returns the keepers of a machine, the oldest first.
func (t *Tree) keepers(id string) []*keeper { return t.keepersByMachine[id] }

func (x *Txn) keepers(id string) []*keeper {
	if keepers, ok := x.keepersByMachine[id]; ok {
		return keepers
	}
	return x.base.keepers(id)
}

// keeps returns what a host has declared, or nil.
func (t *Tree) keeps(host string) *keeper { return t.keepsByHost[host] }

func (x *Txn) keeps(host string) *keeper {
	if k, ok := x.keepsByHost[host]; ok {
		return k
	}
	return x.base.keeps(host)
}

// expects reports whether a host that was known before the restart is still to attach.
func (t *Tree) expects(host string) bool {
	_, ok := t.expected[host]
	return ok
}

func (x *Txn) expects(host string) bool {
	if _, ok := x.back[host]; ok {
		return false
	}
	return x.base.expects(host)
}

// applyMachines merges staged changes of machines into the enclosing transaction.
func (x *Txn) applyMachines(inner *Txn) {
	x.keeping, x.expecting = inner.keeping, inner.expecting
	x.machinesChanged = x.machinesChanged || inner.machinesChanged
	copyInto(&x.keepersByMachine, inner.keepersByMachine)
	copyInto(&x.keepsByHost, inner.keepsByHost)
	copyInto(&x.back, inner.back)
}

// applyMachines merges staged changes of machines into the tree.
func (t *Tree) applyMachines(x *Txn) {
	for id, keepers := range x.keepersByMachine {
		if len(keepers) == 0 {
			delete(t.keepersByMachine, id)
		} else {
			t.keepersByMachine[id] = keepers
		}
	}
	for host, k := range x.keepsByHost {
		if k == nil {
			delete(t.keepsByHost, host)
		} else {
			t.keepsByHost[host] = k
		}
	}
	for host := range x.back {
		delete(t.expected, host)
	}
}

// copyInto copies entries into a map that is made once it is needed: most transactions have none.
func copyInto[K comparable, V any](to *map[K]V, from map[K]V) {
	if *to == nil {
		*to = from
		return
	}
	maps.Copy(*to, from)
}
