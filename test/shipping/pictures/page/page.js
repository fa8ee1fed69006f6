// SPDX-License-Identifier: Apache-2.0

// Draws the panels of `row`: {from, to, step, panels: [{panel, series: [{label, times, values}]}]}.
// Lengths are in pixels, times in seconds since 1970. What it cannot draw is an
// error, which ends the script and leaves the document's title as it was.
"use strict";

const columnWidth = 49, lineHeight = 30, gap = 8;
const colors = ["#1f78c1", "#e0752d", "#508642", "#ba43a9", "#bf1b00", "#0a437c", "#c9a100", "#447ebc", "#6d1f62", "#3f2b5b",
  "#58140c", "#052b51", "#967302", "#511749", "#2f575e", "#99440a", "#7eb26d", "#6ed0e0", "#ef843c", "#705da0"];
const named = { green: "#56a64b", blue: "#8ab8d8", orange: "#ff780a", red: "#e02f44", text: "#24292e" };

const scaled = (v, units, base) => {
  let i = 0;
  for (; Math.abs(v) >= base && i < units.length - 1; i++) v /= base;
  return +v.toPrecision(3) + units[i];
};
// Writes a value in a unit of Grafana's.
const units = {
  short: v => scaled(v, ["", "k", "M", "G"], 1000),
  ops: v => scaled(v, ["", "k", "M", "G"], 1000) + "/s",
  pps: v => scaled(v, ["", "k", "M", "G"], 1000) + "/s",
  bytes: v => scaled(v, [" B", " KiB", " MiB", " GiB"], 1024),
  percentunit: v => +(v * 100).toPrecision(3) + " %",
  s: v => v === 0 ? "0" : scaled(v * 1e6, [" µs", " ms", " s"], 1000),
};

// Steps of axes in bytes.
const powers = Array.from({ length: 40 }, (_, i) => 2 ** i);

const add = (parent, tag, className, text) => {
  const e = document.createElement(tag);
  if (className) e.className = className;
  if (text !== undefined) e.textContent = text;
  return parent.appendChild(e);
};
const last = s => s.values[s.values.length - 1];
const thresholdColor = (steps, v) => named[steps.filter(s => s.value === null || v >= s.value).pop().color];

const stat = (box, panel, series) => {
  const v = last(series[0]);
  add(box, "div", "stat", units[panel.fieldConfig.defaults.unit](v)).style.color =
    thresholdColor(panel.fieldConfig.defaults.thresholds.steps, v);
};

const graph = (box, panel, series, width, height) => {
  const { unit, min, max } = panel.fieldConfig.defaults;
  const legend = add(box, "div", "legend");
  series.forEach((s, i) => {
    const entry = add(legend, "span");
    add(entry, "i").style.background = colors[i % colors.length];
    entry.append(`${s.label}  ${units[unit](last(s))}`);
  });
  const times = [...new Set(series.flatMap(s => s.times))].sort((a, b) => a - b);
  const data = [times, ...series.map(s => {
    const at = new Map(s.times.map((t, i) => [t, s.values[i]]));
    return times.map(t => at.has(t) ? at.get(t) : null);
  })];
  const place = document.createElement("div");
  box.insertBefore(place, legend);
  new uPlot({
    width, height: height - legend.offsetHeight - 24,
    legend: { show: false }, cursor: { show: false },
    tzDate: t => uPlot.tzDate(new Date(t * 1000), "Etc/UTC"),
    scales: {
      x: { min: row.from, max: row.to },
      y: { range: (_, __, high) => [min, max ?? (high > 0 ? high * 1.08 : 1)] },
    },
    axes: [
      { font: "10px DejaVu Sans", size: 26, values: [[1, "{HH}:{mm}", null, null, null, null, null, null, 1]], incrs: [60, 120, 300] },
      { font: "10px DejaVu Sans", size: 58, values: (_, ticks) => ticks.map(v => units[unit](v)), ...(unit === "bytes" ? { incrs: powers } : {}) },
    ],
    series: [{}, ...series.map((_, i) => ({ stroke: colors[i % colors.length], width: 1.5, points: { show: false } }))],
  }, data, place);
};

// One band for each series, in stretches of the same value; where it has no value,
// there is a gap.
const states = (box, panel, series) => {
  const words = panel.fieldConfig.defaults.mappings[0].options;
  for (const s of series) {
    const band = add(box, "div", "band");
    add(band, "span", "", s.label);
    const line = add(band, "div");
    for (let i = 0; i < s.values.length;) {
      let end = i + 1;
      while (end < s.values.length && s.values[end] === s.values[i] && s.times[end] - s.times[end - 1] < 1.5 * row.step) end++;
      const until = Math.min(s.times[end - 1] + row.step, row.to);
      const part = add(line, "b", "", words[s.values[i]].text);
      part.style.background = named[words[s.values[i]].color];
      part.style.left = `${100 * (s.times[i] - row.from) / (row.to - row.from)}%`;
      part.style.width = `${100 * (until - s.times[i]) / (row.to - row.from)}%`;
      i = end;
    }
  }
};

const drawers = { stat, timeseries: graph, "state-timeline": states };

const draw = () => {
  const panels = document.getElementById("panels");
  const top = Math.min(...row.panels.map(p => p.panel.gridPos.y));
  for (const { panel, series } of row.panels) {
    const { x, y, w, h } = panel.gridPos;
    const box = add(panels, "div", "panel");
    const width = w * columnWidth - gap, height = h * lineHeight - gap;
    Object.assign(box.style, { left: `${x * columnWidth}px`, top: `${(y - top) * lineHeight}px`, width: `${width}px`, height: `${height}px` });
    add(box, "h2", "", panel.title);
    drawers[panel.type](box, panel, series, width - 18, height - 12);
  }
};

draw();
document.title = `drawn: ${row.panels.length}`;
