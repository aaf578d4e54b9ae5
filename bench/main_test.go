package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// TestMain replaces main in subprocesses: the tests' drivers re-execute this binary.
func TestMain(m *testing.M) {
	if words := os.Getenv(roleEnv); words != "" {
		if err := runRole(strings.Fields(words), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, words+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}
