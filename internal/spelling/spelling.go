// Package spelling measures how far apart words are, to suggest which one was meant.
package spelling

import "strings"

// Distance is the Levenshtein distance of two strings, ignoring case, or 3 if it is greater than
// two.
func Distance(a, b string) int {
	const far = 3
	a, b = strings.ToLower(a), strings.ToLower(b)
	if len(a)-len(b) >= far || len(b)-len(a) >= far {
		return far
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		least := row[0]
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
			least = min(least, row[j+1])
		}
		if least >= far {
			return far
		}
	}
	return min(row[len(b)], far)
}
