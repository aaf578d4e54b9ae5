package mutants

// ofPKI returns the mutants of certificates and tokens: each lets a stranger in.
func ofPKI() []Mutant {
	const (
		trust = "internal/pki/trust.go"
		proof = "internal/pki/proof.go"
	)
	return []Mutant{
		{
			Name: "pki/forged-certificates-of-the-ca-are-trusted",
			Edit: Edit{File: trust, Func: "FindCA", Original: "cert.CheckSignatureFrom(cert)", Mutated: "error(nil)"},
			Test: "TestRefusals", Prints: `TestRefusals/server_that_sends_a_forged_certificate_of_the_CA`,
		},
		{
			Name: "pki/other-hosts-are-accepted",
			Edit: Edit{File: trust, Func: "Trust.verifyPeer", Original: `t.HostID != "" && peer.HostID != t.HostID`, Mutated: "false"},
			Test: "TestRefusals", Prints: `TestRefusals/server_that_is_another_host`,
		},
		{
			Name: "pki/revoked-tokens-resume-sessions",
			Edit: Edit{
				File: trust, Func: "Trust.verify",
				Original: "len(state.PeerCertificates) == 0", Mutated: "len(state.PeerCertificates) == 0 || state.DidResume",
			},
			Also: []Edit{{File: trust, Func: "Trust.verify", Original: "if t.Optional", Mutated: "if t.Optional || state.DidResume"}},
			Test: "TestResumedSessionsAreVerified",
		},
		{
			Name: "pki/callers-are-servers",
			Edit: Edit{File: "internal/pki/ca.go", Func: "CA.template", Original: "grant.Role.Includes(RoleJoin)", Mutated: "true"},
			Test: "TestRefusals", Prints: `TestRefusals/caller_that_serves`,
		},
		{
			Name: "pki/requests-are-not-signed",
			Edit: Edit{File: "internal/pki/request.go", Func: "parseRequest", Original: "csr.CheckSignature()", Mutated: "error(nil)"},
			Test: "TestHostileRequests",
		},
		{
			Name: "pki/proofs-are-good-on-other-connections",
			Edit: Edit{
				File: proof, Func: "NewTranscript",
				Original: "[][]byte{exporter, clientNonce, serverNonce, csr}", Mutated: "[][]byte{exporter[:0], clientNonce, serverNonce, csr}",
			},
			Test: "TestProofsAreBoundToTheirJoin", Prints: `another connection`,
		},
		{
			Name: "pki/proofs-can-be-reflected",
			Edit: Edit{File: proof, Original: `serverProof = "raylink join v1: proof of the server"`, Mutated: "serverProof = clientProof"},
			Test: "TestProofsAreBoundToTheirJoin",
		},
		{
			Name: "pki/copies-replace-a-ca",
			Edit: Edit{File: "internal/pki/copy.go", Func: "CopyCA", Original: "case err == nil: return", Mutated: "case false: return"},
			Also: []Edit{{File: "internal/pki/copy.go", Func: "CopyCA", Original: "!errors.Is(err, fs.ErrNotExist)", Mutated: "false"}},
			Test: "TestCopyingReplacesNoCA", Package: "internal/admission",
		},
		{
			Name: "pki/incomplete-cas-are-copied",
			Edit: Edit{
				File: "internal/pki/copy.go", Func: "CopyCA",
				Original: "if err != nil { return fmt.Errorf(\"copying the CA in %s: %w\", from, err) }", Mutated: "if err != nil { continue }",
			},
			Test: "TestIncompleteCAIsNotCopied", Package: "internal/admission",
		},
	}
}
