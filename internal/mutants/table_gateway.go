package mutants

import "time"

// ofGateway returns the mutants of what the gateway does for HTTP/1.
func ofGateway() []Mutant {
	const file = "brain/internal/gateway/roundtrip.go"
	return []Mutant{
		{
			Name: "gateway/ends-of-requests-fail-others",
			Edit: Edit{File: file, Func: "exchange.end", Original: "!e.responding", Mutated: "true"},
			Test: "TestEndOfOneRequestDoesNotFailAnother", Args: []string{failFast, "-test.count=50"},
		},
		{
			Name: "gateway/requests-do-not-wait-for-the-one-before",
			Edit: Edit{File: file, Func: "exchange.use", Original: "<-before.returned", Mutated: "_ = before"},
			Test: "TestEndOfOneRequestDoesNotFailAnother", Args: []string{failFast, "-test.count=50"},
		},
		{
			Name: "gateway/connections-of-ended-requests-are-available",
			Edit: Edit{File: file, Func: "exchange.begin", Original: "<-e.returned", Mutated: "_ = ended"},
			Test: "TestResponseAfterTheEndWaits",
		},
		{
			Name: "gateway/ends-during-early-responses-wait",
			Edit: Edit{File: file, Func: "exchange.informational", Original: "e.resume()", Mutated: "_ = e"},
			Test: "TestEndOfARequestEndsItsConnection", Prints: `test timed out`, Timeout: 5 * time.Second,
		},
		{
			Name: "gateway/ends-during-responses-are-forgotten",
			Edit: Edit{File: file, Func: "exchange.complete", Original: "e.resume()", Mutated: "_ = e"},
			Test: "TestEndOfARequestEndsItsConnection", Prints: `test timed out`, Timeout: 5 * time.Second,
		},
	}
}
