package proto_test

import (
	"fmt"
	"io/fs"

	"github.com/raylink/raylink/proto"
)

// The schemas are named as users import them.
func Example() {
	names, err := fs.Glob(proto.Schemas, "raylink/options/v1/*.proto")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(names)
	// Output:
	// [raylink/options/v1/options.proto]
}
