package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// TestMain is main for the processes that the tests' drivers start: they are this binary once more.
func TestMain(m *testing.M) {
	if words := os.Getenv(roleEnv); words != "" {
		if err := role(strings.Fields(words), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, words+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}
