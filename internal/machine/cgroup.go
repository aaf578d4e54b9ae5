package machine

import (
	"fmt"
	"io/fs"
	"math"
	"math/bits"
	"path"
	"slices"
	"strconv"
	"strings"
)

// limits are what the cgroups of this process allow it, [noLimit] where they allow all.
type limits struct {
	// cpus is in thousandths of a CPU, memory in bytes.
	cpus, memory int64
}

const noLimit = math.MaxInt64

// unified stands for the controllers of cgroups of version 2, which are in one hierarchy, where
// those of version 1 have names. Machines may have hierarchies of both versions.
const unified = ""

// cgroupMount is where a hierarchy of cgroups, or a part of one, is mounted.
type cgroupMount struct {
	// controllers has those of the hierarchy, or unified. Other mount options are beside them.
	controllers []string
	// root is the cgroup whose directory is dir. It is seen from this process's cgroup namespace.
	root, dir string
}

// readLimits returns the limits of this process: cgroups(7). A limit of a cgroup applies to all
// below it, so the smallest one from the process's cgroup up to the root is in effect. The limits
// of cgroups above the root of a mount, as in most containers, can't be seen.
func readLimits(root fs.FS) (limits, error) {
	all := limits{cpus: noLimit, memory: noLimit}
	mounts, err := readCgroupMounts(root)
	if err != nil {
		return all, err
	}
	const name = "proc/self/cgroup"
	content, _, err := readIfPresent(root, name)
	if err != nil {
		return all, err
	}
	for line := range strings.Lines(content) {
		// As in `4:cpu,cpuacct:/user.slice`, and `0::/user.slice` of version 2.
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 {
			return all, fmt.Errorf("machine: /%s has the line %s, not hierarchy:controllers:path", name, quote(line))
		}
		for controller := range strings.SplitSeq(fields[1], ",") {
			for _, dir := range directories(mounts, controller, fields[2]) {
				if err := all.narrow(root, dir, controller); err != nil {
					return all, err
				}
			}
		}
	}
	return all, nil
}

// readCgroupMounts returns the mounts of cgroups: proc_pid_mountinfo(5).
func readCgroupMounts(root fs.FS) ([]cgroupMount, error) {
	const name = "proc/self/mountinfo"
	content, _, err := readIfPresent(root, name)
	if err != nil {
		return nil, err
	}
	var mounts []cgroupMount
	// As in `35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup none rw,memory`.
	for line := range strings.Lines(content) {
		before, after, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		mount, filesystem := strings.Split(before, " "), strings.Split(after, " ")
		if len(mount) < 6 || !path.IsAbs(mount[4]) || len(filesystem) != 3 {
			return nil, fmt.Errorf("machine: /%s has the line %s, which is not the kernel's form of a mount", name, quote(line))
		}
		m := cgroupMount{root: unescape(mount[3]), dir: unescape(mount[4])}
		switch filesystem[0] {
		case "cgroup2":
			m.controllers = []string{unified}
		case "cgroup":
			m.controllers = strings.Split(filesystem[2], ",")
		default:
			continue
		}
		mounts = append(mounts, m)
	}
	return mounts, nil
}

// unescape returns a path of mountinfo, in which white space and backslashes are octal.
func unescape(text string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(text)
}

// directories returns the directories of a cgroup in the hierarchy of a controller, and of the ones
// above it, as far as they are mounted.
//
// Where the cgroup is below no mount's root, this is the root of the first mount: in a container,
// the container's limits. So it is for a process that was moved out of its cgroup namespace, and
// for one in a namespace that is newer than the mounts; then limits between the two are unknown.
func directories(mounts []cgroupMount, controller, cgroup string) []string {
	var dirs, roots []string
	for _, m := range mounts {
		if !slices.Contains(m.controllers, controller) {
			continue
		}
		roots = append(roots, m.dir)
		relative, ok := strings.CutPrefix(cgroup+"/", strings.TrimSuffix(m.root, "/")+"/")
		if !ok || slices.Contains(strings.Split(relative, "/"), "..") {
			continue
		}
		for dir := path.Join(m.dir, relative); ; dir = path.Dir(dir) {
			dirs = append(dirs, dir)
			if len(dir) <= len(m.dir) {
				break
			}
		}
	}
	if len(dirs) == 0 {
		return roots[:min(1, len(roots))]
	}
	return dirs
}

// narrow applies the limits of one cgroup, by the files of a controller in its directory. The root
// of a hierarchy has none, nor has a cgroup for which the controller is not enabled.
func (l *limits) narrow(root fs.FS, dir, controller string) error {
	cpus, memory := int64(noLimit), int64(noLimit)
	var err error
	switch controller {
	case unified:
		if cpus, err = cpuMax(root, path.Join(dir, "cpu.max")); err == nil {
			memory, err = memoryLimit(root, path.Join(dir, "memory.max"))
		}
	case "cpu":
		cpus, err = cfsQuota(root, path.Join(dir, "cpu.cfs_quota_us"), path.Join(dir, "cpu.cfs_period_us"))
	case "memory":
		memory, err = memoryLimit(root, path.Join(dir, "memory.limit_in_bytes"))
	}
	l.cpus, l.memory = min(l.cpus, cpus), min(l.memory, memory)
	return err
}

// cpuMax reads a limit of version 2, `$QUOTA $PERIOD` in microseconds, where the quota may be
// `max`.
func cpuMax(root fs.FS, name string) (int64, error) {
	text, ok, err := readControl(root, name)
	if err != nil || !ok {
		return noLimit, err
	}
	quota, period, _ := strings.Cut(text, " ")
	return cpusOf(name, quota, period)
}

// cfsQuota reads a limit of version 1, in two files in microseconds. A quota of -1 is none.
func cfsQuota(root fs.FS, quotaName, periodName string) (int64, error) {
	quota, ok, err := readControl(root, quotaName)
	if err != nil || !ok || quota == "-1" {
		return noLimit, err
	}
	period, ok, err := readControl(root, periodName)
	if err != nil || !ok {
		return noLimit, err
	}
	return cpusOf(quotaName, quota, period)
}

// cpusOf returns how many thousandths of a CPU a quota of CPU time in each period is, rounded down.
func cpusOf(name, quota, period string) (int64, error) {
	if quota == "max" {
		return noLimit, nil
	}
	q, err := strconv.ParseUint(quota, 10, 64)
	if err != nil {
		return noLimit, errControl(name, quota)
	}
	p, err := strconv.ParseUint(period, 10, 64)
	if err != nil || p == 0 {
		return noLimit, errControl(name, quota+" "+period)
	}
	high, low := bits.Mul64(q, Unit)
	if high >= p {
		return noLimit, nil
	}
	cpus, _ := bits.Div64(high, low, p)
	return int64(min(cpus, noLimit)), nil
}

// memoryLimit reads a limit in bytes. No limit is `max` in version 2, and the largest number of
// pages in version 1, which is more than machines have.
func memoryLimit(root fs.FS, name string) (int64, error) {
	text, ok, err := readControl(root, name)
	if err != nil || !ok || text == "max" {
		return noLimit, err
	}
	limit, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return noLimit, errControl(name, text)
	}
	return int64(min(limit, noLimit)), nil
}

// readControl returns the text of a control file, and whether there is one.
func readControl(root fs.FS, name string) (string, bool, error) {
	content, ok, err := readIfPresent(root, strings.TrimPrefix(name, "/"))
	return strings.TrimSuffix(content, "\n"), ok, err
}

func errControl(name, text string) error {
	return fmt.Errorf("machine: %s has %s, which is not the kernel's form of a limit", name, quote(text))
}
