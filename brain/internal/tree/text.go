package tree

import (
	"sync"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/internal/protocheck"
)

// CheckText refuses a request with text that is not valid UTF-8, and names the field. A connection
// checks that too, but a caller in Brain's own process has none; and text that cannot be encoded
// could be neither stored nor sent to watchers.
func CheckText(req proto.Message) error {
	if encodes(req) {
		return nil
	}
	found := protocheck.First(req)
	if found == nil {
		return nil
	}
	return connect.Errorf(connect.CodeInvalidArgument, "the field %s of the %s is not UTF-8: %q",
		found.Path, req.ProtoReflect().Descriptor().Name(), clip(found.Text))
}

// maxScratch bounds the buffers that are kept between checks.
const maxScratch = 64 << 10

// scratch has the buffers of encodes, of type *[]byte.
var scratch sync.Pool //nolint:gochecknoglobals // a pool

// encodes reports whether a request can be encoded. Encoding takes a fraction of the time of a
// search for an invalid field, and allocates nothing.
func encodes(req proto.Message) bool {
	buf, ok := scratch.Get().(*[]byte)
	if !ok {
		buf = new([]byte)
	}
	encoded, err := proto.MarshalOptions{}.MarshalAppend((*buf)[:0], req)
	if *buf = encoded; cap(encoded) <= maxScratch {
		scratch.Put(buf)
	}
	return err == nil
}
