package mutants

// ofRecords returns the mutants of how Brain encodes records.
func ofRecords() []Mutant {
	const file = "brain/internal/tree/encode.go"
	return []Mutant{
		{
			Name: "records/encoded-without-a-field",
			Edit: Edit{File: file, Func: "encoder.record", Original: "e.text(15, rec.GetCause())", Mutated: ""},
			Test: "TestEncodedRecordHasEveryField",
		},
		{
			Name: "records/encoded-without-unknown-fields",
			Edit: Edit{File: file, Func: "encoder.host", Original: "e.unknown(host)", Mutated: ""},
			Test: "TestEncodedRecordKeepsUnknownFields",
		},
		{
			Name: "records/text-is-not-checked",
			Edit: Edit{File: file, Func: "encoder.text", Original: "!utf8.ValidString(text)", Mutated: "false"},
			Test: "TestTextThatIsNotUTF8IsNotEncoded",
		},
		{
			Name: "records/long-messages-are-not-moved",
			Edit: Edit{File: file, Func: "encoder.end", Original: "copy(e.b[start-1+len(length):], e.b[start:start+size])", Mutated: ""},
			Test: "TestLengthsOfAnySizeAreEncoded",
		},
	}
}
