// Package machinetest has the tests of systems over several machines, with real processes: a driver
// with an embedded Brain, and agents, each in a network namespace of its own. The tests cut links,
// and kill, stop and continue processes.
//
// main_test.go has the roles of the processes, system_test.go a system of machines.
package machinetest
