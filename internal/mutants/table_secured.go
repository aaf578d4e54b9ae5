package mutants

// ofSecured returns the mutants of tunnels within TLS.
func ofSecured() []Mutant {
	const wire = "runtime/tunnel/internal/sock/wire.go"
	return []Mutant{
		{
			Name: "secured/what-a-peer-does-not-read-is-unbounded",
			Edit: Edit{File: wire, Func: "Wire.Write", Original: "len(w.out)-w.off+len(b) > maxUnsent", Mutated: "false"},
			Test: "TestWireDoesNotBlock",
		},
		{
			Name: "secured/the-alert-of-close-is-not-sent",
			Edit: Edit{File: wire, Func: "Wire.Close", Original: "!w.sending && w.off < len(w.out)", Mutated: "false"},
			Test: "TestWireSendsTheAlertOfClose",
		},
		{
			Name: "secured/what-was-read-ahead-is-lost",
			Edit: Edit{File: wire, Func: "Wire.Read", Original: "len(w.ahead) > 0", Mutated: "false"},
			Test: "TestReadsOfAWire",
		},
	}
}
