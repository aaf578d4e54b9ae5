package brain_test

func runChild() {}
