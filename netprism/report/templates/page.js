const dark = window.matchMedia("(prefers-color-scheme: dark)");
function colours(isDark) {
  const ink = isDark ? "#e6e9ed" : "#1b1f24", rule = isDark ? "#3a424b" : "#d8dee4";
  return { ink, rule };
}
function layoutOf(chart, isDark) {
  const { ink, rule } = colours(isDark);
  const axis = { gridcolor: rule, zerolinecolor: rule, linecolor: rule, automargin: true };
  const layout = Object.assign({ height: 300, margin: { l: 55, r: 15, t: 34, b: 45 } }, structuredClone(chart.layout));
  layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
  layout.font = { color: ink, family: "system-ui, sans-serif", size: 12 };
  layout.hoverlabel = { namelength: -1 };
  delete layout.title;
  for (const key of ["xaxis", "yaxis"]) layout[key] = Object.assign({}, axis, layout[key]);
  const epochs = chart.data.flatMap((trace) => (trace.type === "scatter" ? trace.x : []));
  if (epochs.length && Math.max(...epochs) - Math.min(...epochs) < 8) layout.xaxis.dtick = 1;
  if (layout.scene) for (const key of ["xaxis", "yaxis", "zaxis"]) {
    layout.scene[key] = Object.assign({ gridcolor: rule, color: ink, backgroundcolor: "rgba(0,0,0,0)" }, layout.scene[key]);
  }
  return layout;
}
function draw(element, isDark) {
  const chart = CHARTS[element.dataset.chart];
  const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["sendDataToCloud"] };
  return Plotly.react(element, structuredClone(chart.data), layoutOf(chart, isDark), options).then(() =>
    chart.frames.length && !element.dataset.frames ? (element.dataset.frames = 1, Plotly.addFrames(element, chart.frames)) : null);
}
const elements = [...document.querySelectorAll(".chart")];
const is3d = (element) => CHARTS[element.dataset.chart].data.some((trace) => trace.type.endsWith("3d"));
// A browser has few WebGL contexts, and a long page is drawn as it is scrolled to.
const watcher = new IntersectionObserver((entries) => entries.forEach((entry) => {
  if (entry.isIntersecting && !entry.target.dataset.drawn) { entry.target.dataset.drawn = 1; draw(entry.target, dark.matches); }
}), { rootMargin: "600px" });
elements.forEach((element) => watcher.observe(element));
function redraw(isDark, all) {
  return elements.filter((element) => all ? !is3d(element) || element.dataset.drawn : element.dataset.drawn)
    .map((element) => { element.dataset.drawn = 1; return draw(element, isDark); });
}
dark.addEventListener("change", () => redraw(dark.matches, false));
window.addEventListener("beforeprint", () => redraw(false, true));
window.addEventListener("afterprint", () => redraw(dark.matches, true));
document.querySelectorAll("input[data-frames]").forEach((slider) => {
  const images = [...document.querySelectorAll(`img[data-of="${slider.dataset.frames}"]`)];
  const show = () => {
    images.forEach((image, i) => { image.hidden = i !== Number(slider.value); });
    const epoch = images[slider.value].dataset.epoch;
    slider.parentElement.querySelector("output").textContent = epoch;
    slider.setAttribute("aria-valuetext", epoch);
  };
  slider.addEventListener("input", show);
  show();
});
function cell(row, tag, text) {
  const made = row.appendChild(document.createElement(tag));
  made.textContent = text === null || text === undefined ? "–" : typeof text === "number" ? Number(text.toPrecision(4)) : text;
}
document.querySelectorAll("details.numbers").forEach((details) => details.addEventListener("toggle", () => {
  if (details.children.length > 1) return;
  const chart = CHARTS[details.previousElementSibling.dataset.chart], lines = chart.data;
  const table = details.appendChild(document.createElement("div"));
  table.className = "scroll";
  const body = table.appendChild(document.createElement("table"));
  if (lines[0].type === "heatmap") {
    const head = body.insertRow(); ["", ...lines[0].x].forEach((text) => cell(head, "th", text));
    lines[0].y.forEach((name, i) => { const row = body.insertRow(); cell(row, "th", name); lines[0].z[i].forEach((z) => cell(row, "td", z)); });
  } else if (lines[0].type === "scatter") {
    const shown = lines.filter((line) => line.fill !== "toself");
    const epochs = [...new Set(shown.flatMap((line) => line.x))].sort((a, b) => a - b);
    const head = body.insertRow(); [chart.layout.xaxis.type === "category" ? "layer" : "epoch", ...shown.map((line) => line.name)].forEach((text) => cell(head, "th", text));
    epochs.forEach((epoch) => {
      const row = body.insertRow(); cell(row, "th", epoch);
      shown.forEach((line) => cell(row, "td", line.y[line.x.indexOf(epoch)]));
    });
  } else details.append("Points in three dimensions; the files are in the folder of the run.");
}));
