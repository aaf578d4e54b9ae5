package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	counterv1 "github.com/raylink/raylink/clients/grpc-go/gen/counter/v1"
)

// testTLS calls a counter of a system with TLS, and servers that must be refused. STRANGERS is the
// line that clients/strangers has printed, RAYLINK_TOKEN a token with the role call, and RAYLINK_CA
// the file of the CA's certificate.
func testTLS(where endpoint) (passed, failed int) {
	var strangers struct{ CA, Token, Expired, Other string }
	if err := json.Unmarshal([]byte(os.Getenv("STRANGERS")), &strangers); err != nil {
		fmt.Fprintln(os.Stderr, "STRANGERS:", err)
		return 0, 1
	}
	token, ca := os.Getenv("RAYLINK_TOKEN"), os.Getenv("RAYLINK_CA")
	wrong := token[:strings.LastIndex(token, ".")+1] + strings.Repeat("A", 43)
	for _, test := range []struct {
		title, address, token, ca string
		code                      codes.Code
		text                      string
	}{
		{"the host, by the CA's file", where.Host, token, ca, codes.OK, ""},
		{"the gateway, by the CA's file", where.Gateway, token, ca, codes.OK, ""},
		{"the host, by the token's fingerprint", where.Host, token, "", codes.OK, ""},
		{"the gateway, by the token's fingerprint", where.Gateway, token, "", codes.OK, ""},
		{"a wrong token", where.Gateway, wrong, "", codes.Unauthenticated, "the token is missing or wrong"},
		{"a wrong CA", where.Gateway, token, strangers.CA, codes.Unavailable, "is not of the CA in"},
		{"another system", strangers.Other, token, "", codes.Unavailable, "is of another system than the token"},
		{"an expired certificate", strangers.Expired, token, strangers.CA, codes.Unavailable, "has expired: restart"},
		{"an expired certificate, by fingerprint", strangers.Expired, strangers.Token, "", codes.Unavailable, "has expired: restart"},
	} {
		if err := callOverTLS(where.Path, test.address, test.token, test.ca, test.code, test.text); err != nil {
			failed++
			fmt.Fprintf(os.Stderr, "FAILED: %s: %v\n", test.title, err)
			continue
		}
		passed++
	}
	return passed, failed
}

func callOverTLS(node, address, token, ca string, code codes.Code, text string) (err error) {
	secured, err := transportCredentials(token, ca)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(secured))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	ctx = metadata.NewOutgoingContext(ctx, metadata.Pairs("raylink-node", node, "authorization", "Bearer "+token))
	_, err = counterv1.NewCounterClient(conn).Add(ctx, &counterv1.AddRequest{})
	s, err := refused(err, code)
	switch {
	case err != nil:
		return err
	case !strings.Contains(s.Message(), text):
		return fmt.Errorf("%q instead of %q", s.Message(), text)
	case strings.Contains(s.Message(), token):
		return errors.New("the error has the token")
	}
	return nil
}
