// Package records encodes and decodes the records of nodes, and requests for them. Brain and its
// clients encode and decode more of them than of all other messages together. protobuf's encoder
// first computes the size of each nested message and of each map by reflection, and its decoder
// allocates each text: both take several times as long.
//
// The encoding is protobuf's. Messages that this package does not expect are left to protobuf. The
// code that vtprotobuf generates is about as fast, but accepts texts that are not UTF-8: Brain
// could store such a record, and not load it again.
package records

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// Append appends a record as a field of a message: its tag, its length, and the record. What
// protobuf's encoder would refuse is an error.
func Append(b []byte, field protowire.Number, rec *nodev1.NodeRecord) ([]byte, error) {
	e := encoder{b: b}
	e.record(field, rec)
	return e.b, e.err
}

// AppendHost appends a host as a field of a message, as [Append] does.
func AppendHost(b []byte, field protowire.Number, host *nodev1.HostInfo) ([]byte, error) {
	e := encoder{b: b}
	e.host(field, host)
	return e.b, e.err
}

// encoder appends fields to b. err is the first error.
type encoder struct {
	b   []byte
	err error
}

func (e *encoder) record(field protowire.Number, rec *nodev1.NodeRecord) {
	start := e.begin(field)
	e.text(1, rec.GetNid())
	e.text(2, rec.GetName())
	e.text(3, rec.GetPath())
	e.text(4, rec.GetType())
	e.number(5, rec.GetIndex())
	e.text(6, rec.GetParent())
	e.text(7, rec.GetService())
	e.text(8, rec.GetAlias())
	e.number(9, rec.GetIncarnation())
	e.number(10, uint64(int64(rec.GetState()))) //nolint:gosec // as protobuf does
	if host := rec.GetHost(); host != nil {
		e.host(11, host)
	}
	for key, value := range rec.GetAttributes() {
		entry := e.begin(12)
		e.text(1, key)
		e.message(2, value)
		e.end(entry)
	}
	if created := rec.GetCreated(); created != nil {
		e.time(13, created)
	}
	e.number(14, rec.GetRevision())
	e.text(15, rec.GetCause())
	if rec.GetRestarts() {
		e.number(16, 1)
	}
	if given := rec.GetAllocation(); given != nil {
		e.allocation(17, given)
	}
	e.unknown(rec)
	e.end(start)
}

func (e *encoder) host(field protowire.Number, host *nodev1.HostInfo) {
	start := e.begin(field)
	e.text(1, host.GetId())
	e.text(2, host.GetAddress())
	e.text(3, host.GetSocket())
	e.text(4, host.GetMachine())
	e.number(5, uint64(int64(host.GetPid()))) //nolint:gosec // as protobuf does
	e.text(6, host.GetBuild())
	e.text(7, host.GetDirectory())
	e.text(8, host.GetNonce())
	e.unknown(host)
	e.end(start)
}

func (e *encoder) allocation(field protowire.Number, given *nodev1.Allocation) {
	start := e.begin(field)
	e.text(1, given.GetMachine())
	e.text(2, given.GetName())
	for name, amount := range given.GetResources() {
		entry := e.begin(3)
		e.text(1, name)
		e.number(2, uint64(amount)) //nolint:gosec // as protobuf does
		e.end(entry)
	}
	if gpus := given.GetGpus(); len(gpus) > 0 {
		packed := e.begin(4)
		for _, gpu := range gpus {
			e.b = protowire.AppendVarint(e.b, uint64(gpu))
		}
		e.end(packed)
	}
	e.unknown(given)
	e.end(start)
}

func (e *encoder) time(field protowire.Number, t *timestamppb.Timestamp) {
	start := e.begin(field)
	e.number(1, uint64(t.GetSeconds()))      //nolint:gosec // as protobuf does
	e.number(2, uint64(int64(t.GetNanos()))) //nolint:gosec // as protobuf does
	e.unknown(t)
	e.end(start)
}

// message appends a message by protobuf's encoder.
func (e *encoder) message(field protowire.Number, msg proto.Message) {
	start := e.begin(field)
	b, err := proto.MarshalOptions{}.MarshalAppend(e.b, msg)
	if err != nil {
		e.fail(err)
		return
	}
	e.b = b
	e.end(start)
}

// unknown appends the fields of a message that this version does not know.
func (e *encoder) unknown(msg proto.Message) {
	e.b = append(e.b, msg.ProtoReflect().GetUnknown()...)
}

// text appends a string, unless it is empty.
func (e *encoder) text(field protowire.Number, text string) {
	if text != "" {
		e.member(field, text)
	}
}

// member appends a string of a oneof, which is also set if it is empty.
func (e *encoder) member(field protowire.Number, text string) {
	if !utf8.ValidString(text) {
		e.fail(errors.New("a text is not UTF-8"))
	}
	e.b = protowire.AppendString(protowire.AppendTag(e.b, field, protowire.BytesType), text)
}

// number appends a number, unless it is zero.
func (e *encoder) number(field protowire.Number, n uint64) {
	if n != 0 {
		e.b = protowire.AppendVarint(protowire.AppendTag(e.b, field, protowire.VarintType), n)
	}
}

func (e *encoder) fail(err error) {
	if e.err == nil {
		e.err = fmt.Errorf("encode a record: %w", err)
	}
}

// begin appends the tag of a nested message, and leaves one byte for its length, for
// [encoder.end]. It returns where the message begins.
func (e *encoder) begin(field protowire.Number) int {
	e.b = append(protowire.AppendTag(e.b, field, protowire.BytesType), 0)
	return len(e.b)
}

// end writes the length of a nested message, which it moves if the length takes several bytes.
func (e *encoder) end(start int) {
	size := len(e.b) - start
	if size < 1<<7 {
		e.b[start-1] = byte(size) //nolint:gosec // below 128
		return
	}
	var room [10]byte
	length := protowire.AppendVarint(room[:0], uint64(size))
	e.b = append(e.b, length[1:]...)
	copy(e.b[start-1+len(length):], e.b[start:start+size])
	copy(e.b[start-1:], length)
}
