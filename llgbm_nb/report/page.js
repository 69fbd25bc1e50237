// The page at work: map, heatmap, curve and table show one setting (layer, centered) and one adapter, which are the
// page's address, too: #adapter=code-4&layer=22&centered=1&colour=group. All numbers come from page_data.py.

const $ = name => document.getElementById(name);

async function unpack(name) {
  const packed = Uint8Array.from(atob($(name).textContent), letter => letter.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

async function script(name) {
  const element = document.createElement("script");
  element.textContent = await unpack(name);
  document.head.append(element);
}

const names = text => document.createElement("i").appendChild(document.createTextNode(text)).parentNode.innerHTML;
const colour = name => getComputedStyle(document.body).getPropertyValue(name).trim();
const short = text => text.length > 24 ? `${text.slice(0, 15)}…${text.slice(-8)}` : text;

let data, table, state = {adapter: null, layer: null, centered: false, colour: "domain"};

const frame = () => data.frames[`${state.layer} ${+state.centered}`];
const rowOf = adapter => data.rows.findIndex(row => row.includes(adapter));

function fromAddress() {
  const words = new URLSearchParams(location.hash.slice(1)), layer = Number(words.get("layer"));
  const adapter = data.adapters.name.indexOf(words.get("adapter"));
  return {
    adapter: adapter < 0 ? null : adapter,
    layer: words.has("layer") && data.layers.includes(layer) ? layer : data.layer,
    centered: words.has("centered") ? words.get("centered") === "1" : data.centered,
    colour: Object.hasOwn(data.labels, words.get("colour") ?? "") ? words.get("colour") : "domain",
  };
}

function toAddress() {
  const words = new URLSearchParams();
  if (state.adapter !== null) words.set("adapter", data.adapters.name[state.adapter]);
  words.set("layer", state.layer);
  if (state.centered) words.set("centered", "1");
  if (state.colour !== "domain") words.set("colour", state.colour);
  history.replaceState(null, "", `#${words}`);
}

function change(what) {
  Object.assign(state, what);
  toAddress();
  show();
}

function show() {
  $("layer").value = data.layers.indexOf(state.layer);
  $("layer-name").textContent = `layer ${state.layer} of ${data.layers.at(-1)}`;
  $("centered").checked = state.centered;
  $("colour").value = state.colour;
  const seen = frame();
  $("score").textContent = seen.note || `silhouette by domain ${seen.score.toFixed(3)}`;
  showMap(seen);
  showHeatmap(seen);
  showCurve();
  showAdapter(seen);
  showTable(seen);
  document.body.dataset.shown = location.hash;
}

const look = more => ({
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: {color: colour("--text"), size: 12},
  hovermode: "closest", showlegend: false, ...more,
});
const how = {responsive: true, displayModeBar: false};
const axis = more => ({gridcolor: colour("--line"), zeroline: false, linecolor: colour("--faint"), ...more});

function showMap(seen) {
  const kind = data.webgl ? "scattergl" : "scatter", traces = [];
  const label = data.labels[state.colour], all = [...data.adapters.name.keys()];
  for (const [place, [value, tone, symbol]] of [...label.values.entries(), [-1, [label.rest, "#999999", "circle"]]]) {
    const mine = all.filter(i => label.of[i] === place);
    if (mine.length) traces.push({
      type: kind, mode: "markers", name: names(short(value)), showlegend: true, customdata: mine,
      x: mine.map(i => seen.x[i]), y: mine.map(i => seen.y[i]),
      hovertext: mine.map(i => `<b>${names(data.adapters.name[i])}</b><br>${names(data.adapters.domain[i])} · norm ${data.adapters.norm[i]}` +
        (state.colour === "domain" ? "" : `<br>${names(state.colour)}: ${names(value)}`) +
        `<br>nearest: ${seen.nearest[i].slice(0, 3).map((j, k) => `${names(data.adapters.name[j])} (${seen.cosines[i][k]})`).join(", ")}`),
      hovertemplate: "%{hovertext}<extra></extra>",
      marker: {color: tone, symbol, size: data.webgl ? 4 : all.length > 150 ? 6 : 10, line: {width: data.webgl ? 0 : 0.5, color: "#333"}},
    });
  }
  const at = state.adapter === null ? [] : [state.adapter];
  traces.push({
    type: kind, mode: "markers", x: at.map(i => seen.x[i]), y: at.map(i => seen.y[i]), hoverinfo: "skip", showlegend: false,
    marker: {symbol: "circle-open", size: 20, color: "#d00000", line: {width: 3}},
  });
  const annotations = placed(seen);
  const height = 460 + 18 * Math.ceil(Math.max(0, traces.length - 9) / ($("map").clientWidth > 500 ? 4 : 2));  // the legend's
  $("map").style.height = `${height}px`;
  Plotly.react("map", traces, look({
    height, margin: {l: 34, r: 10, t: 10, b: 70}, legend: {orientation: "h", y: -0.16, itemsizing: "constant"}, showlegend: true, annotations,
    xaxis: axis({title: {text: seen.axes[0], standoff: 4}, showticklabels: false, ...range(seen.x)}),
    yaxis: axis({title: {text: seen.axes[1], standoff: 4}, showticklabels: false, ...range(seen.y)}),
  }), how);
}

const least = values => values.reduce((one, other) => Math.min(one, other), Infinity);
const most = values => values.reduce((one, other) => Math.max(one, other), -Infinity);

function range(values) {
  const low = least(values), high = most(values), margin = 0.12 * (high - low) || 1;
  return {range: [low - margin, high + margin]};
}

// Names beside their points, each at the first of eight places where it covers no point and no other name, or left out.
// Of many points, forty are tried.
function placed(seen) {
  const wide = $("map").clientWidth - 44, high = 380, boxes = [], found = [];
  const pixels = (values, length) => {
    const low = least(values), size = most(values) - low || 1;
    return values.map(value => (value - low) / size * length / 1.24);
  };
  const [right, up] = [pixels(seen.x, wide), pixels(seen.y, high)], points = right.map((x, i) => [x, -up[i]]);
  const each = most => (_, i) => i % Math.ceil(points.length / most) === 0;
  for (const [x, y] of points.filter(each(1000))) boxes.push([x - 6, y - 6, x + 6, y + 6]);
  const free = box => boxes.every(other => box[2] < other[0] || box[0] > other[2] || box[3] < other[1] || box[1] > other[3]);
  points.forEach(([x, y], i) => {
    if (!each(40)(null, i)) return;
    const text = short(data.adapters.name[i]), width = 6.2 * text.length, height = 12;
    for (const [right, down] of [[1, 0], [-1, 0], [0, -1], [0, 1], [1, -1], [-1, -1], [1, 1], [-1, 1]]) {
      const left = x + right * 9 + (right < 0 ? -width : right === 0 ? -width / 2 : 0), top = y + down * (right ? 9 : 14) - height / 2;
      const box = [left, top, left + width, top + height];
      if (left < -wide * 0.1 || box[2] > wide * 0.92 || !free(box)) continue;
      boxes.push(box);
      found.push({
        x: seen.x[i], y: seen.y[i], text: names(text), showarrow: false, font: {size: 10, color: colour("--text")},
        xanchor: right > 0 ? "left" : right < 0 ? "right" : "center", xshift: right * 8, yshift: -down * (right ? 9 : 14),
      });
      break;
    }
  });
  return found;
}

const RED_BLUE = ["#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7", "#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#67001f"]
  .map((tone, i) => [i / 10, tone]);  // ColorBrewer's, as in all other pictures

function showHeatmap(seen) {
  const labels = data.rows.map(row => row.length > 1 ? `${data.adapters.name[row[0]]} … (${row.length})` : data.adapters.name[row[0]]);
  const row = state.adapter === null ? -1 : rowOf(state.adapter), few = labels.length <= 30;
  Plotly.react("heatmap", [{
    type: "heatmap", z: seen.heat, colorscale: RED_BLUE, zmin: -1, zmax: 1, customdata: data.rows,
    text: seen.heat.map((line, i) => line.map((cosine, j) => `${names(labels[i])}<br>${names(labels[j])}<br>cosine ${cosine}`)),
    hovertemplate: "%{text}<extra></extra>", colorbar: {thickness: 10, outlinewidth: 0, title: {text: "cosine", side: "right"}},
  }], look({
    height: 460, margin: {l: few ? 16 + 7.2 * most(labels.map(text => short(text).length)) : 20, r: 10, t: 10, b: 30},
    xaxis: {showticklabels: false, ticks: "", showgrid: false, zeroline: false},
    yaxis: {ticks: "", showgrid: false, zeroline: false, autorange: "reversed", showticklabels: few, tickvals: [...labels.keys()],
            ticktext: labels.map(text => names(short(text)))},
    shapes: row < 0 ? [] : [{type: "rect", x0: -0.5, x1: labels.length - 0.5, y0: row - 0.5, y1: row + 0.5, line: {color: "#d00000", width: 2}}],
  }), how);
}

function showCurve() {
  const curve = data.curves[+state.centered], score = frame().score;
  Plotly.react("curve", [
    {x: data.numbers, y: curve, mode: "lines", line: {color: colour("--faint")}, connectgaps: true,
     hovertemplate: "layer %{x}: %{y:.3f}<extra></extra>"},
    {x: [state.layer], y: [score], mode: "markers", marker: {color: "#d00000", size: 9}, hoverinfo: "skip", cliponaxis: false},
  ], look({
    height: 110, margin: {l: 44, r: 12, t: 6, b: 30}, xaxis: axis({range: [data.numbers[0], data.numbers.at(-1)]}),
    yaxis: axis({nticks: 4, title: {text: "silhouette"}}),
  }), how);
}

function showAdapter(seen) {
  const i = state.adapter, place = $("adapter");
  if (i === null) {
    place.innerHTML = "<p>Pick an adapter in the table, on the map or in the heatmap.</p>";
    return;
  }
  const of = name => names(String(data.adapters[name][i] ?? "–")), tokens = data.adapters.tokens[i];
  const near = seen.nearest[i].map((j, k) =>
    `<li><a href="#" data-adapter="${j}">${names(data.adapters.name[j])}</a> ${names(data.adapters.domain[j])} <b>${seen.cosines[i][k].toFixed(3)}</b></li>`);
  place.innerHTML = `<h3>${of("name")}</h3><p>${of("domain")} · group ${of("group").replace(" · ", ": ")} · ${of("kind")} · norm ${of("norm")}` +
    `${data.adapters.flags[i] ? ` · <b>${of("flags")}</b>` : ""}<br><code>${of("path")}</code></p>` +
    `<h4>Nearest, by cosine</h4><ol>${near.join("")}</ol>` +
    (tokens ? `<h4>Makes likelier</h4><p class=tokens>${names(tokens[0])}</p><h4>Less likely</h4><p class=tokens>${names(tokens[1])}</p>` : "");
}

const DIGITS = {cosine: 3, silhouette: 3, norm: 2};
const COLUMNS = ["name", "domain", "group", "nearest", "cosine", "silhouette", "norm", "flags", "kind", "path"];

function makeTable(DataTable) {
  const rows = data.adapters.name.map((_, i) => [...COLUMNS.map(name => data.adapters[name][i] ?? ""), i]);
  const shown = (value, kind, row, {col}) => {
    if (kind !== "display") return value;
    return typeof value === "number" ? value.toFixed(DIGITS[COLUMNS[col]]) : names(String(value));
  };
  const text = {targets: "_all", render: shown};
  const safe = value => typeof value === "string" && /^[=+@-]/.test(value) ? `'${value}` : value;  // else a sheet's formula
  const copy = {extend: "copyHtml5", exportOptions: {orthogonal: "export", format: {body: safe}}};
  table = new DataTable("#adapters", {
    data: rows, columns: COLUMNS.map(title => ({title})), columnDefs: [text], pageLength: 15, deferRender: true, order: [],
    lengthMenu: [15, 50, 200], autoWidth: false, layout: {topStart: {buttons: [copy]}, topEnd: "search"},
  });
  fillTable.key = `${data.layer} ${+data.centered}`;
  $("adapters").addEventListener("click", event => {
    const row = event.target.closest("tbody tr");
    if (row && table.row(row).data()) change({adapter: table.row(row).data().at(-1)});
  });
  table.on("draw", markRow);
}

function markRow() {
  table.rows({page: "current"}).every(function () {
    this.node().classList.toggle("picked", this.data().at(-1) === state.adapter);
  });
}

function showTable(seen) {
  if (!table) return;
  clearTimeout(showTable.later);  // of many adapters, the table waits until the slider is let go
  if (data.adapters.name.length > 30) showTable.later = setTimeout(fillTable, 200, seen);
  else fillTable(seen);
  if (state.adapter !== null) {
    const order = table.rows({search: "applied"}).data().toArray().findIndex(row => row.at(-1) === state.adapter);
    if (order >= 0) table.page(Math.floor(order / table.page.len())).draw(false);
  }
  markRow();
}

function fillTable(seen) {
  const key = `${state.layer} ${+state.centered}`;
  if (key === fillTable.key) return;
  table.rows().every(function () {
    const row = this.data(), i = row.at(-1);
    row[3] = data.adapters.name[seen.nearest[i][0]];
    row[4] = seen.cosines[i][0];
    this.data(row);
  });
  fillTable.key = key;
  table.draw(false);
}

async function begin() {
  data = JSON.parse(await unpack("data"));
  if (data.adapters.name.length < 2) return;
  await script("plotly");
  Object.assign(state, fromAddress());
  $("layer").max = data.layers.length - 1;
  $("layer").addEventListener("input", () => change({layer: data.layers[$("layer").value]}));
  $("centered").addEventListener("change", () => change({centered: $("centered").checked}));
  for (const name of Object.keys(data.labels)) $("colour").append(new Option(name));
  $("colour").addEventListener("change", () => change({colour: $("colour").value}));
  $("adapter").addEventListener("click", event => {
    const link = event.target.closest("[data-adapter]");
    if (link) { event.preventDefault(); change({adapter: Number(link.dataset.adapter)}); }
  });
  window.addEventListener("hashchange", () => {
    if (/adapter=|layer=|colour=/.test(location.hash)) { Object.assign(state, fromAddress()); show(); }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  const sheet = document.createElement("style");
  sheet.textContent = await unpack("table-css");
  document.head.prepend(sheet);  // before the page's own
  const bundle = URL.createObjectURL(new Blob([await unpack("table-js")], {type: "text/javascript"}));
  const {default: DataTable} = await import(bundle);
  makeTable(DataTable);
  show();
  $("map").on("plotly_click", event => { if (event.points[0].customdata !== undefined) change({adapter: event.points[0].customdata}); });
  $("heatmap").on("plotly_click", event => change({adapter: data.rows[event.points[0].pointIndex[0]][0]}));
  $("curve").on("plotly_click", event => { if (data.layers.includes(event.points[0].x)) change({layer: event.points[0].x}); });
  document.body.dataset.ready = "yes";
}

begin();
