package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"math/big"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const meminfo = "MemTotal:       67108864 kB\nMemFree:        13839512 kB\n"

// fake returns a machine of 16 CPUs and 64 GiB, with further files by path and content. A variable
// of the environment is that with the path "$NAME".
func fake(files map[string]string) Source {
	root, env := fstest.MapFS{"proc/meminfo": {Data: []byte(meminfo)}}, map[string]string{}
	for name, content := range files {
		if variable, ok := strings.CutPrefix(name, "$"); ok {
			env[variable] = content
		} else {
			root[strings.TrimPrefix(name, "/")] = &fstest.MapFile{Data: []byte(content)}
		}
	}
	return Source{
		Root: root, Hostname: "gpu1", Affinity: 16,
		LookupEnv: func(name string) (string, bool) { value, ok := env[name]; return value, ok },
	}
}

func TestDescription(t *testing.T) {
	t.Parallel()
	d, err := fake(map[string]string{"/dev/nvidia0": "", "/dev/nvidia1": ""}).Detect()
	require.NoError(t, err)
	assert.Equal(t, Description{
		Hostname: "gpu1", GOOS: runtime.GOOS, GOARCH: runtime.GOARCH, CPUs: 16000, Memory: 64 << 30, GPUs: []string{"0", "1"},
	}, d)
	assert.Equal(t, runtime.GOOS+"/"+runtime.GOARCH, d.Platform())
	assert.Equal(t, Resources{CPU: 16000, Memory: 64 << 30, GPU: 2000}, d.Resources())
	assert.Equal(t, "16 CPUs, 64 GiB, 2 GPUs", d.Resources().Summary())

	d, err = fake(nil).Detect()
	require.NoError(t, err)
	assert.Equal(t, Resources{CPU: 16000, Memory: 64 << 30}, d.Resources())
}

func TestCgroupLimits(t *testing.T) {
	t.Parallel()
	const (
		v2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 none rw,nsdelegate\n"
		v1 = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup none rw,cpu,cpuacct\n" +
			"35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:10 master:1 - cgroup none rw,memory\n"
	)
	for name, test := range map[string]struct {
		cpus, memory int64
		files        map[string]string
	}{
		"no cgroups": {16000, 64 << 30, nil},
		"version 2 without limits": {16000, 64 << 30, map[string]string{
			"/proc/self/cgroup": "0::/user.slice\n", "/proc/self/mountinfo": v2,
			"/sys/fs/cgroup/user.slice/cpu.max": "max 100000\n", "/sys/fs/cgroup/user.slice/memory.max": "max\n",
		}},
		"the smallest limit of all levels": {2000, 1 << 30, map[string]string{
			"/proc/self/cgroup": "0::/a/b/c\n", "/proc/self/mountinfo": v2,
			"/sys/fs/cgroup/a/b/c/cpu.max": "400000 100000\n", "/sys/fs/cgroup/a/b/c/memory.max": "2147483648\n",
			"/sys/fs/cgroup/a/b/cpu.max": "200000 100000\n", "/sys/fs/cgroup/a/b/memory.max": "max\n",
			"/sys/fs/cgroup/a/cpu.max": "max 100000\n", "/sys/fs/cgroup/a/memory.max": "1073741824\n",
			"/sys/fs/cgroup/a/x/cpu.max": "1000 100000\n", "/sys/fs/cgroup/a/x/memory.max": "1\n",
		}},
		"a container with a cgroup namespace": {500, 1 << 20, map[string]string{
			"/proc/self/cgroup": "0::/\n", "/proc/self/mountinfo": v2,
			"/sys/fs/cgroup/cpu.max": "50000 100000\n", "/sys/fs/cgroup/memory.max": "1048576\n",
		}},
		"a container without one": {500, 64 << 30, map[string]string{
			"/proc/self/cgroup":           "0::/docker/1234\n",
			"/proc/self/mountinfo":        "29 23 0:26 /docker/1234 /sys/fs/cgroup ro - cgroup2 none rw\n",
			"/sys/fs/cgroup/cpu.max":      "50000 100000\n",
			"/sys/fs/cgroup/1234/cpu.max": "10000 100000\n",
		}},
		"another container's cgroup, mounted first": {500, 64 << 30, map[string]string{
			"/proc/self/cgroup": "0::/docker/1234\n",
			"/proc/self/mountinfo": "28 23 0:26 /docker/12 /other rw - cgroup2 none rw\n" +
				"29 23 0:26 /docker /mnt/my\\040cgroups rw - cgroup2 none rw\n",
			"/other/cpu.max": "10000 100000\n", "/mnt/my cgroups/1234/cpu.max": "50000 100000\n",
		}},
		"a process that was moved out of its namespace": {500, 64 << 30, map[string]string{
			"/proc/self/cgroup": "0::/../1234\n", "/proc/self/mountinfo": v2,
			"/sys/fs/cgroup/cpu.max": "50000 100000\n", "/sys/fs/1234/cpu.max": "10000 100000\n",
		}},
		"a cgroup that was removed": {500, 64 << 30, map[string]string{
			"/proc/self/cgroup": "0::/a/b (deleted)\n", "/proc/self/mountinfo": v2,
			"/sys/fs/cgroup/a/cpu.max": "50000 100000\n",
		}},
		"version 1": {1500, 3 << 20, map[string]string{
			"/proc/self/cgroup":                                 "4:memory:/a:b\n3:cpuset:/\n1:cpu,cpuacct:/c\n",
			"/proc/self/mountinfo":                              v1,
			"/sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_quota_us":     "75000\n",
			"/sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_period_us":    "50000\n",
			"/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us":       "-1\n",
			"/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us":      "100000\n",
			"/sys/fs/cgroup/memory/a:b/memory.limit_in_bytes":   "9223372036854771712\n",
			"/sys/fs/cgroup/memory/memory.limit_in_bytes":       "3145728\n",
			"/sys/fs/cgroup/memory/c/memory.limit_in_bytes":     "1\n",
			"/sys/fs/cgroup/cpu,cpuacct/a:b/cpu.cfs_quota_us":   "1\n",
			"/sys/fs/cgroup/cpu,cpuacct/a:b/cpu.cfs_period_us":  "100000\n",
			"/sys/fs/cgroup/cpu,cpuacct/memory.limit_in_bytes":  "1\n",
			"/sys/fs/cgroup/memory/a:b/cpu.cfs_quota_us":        "1\n",
			"/sys/fs/cgroup/cpu,cpuacct/c/cpu.max":              "1 100000\n",
			"/sys/fs/cgroup/cpu,cpuacct/c/memory.max":           "1\n",
			"/sys/fs/cgroup/memory/a:b/memory.max":              "1\n",
			"/sys/fs/cgroup/memory/a:b/memory.kmem.limit_bytes": "1\n",
		}},
		"the 'no limit' of version 1": {16000, 64 << 30, map[string]string{
			"/proc/self/cgroup": "4:memory:/\n", "/proc/self/mountinfo": v1,
			"/sys/fs/cgroup/memory/memory.limit_in_bytes": "18446744073709551615\n",
		}},
		"both versions": {1500, 1 << 20, map[string]string{
			"/proc/self/cgroup":                              "4:cpu:/a\n0::/a\n",
			"/proc/self/mountinfo":                           v1 + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n",
			"/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us":  "150000\n",
			"/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
			"/sys/fs/cgroup/unified/a/memory.max":            "1048576\n",
		}},
		"limits beyond what there is": {16000, 64 << 30, map[string]string{
			"/proc/self/cgroup": "0::/a\n", "/proc/self/mountinfo": v2,
			"/sys/fs/cgroup/cpu.max": "18446744073709551615 1\n", "/sys/fs/cgroup/memory.max": "18446744073709551615\n",
			"/sys/fs/cgroup/a/cpu.max": "18446744073709551615 1000\n",
		}},
		"less than a thousandth of a CPU": {1, 0, map[string]string{
			"/proc/self/cgroup": "0::/\n", "/proc/self/mountinfo": v2,
			"/sys/fs/cgroup/cpu.max": "1000 10000000\n", "/sys/fs/cgroup/memory.max": "0\n",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := fake(test.files).Detect()
			require.NoError(t, err)
			assert.Equal(t, test.cpus, d.CPUs, "CPUs")
			assert.Equal(t, test.memory, d.Memory, "memory")
		})
	}
}

// TestCgroupLimitsAgreeWithTheirModel makes a hierarchy with limits at any level, mounts a part of
// it, and shows it from a cgroup namespace.
func TestCgroupLimitsAgreeWithTheirModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		files := map[string]string{}
		var groups, mounts strings.Builder
		cpus, memory := big.NewInt(16000), int64(64<<30)

		// hierarchy adds one of which the upper part is not mounted, and calls limit for the
		// directory of each cgroup. If the process can find that, its limits are effective.
		hierarchy := func(number int, controllers, fstype, options string, limit func(dir string, effective bool)) {
			names := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "a:b", "user.slice", "x y"}), 0, 5).Draw(t, "cgroup")
			mounted := rapid.IntRange(0, len(names)).Draw(t, "mounted from level")
			namespace := rapid.IntRange(0, len(names)).Draw(t, "namespace from level")
			dir := rapid.SampledFrom([]string{"/sys/fs/cgroup", "/mnt/my cgroups", "/c"}).Draw(t, "mount point") + strconv.Itoa(number)
			seen := func(level int) string {
				if level < namespace {
					return strings.Repeat("/..", namespace-level)
				}
				return "/" + strings.Join(names[namespace:level], "/")
			}
			fmt.Fprintf(&groups, "%d:%s:%s\n", number, controllers, seen(len(names)))
			fmt.Fprintf(&mounts, "29 23 0:26 %s %s rw,relatime shared:1 - %s none %s\n",
				strings.ReplaceAll(seen(mounted), " ", `\040`), strings.ReplaceAll(dir, " ", `\040`), fstype, options)
			for level := mounted; level <= len(names); level++ {
				// Below a namespace's root that is itself below the mount's root, names are
				// unknown.
				limit(path.Join(dir, path.Join(names[mounted:level]...)), namespace <= mounted || level == mounted)
			}
			limit(path.Join(dir, "sibling"), false)
		}
		drawCPUs := func(effective bool) (quota, period int64) {
			quota, period = rapid.Int64Range(1000, 2_000_000).Draw(t, "quota"), rapid.Int64Range(1000, 1_000_000).Draw(t, "period")
			if n := new(big.Int).Div(big.NewInt(quota*Unit), big.NewInt(period)); effective && n.Cmp(cpus) < 0 {
				cpus = n
			}
			return quota, period
		}
		drawMemory := func(effective bool) int64 {
			limit := rapid.Int64Range(0, 128<<30).Draw(t, "memory")
			if effective {
				memory = min(memory, limit)
			}
			return limit
		}
		limited := func() bool { return rapid.Bool().Draw(t, "limited") }

		v1 := rapid.Bool().Draw(t, "version 1")
		if v1 {
			hierarchy(4, "cpu,cpuacct", "cgroup", "rw,cpu,cpuacct", func(dir string, effective bool) {
				quota, period := int64(-1), int64(100_000)
				if limited() {
					quota, period = drawCPUs(effective)
				}
				files[dir+"/cpu.cfs_quota_us"], files[dir+"/cpu.cfs_period_us"] = fmt.Sprintln(quota), fmt.Sprintln(period)
			})
		}
		if rapid.Bool().Draw(t, "version 2") {
			hierarchy(0, "", "cgroup2", "rw", func(dir string, effective bool) {
				files[dir+"/memory.max"] = "max\n"
				if limited() {
					files[dir+"/memory.max"] = fmt.Sprintln(drawMemory(effective))
				}
				if !v1 { // a controller is in one hierarchy
					files[dir+"/cpu.max"] = "max 100000\n"
					if limited() {
						quota, period := drawCPUs(effective)
						files[dir+"/cpu.max"] = fmt.Sprintln(quota, period)
					}
				}
			})
		} else {
			hierarchy(7, "memory", "cgroup", "rw,memory", func(dir string, effective bool) {
				files[dir+"/memory.limit_in_bytes"] = "9223372036854771712\n"
				if limited() {
					files[dir+"/memory.limit_in_bytes"] = fmt.Sprintln(drawMemory(effective))
				}
			})
		}
		files["/proc/self/cgroup"], files["/proc/self/mountinfo"] = groups.String(), mounts.String()
		d, err := fake(files).Detect()
		require.NoError(t, err)
		if d.CPUs != max(1, cpus.Int64()) || d.Memory != memory {
			t.Fatalf("%d thousandths of a CPU and %d bytes; the limits are %v and %d", d.CPUs, d.Memory, cpus, memory)
		}
	})
}

func TestFilesThatCannotBeUnderstood(t *testing.T) {
	t.Parallel()
	const v2, v1 = "29 23 0:26 / /c rw - cgroup2 none rw\n", "29 23 0:26 / /c rw - cgroup none rw,cpu,memory\n"
	for name, test := range map[string]struct {
		files map[string]string
		want  string
	}{
		"no total": {
			map[string]string{"/proc/meminfo": "MemFree: 1 kB\n"},
			`machine: /proc/meminfo has no valid MemTotal`,
		},
		"a total that overflows": {
			map[string]string{"/proc/meminfo": "MemTotal: 9007199254740992 kB\n"},
			`machine: /proc/meminfo has no valid MemTotal`,
		},
		"cgroup": {
			map[string]string{"/proc/self/cgroup": "0::/\nx\n"},
			`machine: /proc/self/cgroup has the line "x\n", not hierarchy:controllers:path`,
		},
		"mountinfo": {
			map[string]string{"/proc/self/mountinfo": "29 23 0:26 / c rw - cgroup2 none rw\n"},
			`machine: /proc/self/mountinfo has the line "29 23 0:26 / c rw - cgroup2 none rw\n", which is not the kernel's form of a mount`,
		},
		"quota": {
			map[string]string{"/proc/self/cgroup": "0::/\n", "/proc/self/mountinfo": v2, "/c/cpu.max": "-5 100000\n"},
			`machine: /c/cpu.max has "-5", which is not the kernel's form of a limit`,
		},
		"period": {
			map[string]string{"/proc/self/cgroup": "0::/\n", "/proc/self/mountinfo": v2, "/c/cpu.max": "5 0\n"},
			`machine: /c/cpu.max has "5 0", which is not the kernel's form of a limit`,
		},
		"memory": {
			map[string]string{"/proc/self/cgroup": "0::/\n", "/proc/self/mountinfo": v2, "/c/memory.max": "1G\n"},
			`machine: /c/memory.max has "1G", which is not the kernel's form of a limit`,
		},
		"memory of version 1": {
			map[string]string{"/proc/self/cgroup": "1:memory:/\n", "/proc/self/mountinfo": v1, "/c/memory.limit_in_bytes": "-1\n"},
			`machine: /c/memory.limit_in_bytes has "-1", which is not the kernel's form of a limit`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := fake(test.files).Detect()
			require.EqualError(t, err, test.want)
			assert.Empty(t, d)
		})
	}
}

// failing is a file system in which one file can't be read.
type failing struct {
	fs.FS

	name string
	err  error
}

func (f failing) Open(name string) (fs.File, error) {
	if name == f.name {
		return nil, &fs.PathError{Op: "open", Path: name, Err: f.err}
	}
	return f.FS.Open(name)
}

func TestFilesThatCannotBeRead(t *testing.T) {
	t.Parallel()
	files := map[string]string{
		"/proc/self/cgroup": "0::/\n1:cpu:/\n2:memory:/\n",
		"/proc/self/mountinfo": "29 23 0:26 / /c rw - cgroup2 none rw\n29 23 0:26 / /cpu rw - cgroup none rw,cpu\n" +
			"29 23 0:26 / /memory rw - cgroup none rw,memory\n",
		"/c/cpu.max": "max 100000\n", "/c/memory.max": "max\n", "/memory/memory.limit_in_bytes": "1048576\n",
		"/cpu/cpu.cfs_quota_us": "100000\n", "/cpu/cpu.cfs_period_us": "100000\n",
		"/proc/driver/nvidia/gpus/0000:01:00.0/information": information(1),
	}
	optional := append(slices.Collect(maps.Keys(files)), "/proc/driver/nvidia/gpus")
	for _, name := range append(optional, "/proc/meminfo") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := fake(files)
			s.Root = failing{s.Root, strings.TrimPrefix(name, "/"), syscall.EACCES}
			_, err := s.Detect()
			require.ErrorIs(t, err, syscall.EACCES)
			require.ErrorContains(t, err, "machine: ")
			require.ErrorContains(t, err, name[1:])
		})
	}
	for _, name := range optional {
		for _, absent := range []error{fs.ErrNotExist, syscall.ENODEV} {
			s := fake(files)
			s.Root = failing{s.Root, strings.TrimPrefix(name, "/"), absent}
			_, err := s.Detect()
			require.NoError(t, err, name)
		}
	}
	s := fake(nil)
	s.Root = failing{s.Root, "dev", syscall.EIO}
	_, err := s.Detect()
	require.EqualError(t, err, "machine: open dev: input/output error")
	s.Root = failing{s.Root, "proc/meminfo", errors.New("hidden")}
	_, err = s.Detect()
	require.EqualError(t, err, "machine: the size of the memory can't be read: open proc/meminfo: hidden")
}

// information is what NVIDIA's driver reports of a GPU, the digits of whose UUID are n.
func information(n int) string {
	return "Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ:   \t\t 58\nGPU UUID: \t " + uuid(n) + "\nVideo BIOS: \t 92.00.45.00.03\nDevice Minor: \t 3\n"
}

func uuid(n int) string {
	return strings.Map(func(c rune) rune {
		if c == 'x' {
			return rune('0' + n)
		}
		return c
	}, "GPU-xxxxxxxx-d72c-4106-c12f-20bd9faed9f6")
}

func TestGPUs(t *testing.T) {
	t.Parallel()
	const gpus = "/proc/driver/nvidia/gpus/"
	three := map[string]string{
		gpus + "0000:01:00.0/information": information(1), gpus + "0000:02:00.0/information": information(2),
		gpus + "0000:b3:00.0/information": information(3), "/dev/nvidia0": "", "/dev/nvidia1": "",
	}
	unknown := map[string]string{
		gpus + "0000:01:00.0/information": information(1),
		gpus + "0000:02:00.0/information": "GPU UUID: \t GPU-????????-????-????-????-????????????\n",
		gpus + "0000:b3:00.0/power":       "",
	}
	none := map[string]string{"/dev/nvidiactl": "", "/dev/nvidia-uvm": "", "/dev/nvidia-caps/nvidia-cap1": "", "/dev/xnvidia1": ""}
	devices := map[string]string{"/dev/nvidia2": "", "/dev/nvidia10": "", "/dev/nvidiactl": "", "/dev/nvidia-uvm": ""}
	const unset = "unset"
	for _, test := range []struct {
		files   map[string]string
		visible string
		want    []string
	}{
		{three, unset, []string{uuid(1), uuid(2), uuid(3)}},
		{unknown, unset, []string{"0", "1", "2"}},
		{map[string]string{gpus + "0000:01:00.0/information": "GPU UUID: \t GPU-1\n"}, unset, []string{"0"}},
		{map[string]string{gpus + "0000:01:00.0/information": "Other UUID: \t " + uuid(1) + "\n"}, unset, []string{"0"}},
		{none, unset, nil},
		{devices, unset, []string{"0", "1"}},

		{three, "", nil},
		{three, " ", nil},
		{three, "-1", nil},
		{three, "NoDevFiles", nil},
		{three, "0", []string{"0"}},
		{three, "2,1", []string{"2", "1"}},
		{three, " 2, 01 ", []string{"2", "1"}},
		{three, "0,2,-1,1", []string{"0", "2"}},
		{three, "0,3,1", []string{"0"}},
		{three, "0,,1", []string{"0"}},
		{three, "0,18446744073709551616,1", []string{"0"}},
		{three, "0,1.5,1", []string{"0"}},
		{three, "0,+1", []string{"0"}},
		{three, "0,1,0", nil},
		{three, "0,1,-1,0", []string{"0", "1"}},

		{three, uuid(3) + "," + uuid(1), []string{uuid(3), uuid(1)}},
		{three, "GPU-3,GPU-1", []string{uuid(3), uuid(1)}},
		{three, "GPU-3,GPU-4,GPU-1", []string{uuid(3)}},
		{three, "GPU-", nil},
		{three, "GPU-3,GPU-,GPU-1", []string{uuid(3)}},
		{three, "GPU-3,GPU-33", nil},
		{three, "GPU-3,1", []string{uuid(3)}},
		{three, "1,GPU-3", []string{"1"}},
		{three, uuid(3) + "0", nil},

		{unknown, "GPU-2,GPU-1", []string{"GPU-2", "GPU-1"}},
		{unknown, "GPU-2,GPU-1,x", []string{"GPU-2", "GPU-1"}},
		{unknown, "GPU-2,GPU-1,GPU-3,GPU-4", []string{"GPU-2", "GPU-1", "GPU-3"}},
		{unknown, "2", []string{"2"}},
		{devices, "0,1,2", []string{"0", "1"}},

		{three, "MIG-GPU-1/1/2,MIG-GPU-1/1/3", []string{"MIG-GPU-1/1/2"}},
		{three, "0,MIG-GPU-1/1/2", []string{"0"}},

		{none, "0", nil},
		{none, "GPU-1", nil},
		{none, "MIG-GPU-1/1/2", nil},
	} {
		files := maps.Clone(test.files)
		if test.visible != unset {
			files["$CUDA_VISIBLE_DEVICES"] = test.visible
		}
		d, err := fake(files).Detect()
		require.NoError(t, err)
		assert.Equal(t, test.want, append([]string(nil), d.GPUs...), "CUDA_VISIBLE_DEVICES=%s, %v", test.visible, test.files)
	}
}

// TestIdentifiersOfGPUsAreValidValues: what is detected can be put into CUDA_VISIBLE_DEVICES, in
// each order, and makes these GPUs visible.
func TestIdentifiersOfGPUsAreValidValues(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		installed := numbered(rapid.IntRange(0, 4).Draw(t, "GPUs"))
		if rapid.Bool().Draw(t, "with UUIDs") {
			for i := range installed {
				installed[i] = uuid(i)
			}
		}
		entry := rapid.SampledFrom([]string{"0", "1", "2", "3", "03", " 1", "-1", "", "x", "GPU-", "GPU-0", "GPU-00", uuid(1), uuid(2), uuid(3), "MIG-1", "MIG-2"})
		list := strings.Join(rapid.SliceOfN(entry, 0, 6).Draw(t, "list"), ",")
		detected := rapid.Permutation(installed.visible(list)).Draw(t, "detected")
		some := detected[:rapid.IntRange(0, len(detected)).Draw(t, "allocated")]
		if visible := installed.visible(strings.Join(some, ",")); !slices.Equal(visible, some) || len(some) > len(installed) {
			t.Fatalf("with %q, %q are allocated, and %q visible", list, some, visible)
		}
	})
}

func FuzzDetect(f *testing.F) {
	f.Add("0::/a\n1:cpu:/\n", "29 23 0:26 / /c rw - cgroup2 none rw\n29 23 0:26 /a /c rw - cgroup none rw,cpu\n", "max 100000\n", "max\n", meminfo, "GPU-1,2", information(1))
	f.Add("0::/../a\n2:memory:/c\n", "29 23 0:26 /.. / rw - cgroup2 none rw\n", "1 18446744073709551615\n", "-1\n", meminfo, "0,1,1", information(2))
	f.Fuzz(func(t *testing.T, groups, mounts, cpu, memory, meminfo, visible, information string) {
		d, err := fake(map[string]string{
			"/proc/self/cgroup": groups, "/proc/self/mountinfo": mounts, "/proc/meminfo": meminfo, "$CUDA_VISIBLE_DEVICES": visible,
			"/proc/driver/nvidia/gpus/0/information": information, "/proc/driver/nvidia/gpus/1/information": "",
			"/c/cpu.max": cpu, "/c/a/cpu.max": cpu, "/cpu.max": cpu, "/c/cpu.cfs_quota_us": cpu, "/c/cpu.cfs_period_us": memory,
			"/c/memory.max": memory, "/c/a/memory.max": memory, "/memory.max": memory, "/c/memory.limit_in_bytes": memory,
		}).Detect()
		if err != nil {
			require.Contains(t, err.Error(), "machine: ")
			return
		}
		if d.CPUs < 1 || d.CPUs > 16000 || d.Memory < 0 || d.Memory > math.MaxInt64-1023 || len(d.GPUs) > 2 {
			t.Fatalf("%+v", d)
		}
		require.NoError(t, d.Resources().Check())
	})
}
