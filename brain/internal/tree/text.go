package tree

import (
	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/internal/protocheck"
)

// CheckText refuses a request with text that is not valid UTF-8, and names the field. A connection
// checks that too, but a caller in Brain's own process has none; and text that cannot be encoded
// could be neither stored nor sent to watchers.
func CheckText(req proto.Message) error {
	found := protocheck.First(req)
	if found == nil {
		return nil
	}
	return connect.Errorf(connect.CodeInvalidArgument, "the field %s of the %s is not UTF-8: %q",
		found.Path, req.ProtoReflect().Descriptor().Name(), clip(found.Text))
}
