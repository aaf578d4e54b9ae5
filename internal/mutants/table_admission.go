package mutants

// ofAdmission returns the mutants of joining, roles and revocation in a running system.
func ofAdmission() []Mutant {
	const (
		listener = "runtime/internal/listen/listen.go"
		host     = "runtime/membership.go"
	)
	return []Mutant{
		{
			Name: "listen/hosts-claim-to-be-others",
			Edit: Edit{
				File: listener, Func: "Listener.acceptTunnel",
				Original: `peer.HostID != "" && hello.Client != peer.HostID`, Mutated: "false",
			},
			Test: "TestStrangers/the_certificate_of_another_host", Package: ".", Prints: "An error is expected",
		},
		{
			Name: "listen/tunnels-need-no-certificate",
			Edit: Edit{
				File: "runtime/internal/listen/tls.go", Func: "Listener.identifyTLS",
				Original: "len(state.PeerCertificates) == 0", Mutated: "false",
			},
			Test: "TestStrangers/no_certificate", Package: ".", Prints: "does not contain",
		},
		{
			Name: "runtime/callers-administer-tokens",
			Edit: Edit{File: host, Func: "requiredRole", Original: "return pki.RoleAdmin", Mutated: "return pki.RoleCall"},
			Test: "TestRolesAreEnforced", Package: ".",
		},
		{
			Name: "runtime/callers-create-nodes",
			Edit: Edit{File: "runtime/builtin.go", Original: "m.role = pki.RoleJoin", Mutated: "m.role = pki.RoleCall"},
			Test: "TestRolesAreEnforced", Package: ".",
		},
		{
			Name: "brain/revoked-hosts-keep-their-lease",
			Edit: Edit{File: "brain/access.go", Func: "Brain.isRevoked", Original: "b.access.Revoked(peer.TokenID)", Mutated: "false"},
			Test: "TestRevokedTokens", Package: ".",
		},
		{
			Name: "admission/revoked-tokens-are-renewed",
			Edit: Edit{File: "internal/admission/authority.go", Func: "Authority.renew", Original: "a.Revoked(peer.TokenID)", Mutated: "false"},
			Test: "TestRenewal", Package: "internal/admission",
		},
		{
			Name: "admission/certificates-of-other-hosts-are-renewed",
			Edit: Edit{
				File: "internal/admission/authority.go", Func: "Authority.sign",
				Original: `peer.HostID != "" && hostID != peer.HostID`, Mutated: "false",
			},
			Test: "TestRenewal", Package: "internal/admission",
		},
	}
}
