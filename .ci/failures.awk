# Prints which tests failed and what they said, from the output of `go test`: the logs of a package's
# other tests surround it there, and a long output is cut before it is shown.
BEGIN { print "\nWhat failed:" }
/^ *--- FAIL: |^ +[a-z_]+_test\.go:[0-9]+: FAIL |^panic: |^fatal error: |^WARNING: DATA RACE|^FAIL\t|goroutines were left behind/ { left = 40 }
/^(time=|ok  \t|=== |[a-z]+-[0-9]+ \| )|^ *--- (PASS|SKIP)/ { left = 0 }
left-- > 0 { print substr($0, 1, 300) }
