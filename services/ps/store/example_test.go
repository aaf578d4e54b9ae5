package store_test

import (
	"fmt"
	"os"
	"path/filepath"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/ps/store"
)

// A machine's officer puts versions, and every process of the machine reads the newest in place.
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
	for id, parameters := range []string{"random", "better"} {
		if _, err := officer.Put(&psv1.Version{Tag: "policy", Id: uint64(id + 1)}, []byte(parameters)); err != nil {
			fmt.Println(err)
			return
		}
	}
	stored, err := officer.Put(&psv1.Version{Tag: "policy", Id: 1}, []byte("late"))
	fmt.Println("an older version is stored:", stored, err)

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
	// an older version is stored: false <nil>
	// version 2: better
	// <nil> <nil> <nil>
}
