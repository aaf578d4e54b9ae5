package machine

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// VisibleDevices is the variable of the environment that has the GPUs that a process may use:
// https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-environment-variables.
const VisibleDevices = "CUDA_VISIBLE_DEVICES"

// uuidPrefix begins the UUIDs of GPUs.
const uuidPrefix = "GPU-"

// gpus are the identifiers of GPUs, in the form of [Description].GPUs: UUIDs of all, or indices.
type gpus []string

// installedGPUs returns the GPUs that NVIDIA's driver has. They have UUIDs where the driver reports
// those of all. Otherwise they are numbered from 0, as CUDA numbers what it finds: neither the
// numbers of device files, which may have gaps in a container, nor the order matter for that.
func installedGPUs(root fs.FS) (gpus, error) {
	const name = "proc/driver/nvidia/gpus"
	entries, ok, err := readDirIfPresent(root, name)
	if err != nil {
		return nil, err
	}
	if !ok {
		return gpusByDeviceFiles(root)
	}
	var uuids gpus
	for _, entry := range entries {
		information, _, err := readIfPresent(root, path.Join(name, entry.Name(), "information"))
		if err != nil {
			return nil, err
		}
		if uuid := gpuUUID(information); uuid != "" {
			uuids = append(uuids, uuid)
		}
	}
	if len(uuids) < len(entries) {
		return numbered(len(entries)), nil
	}
	return uuids, nil
}

// gpuUUID returns the UUID of a GPU, or "". The driver reports one of question marks for a GPU that
// it has not yet initialized.
func gpuUUID(information string) string {
	for line := range strings.Lines(information) {
		key, value, _ := strings.Cut(line, ":")
		uuid := strings.TrimSpace(value)
		if digits, ok := strings.CutPrefix(uuid, uuidPrefix); ok && key == "GPU UUID" &&
			len(digits) == 36 && strings.Trim(digits, "0123456789abcdef-") == "" {
			return uuid
		}
	}
	return ""
}

// gpusByDeviceFiles returns the GPUs that have a device file, /dev/nvidia0 and so on.
func gpusByDeviceFiles(root fs.FS) (gpus, error) {
	entries, _, err := readDirIfPresent(root, "dev")
	if err != nil {
		return nil, err
	}
	n := 0
	for _, entry := range entries {
		if number, ok := strings.CutPrefix(entry.Name(), "nvidia"); ok && isDigits(number) {
			n++
		}
	}
	return numbered(n), nil
}

// numbered returns the identifiers of n GPUs by index.
func numbered(n int) gpus {
	all := make(gpus, n)
	for i := range all {
		all[i] = strconv.Itoa(i)
	}
	return all
}

// visible returns those of the installed GPUs that a value of CUDA_VISIBLE_DEVICES has, by CUDA's
// rules: the list ends before the first entry that is invalid, and if an entry occurs twice, there
// are none. All entries have the form of the first: indices, or UUIDs, of which the beginning
// suffices if it is unique. Of a MIG device, a part of a GPU, only one can be used.
//
// Indices stay indices. Which GPUs they stand for depends on CUDA_DEVICE_ORDER, and on how fast the
// GPUs are.
func (g gpus) visible(list string) gpus {
	if len(g) == 0 {
		return nil
	}
	resolve := g.byIndex
	switch first, _, _ := strings.Cut(list, ","); {
	case strings.HasPrefix(first, "MIG-"):
		return gpus{first}
	case strings.HasPrefix(first, uuidPrefix):
		resolve = g.byUUID
	}
	var all gpus
	for entry := range strings.SplitSeq(list, ",") {
		gpu, ok := resolve(entry)
		if !ok || len(all) == len(g) {
			break
		}
		if slices.Contains(all, gpu) {
			return nil
		}
		all = append(all, gpu)
	}
	return all
}

// byIndex returns the identifier of the GPU with an index.
func (g gpus) byIndex(entry string) (string, bool) {
	entry = strings.TrimSpace(entry)
	index, err := strconv.ParseUint(entry, 10, 32)
	return strconv.FormatUint(index, 10), err == nil && index < uint64(len(g))
}

// byUUID returns the identifier of the GPU whose UUID begins with entry, if there is just one. If
// UUIDs are not known, it trusts the environment.
func (g gpus) byUUID(entry string) (string, bool) {
	if !strings.HasPrefix(entry, uuidPrefix) {
		return "", false
	}
	if !strings.HasPrefix(g[0], uuidPrefix) {
		return entry, true
	}
	var found string
	for _, uuid := range g {
		if strings.HasPrefix(uuid, entry) {
			if found != "" {
				return "", false
			}
			found = uuid
		}
	}
	return found, found != ""
}

// readDirIfPresent returns the entries of a directory, and whether it exists.
func readDirIfPresent(root fs.FS, name string) ([]fs.DirEntry, bool, error) {
	entries, err := fs.ReadDir(root, name)
	if isAbsent(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("machine: %w", err)
	}
	return entries, true, nil
}
