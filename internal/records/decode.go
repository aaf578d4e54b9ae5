package records

import (
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// UnmarshalLookup is [proto.Unmarshal] for the response to a lookup. The texts of the record share
// one allocation, and so do its messages.
func UnmarshalLookup(b []byte, res *brainv1.LookupResponse) error {
	if decodeLookup(b, res) {
		return nil
	}
	return proto.Unmarshal(b, res) //nolint:wrapcheck // it is protobuf's own
}

// decodeLookup decodes the response to a lookup into an empty message. It reports false, and leaves
// the message empty, if the response is not as this version encodes it: protobuf decodes it then,
// or finds out what is wrong.
func decodeLookup(b []byte, res *brainv1.LookupResponse) bool {
	if res.GetNode() != nil || len(res.ProtoReflect().GetUnknown()) > 0 {
		return false
	}
	d := decoder{rest: string(b)}
	if d.number() != messageTag(1) {
		return false
	}
	rec := d.record(d.bytes())
	if d.failed || d.rest != "" {
		return false
	}
	res.Node = rec
	return true
}

// A tag is the number of a field, shifted by three bits, and the type of its value: 0 for a varint,
// 2 for bytes with their length.
func messageTag(field protowire.Number) uint64 {
	return protowire.EncodeTag(field, protowire.BytesType)
}

// whole is a record with its messages, in one allocation.
type whole struct {
	rec     nodev1.NodeRecord
	host    nodev1.HostInfo
	created timestamppb.Timestamp
	given   nodev1.Allocation
}

// decoder consumes fields. failed is set by what it does not expect.
type decoder struct {
	rest   string
	failed bool
}

// more reports whether there is another field.
func (d *decoder) more() bool { return !d.failed && d.rest != "" }

func (d *decoder) record(s string) *nodev1.NodeRecord {
	w := new(whole)
	rec := &w.rec
	f := decoder{rest: s, failed: d.failed}
	for f.more() {
		switch f.number() {
		case 1<<3 | 2:
			rec.Nid = f.text()
		case 2<<3 | 2:
			rec.Name = f.text()
		case 3<<3 | 2:
			rec.Path = f.text()
		case 4<<3 | 2:
			rec.Type = f.text()
		case 5 << 3:
			rec.Index = f.number()
		case 6<<3 | 2:
			rec.Parent = f.text()
		case 7<<3 | 2:
			rec.Service = f.text()
		case 8<<3 | 2:
			rec.Alias = f.text()
		case 9 << 3:
			rec.Incarnation = f.number()
		case 10 << 3:
			rec.State = nodev1.NodeState(int32(f.number())) //nolint:gosec // as protobuf does
		case 11<<3 | 2:
			f.once(rec.GetHost() == nil)
			rec.Host = &w.host
			f.host(f.bytes(), &w.host)
		case 12<<3 | 2:
			f.attribute(f.bytes(), rec)
		case 13<<3 | 2:
			f.once(rec.GetCreated() == nil)
			rec.Created = &w.created
			f.time(f.bytes(), &w.created)
		case 14 << 3:
			rec.Revision = f.number()
		case 15<<3 | 2:
			rec.Cause = f.text()
		case 16 << 3:
			rec.Restarts = f.number() != 0
		case 17<<3 | 2:
			f.once(rec.GetAllocation() == nil)
			rec.Allocation = &w.given
			f.allocation(f.bytes(), &w.given)
		default:
			f.failed = true
		}
	}
	d.failed = f.failed
	return rec
}

func (d *decoder) host(s string, host *nodev1.HostInfo) {
	f := decoder{rest: s, failed: d.failed}
	for f.more() {
		switch f.number() {
		case 1<<3 | 2:
			host.Id = f.text()
		case 2<<3 | 2:
			host.Address = f.text()
		case 3<<3 | 2:
			host.Socket = f.text()
		case 4<<3 | 2:
			host.Machine = f.text()
		case 5 << 3:
			host.Pid = int32(f.number()) //nolint:gosec // as protobuf does
		case 6<<3 | 2:
			host.Build = f.text()
		case 7<<3 | 2:
			host.Directory = f.text()
		case 8<<3 | 2:
			host.Nonce = f.text()
		default:
			f.failed = true
		}
	}
	d.failed = f.failed
}

func (d *decoder) allocation(s string, given *nodev1.Allocation) {
	f := decoder{rest: s, failed: d.failed}
	for f.more() {
		switch f.number() {
		case 1<<3 | 2:
			given.Machine = f.text()
		case 2<<3 | 2:
			given.Name = f.text()
		case 3<<3 | 2:
			f.resource(f.bytes(), given)
		case 4<<3 | 2:
			gpus := decoder{rest: f.bytes(), failed: f.failed}
			for gpus.more() {
				given.Gpus = append(given.Gpus, uint32(gpus.number())) //nolint:gosec // as protobuf does
			}
			f.failed = gpus.failed
		default:
			f.failed = true
		}
	}
	d.failed = f.failed
}

func (d *decoder) resource(s string, given *nodev1.Allocation) {
	f := decoder{rest: s, failed: d.failed}
	var name string
	var amount uint64
	for f.more() {
		switch f.number() {
		case 1<<3 | 2:
			name = f.text()
		case 2 << 3:
			amount = f.number()
		default:
			f.failed = true
		}
	}
	if given.Resources == nil {
		given.Resources = make(map[string]int64)
	}
	given.Resources[name] = int64(amount)
	d.failed = f.failed
}

func (d *decoder) attribute(s string, rec *nodev1.NodeRecord) {
	f := decoder{rest: s, failed: d.failed}
	var key string
	var value *nodev1.Value
	for f.more() {
		switch f.number() {
		case 1<<3 | 2:
			key = f.text()
		case 2<<3 | 2:
			f.once(value == nil)
			value = new(nodev1.Value)
			f.once(proto.Unmarshal([]byte(f.bytes()), value) == nil)
		default:
			f.failed = true
		}
	}
	f.once(value != nil)
	if rec.Attributes == nil {
		rec.Attributes = make(map[string]*nodev1.Value)
	}
	rec.Attributes[key] = value
	d.failed = f.failed
}

func (d *decoder) time(s string, t *timestamppb.Timestamp) {
	f := decoder{rest: s, failed: d.failed}
	for f.more() {
		switch f.number() {
		case 1 << 3:
			t.Seconds = int64(f.number()) //nolint:gosec // as protobuf does
		case 2 << 3:
			t.Nanos = int32(f.number()) //nolint:gosec // as protobuf does
		default:
			f.failed = true
		}
	}
	d.failed = f.failed
}

// once fails unless what it is given holds: a message that comes twice has to be merged.
func (d *decoder) once(holds bool) { d.failed = d.failed || !holds }

// number consumes a varint.
func (d *decoder) number() uint64 {
	var n uint64
	for i := 0; i < len(d.rest) && i < 10; i++ {
		c := d.rest[i]
		if i == 9 && c > 1 {
			break
		}
		n |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			d.rest = d.rest[i+1:]
			return n
		}
	}
	d.failed = true
	return 0
}

// bytes consumes a length and as many bytes.
func (d *decoder) bytes() string {
	n := d.number()
	if d.failed || n > uint64(len(d.rest)) {
		d.failed = true
		return ""
	}
	s := d.rest[:n]
	d.rest = d.rest[n:]
	return s
}

// text consumes a string.
func (d *decoder) text() string {
	s := d.bytes()
	if !utf8.ValidString(s) {
		d.failed = true
	}
	return s
}
