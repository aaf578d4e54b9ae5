package mutants

// ofHostsOfMachines returns the mutants of hosts that keep machines, and that launch on those of
// others. Some take namespaces.
func ofHostsOfMachines() []Mutant {
	const (
		place     = "runtime/place.go"
		machines  = "runtime/machines.go"
		remote    = "runtime/remotelaunch.go"
		processes = "internal/machinetest"
	)
	return []Mutant{
		{
			Name: "hosts/defaults-of-types-replace-what-is-required",
			Edit: Edit{File: place, Func: "Host.placeOf", Original: "!place.GetNoDefaults() && ", Mutated: ""},
			Test: "TestDefaultsOfATypeAreForProcessesOfTheirOwn", Prints: `a creation requires nothing`,
		},
		{
			Name: "hosts/nodes-in-this-process-are-placed-elsewhere",
			Edit: Edit{File: place, Func: "Host.placeOf", Original: "On: h.machine, ", Mutated: ""},
			Test: "TestDefaultsOfATypeAreForProcessesOfTheirOwn", Prints: `has what it needs of this machine`,
		},
		{
			Name: "hosts/gpus-are-counted-from-one",
			Edit: Edit{File: machines, Func: "devicesEnv", Original: "devices[i] = has[number]", Mutated: "devices[i] = has[(number+1)%uint32(len(has))]"},
			Test: "TestDevicesOfANodeAreItsGPUs", Prints: `CUDA_VISIBLE_DEVICES=GPU-a,GPU-c`,
		},
		{
			Name: "hosts/all-nodes-are-launched-here", Package: processes,
			Edit: Edit{File: remote, Func: "Host.launcherOn", Original: "given == nil || given.GetMachine() == h.machine", Mutated: "true"},
			Test: "TestNodesRunOnOtherMachines", Prints: `Not equal`,
		},
		{
			Name: "hosts/processes-keep-their-launchers-directories", Package: processes,
			Edit: Edit{File: machines, Func: "applyHostSettings", Original: "p.Run, p.Outlives = settings.GetRun(), false", Mutated: "p.Outlives = false"},
			Test: "TestNodesRunOnOtherMachines", Prints: `a run directory of another machine`,
		},
		{
			Name: "hosts/unix-sockets-hide-cuts", Package: processes,
			Edit: Edit{
				File: "runtime/internal/peers/dial.go", Func: "Pool.hasSocket",
				Original: `info.GetSocket() != "" && info.GetMachine() == p.config.Machine`, Mutated: `info.GetSocket() != ""`,
			},
			Test: "TestCuts", Prints: `has not ended`,
		},
		{
			Name: "hosts/orphans-were-stopped", Package: processes,
			Edit: Edit{File: "runtime/child.go", Func: "serveChild", Original: "h.endCause.Store(&c.orphanCause)", Mutated: ""},
			Test: "TestAgentThatIsKilledTakesItsNodesWithIt", Prints: `the cause of a node's death`,
		},
		{
			Name: "hosts/creations-fail-with-their-machine", Package: processes,
			Edit: Edit{File: "runtime/create.go", Func: "Host.createOf", Original: "!h.isReplaceable(rctx, c, place, failure) ||", Mutated: "true ||"},
			Test: "TestNodesArePlacedAgainWhenTheirMachineLeaves", Prints: `Should be empty`,
		},
		{
			Name: "hosts/machines-leave-unannounced",
			Edit: Edit{
				File: "runtime/internal/session/session.go", Func: "Session.holdLease",
				Original: "withdrawing := s.withdrawing", Mutated: "withdrawing := (<-chan struct{})(nil)",
			},
			Test: "TestLeavingAMachineIsAcknowledged", Prints: `before Brain has recorded it`,
		},
		{
			Name: "hosts/machines-that-leave-get-nodes",
			Edit: Edit{File: "brain/attach.go", Func: "service.Attach", Original: "if in.msg.GetLeaving() {", Mutated: "if false {"},
			Test: "TestNothingIsPlacedOnAMachineThatLeaves", Prints: `should have 1 item`,
		},
		{
			Name: "hosts/supervised-nodes-stay-on-machines-that-are-gone", Package: "cmd/raylink",
			Edit: Edit{
				File: "runtime/supervise.go", Func: "supervisor.restart",
				Original: "Place: s.t.supervisedPlace(),", Mutated: "",
			},
			Test: "TestBrainMovesToAnotherMachine", Prints: `the machine one has left the system`, Alone: true,
		},
	}
}
