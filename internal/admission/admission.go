// Package admission admits processes to a system that uses TLS: by a token at first, and from then
// on by the certificate that they got for it. Package pki has the cryptography; this package has
// the exchange of messages, for both sides, and the service that administers tokens.
//
// What it promises:
//
//   - A process proves its token only after it has verified that the CA of Brain's certificate is
//     the token's. The token itself is not sent.
//   - What a stranger can make the server keep or compute is bounded: an exchange has four
//     messages, each of at most 16 KiB, and one signature at most. The caller bounds its time.
//   - A certificate that is renewed has the role and the token of the one before it.
package admission

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/internal/pki"
)

// Protocol is the protocol (ALPN) of an exchange, see [brainv1.JoinRequest].
const Protocol = "raylink-join/1"

// maxMessage bounds one message of an exchange, in bytes. The largest one has two certificates.
const maxMessage = 16 << 10

// noRequest stands for the certificate request in the transcript of an exchange without one. It is
// no DER.
const noRequest = "no certificate request"

// roles are the roles by their numbers in messages.
//
//nolint:gochecknoglobals // immutable
var roles = map[brainv1.Role]pki.Role{
	brainv1.Role_ROLE_CALL: pki.RoleCall, brainv1.Role_ROLE_JOIN: pki.RoleJoin, brainv1.Role_ROLE_ADMIN: pki.RoleAdmin,
}

// RoleOf converts a role; "" for one that is not known.
func RoleOf(role brainv1.Role) pki.Role { return roles[role] }

// RoleMessage is the inverse of RoleOf.
func RoleMessage(role pki.Role) brainv1.Role {
	for number, r := range roles {
		if r == role {
			return number
		}
	}
	return brainv1.Role_ROLE_UNSPECIFIED
}

// exchange is one side of an exchange.
type exchange struct {
	conn *tls.Conn
	in   *bufio.Reader
}

func newExchange(conn *tls.Conn) *exchange {
	return &exchange{conn: conn, in: bufio.NewReaderSize(conn, 1<<10)}
}

func (e *exchange) send(msg proto.Message) error {
	_, err := protodelim.MarshalTo(e.conn, msg)
	return err
}

func (e *exchange) receive(msg proto.Message) error {
	return protodelim.UnmarshalOptions{MaxSize: maxMessage}.UnmarshalFrom(e.in, msg)
}

// transcript is what both proofs cover.
func (e *exchange) transcript(req *brainv1.JoinRequest, challenge *brainv1.JoinChallenge) (pki.Transcript, error) {
	csr := req.GetCsr()
	if len(csr) == 0 {
		csr = []byte(noRequest)
	}
	return pki.NewTranscript(e.conn.ConnectionState(), req.GetNonce(), challenge.GetNonce(), csr)
}

// Admitted is what a process has after it was admitted.
type Admitted struct {
	Certificate *tls.Certificate
	// Secret is that by which processes of the system that share a machine know each other; empty
	// for the role call.
	Secret string
	// Address is where other machines reach Brain, HOST:PORT.
	Address string
	// Local is this side's address of the connection to Brain.
	Local net.Addr
}

// Join gets a certificate for a host by a token. conn is to Brain, and has [Protocol]; its
// configuration must have verified the token's fingerprint and the role admin. The caller bounds
// the time and closes the connection.
func Join(conn *tls.Conn, token pki.Token, hostID string) (*Admitted, error) {
	request, err := pki.NewRequest(hostID)
	if err != nil {
		return nil, err
	}
	res, err := prove(conn, token, request.CSR())
	if err != nil {
		return nil, err
	}
	cert, err := request.Accept(res.GetChain(), pki.Trust{Fingerprint: token.Fingerprint()})
	if err != nil {
		return nil, err
	}
	return &Admitted{Certificate: cert, Secret: res.GetSecret(), Address: res.GetAddress(), Local: conn.LocalAddr()}, nil
}

// Prove proves a token on a connection as Join does, without a certificate. From then on the
// connection has the token's role.
func Prove(conn *tls.Conn, token pki.Token) error {
	_, err := prove(conn, token, nil)
	return err
}

func prove(conn *tls.Conn, token pki.Token, csr []byte) (*brainv1.JoinResponse, error) {
	e := newExchange(conn)
	req := &brainv1.JoinRequest{Csr: csr, Token: token.ID(), Nonce: pki.NewNonce()}
	if err := e.send(req); err != nil {
		return nil, lost(err)
	}
	challenge := &brainv1.JoinChallenge{}
	if err := e.receive(challenge); err != nil {
		return nil, lost(err)
	}
	transcript, err := e.transcript(req, challenge)
	if err != nil {
		return nil, err
	}
	if err := e.send(&brainv1.JoinProof{Proof: token.Prove(transcript)}); err != nil {
		return nil, lost(err)
	}
	res, err := e.response()
	if err != nil {
		return nil, err
	}
	if err := token.Verify(transcript, res.GetProof()); err != nil {
		return nil, err
	}
	return res, nil
}

// Renew is a [pki.Renew] on a connection with the certificate that is to be renewed.
func Renew(conn *tls.Conn, csr []byte) ([][]byte, error) {
	e := newExchange(conn)
	if err := e.send(&brainv1.JoinRequest{Csr: csr}); err != nil {
		return nil, lost(err)
	}
	res, err := e.response()
	return res.GetChain(), err
}

func (e *exchange) response() (*brainv1.JoinResponse, error) {
	res := &brainv1.JoinResponse{}
	if err := e.receive(res); err != nil {
		return nil, lost(err)
	}
	if res.GetCode() != 0 {
		code := connect.Code(res.GetCode())
		if code > connect.CodeUnauthenticated {
			code = connect.CodeUnknown
		}
		return nil, connect.NewError(code, res.GetError())
	}
	if e.in.Buffered() > 0 {
		return nil, errors.New("something follows the end of the exchange")
	}
	return res, nil
}

// lost is the error of a connection that was lost, with what an alert means.
func lost(err error) error {
	return connect.Errorf(connect.CodeUnavailable, "%v", pki.Explain(err)).WithCause(err)
}

// refusal is the response with an error.
func refusal(err error) *brainv1.JoinResponse {
	code := connect.CodeUnauthenticated
	if own, ok := errors.AsType[*connect.Error](err); ok {
		code, err = own.Code(), errors.New(own.Message())
	}
	return &brainv1.JoinResponse{Code: uint32(code), Error: fmt.Sprint(err)}
}
