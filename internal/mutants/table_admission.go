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
		{
			Name: "runtime/methods-serve-every-role",
			Edit: Edit{File: host, Func: "authorizeMethod", Original: "!peer.Role.Includes(need)", Mutated: "false"},
			Test: "TestMethodsRequireRoles", Package: ".", Prints: "AsAdmin by",
		},
		{
			Name: "runtime/callers-name-their-roles",
			Edit: Edit{File: "runtime/webguard.go", Func: "forwarded", Original: "!role.Includes(peer.Role)", Mutated: "true"},
			Test: "TestMethodsRequireRoles", Package: ".", Prints: "a caller names its own role",
		},
		{
			Name: "listen/streams-outlive-their-tokens",
			Edit: Edit{
				File: "runtime/internal/listen/conn.go", Func: "Conn.hasToken",
				Original: "for id := range c.tokens", Mutated: "for id := range map[string]struct{}(nil)",
			},
			Test: "TestRevocationEndsStreams", Package: ".",
		},
		{
			Name: "hosts/processes-keep-their-launchers-ports",
			Edit: Edit{File: "runtime/machines.go", Func: "applyHostSettings", Original: "settings.GetPortRange()", Mutated: "o.PortRange"},
			Test: "TestPortRange", Package: "internal/machinetest", Prints: "is not less than or equal to",
		},
	}
}

// ofSources returns the mutants of the limits that connections without a token share by source.
func ofSources() []Mutant {
	const (
		listen    = "runtime/internal/listen"
		admission = listen + "/admission.go"
		share     = listen + "/share.go"
	)
	return []Mutant{
		{
			Name: "listen/one-source-has-all-places",
			Edit: Edit{File: admission, Func: "admission.tryEnter", Original: "most <= a.sources[source]+1", Mutated: "most > 0"},
			Test: "TestOneSourceLeavesRoomForOthers", Package: listen, Prints: "another address has to wait",
		},
		{
			Name: "listen/the-oldest-of-all-makes-room",
			Edit: Edit{
				File: admission, Func: "oldestOfLargest",
				Original: "sources[c.from()] == most", Mutated: "c != nil",
			},
			Test: "TestOneSourceLeavesRoomForOthers", Package: listen, Prints: "the connection of another address was closed",
		},
		{
			Name: "listen/the-newest-that-waits-makes-room",
			Edit: Edit{
				File: admission, Func: "admission.await",
				Original: "e, _ := oldestOfLargest(&a.waiting, a.waitingSources)", Mutated: "e := a.waiting.Back()",
			},
			Test: "TestFloodsDontDelayTheAcceptLoop", Package: listen, Prints: "the newest connection was closed",
		},
		{
			Name: "listen/the-oldest-of-all-that-wait-makes-room",
			Edit: Edit{
				File: admission, Func: "oldestOfLargest",
				Original: "sources[c.from()] == most", Mutated: "c != nil",
			},
			Test: "TestOneSourceLeavesRoomToWait", Package: listen,
		},
		{
			Name: "listen/handshakes-begin-in-order-of-arrival",
			Edit: Edit{
				File: share, Func: "queue.push",
				Original: "l := q.lines[source]", Mutated: "source = netip.Prefix{}; l := q.lines[source]",
			},
			Test: "TestHandshakesTakeTurns", Package: listen,
		},
	}
}
