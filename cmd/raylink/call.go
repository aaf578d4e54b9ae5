package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/internal/nodename"
)

// callFlags are the flags of the command.
type callFlags struct {
	headers  []string
	timeout  time.Duration
	defaults bool
	verbose  bool
}

func (a *app) callCommand() *cobra.Command {
	var f callFlags
	cmd := &cobra.Command{
		Use:   "call NODE METHOD [REQUEST]",
		Short: "Call a method of a node",
		Long: `call calls a method of a node, found by path, alias or nid; BRAIN is Brain itself. METHOD is the method's name, alone or
as Service/Method or package.Service/Method: one of the node's own, or one that every node has (Ping, Info, Children, Create,
CreateTunnel, TunnelStats, Stop).

REQUEST is the request in JSON, or - to read it from standard input; without it the request is empty. For a client or a bidi
stream it may be several, one after the other; without it they are read from standard input, each sent as it comes.

The response is printed as JSON: of a server or a bidi stream one message a line, as they come. With -o json every message is on
one line.`,
		Example: `  raylink call counter-0 Add '{"by": 2}'
  raylink call learner-0 Info
  echo '{"number": 1} {"number": 2}' | raylink call probe-0 Sum -`,
		Args:              between(2, 3, "NODE METHOD [REQUEST]"), //nolint:mnd // as the usage says
		ValidArgsFunction: a.complete(completeNode, completeMethod, completeRequest),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), f, args)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.headers, "header", "H", nil, "metadata to send along, as 'Key: value'; may be repeated")
	flags.DurationVar(&f.timeout, "timeout", 0, "the call's deadline, e.g. 1.5s, which the node receives too (default: none)")
	flags.BoolVar(&f.defaults, "defaults", false, "print fields that have their default value too")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "print the metadata that the node sends back, to standard error")
	a.clientFlags(cmd)
	return cmd
}

func (a *app) call(ctx context.Context, f callFlags, args []string) error {
	node, name := args[0], args[1]
	headers, err := parseHeaders(f.headers)
	if err != nil {
		return err
	}
	if f.timeout < 0 {
		return usagef("--timeout is negative")
	}
	s, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	rec, err := s.lookup(ctx, node)
	if err != nil {
		return err
	}
	known := s.learn(ctx, node)
	defer known.close()
	method, err := known.method(rec, name)
	if err != nil {
		return &callError{err, known}
	}
	x := &exchange{
		app: a, schema: known, method: method, flags: f, client: s.client(node),
		spec: connect.Spec{
			StreamType: shapeOf(method), Schema: method,
			Procedure: nodename.Procedure(string(method.Parent().FullName()), string(method.Name())),
		},
	}
	if f.timeout > 0 {
		// The timeout is the call's: finding the node and fetching its schema don't count.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.timeout)
		defer cancel()
	}
	ctx, x.info = connect.NewClientContext(ctx)
	for _, h := range headers {
		x.info.RequestHeader().Add(h[0], h[1])
	}
	x.requests = a.requests(x.spec.StreamType, args[2:])
	err = x.run(ctx)
	if err != nil && !isLocal(err) {
		return &callError{nameDeadline(err, rec.GetPath(), x.spec.Procedure), known}
	}
	return err
}

// nameDeadline adds node and method to the error of a deadline that this side has noticed first.
// The node's own error has them.
func nameDeadline(err error, node, procedure string) error {
	if connecterr.Text(err) != context.DeadlineExceeded.Error() {
		return err
	}
	return connect.Errorf(connect.CodeDeadlineExceeded, "calling %s %s: %v",
		node, nodename.MethodFullName(procedure), context.DeadlineExceeded)
}

// isLocal reports whether an error arose in this program rather than in the call.
func isLocal(err error) bool {
	var (
		usage *usageError
		here  *localError
	)
	return errors.As(err, &usage) || errors.As(err, &here)
}

// requests returns the source of the requests: the command line or standard input. A unary call
// without a request has the empty message.
func (a *app) requests(shape connect.StreamType, given []string) io.Reader {
	switch {
	case len(given) > 0 && given[0] != "-":
		return strings.NewReader(given[0])
	case len(given) > 0 || shape&connect.StreamTypeClient != 0:
		return a.in
	}
	return strings.NewReader("{}")
}

func parseHeaders(given []string) ([][2]string, error) {
	headers := make([][2]string, 0, len(given))
	for _, h := range given {
		key, value, ok := strings.Cut(h, ":")
		key = strings.TrimSpace(key)
		if !ok || key == "" || strings.ContainsAny(key, " \t\r\n") || strings.ContainsAny(value, "\r\n") {
			return nil, usagef("a header is given as 'Key: value', not as %q", h)
		}
		headers = append(headers, [2]string{key, strings.TrimSpace(value)})
	}
	return headers, nil
}

func shapeOf(method protoreflect.MethodDescriptor) connect.StreamType {
	shape := connect.StreamTypeUnary
	if method.IsStreamingClient() {
		shape |= connect.StreamTypeClient
	}
	if method.IsStreamingServer() {
		shape |= connect.StreamTypeServer
	}
	return shape
}

// exchange is one call: its method, its flags and its source of requests.
type exchange struct {
	app      *app
	schema   *schema
	method   protoreflect.MethodDescriptor
	flags    callFlags
	client   *connect.Client
	spec     connect.Spec
	info     *connect.CallInfo
	requests io.Reader
}

func (x *exchange) run(ctx context.Context) error {
	if x.flags.verbose {
		defer x.printMetadata()
	}
	if x.spec.StreamType&connect.StreamTypeClient != 0 {
		return x.talk(ctx)
	}
	decoder := json.NewDecoder(x.requests)
	req, err := x.next(decoder)
	if errors.Is(err, io.EOF) {
		req, err = dynamicpb.NewMessage(x.method.Input()), nil
	}
	if err != nil {
		return err
	}
	if _, err := x.next(decoder); !errors.Is(err, io.EOF) {
		return usagef("%s takes one request, and there is more than one", x.method.FullName())
	}
	if x.spec.StreamType == connect.StreamTypeUnary {
		res := dynamicpb.NewMessage(x.method.Output())
		if err := x.client.CallUnary(ctx, x.spec, req, res); err != nil {
			return err
		}
		return x.print(res)
	}
	stream, err := x.client.CallServerStream(ctx, x.spec, req)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	return x.receive(stream)
}

// talk makes a client-streaming or bidi call: it sends and receives concurrently.
func (x *exchange) talk(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := x.client.CallClientStream(ctx, x.spec)
	if err != nil {
		cancel()
		return err
	}
	defer func() {
		// Cancel before closing: a stream that is closed first would have ended without an error
		// for the node.
		cancel()
		_ = stream.Close()
	}()
	if err := stream.SendHeaders(); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	received := make(chan error, 1)
	go func() { received <- x.receive(stream) }()
	sent := make(chan error, 1)
	// If the node ends the call first, this goroutine may block in reading standard input until the
	// process exits.
	go func() { sent <- x.send(stream) }()
	select {
	case err := <-received:
		return err
	case err := <-sent:
		if err != nil {
			cancel()
			<-received //nolint:errcheck // that it was cancelled
			return err
		}
		return <-received
	}
}

// send sends the requests as they are read, and half-closes the stream after the last.
func (x *exchange) send(stream connect.ClientStream) error {
	for decoder := json.NewDecoder(x.requests); ; {
		req, err := x.next(decoder)
		if errors.Is(err, io.EOF) {
			return stream.CloseSend()
		}
		if err != nil {
			return err
		}
		if err := stream.Send(req); err != nil {
			// The receiving goroutine gets the cause.
			return nil //nolint:nilerr // see above
		}
	}
}

// receive prints the responses as they arrive.
func (x *exchange) receive(stream connect.ClientStream) error {
	for {
		res := dynamicpb.NewMessage(x.method.Output())
		err := stream.Receive(res)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := x.print(res); err != nil {
			return err
		}
	}
}

// next reads one request. It returns io.EOF after the last.
func (x *exchange) next(decoder *json.Decoder) (proto.Message, error) {
	var raw json.RawMessage
	if err := decoder.Decode(&raw); err != nil {
		var syntax *json.SyntaxError
		switch {
		case errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
			return nil, io.EOF
		case errors.As(err, &syntax), errors.Is(err, io.ErrUnexpectedEOF):
			return nil, usagef("the request is not JSON: %v", err)
		}
		return nil, &localError{fmt.Errorf("reading the request: %w", err)}
	}
	req := dynamicpb.NewMessage(x.method.Input())
	if err := (protojson.UnmarshalOptions{Resolver: x.schema}).Unmarshal(raw, req); err != nil {
		return nil, usagef("the request does not fit %s: %s; it has %s", x.method.Input().FullName(), jsonReason(err), fieldNames(x.method.Input()))
	}
	return req, nil
}

// jsonReason is protojson's error text without its prefix, whose space varies on purpose.
func jsonReason(err error) string {
	text := strings.ReplaceAll(err.Error(), "\u00a0", " ")
	return strings.TrimPrefix(text, "proto: ")
}

// fieldNames lists a message's fields with their types.
func fieldNames(message protoreflect.MessageDescriptor) string {
	if message.Fields().Len() == 0 {
		return "no fields"
	}
	names := make([]string, message.Fields().Len())
	for i := range names {
		field := message.Fields().Get(i)
		kind := field.Kind().String()
		switch {
		case field.Message() != nil:
			kind = string(field.Message().FullName())
		case field.Enum() != nil:
			kind = string(field.Enum().FullName())
		}
		switch {
		case field.IsMap():
			kind = "map"
		case field.IsList():
			kind = "repeated " + kind
		}
		names[i] = field.JSONName() + " (" + kind + ")"
	}
	return strings.Join(names, ", ")
}

// print writes a response.
func (x *exchange) print(res proto.Message) error {
	text, err := protojson.MarshalOptions{Resolver: x.schema, EmitDefaultValues: x.flags.defaults}.Marshal(res)
	if err != nil {
		return &localError{fmt.Errorf("the response can't be written as JSON: %w", err)}
	}
	var out bytes.Buffer
	if x.app.output == outputText && x.spec.StreamType&connect.StreamTypeServer == 0 {
		err = json.Indent(&out, text, "", "  ")
	} else {
		err = json.Compact(&out, text)
	}
	if err != nil {
		return &localError{fmt.Errorf("the response can't be written as JSON: %w", err)}
	}
	out.WriteByte('\n')
	if _, err := x.app.out.Write(out.Bytes()); err != nil {
		return &localError{fmt.Errorf("writing the response: %w", err)}
	}
	return nil
}

// printMetadata prints the response's header and trailer to standard error.
func (x *exchange) printMetadata() {
	for _, part := range []struct {
		name   string
		header *connect.Header
	}{{"header", x.info.ResponseHeader()}, {"trailer", x.info.ResponseTrailer()}} {
		for key, values := range part.header.All() {
			if transportHeader(key) {
				continue
			}
			for _, value := range values {
				_, _ = fmt.Fprintf(x.app.err, "%s %s: %s\n", part.name, printable(key), printable(value)) // no other place to report it
			}
		}
	}
}

// transportHeader reports whether the transport has set a header, rather than the node.
func transportHeader(key string) bool {
	switch strings.ToLower(key) {
	case "accept-encoding", "accept-post", "date", "trailer", "vary":
		return true
	}
	key = strings.ToLower(key)
	return strings.HasPrefix(key, "content-") || strings.HasPrefix(key, "connect-") || strings.HasPrefix(key, "grpc-")
}
