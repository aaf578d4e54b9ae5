package pki

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
)

// alerts has the meaning of the alerts by which a peer ends a connection (RFC 8446, section 6.2).
// The alert is all that it can say: its own error has the details.
//
//nolint:gochecknoglobals // immutable
var alerts = map[tls.AlertError]string{
	42:  "the peer refused this side's certificate: its log has the reason, such as a token that was revoked, or another CA",
	43:  "the peer refused this side's certificate, whose kind it does not support",
	45:  "the peer refused this side's certificate, which has expired by its clock",
	46:  "the peer refused this side's certificate",
	48:  "the peer does not know the CA of this side's certificate: give it the CA's certificate, or a token of this system",
	70:  "the peer has no version of TLS in common with this side, which requires 1.3",
	80:  "the peer failed by itself, such as with a certificate that has expired and could not be renewed: its log has the reason",
	116: "the peer requires a certificate of its clients: join with a token first",
	120: "the peer does not serve this protocol here",
}

// Explain adds to the error of a handshake, or of the first read after it, what it means to a user.
// It returns other errors as they are.
func Explain(err error) error {
	var remote *net.OpError
	if errors.As(err, &remote) && remote.Op == "remote error" && remote.Err != nil {
		for alert, meaning := range alerts {
			// The type of the alert of a TCP connection is not exported; its text is the same.
			if alert.Error() == remote.Err.Error() {
				return fmt.Errorf("%s: %w", meaning, err)
			}
		}
	}
	if plain := (tls.RecordHeaderError{}); errors.As(err, &plain) {
		return fmt.Errorf("the peer does not use TLS here: check its address, and whether it was started with --insecure: %w", err)
	}
	return err
}
