package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/runtime"
)

// The exit codes; docs/cli.md explains them.
const (
	exitOK      = 0
	exitFailed  = 1
	exitUsage   = 2
	exitNoBrain = 3
	// A call that failed exits with exitCall + its code, as grpcurl does.
	exitCall = 64
)

// usageError is a mistake in the command line.
type usageError struct{ text string }

// Error implements error.
func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// brainError reports that there is no usable Brain.
type brainError struct {
	code connect.Code
	text string
	err  error
}

// Error implements error.
func (e *brainError) Error() string { return e.text }

// Unwrap returns the cause.
func (e *brainError) Unwrap() error { return e.err }

func brainErrorf(err error, format string, args ...any) *brainError {
	return &brainError{connect.CodeUnavailable, fmt.Sprintf(format, args...), err}
}

// localError is a failure of this program, whatever its code.
type localError struct{ err error }

// Error implements error.
func (e *localError) Error() string { return connecterr.Text(e.err) }

// Unwrap returns the cause.
func (e *localError) Unwrap() error { return e.err }

// callError is the error of a call, or of the lookups before it, with the schema of its details.
type callError struct {
	err    error
	schema *schema
}

// Error implements error.
func (e *callError) Error() string { return connecterr.Text(e.err) }

// Unwrap returns the call's error.
func (e *callError) Unwrap() error { return e.err }

// failure is an error as it is printed.
type failure struct {
	Code    string          `json:"code,omitempty"`
	Message string          `json:"message"`
	Details []failureDetail `json:"details,omitempty"`
	Trace   []failureHop    `json:"trace,omitempty"`
}

type failureDetail struct {
	Type  string          `json:"type"`
	Value json.RawMessage `json:"value,omitempty"`
	// Base64 is set instead of Value if the schema of the detail is not known.
	Base64 []byte `json:"base64,omitempty"`
}

type failureHop struct {
	Node   string `json:"node"`
	Method string `json:"method"`
}

// writeError writes an error to standard error and returns its exit code.
func (a *app) writeError(err error) int {
	if ended, ok := errors.AsType[*exitError](err); ok {
		return ended.code
	}
	exit, f := exitFailed, failure{Message: connecterr.Text(err)}
	var (
		usage  *usageError
		brain  *brainError
		here   *localError
		failed *connect.Error
	)
	switch {
	case errors.As(err, &usage):
		exit = exitUsage
	case errors.As(err, &here):
	case errors.As(err, &brain):
		exit = exitNoBrain
		f.Code = brain.code.String()
	case errors.As(err, &failed), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		code := connecterr.Code(err)
		exit = exitCall + int(code)
		f.Code = code.String()
		f.explain(err)
	}
	if a.output == outputJSON {
		text, merr := json.Marshal(map[string]failure{"error": f})
		if merr == nil {
			_, _ = fmt.Fprintf(a.err, "%s\n", text) // no other place to report it
			return exit
		}
	}
	_, _ = fmt.Fprint(a.err, f.text()) // as above
	return exit
}

// explain adds the details and the trace of a call's error.
func (f *failure) explain(err error) {
	var (
		failed *connect.Error
		call   *callError
		known  *schema
	)
	if !errors.As(err, &failed) {
		return
	}
	if errors.As(err, &call) {
		known = call.schema
	}
	for _, hop := range runtime.Trace(err) {
		f.Trace = append(f.Trace, failureHop{Node: hop.GetNode(), Method: hop.GetMethod()})
	}
	trace := string((&nodev1.ErrorTrace{}).ProtoReflect().Descriptor().FullName())
	for _, d := range failed.Details() {
		if d.Type == trace {
			continue
		}
		detail := failureDetail{Type: d.Type}
		msg, uerr := readDetail(known, d)
		if uerr == nil {
			detail.Value, uerr = compactJSON(known, msg)
		}
		if uerr != nil {
			detail.Base64 = d.Value
		}
		f.Details = append(f.Details, detail)
	}
}

// readDetail decodes a detail by the schema of the node that sent it.
func readDetail(known *schema, d *connect.ErrorDetail) (proto.Message, error) {
	if known == nil {
		return connectproto.UnmarshalErrorDetail(d)
	}
	return known.decode(d.Type, d.Value)
}

// compactJSON writes a message as JSON on one line. Unlike protojson's, its spaces don't vary.
func compactJSON(known *schema, msg proto.Message) (json.RawMessage, error) {
	options := protojson.MarshalOptions{}
	if known != nil {
		options.Resolver = known
	}
	text, err := options.Marshal(msg)
	if err != nil {
		return nil, err
	}
	var line bytes.Buffer
	if err := json.Compact(&line, text); err != nil {
		return nil, err
	}
	return line.Bytes(), nil
}

// text formats the failure for a terminal.
func (f *failure) text() string {
	var b strings.Builder
	b.WriteString("raylink: ")
	if f.Code != "" {
		b.WriteString(f.Code + ": ")
	}
	b.WriteString(printable(f.Message) + "\n")
	for _, d := range f.Details {
		value := string(d.Value)
		if d.Value == nil {
			value = fmt.Sprintf("%d bytes of a type whose schema is not known", len(d.Base64))
		}
		fmt.Fprintf(&b, "  detail %s: %s\n", printable(d.Type), printable(value))
	}
	for _, hop := range f.Trace {
		fmt.Fprintf(&b, "  passed on by %s in %s\n", printable(hop.Node), printable(hop.Method))
	}
	return b.String()
}

// printable replaces control characters: a remote text must not control the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}
