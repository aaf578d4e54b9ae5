package records

import (
	"google.golang.org/protobuf/proto"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
)

// AppendLookupRequest appends the encoding of a request for a lookup. It is a oneof, which protobuf
// encodes and decodes by reflection. What protobuf's encoder would refuse is an error.
func AppendLookupRequest(b []byte, req *brainv1.LookupRequest) ([]byte, error) {
	e := encoder{b: b}
	if where := req.GetWhere(); where != nil {
		start := e.begin(1)
		switch by := where.GetBy().(type) {
		case *brainv1.Where_Path:
			e.member(1, by.Path)
		case *brainv1.Where_Alias:
			e.member(2, by.Alias)
		case *brainv1.Where_Nid:
			e.member(3, by.Nid)
		case *brainv1.Where_Any:
			e.member(4, by.Any)
		}
		e.unknown(where)
		e.end(start)
	}
	e.unknown(req)
	return e.b, e.err
}

// UnmarshalLookupRequest is [proto.Unmarshal] for a request for a lookup.
func UnmarshalLookupRequest(b []byte, req *brainv1.LookupRequest) error {
	if decodeLookupRequest(b, req) {
		return nil
	}
	return proto.Unmarshal(b, req) //nolint:wrapcheck // it is protobuf's own
}

// decodeLookupRequest decodes a request into an empty message. It reports false, and leaves the
// message empty, if the request has anything but one way to identify a node.
func decodeLookupRequest(b []byte, req *brainv1.LookupRequest) bool {
	if req.GetWhere() != nil || len(req.ProtoReflect().GetUnknown()) > 0 {
		return false
	}
	d := decoder{rest: string(b)}
	if d.number() != messageTag(1) {
		return false
	}
	f := decoder{rest: d.bytes(), failed: d.failed || d.rest != ""}
	where := new(brainv1.Where)
	switch f.number() {
	case 1<<3 | 2:
		where.By = &brainv1.Where_Path{Path: f.text()}
	case 2<<3 | 2:
		where.By = &brainv1.Where_Alias{Alias: f.text()}
	case 3<<3 | 2:
		where.By = &brainv1.Where_Nid{Nid: f.text()}
	case 4<<3 | 2:
		where.By = &brainv1.Where_Any{Any: f.text()}
	default:
		return false
	}
	if f.failed || f.rest != "" {
		return false
	}
	req.Where = where
	return true
}
