package store_test

import (
	"fmt"
	"os"
	"path/filepath"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/ps/store"
)

// A machine's officer reserves versions and publishes them, another process fills them, and every
// process of the machine reads the newest in place. Here one process does it all.
func Example() {
	parent, err := os.MkdirTemp("", "store")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(parent) }()
	directory := filepath.Join(parent, "parameters")
	officer, err := store.Open(directory, store.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	push := func(id uint64, parameters string) (bool, error) {
		version := &psv1.Version{Tag: "policy", Id: id, Size: uint64(len(parameters))}
		draft, err := officer.Reserve(version, "")
		if err != nil {
			return false, err
		}
		if err := draft.Lend(); err != nil {
			return false, err
		}
		sum, err := store.Fill(draft.Path(), []byte(parameters)) // the pusher's part
		if err != nil {
			return false, err
		}
		if err := draft.Reclaim(sum); err != nil {
			return false, err
		}
		return officer.Publish(draft, version)
	}
	fmt.Println(push(1, "random"))
	fmt.Println(push(2, "better"))
	fmt.Println(push(1, "late"))

	reader, err := store.NewReader(directory, "policy")
	if err != nil {
		fmt.Println(err)
		return
	}
	newest, err := reader.Pull()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("version %d: %s\n", newest.Version().GetId(), newest.Bytes())
	fmt.Println(newest.Release(), reader.Close(), officer.Remove())
	// Output:
	// true <nil>
	// true <nil>
	// false <nil>
	// version 2: better
	// <nil> <nil> <nil>
}
