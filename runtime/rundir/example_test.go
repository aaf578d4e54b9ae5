package rundir_test

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/raylink/raylink/runtime/rundir"
)

// The driver creates the directory of its run. Other programs find the newest run in the same data
// directory; they usually pass "", which means [rundir.DataDir].
func ExampleLatestRun() {
	data, err := os.MkdirTemp("", "raylink")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(data) //nolint:errcheck // nothing is left to do with its error
	run, err := rundir.NewRun(data)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer run.Close() //nolint:errcheck // nothing is left to do with its error

	latest, err := rundir.LatestRun(data)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("the driver's run:", filepath.Base(latest) == run.ID())
	file, err := run.Log("manager-0/learner-0")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("a node's log:", file == filepath.Join(latest, "logs", "manager-0", "learner-0.log"))
	// Output:
	// the driver's run: true
	// a node's log: true
}

// A Brain that is restarted on the same data has the same token.
func ExampleKeptToken() {
	data, err := os.MkdirTemp("", "raylink")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(data) //nolint:errcheck // nothing is left to do with its error

	generated, err := rundir.KeptToken(data)
	if err != nil {
		fmt.Println(err)
		return
	}
	kept, err := rundir.KeptToken(data)
	fmt.Println("the same token:", kept == generated, err)
	info, err := os.Stat(filepath.Join(data, "token"))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(info.Name(), info.Mode())
	// Output:
	// the same token: true <nil>
	// token -rw-------
}
