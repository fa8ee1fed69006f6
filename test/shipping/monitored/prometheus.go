// SPDX-License-Identifier: Apache-2.0

package monitored

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
)

// Patience is how long anything may take: many times what it takes on a quiet
// machine.
const Patience = 2 * time.Minute

// Scraped is a process that Prometheus scrapes, with what the Prometheus operator
// would find out about it.
type Scraped struct {
	Address, Pod, Node string
}

// Job is a Service that a ServiceMonitor is for, with the pods behind it.
type Job struct {
	// Monitor is the ServiceMonitor's file in config/prometheus.
	Monitor string
	// Service is the installed Service's name.
	Service   string
	Namespace string
	Pods      []Scraped
}

// Prometheus is a running Prometheus.
type Prometheus struct {
	address string
	command *exec.Cmd
	exited  chan struct{}
	log     string
}

// Tool finds a program of Debian's package prometheus.
func Tool(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%w: apt-get install prometheus", err)
	}
	return path, nil
}

type scrapeConfig struct {
	JobName        string          `json:"job_name"`
	HonorLabels    bool            `json:"honor_labels"`
	MetricsPath    string          `json:"metrics_path"`
	RelabelConfigs []relabelConfig `json:"relabel_configs,omitempty"`
	StaticConfigs  []staticConfig  `json:"static_configs"`
}

type relabelConfig struct {
	SourceLabels []string `json:"source_labels"`
	TargetLabel  string   `json:"target_label"`
}

type staticConfig struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

// scrapes makes of a job what the Prometheus operator makes of its ServiceMonitor.
func (j Job) scrapes() (scrapeConfig, error) {
	var m monitor
	if err := readManifest(j.Monitor, &m); err != nil {
		return scrapeConfig{}, err
	}
	endpoint := m.Spec.Endpoints[0]
	c := scrapeConfig{JobName: j.Service, HonorLabels: endpoint.HonorLabels, MetricsPath: endpoint.Path}
	for _, r := range endpoint.Relabelings {
		c.RelabelConfigs = append(c.RelabelConfigs, relabelConfig{r.SourceLabels, r.TargetLabel})
	}
	for _, p := range j.Pods {
		c.StaticConfigs = append(c.StaticConfigs, staticConfig{
			Targets: []string{p.Address},
			Labels: map[string]string{
				"namespace": j.Namespace, "service": j.Service, "pod": p.Pod, "endpoint": "metrics",
				"__meta_kubernetes_pod_node_name": p.Node,
			},
		})
	}
	return c, nil
}

// StartPrometheus starts Debian's Prometheus with the shipped alerts, scraping
// the jobs and evaluating the alerts at each step. It ends with the test.
func StartPrometheus(t testing.TB, step time.Duration, jobs ...Job) *Prometheus {
	t.Helper()
	p, err := startPrometheus(t.TempDir(), step, jobs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	})
	if err := p.waitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

func startPrometheus(dir string, step time.Duration, jobs []Job) (*Prometheus, error) {
	program, err := Tool("prometheus")
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "prometheus.yaml")
	if err := configure(config, step, jobs); err != nil {
		return nil, err
	}
	p := &Prometheus{exited: make(chan struct{}), log: filepath.Join(dir, "log")}
	if p.address, err = controlplane.FreeAddress(); err != nil {
		return nil, err
	}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.command = exec.Command(program, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+p.address, "--log.level=warn")
	p.command.Stdout, p.command.Stderr = log, log
	if err := controlplane.StartChild(p.command); err != nil {
		return nil, fmt.Errorf("starting Prometheus: %w", err)
	}
	go func() {
		_ = p.command.Wait() // what it has to say is in its log
		close(p.exited)
	}()
	return p, nil
}

// configure writes Prometheus' configuration, and its rules beside it.
func configure(path string, step time.Duration, jobs []Job) error {
	groups, err := ReadRules()
	if err != nil {
		return err
	}
	if err := WriteRules(filepath.Join(filepath.Dir(path), "rules.yaml"), groups); err != nil {
		return err
	}
	var scrapes []scrapeConfig
	for _, j := range jobs {
		s, err := j.scrapes()
		if err != nil {
			return err
		}
		scrapes = append(scrapes, s)
	}
	return writeYAML(path, map[string]any{
		"global":         map[string]string{"scrape_interval": step.String(), "scrape_timeout": step.String(), "evaluation_interval": step.String()},
		"rule_files":     []string{"rules.yaml"},
		"scrape_configs": scrapes,
	})
}

func (p *Prometheus) waitReady(ctx context.Context) error {
	var err error
	for end := time.Now().Add(Patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		select {
		case <-p.exited:
			return fmt.Errorf("Prometheus has ended: %s", p.Log())
		default:
		}
		if _, err = p.Query(ctx, "vector(1)"); err == nil {
			return nil
		}
	}
	return fmt.Errorf("Prometheus is not ready: %w\n%s", err, p.Log())
}

func (p *Prometheus) stop() error {
	if err := p.command.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.exited:
		return nil
	case <-time.After(Patience):
		return errors.Join(errors.New("Prometheus did not end in time"), p.command.Process.Kill())
	}
}

// Log is what it wrote so far: warnings and errors.
func (p *Prometheus) Log() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// URL is the address of its API and pages.
func (p *Prometheus) URL() string { return "http://" + p.address }

// Series is one of a query's results: values at times (in seconds since 1970).
type Series struct {
	Labels map[string]string
	Times  []float64
	Values []float64
}

// answer is the part of the API's answers that queries have.
type answer struct {
	Status string
	Error  string
	Data   json.RawMessage
}

// call asks a path of the API.
func (p *Prometheus) call(ctx context.Context, path string, parameters url.Values, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL()+"/api/v1/"+path+"?"+parameters.Encode(), nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var a answer
	if err := json.NewDecoder(response.Body).Decode(&a); err != nil {
		return fmt.Errorf("%s answers %s: %w", path, response.Status, err)
	}
	if a.Status != "success" {
		return fmt.Errorf("%s: %s", path, a.Error)
	}
	return json.Unmarshal(a.Data, into)
}

// Query evaluates an expression now.
func (p *Prometheus) Query(ctx context.Context, expr string) ([]Series, error) {
	return p.query(ctx, "query", url.Values{"query": {expr}})
}

// QueryRange evaluates an expression at each step of the time up to now.
func (p *Prometheus) QueryRange(ctx context.Context, expr string, back, step time.Duration) ([]Series, error) {
	now := time.Now()
	return p.query(ctx, "query_range", url.Values{
		"query": {expr}, "start": {seconds(now.Add(-back))}, "end": {seconds(now)}, "step": {fmt.Sprint(step.Seconds())},
	})
}

func seconds(t time.Time) string { return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64) }

func (p *Prometheus) query(ctx context.Context, path string, parameters url.Values) ([]Series, error) {
	var data struct {
		Result []struct {
			Metric map[string]string
			Value  []any
			Values [][]any
		}
	}
	if err := p.call(ctx, path, parameters, &data); err != nil {
		return nil, err
	}
	var all []Series
	for _, r := range data.Result {
		s := Series{Labels: r.Metric}
		if r.Value != nil {
			r.Values = append(r.Values, r.Value)
		}
		for _, v := range r.Values {
			at, _ := v[0].(float64)
			text, _ := v[1].(string)
			value, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return nil, fmt.Errorf("a value of %s: %w", path, err)
			}
			s.Times, s.Values = append(s.Times, at), append(s.Values, value)
		}
		all = append(all, s)
	}
	return all, nil
}

// LabelValues are the values that a label has in a selector's series.
func (p *Prometheus) LabelValues(ctx context.Context, selector, label string) (values []string, err error) {
	err = p.call(ctx, "label/"+label+"/values", url.Values{"match[]": {selector}}, &values)
	return values, err
}

// RuleState is what Prometheus says of an alert.
type RuleState struct {
	Name           string
	Health         string // ok, err or unknown
	LastError      string
	State          string // inactive, pending or firing
	EvaluationTime float64
}

// Rules are the states of all alerts.
func (p *Prometheus) Rules(ctx context.Context) (all []RuleState, err error) {
	var data struct{ Groups []struct{ Rules []RuleState } }
	if err := p.call(ctx, "rules", nil, &data); err != nil {
		return nil, err
	}
	for _, g := range data.Groups {
		all = append(all, g.Rules...)
	}
	return all, nil
}

// Down lists the jobs' targets that are not up, with their errors.
func (p *Prometheus) Down(ctx context.Context) (down []string, err error) {
	var data struct {
		ActiveTargets []struct{ ScrapeURL, Health, LastError string }
	}
	if err := p.call(ctx, "targets", nil, &data); err != nil {
		return nil, err
	}
	for _, target := range data.ActiveTargets {
		if target.Health != "up" {
			down = append(down, strings.TrimSpace(target.ScrapeURL+": "+target.Health+" "+target.LastError))
		}
	}
	return down, nil
}
