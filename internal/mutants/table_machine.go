package mutants

// ofMachines returns the mutants of what a machine has, and of resources and labels.
func ofMachines() []Mutant {
	const dir = "internal/machine/"
	rows := []struct{ name, file, function, original, mutated, test, prints string }{
		{
			"limits-of-higher-cgroups-are-ignored", "cgroup.go", "directories",
			"len(dir) <= len(m.dir)", "true", "TestCgroupLimitsAgreeWithTheirModel", disagrees,
		},
		{
			"other-containers-limits-apply", "cgroup.go", "directories",
			`!ok || slices.Contains(strings.Split(relative, "/"), "..")`, "false && !ok", "TestCgroupLimits", `CPUs`,
		},
		{
			"gpus-after-an-invalid-entry-are-visible", "gpu.go", "gpus.visible",
			"!ok || len(all) == len(g) {\n\t\t\tbreak", "!ok || len(all) == len(g) {\n\t\t\tcontinue", "TestGPUs", `CUDA_VISIBLE_DEVICES=0,2,-1,1`,
		},
		{
			"gpus-are-numbered-by-device-files", "gpu.go", "gpusByDeviceFiles",
			"return numbered(n), nil",
			"all := numbered(n)\n\tfor i, entry := range entries[:n] { all[i] = strings.TrimPrefix(entry.Name(), \"nvidia\") }\n\treturn all, nil",
			"TestGPUs", `CUDA_VISIBLE_DEVICES=unset`,
		},
		{
			"resources-occur-twice", "resources.go", "ParseResources",
			"; twice {", "; twice && false {", "TestParseResourcesRefuses", `An error is expected`,
		},
		{
			"sums-overflow", "resources.go", "Resources.Add",
			"amount > math.MaxInt64-sum[name]", "false && math.MaxInt64 > 0", "TestResourcesAgreeWithTheirModel", disagrees,
		},
		{
			"more-is-subtracted-than-there-is", "resources.go", "Resources.Sub",
			"other[name] > r[name]", "false", "TestAccountsBalance", disagrees,
		},
		{
			"absent-labels-match-empty-ones", "labels.go", "Labels.Match",
			"!ok || has != value", "has != value && (ok || !ok)", "TestMatch", `a label that is not there is not an empty one`,
		},
	}
	mutants := make([]Mutant, len(rows))
	for i, r := range rows {
		mutants[i] = Mutant{
			Name: "machine/" + r.name, Edit: Edit{File: dir + r.file, Func: r.function, Original: r.original, Mutated: r.mutated},
			Test: r.test, Prints: r.prints,
		}
		if r.prints == disagrees {
			mutants[i].Args = []string{shrinkBriefly, manyChecks}
		}
	}
	return mutants
}
