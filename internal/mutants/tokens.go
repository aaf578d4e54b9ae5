package mutants

import (
	"go/scanner"
	"go/token"
)

// span is the half-open range [from, to) of bytes.
type span struct{ from, to int }

// lexeme is a token and its text.
type lexeme struct {
	span

	token token.Token
	text  string
}

// occurrences returns where the tokens of a text occur in a source.
func occurrences(source, text []byte) (found []span) {
	all, wanted := lexemes(source), lexemes(text)
	if len(wanted) == 0 {
		return nil
	}
	for i := 0; i+len(wanted) <= len(all); i++ {
		same := true
		for j := range wanted {
			if all[i+j].token != wanted[j].token || all[i+j].text != wanted[j].text {
				same = false
				break
			}
		}
		if same {
			found = append(found, span{all[i].from, all[i+len(wanted)-1].to})
		}
	}
	return found
}

// lexemes returns the tokens of Go source, without comments and the semicolons that line ends
// imply.
func lexemes(source []byte) (all []lexeme) {
	set := token.NewFileSet()
	file := set.AddFile("", -1, len(source))
	var s scanner.Scanner
	s.Init(file, source, nil, 0)
	for {
		pos, tok, text := s.Scan()
		switch {
		case tok == token.EOF:
			return all
		case tok == token.SEMICOLON && text == "\n":
			continue
		case text == "":
			text = tok.String()
		}
		from := file.Offset(pos)
		all = append(all, lexeme{span{from, from + len(text)}, tok, text})
	}
}
