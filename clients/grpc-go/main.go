// Grpc-go calls a counter node with grpc-go, as a gRPC client without RayLink does: it names the
// node in the header raylink-node.
//
// RAYLINK_COUNTER is the line that `counter serve` printed, RAYLINK_TOKEN the system's token. With
// RAYLINK_CA set that is a system with TLS, see testTLS.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	counterv1 "github.com/raylink/raylink/clients/grpc-go/gen/counter/v1"
)

// timeout is the maximum duration of a test.
const timeout = 20 * time.Second

// endpoint is the line that `counter serve` prints.
type endpoint struct {
	Gateway string `json:"gateway"`
	Host    string `json:"host"`
	Path    string `json:"path"`
	NID     string `json:"nid"`
}

func main() {
	var where endpoint
	if err := json.Unmarshal([]byte(os.Getenv("RAYLINK_COUNTER")), &where); err != nil {
		fmt.Fprintln(os.Stderr, "RAYLINK_COUNTER:", err)
		os.Exit(2)
	}
	passed, failed := 0, 0
	if os.Getenv("RAYLINK_CA") != "" {
		passed, failed = testTLS(where)
		fmt.Printf("grpc-go over TLS: %d passed, %d failed\n", passed, failed)
		os.Exit(min(failed, 1))
	}
	for _, place := range []struct{ name, address string }{{"the host", where.Host}, {"the gateway", where.Gateway}} {
		for _, node := range []struct{ how, name string }{{"by path", where.Path}, {"by nid", where.NID}} {
			for _, test := range tests {
				err := runTest(place.address, node.name, test.run)
				if err == nil {
					passed++
					continue
				}
				failed++
				fmt.Fprintf(os.Stderr, "FAILED: %s, %s, %s: %v\n", test.title, node.how, place.name, err)
			}
		}
	}
	fmt.Printf("grpc-go: %d passed, %d failed\n", passed, failed)
	if failed > 0 {
		os.Exit(1)
	}
}

// fixture is the argument of a test. Its context names the node and has the token.
type fixture struct {
	context.Context

	node    string
	conn    *grpc.ClientConn
	counter counterv1.CounterClient
}

// as returns a context for the same node with another token.
func (c *fixture) as(token string) context.Context {
	return metadata.NewOutgoingContext(c.Context, metadata.Pairs("raylink-node", c.node, "authorization", "Bearer "+token))
}

func runTest(address, node string, test func(*fixture) error) (err error) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c := &fixture{Context: ctx, node: node, conn: conn, counter: counterv1.NewCounterClient(conn)}
	c.Context = c.as(os.Getenv("RAYLINK_TOKEN"))
	return test(c)
}

// refused checks that an error has a code, and returns it.
func refused(err error, code codes.Code) (*status.Status, error) {
	s, ok := status.FromError(err)
	if !ok || s.Code() != code {
		return nil, fmt.Errorf("%w instead of %v", err, code)
	}
	return s, nil
}

// same compares what is there with what should be.
func same[T comparable](what string, got, want T) error {
	if got != want {
		return fmt.Errorf("%s: %v instead of %v", what, got, want)
	}
	return nil
}

// limits are the details that every OutOfRange error has.
func limits(err error) (*counterv1.Limits, error) {
	s, err := refused(err, codes.OutOfRange)
	if err != nil {
		return nil, err
	}
	if len(s.Details()) == 0 {
		return nil, fmt.Errorf("no details: %w", s.Err())
	}
	l, ok := s.Details()[0].(*counterv1.Limits)
	if !ok {
		return nil, fmt.Errorf("the detail is a %T", s.Details()[0])
	}
	return l, nil
}

var tests = []struct {
	title string
	run   func(*fixture) error
}{
	{"unary calls add up", unary},
	{"an error has its details", details},
	{"a unary call ends with its deadline", deadline},
	{"a wrong token is refused", wrongToken},
	{"no such node", noSuchNode},
	{"a server stream brings all and ends", serverStream},
	{"a server stream ends with its deadline", streamDeadline},
	{"a client stream is summed up", clientStream},
	{"a client stream is refused with details", clientStreamRefused},
	{"both sides of a bidi stream talk, until it ends with an error", bidi},
	{"the host is healthy", health},
}

func unary(c *fixture) error {
	before, err := c.counter.Get(c, &counterv1.GetRequest{})
	if err != nil {
		return err
	}
	res, err := c.counter.Add(c, &counterv1.AddRequest{By: 2})
	if err != nil {
		return err
	}
	return same("sum", res.GetSum(), before.GetSum()+2)
}

func details(c *fixture) error {
	before, err := c.counter.Get(c, &counterv1.GetRequest{})
	if err != nil {
		return err
	}
	_, err = c.counter.Add(c, &counterv1.AddRequest{By: 5000})
	l, lerr := limits(err)
	if lerr != nil {
		return lerr
	}
	return errors.Join(
		same("text", status.Convert(err).Message(), fmt.Sprintf("%d and 5000 more would not be within -1000 to 1000", before.GetSum())),
		same("min", l.GetMin(), -1000), same("max", l.GetMax(), 1000), same("sum", l.GetSum(), before.GetSum()),
	)
}

func deadline(c *fixture) error {
	ctx, cancel := context.WithTimeout(c, 100*time.Millisecond)
	defer cancel()
	_, err := c.counter.WaitFor(ctx, &counterv1.WaitForRequest{AtLeast: 1000})
	_, err = refused(err, codes.DeadlineExceeded)
	return err
}

func wrongToken(c *fixture) error {
	_, err := c.counter.Get(c.as("wrong"), &counterv1.GetRequest{})
	if _, err := refused(err, codes.Unauthenticated); err != nil {
		return err
	}
	stream, err := c.counter.Watch(c.as(""), &counterv1.WatchRequest{Count: 1})
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	_, err = refused(err, codes.Unauthenticated)
	return err
}

func noSuchNode(c *fixture) error {
	nobody := *c
	nobody.node = "counter-77"
	_, err := c.counter.Get(nobody.as(os.Getenv("RAYLINK_TOKEN")), &counterv1.GetRequest{})
	_, err = refused(err, codes.NotFound)
	return err
}

func serverStream(c *fixture) error {
	stream, err := c.counter.Watch(c, &counterv1.WatchRequest{Count: 2})
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if _, err := c.counter.Add(c, &counterv1.AddRequest{By: 3}); err != nil {
		return err
	}
	second, err := stream.Recv()
	if err != nil {
		return err
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("no end: %w", err)
	}
	return same("second sum", second.GetSum(), first.GetSum()+3)
}

func streamDeadline(c *fixture) error {
	ctx, cancel := context.WithTimeout(c, 200*time.Millisecond)
	defer cancel()
	stream, err := c.counter.Watch(ctx, &counterv1.WatchRequest{})
	if err != nil {
		return err
	}
	if _, err := stream.Recv(); err != nil {
		return err
	}
	_, err = stream.Recv()
	_, err = refused(err, codes.DeadlineExceeded)
	return err
}

func clientStream(c *fixture) error {
	before, err := c.counter.Get(c, &counterv1.GetRequest{})
	if err != nil {
		return err
	}
	stream, err := c.counter.Sum(c)
	if err != nil {
		return err
	}
	for by := range int64(4) {
		if err := stream.Send(&counterv1.SumRequest{By: by}); err != nil {
			return err
		}
	}
	res, err := stream.CloseAndRecv()
	if err != nil {
		return err
	}
	return errors.Join(same("sum", res.GetSum(), before.GetSum()+6), same("count", res.GetCount(), 4))
}

func clientStreamRefused(c *fixture) error {
	stream, err := c.counter.Sum(c)
	if err != nil {
		return err
	}
	if err := stream.Send(&counterv1.SumRequest{By: 5000}); err != nil {
		return err
	}
	_, err = stream.CloseAndRecv()
	l, err := limits(err)
	if err != nil {
		return err
	}
	return same("max", l.GetMax(), 1000)
}

func bidi(c *fixture) error {
	before, err := c.counter.Get(c, &counterv1.GetRequest{})
	if err != nil {
		return err
	}
	stream, err := c.counter.Tally(c)
	if err != nil {
		return err
	}
	sum := before.GetSum()
	for _, by := range []int64{5, -5} {
		if err := stream.Send(&counterv1.TallyRequest{By: by}); err != nil {
			return err
		}
		sum += by
		res, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := same("sum", res.GetSum(), sum); err != nil {
			return err
		}
	}
	if err := stream.Send(&counterv1.TallyRequest{By: 5000}); err != nil {
		return err
	}
	_, err = stream.Recv()
	l, err := limits(err)
	if err != nil {
		return err
	}
	return same("sum in the details", l.GetSum(), sum)
}

func health(c *fixture) error {
	client := healthv1.NewHealthClient(c.conn)
	for _, service := range []string{"", "counter.v1.Counter"} {
		res, err := client.Check(c, &healthv1.HealthCheckRequest{Service: service})
		if err != nil {
			return fmt.Errorf("service %q: %w", service, err)
		}
		if err := same("status", res.GetStatus(), healthv1.HealthCheckResponse_SERVING); err != nil {
			return err
		}
	}
	_, err := client.Check(c, &healthv1.HealthCheckRequest{Service: "demo.v1.Learner"})
	_, err = refused(err, codes.NotFound)
	return err
}
