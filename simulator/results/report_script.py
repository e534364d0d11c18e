"""The JavaScript of a report: themes, charts drawn when they come into sight, the timeline."""

from __future__ import annotations

from simulator.results.page import COLOURED, PICTURE

# The timeline comes as columns of numbers. What is in sight is painted on a canvas, which is put
# behind the plot as an image: tens of thousands of bars as elements of the page take seconds.
_TIMELINE = """
const ARRAYS = {
  u1: Uint8Array, u2: Uint16Array, i2: Int16Array, i4: Int32Array, f4: Float32Array,
};
function decoded({ kind, base64 }) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  return new ARRAYS[kind](bytes.buffer);
}

// The bars of the kinds that the legend does not hide, as an image of the plot's size in pixels.
function painted(place, lane, columns, palette) {
  const box = place.querySelector(".nsewdrag").getBoundingClientRect();
  const [from, until] = place.layout.xaxis.range;
  const [bottom, top] = place.layout.yaxis.range;
  const canvas = document.createElement("canvas");
  const dense = Math.min(window.devicePixelRatio || 1, 2);
  canvas.width = Math.max(Math.round(box.width * dense), 1);
  canvas.height = Math.max(Math.round(box.height * dense), 1);
  const paint = canvas.getContext("2d");
  const [wide, tall] = [canvas.width / (until - from), canvas.height / (bottom - top)];
  const { row, kind, start, took, wait } = columns;
  const bar = (begin, end, at, half) => {
    if (end < from || begin > until || at < top - 1 || at > bottom + 1) return;
    const left = Math.max((begin - from) * wide, -2);
    const right = Math.min((end - from) * wide, canvas.width + 2);
    paint.fillRect(left, (at - half - top) * tall, Math.max(right - left, 0.6), 2 * half * tall);
  };
  const waiting = lane.kinds.length - 1;
  const seen = lane.shown.filter((_, index) => place.data[index].visible !== "legendonly");
  for (const which of [waiting, ...seen.filter((one) => one !== waiting)]) {
    if (!seen.includes(which)) continue;
    paint.fillStyle = palette[lane.colors[which].slice(1)];
    for (let i = 0; i < row.length; i += 1) {
      if (which === waiting) {
        if (wait[i] > 0) bar(start[i] - wait[i], start[i], row[i], 0.2);
      } else if (kind[i] === which) {
        bar(start[i], start[i] + took[i], row[i], 0.42);
      }
    }
  }
  return {
    source: canvas.toDataURL(), xref: "x", yref: "y", x: from, y: top, sizex: until - from,
    sizey: bottom - top, sizing: "stretch", layer: "below", xanchor: "left", yanchor: "top",
  };
}

function timelineFigure(lane, columns) {
  const used = lane.kinds.map(() => false);
  columns.kind.forEach((kind) => { used[kind] = true; });
  used[lane.kinds.length - 1] = columns.wait.some((value) => value > 0);
  lane.shown = lane.kinds.map((_, at) => at).filter((at) => used[at]);
  const count = lane.rows.length;
  // For the legend: the bars are in the image.
  const data = lane.shown.map((at) => ({
    type: "scatter", mode: "markers", hoverinfo: "skip", name: lane.kinds[at], x: [null], y: [null],
    marker: { color: lane.colors[at], symbol: "square", size: 12 }, showlegend: true,
  }));
  const axis = { zeroline: false, showgrid: false, linecolor: "@frame", automargin: true };
  const shapes = lane.labels.slice(1).map((_, gpu) => ({
    type: "line", layer: "below", xref: "paper", x0: 0, x1: 1, y0: (gpu + 1) * lane.each - 0.5,
    y1: (gpu + 1) * lane.each - 0.5, line: { color: "@frame", width: 0.5 },
  }));
  const steps = lane.steps.length <= 40 ? lane.steps : [];
  steps.forEach(([, at]) => shapes.push({
    type: "line", yref: "paper", x0: at, x1: at, y0: 0, y1: 1,
    line: { color: "@quiet", width: 1, dash: "dot" },
  }));
  const tall = count > 96 ? 5 : count > 48 ? 8 : 11;
  // A label needs 14 pixels.
  const apart = Math.ceil(14 / (tall * lane.each));
  const told = lane.labels.map((_, gpu) => gpu).filter((gpu) => gpu % apart === 0);
  const layout = {
    height: Math.max(140 + count * tall, 260),
    xaxis: { ...axis, title: { text: lane.x, standoff: 8 }, range: [0, lane.end] },
    yaxis: {
      ...axis, range: [count - 0.5, -0.5], ticks: "",
      tickvals: told.map((gpu) => gpu * lane.each + (lane.each - 1) / 2),
      ticktext: told.map((gpu) => lane.labels[gpu]),
    },
    shapes,
    annotations: steps.filter(([, at]) => at >= 0).map(([step, at]) => ({
      x: at, y: 1, yref: "paper", xanchor: "left", yanchor: "bottom", text: `step ${step}`,
      showarrow: false, font: { size: 11, color: "@quiet" },
    })),
    hovermode: false, paper_bgcolor: "@page", plot_bgcolor: "@host",
    font: { color: "@text", family: "system-ui, sans-serif", size: 12 },
    legend: { orientation: "h", x: 0, yanchor: "bottom", itemsizing: "constant" },
    margin: { l: 8, r: 12, t: 60, b: 8 },
  };
  layout.legend.y = 1 + 24 / Math.max(layout.height - 110, 100);
  return { data, layout };
}

function bytesTold(value) {
  for (const [scale, unit] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (value >= scale) return `${(value / scale).toPrecision(3)} ${unit}`;
  }
  return `${value.toPrecision(3)} B`;
}

function spanTold(lane, columns, i) {
  const { layer, batch, expert, peer, bytes, start, took, wait, kind, row } = columns;
  const where = [`layer ${layer[i]}`];
  if (batch[i] >= 0) where.push(`micro-batch ${batch[i]}`);
  if (expert[i] >= 0) where.push(`expert ${expert[i]}`);
  const lines = [
    `${lane.rows[row[i]]}: ${lane.kinds[kind[i]]}`, where.join(", "),
    `${took[i].toPrecision(4)} ${lane.unit}, from ${start[i].toPrecision(6)} ${lane.unit}`,
  ];
  if (bytes[i] > 0) {
    const from = peer[i] >= 0 ? `GPU ${peer[i]}` : "host memory";
    lines.push(bytesTold(bytes[i]) + (lane.fetches.includes(kind[i]) ? ` from ${from}` : ""));
  }
  if (wait[i] > 0) lines.push(`waited ${wait[i].toPrecision(3)} ${lane.unit} for weights`);
  return lines.join("\\n");
}

// Which span is at a point of the screen, -1 for none.
function spanAt(place, lane, columns, event) {
  const area = place.querySelector(".nsewdrag");
  if (!area) return -1;
  const box = area.getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  if (x < 0 || y < 0 || x > box.width || y > box.height) return -1;
  const [from, until] = place.layout.xaxis.range;
  const [bottom, top] = place.layout.yaxis.range;
  const slack = 2 * (until - from) / box.width;
  const time = from + (until - from) * x / box.width;
  const at = Math.round(top + (bottom - top) * y / box.height);
  const hidden = new Set(
    lane.shown.filter((_, index) => place.data[index].visible === "legendonly"));
  let best = -1, near = slack;
  const { row, start, took, kind } = columns;
  for (let i = 0; i < row.length; i += 1) {
    if (row[i] !== at || hidden.has(kind[i])) continue;
    const off = Math.max(start[i] - time, time - start[i] - took[i], 0);
    if (off <= near) { best = i; near = off; }
  }
  return best;
}

function timelineEvents(place, lane, columns) {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  place.parentElement.append(tip);
  const tell = (event) => {
    // Plotly sends clicks of its own after a touch, without a place.
    if (!event.isTrusted) return;
    const i = spanAt(place, lane, columns, event);
    tip.hidden = i < 0;
    if (i < 0) return;
    tip.textContent = spanTold(lane, columns, i);
    const box = place.parentElement.getBoundingClientRect();
    const left = Math.min(event.clientX - box.left + 14, box.width - tip.offsetWidth - 4);
    tip.style.left = `${Math.max(left, 0)}px`;
    tip.style.top = `${event.clientY - box.top + 16}px`;
  };
  place.addEventListener("pointermove", tell);
  place.addEventListener("click", tell);
  place.addEventListener("pointerleave", () => { tip.hidden = true; });
  // After each change of what is in sight: zoom, size, legend, theme.
  let last = "";
  const repaint = () => {
    const { width, height } = place.querySelector(".nsewdrag").getBoundingClientRect();
    const colours = palette();
    const now = JSON.stringify([
      place.layout.xaxis.range, place.layout.yaxis.range, width, height, colours.page,
      place.data.map((trace) => trace.visible),
    ]);
    if (now === last) return;
    last = now;
    Plotly.relayout(place, { images: [painted(place, lane, columns, colours)] });
  };
  place.on("plotly_afterplot", repaint);
  repaint();
}
"""

SCRIPT = """"use strict";
@COLOURED@
@PICTURE@
@TIMELINE@
const { charts, palettes } = JSON.parse(document.getElementById("charts").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)").matches;
const root = document.documentElement;
const drawn = new Set();
const lanes = {};

function palette() {
  const wanted = root.dataset.theme || "auto";
  return palettes[wanted === "auto" ? (dark.matches ? "dark" : "light") : wanted];
}

// Named one by one: nothing that would send a picture anywhere.
function config(name, buttons) {
  return {
    responsive: true, displaylogo: false, displayModeBar: touch ? true : "hover",
    // After a change of theme plotly would go back to what was in sight then: see reset.
    doubleClick: false,
    toImageButtonOptions: { filename: name, scale: 2 },
    modeBarButtons: [["toImage"], [...buttons, {
      name: "reset", title: "Show all", icon: Plotly.Icons.home,
      click: () => reset(name),
    }]],
  };
}
const SOME = ["zoomIn2d", "zoomOut2d"];
const ALL = ["zoom2d", "pan2d", ...SOME];

function reset(name) {
  const place = document.getElementById(name);
  const { layout } = figureOf(name, place);
  const ranges = {};
  for (const axis of ["xaxis", "yaxis"]) {
    const { range, autorange } = layout[axis];
    ranges[range ? `${axis}.range` : `${axis}.autorange`] = range || autorange || true;
  }
  Plotly.relayout(place, ranges);
}

function figureOf(name, place) {
  const { kind, figure } = charts[name];
  if (kind !== "timeline") return figure;
  if (!lanes[name]) {
    const columns = {};
    for (const [key, value] of Object.entries(figure.columns)) columns[key] = decoded(value);
    lanes[name] = { columns, figure: timelineFigure(figure, columns) };
  }
  return lanes[name].figure;
}

async function draw(name) {
  const place = document.getElementById(name);
  const { kind } = charts[name];
  const { data, layout } = coloured(figureOf(name, place), "", palette());
  // A finger that moves over a picture scrolls the page.
  layout.dragmode = touch ? false : "zoom";
  if (kind === "timeline" && place.data) {
    // Zoom and hidden kinds stay. (Plotly's own way to that, uirevision, has none for images.)
    layout.images = place.layout.images;
    layout.xaxis.range = place.layout.xaxis.range;
    layout.yaxis.range = place.layout.yaxis.range;
    data.forEach((trace, at) => { trace.visible = place.data[at].visible; });
  }
  if (kind === "cluster") {
    place.style.minWidth = Math.min(layout.meta.columns * 14, 14000) + "px";
    layout.height = pictureHeight(place, charts[name].figure);
    layout.uirevision = "kept";
  }
  // A narrow legend has an entry to a line, above the plot.
  if (kind === "plot" && place.clientWidth < 600 && layout.showlegend !== false) {
    layout.height += 19 * Math.max(data.filter((one) => one.type !== "heatmap").length - 2, 0);
  }
  const first = !place.data;
  const buttons = kind === "plot" ? (touch ? SOME : []) : ALL;
  await Plotly.react(place, data, layout, config(name, buttons));
  if (kind === "cluster") {
    fit(place, true);
    if (first) place.on("plotly_relayout", () => fit(place));
  }
  if (kind === "timeline" && first) {
    timelineEvents(place, charts[name].figure, lanes[name].columns);
  }
  // A tap comes as two clicks, so on a phone the button alone resets.
  if (first && !touch) place.on("plotly_doubleclick", () => reset(name));
  place.dataset.ready = "true";
}

const names = Object.keys(charts);
async function show(name) {
  if (drawn.has(name)) return;
  drawn.add(name);
  await draw(name);
}
if (touch) {
  document.querySelectorAll("[data-touch]").forEach((one) => {
    one.textContent = one.dataset.touch;
  });
}
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) show(entry.target.id);
}, { rootMargin: "500px" });
names.forEach((name) => observer.observe(document.getElementById(name)));
addEventListener("beforeprint", () => { names.forEach(show); });

function paint() { drawn.forEach(draw); }
dark.addEventListener("change", paint);
const switches = document.querySelectorAll("[data-set-theme]");
function choose(wanted) {
  if (wanted === "auto") delete root.dataset.theme; else root.dataset.theme = wanted;
  switches.forEach((one) => {
    one.setAttribute("aria-pressed", String(one.dataset.setTheme === wanted));
  });
}
let kept = "auto";
// A page opened from a file may have no storage.
try { kept = localStorage.getItem("theme") || "auto"; } catch { kept = "auto"; }
choose(["auto", "light", "dark"].includes(kept) ? kept : "auto");
switches.forEach((one) => one.addEventListener("click", () => {
  choose(one.dataset.setTheme);
  try { localStorage.setItem("theme", one.dataset.setTheme); } catch { /* it lasts for the page */ }
  paint();
}));

document.querySelectorAll("[data-copy]").forEach((button) => {
  button.addEventListener("click", async () => {
    const from = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(from.textContent);
    } catch {
      // A page opened from a file may not have the clipboard.
      getSelection().selectAllChildren(from);
      document.execCommand("copy");
    }
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
});
document.body.dataset.ready = "true";
"""


def script() -> str:
    """All of it."""
    parts = {"COLOURED": COLOURED, "PICTURE": PICTURE, "TIMELINE": _TIMELINE}
    found = SCRIPT
    for name, code in parts.items():
        found = found.replace(f"@{name}@", code)
    return found
