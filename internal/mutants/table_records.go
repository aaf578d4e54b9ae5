package mutants

// ofRecords returns the mutants of how records are encoded and decoded.
func ofRecords() []Mutant {
	const (
		file   = "internal/records/encode.go"
		decode = "internal/records/decode.go"
	)
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
			Edit: Edit{File: file, Func: "encoder.member", Original: "!utf8.ValidString(text)", Mutated: "false"},
			Test: "TestTextThatIsNotUTF8IsNotEncoded",
		},
		{
			Name: "records/long-messages-are-not-moved",
			Edit: Edit{File: file, Func: "encoder.end", Original: "copy(e.b[start-1+len(length):], e.b[start:start+size])", Mutated: ""},
			Test: "TestLengthsOfAnySizeAreEncoded",
		},
		{
			Name: "records/a-second-message-is-not-merged",
			Edit: Edit{File: decode, Func: "decoder.record", Original: "f.once(rec.GetHost() == nil)", Mutated: ""},
			Test: "TestWhatHasToBeMergedOrIsUnknownIsLeftToProtobuf",
		},
		{
			Name: "records/decoded-text-is-not-checked",
			Edit: Edit{File: decode, Func: "decoder.text", Original: "!utf8.ValidString(s)", Mutated: "false"},
			Test: "TestWhatHasToBeMergedOrIsUnknownIsLeftToProtobuf",
		},
		{
			Name: "records/a-second-request-is-dropped",
			Edit: Edit{File: "internal/records/request.go", Func: "decodeLookupRequest", Original: `d.failed || d.rest != ""`, Mutated: "d.failed"},
			Test: "TestRequestsAreDecodedAsProtobufDoes",
		},
		{
			Name: "records/unknown-fields-are-dropped",
			Edit: Edit{File: decode, Func: "decoder.record", Original: "default: f.failed = true", Mutated: "default: f.bytes()"},
			Test: "TestWhatHasToBeMergedOrIsUnknownIsLeftToProtobuf",
		},
	}
}
