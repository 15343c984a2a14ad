// SPDX-License-Identifier: Apache-2.0

// Command bench measures Portolan beside baselines of the same run, on one
// processor: medians of the ratios of neighbouring blocks, so that a busy machine
// disturbs both sides alike. It prints a table, writes JSON, and ends with 0
// whatever the figures are. It needs root and works in a cgroup and a bpffs
// directory of its own.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/test/world"
)

// figure is one measured value. Bar is what is to be reached, at most; 0 means
// that the line is there to be compared with.
type figure struct {
	Name          string  `json:"name"`
	Value         float64 `json:"value"`
	Unit          string  `json:"unit"`
	Baseline      string  `json:"baseline"`
	BaselineValue float64 `json:"baseline_value"`
	Bar           float64 `json:"bar"`
	Pass          bool    `json:"pass"`
}

func main() {
	out := flag.String("json", "build/bench.json", "write the figures to `FILE`")
	only := flag.String("only", "", "measure the groups with these `NAMES` only: tables, connects, flows, hammer, wire, nodeport")
	world.Main()
	flag.Parse()
	if err := run(*out, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
}

func run(out, only string) error {
	runtime.LockOSThread()
	quiet()
	place, err := newBed()
	if err != nil {
		return err
	}
	defer place.remove()
	var figures []figure
	for _, group := range []struct {
		name    string
		measure func(*bed) ([]figure, error)
	}{{"tables", tables}, {"connects", connects}, {"flows", flows}, {"hammer", hammer}, {"wire", wire}, {"nodeport", nodePort}} {
		if only != "" && !strings.Contains(only, group.name) {
			continue
		}
		some, err := group.measure(place)
		if err != nil {
			return err
		}
		figures = append(figures, some...)
	}
	print(figures)
	text, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	return os.WriteFile(out, append(text, '\n'), 0o600)
}

// quiet asks for one processor and for being preferred; both are favours.
func quiet() {
	var set unix.CPUSet
	set.Set(runtime.NumCPU() - 1)
	_ = unix.SchedSetaffinity(0, &set)
	_, _ = unix.Setsid()
	_ = os.WriteFile("/proc/self/autogroup", []byte("-19"), 0)
}

func print(figures []figure) {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	fmt.Printf("Linux %s, %s, %d processors, one used\n\n", strings.TrimSpace(string(release)), processor(), runtime.NumCPU())
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "FIGURE\tVALUE\tUNIT\tBASELINE\t\tTO REACH\t")
	for _, f := range figures {
		bar, mark := "", ""
		if f.Bar > 0 || f.Unit == "failed" {
			bar, mark = fmt.Sprintf("≤ %.4g", f.Bar), "missed"
			if f.Pass {
				mark = "ok"
			}
		}
		fmt.Fprintf(w, "%s\t%.4g\t%s\t%s\t%.4g\t%s\t%s\n", f.Name, f.Value, f.Unit, f.Baseline, f.BaselineValue, bar, mark)
	}
	// The terminal may have gone.
	_ = w.Flush()
	fmt.Println(`
"no program" is the same call in a cgroup without a program, while some connect program is attached elsewhere on the
machine, as on hardly any machine none is: from then on the kernel takes a lock in every UDP connect.`)
}

func processor() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for _, line := range strings.Split(string(info), "\n") {
		if name, ok := strings.CutPrefix(line, "model name\t: "); ok {
			return name
		}
	}
	return runtime.GOARCH
}

// bed is where a run takes place: a cgroup with the process in it, one without
// programs, one for the empty program, and a directory of pins.
type bed struct {
	mount, cgroup, sibling, empty, pins string
}

func newBed() (*bed, error) {
	mount, err := loader.FindCgroup2()
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("portolan-bench-%d", os.Getpid())
	p := &bed{mount: mount, cgroup: filepath.Join(mount, name), sibling: filepath.Join(mount, name+"-other"),
		empty: filepath.Join(mount, name+"-empty"), pins: filepath.Join("/sys/fs/bpf", name)}
	for _, dir := range []string{p.cgroup, p.sibling, p.empty} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	return p, os.WriteFile(filepath.Join(p.cgroup, "cgroup.procs"), []byte("0"), 0)
}

func (p *bed) remove() {
	for _, err := range []error{
		os.WriteFile(filepath.Join(p.mount, "cgroup.procs"), []byte("0"), 0),
		os.Remove(p.cgroup), os.Remove(p.sibling), os.Remove(p.empty), p.clean(),
	} {
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench: clean up:", err)
		}
	}
}

// in runs f with the process in another cgroup.
func (p *bed) in(cgroup string, f func() error) error {
	if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte("0"), 0); err != nil {
		return err
	}
	err := f()
	if back := os.WriteFile(filepath.Join(p.cgroup, "cgroup.procs"), []byte("0"), 0); err == nil {
		err = back
	}
	return err
}

func (p *bed) clean() error {
	_, err := loader.Cleanup(p.pins, false)
	return err
}
