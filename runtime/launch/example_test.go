package launch_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/raylink/raylink/runtime/launch"
)

// audited is a Launcher that records what it launches. A Launcher that starts processes on other
// machines, or in containers, has the same shape.
type audited struct {
	launch.Launcher

	record func(name string)
}

func (a audited) Launch(ctx context.Context, spec launch.Spec) (launch.Process, error) {
	p, err := a.Launcher.Launch(ctx, spec)
	if err == nil {
		a.record(spec.Name)
	}
	return p, err
}

// The launched process is this program again, which calls [launch.Inherited] and gets the payload
// from it. Here it answers with the part of the payload after the colon, and serves until Stop.
func ExampleLauncher() {
	ctx := context.Background()
	launcher := audited{
		Launcher: launch.Self(),
		record:   func(name string) { fmt.Println("launched", name) },
	}
	p, err := launcher.Launch(ctx, launch.Spec{Name: "worker-0", Payload: []byte("echoes:ready to work")})
	if err != nil {
		fmt.Println(err)
		return
	}
	result, err := p.Ready(ctx)
	fmt.Println(string(result), err)
	fmt.Println(p.Stop(ctx), p.Exit())
	// Output:
	// launched worker-0
	// ready to work <nil>
	// <nil> exited with code 0
}

// A program that can be launched calls Inherited early. If it was launched, it sends Hello at once
// and Ready when it is set up, and serves until it is stopped or its parent has died.
func ExampleInherited() {
	child, err := launch.Inherited()
	if err != nil {
		fmt.Println(err)
		return
	}
	if child == nil {
		fmt.Println("not launched")
		return
	}
	if err := child.Hello(launch.Build()); err != nil {
		fmt.Println(err)
		return
	}
	// Set up what child.Payload() describes, then report it and serve.
	if err := child.Ready([]byte("127.0.0.1:7001")); err != nil {
		fmt.Println(err)
		return
	}
	select {
	case <-child.Stop():
	case <-child.Orphaned():
	}
	if err := errors.Join(child.Goodbye(false), child.Close()); err != nil {
		fmt.Println(err)
	}
	// Output: not launched
}
