"use strict";
// Charts: each is embedded into its box, in page order, fitted to the width that the box has.
const page = JSON.parse(document.getElementById("data").textContent);
const boxes = [...document.querySelectorAll(".chart")];
const views = new Map();
let chosen = page.closeups.default;
let drawing = 0;
const longest = Math.max(...page.labels.map((label) => Math.min(label.length, 38))); // letters of a legend entry

function closeupRows(hints) {
  const found = [];
  let based = false;
  const tensor = page.closeups.tensors[chosen];
  for (const run of Object.keys(tensor.runs).sort()) {
    for (const [curve, series] of Object.entries(hints.curves)) {
      const kept = tensor.runs[run][curve];
      if (!kept || (curve === hints.base && based)) continue;
      based = based || curve === hints.base;
      const label = curve === hints.base ? "base" : run === "null" ? "magnitude null" : page.labels[run];
      page.closeups.axes[kept[0]].forEach((x, i) => found.push({ run: label, series, x, y: kept[1][i] }));
    }
  }
  return found;
}

function fitted(name, width) {
  const spec = structuredClone(page.charts[name]);
  const hints = spec.usermeta;
  spec.config = structuredClone(page.config);
  spec.config.legend.columns = Math.max(1, Math.floor((width - (hints.pad || 60)) / (Math.max(longest, hints.letters) * 6.5 + 26)));
  if (hints.shared) spec.datasets = { rows: page.shared[hints.shared] };
  if (hints.closeup) spec.datasets = { rows: closeupRows(hints.closeup) };
  if (hints.cells) {
    const step = Math.max(1, Math.floor((width - hints.pad) / hints.cells));
    spec.width = step * hints.cells;
    spec.height = Math.round(spec.width * hints.aspect);
  } else if (hints.facets) {
    const gap = hints.gap || 0;
    const columns = hints.least ? Math.max(1, Math.min(hints.facets, Math.floor((width - hints.pad) / hints.least))) : 1;
    if (hints.least) spec.columns = columns;
    spec.spec.width = Math.floor((width - hints.pad - gap * (columns - 1)) / columns);
  }
  return spec;
}

async function embed(box) {
  const width = box.clientWidth;
  if (!width) return;
  const spec = fitted(box.dataset.chart, width);
  const before = views.get(box);
  const made = await vegaEmbed(box, spec, { actions: false, renderer: "svg", ast: true, mode: "vega-lite" });
  if (before) before.finalize();
  views.set(box, made);
}

async function drawAll(which) {
  const own = ++drawing;
  document.documentElement.dataset.ready = "no";
  for (const box of which) {
    if (own !== drawing && which === boxes) return;
    await embed(box);
    await new Promise((go) => setTimeout(go, 0));
  }
  if (own === drawing) document.documentElement.dataset.ready = "yes";
}

// The chosen matrix
const picker = document.getElementById("tensor");
if (picker) {
  page.closeups.tensors.forEach((tensor, i) => {
    const option = new Option(`${tensor.name}  (${tensor.shape.join(" × ")})`, i);
    option.selected = i === chosen;
    picker.add(option);
  });
  picker.addEventListener("change", () => {
    chosen = Number(picker.value);
    drawAll(boxes.filter((box) => page.charts[box.dataset.chart].usermeta.closeup));
  });
}

// Light and dark: the charts name CSS variables, so nothing has to be drawn again
const theme = document.getElementById("theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
function isDark() {
  const set = document.documentElement.dataset.theme;
  return set ? set === "dark" : prefersDark.matches;
}
function nameTheme() { theme.textContent = isDark() ? "Light" : "Dark"; }
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
});
prefersDark.addEventListener("change", nameTheme);
nameTheme();

let lastWidth = document.documentElement.clientWidth;
let waiting = 0;
addEventListener("resize", () => {
  if (document.documentElement.clientWidth === lastWidth) return;
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    lastWidth = document.documentElement.clientWidth;
    drawAll(boxes);
  }, 250);
});
drawAll(boxes);
