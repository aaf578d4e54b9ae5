package mutants

// ofTestMachines returns the mutants of the machines that tests make of network namespaces. It
// takes namespaces to run most of them.
func ofTestMachines() []Mutant {
	const (
		network   = "internal/nettest/nettest.go"
		namespace = "internal/nettest/namespace_linux.go"
	)
	return []Mutant{
		{
			Name: "nettest/functions-run-outside-of-machines",
			Edit: Edit{File: namespace, Func: "enter", Original: "failure := setNamespace(namespace)", Mutated: "var failure error"},
			Test: "TestLoopbackIsTheMachinesOwn", Prints: `another machine's loopback is reachable`,
		},
		{
			Name: "nettest/threads-stay-on-machines",
			Edit: Edit{File: namespace, Func: "enter", Original: "failure = f()", Mutated: "failure = f(); runtime.UnlockOSThread()"},
			Test: "TestNoThreadStaysOnAMachine", Prints: `threads stay on a machine`,
		},
		{
			Name: "nettest/links-are-cut-in-one-direction",
			Edit: Edit{File: network, Func: "Network.CutBetween", Original: "n.separate(b, a)", Mutated: "_ = b"},
			Test: "TestFaultsOfLinksCombine", Prints: `which a fault separates it from`,
		},
		{
			Name: "nettest/networks-of-dead-processes-are-left",
			Edit: Edit{File: "internal/nettest/owner.go", Func: "isAbandoned", Original: "ok && !o.isAlive()", Mutated: "ok && o == owner{}"},
			Test: "TestNetworkOfAKilledProcessIsSwept", Prints: `the network of a dead process was left`,
		},
		{
			Name: "nettest/queues-of-slow-links-are-unbounded",
			Edit: Edit{
				File: "internal/nettest/relay.go", Func: "shaper.admit",
				Original: "waiting.Seconds()*float64(q.Rate)/8 > minQueue", Mutated: "false",
			},
			Test: "TestShaperIsALinkWithAQueue", Prints: `the queue is bounded`, Args: manyScripts(),
		},
		{
			Name: "nettest/required-machines-are-optional",
			Edit: Edit{File: network, Func: "refuse", Original: `os.Getenv(requirement) == "required"`, Mutated: "false"},
			Test: "TestTestsWithoutNamespacesAreSkippedOrFail", Prints: `An error is expected but got nil`,
		},
	}
}
