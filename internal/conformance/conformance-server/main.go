// Conformance-server is the server under test. It hosts the suite's service as a node, and reports
// the address to connectconformance.
//
//	conformance-server -at host      the address of the node's own host
//	conformance-server -at gateway   Brain's address; the node lives in a process of its own
//	conformance-server -at brain     Brain's address; the node lives in Brain's process
//
// The node has the alias "conf".
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/raylink/raylink"
	conformancev1 "github.com/raylink/raylink/internal/conformance/gen/connectrpc/conformance/v1"
	"github.com/raylink/raylink/internal/conformance/gen/connectrpc/conformance/v1/conformancev1raylink"
	"github.com/raylink/raylink/internal/conformance/service"
	"github.com/raylink/raylink/internal/conformance/wire"
	"github.com/raylink/raylink/runtime"
)

// The node's process runs main too. It gets its settings from the environment.
const (
	maxMessageVar = "CONFORMANCE_MAX_MESSAGE"
	dataVar       = "CONFORMANCE_DATA"
	// brokenVar makes the node omit response headers, to check that the suite can fail.
	brokenVar = "CONFORMANCE_BROKEN"
)

func main() {
	at := flag.String("at", "host", "whose address to report: host, gateway or brain")
	flag.Parse()
	if err := serve(*at); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

func serve(at string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if os.Getenv(dataVar) == "" {
		var req conformancev1.ServerCompatRequest
		if err := wire.Read(os.Stdin, &req); err != nil {
			return err
		}
		dir, err := os.MkdirTemp("", "conformance")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir) //nolint:errcheck // it is temporary
		for key, value := range map[string]string{dataVar: dir, maxMessageVar: strconv.FormatUint(uint64(req.GetMessageReceiveLimit()), 10)} {
			if err := os.Setenv(key, value); err != nil {
				return err
			}
		}
	}
	options := []raylink.Option{
		raylink.WithData(os.Getenv(dataVar)),
		runtime.WithOpen(), // the suite's clients have no token
		raylink.WithOutput(func(path, line string) { fmt.Fprintln(os.Stderr, path, line) }),
		conformancev1raylink.ConformanceServiceType(func(context.Context, *runtime.Node) (conformancev1raylink.ConformanceServiceNode, error) {
			return service.Node{Broken: os.Getenv(brokenVar) != ""}, nil
		}),
	}
	if n, err := strconv.Atoi(os.Getenv(maxMessageVar)); err == nil && n > 0 {
		options = append(options, raylink.WithMaxMessage(n))
	}
	rt, err := raylink.Init(ctx, options...)
	if err != nil {
		return err
	}
	defer rt.Close() //nolint:errcheck // the process ends
	where := runtime.OwnProcess()
	if at == "brain" {
		where = runtime.ParentProcess()
	}
	node, err := conformancev1raylink.CreateConformanceService(ctx, rt, runtime.WithAlias("conf"), where)
	if err != nil {
		return err
	}
	address := rt.Address()
	if at == "host" {
		address = node.Ref().Record().GetHost().GetAddress()
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return err
	}
	if err := wire.Write(os.Stdout, &conformancev1.ServerCompatResponse{Host: host, Port: uint32(number)}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
