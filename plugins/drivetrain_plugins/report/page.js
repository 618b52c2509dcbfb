"use strict";

const COLORS = ["#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#14b8a6", "#ca8a04", "#ec4899"];
const PARTS = {
  "forward": "#3b82f6", "backward": "#6366f1", "forward and backward": "#3b82f6", "optimizer": "#a855f7",
  "data": "#f97316", "evaluation": "#10b981", "saving": "#14b8a6", "logging": "#ca8a04", "plugins": "#ec4899",
  "waiting": "#64748b", "setup": "#94a3b8", "other": "#b8c0cc",
};
const TITLES = {
  "loss": "Loss", "learning_rate": "Learning rate", "figures/grad_norm": "Gradient norm",
  "figures/rows_per_second": "Rows a second",
};
const AXES = { step: "step", epoch: "epoch", time: "minutes" };
const view = { x: "step", smooth: 0, log: false, hidden: new Set(), all: false };
let data = JSON.parse(document.getElementById("data").textContent);

// ---- words and numbers

function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  if (Number.isInteger(value) || size >= 1000) return Math.round(value).toLocaleString("en");
  return value.toFixed(size < 1 ? 4 : size < 100 ? 3 : 1);
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(Math.round(seconds) / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds) % 60} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

function bytes(value) {
  return value >= 1e9 ? `${(value / 1e9).toFixed(1)} GB` : `${Math.round(value / 1e6)} MB`;
}

function percent(share) {
  return share >= 0.0995 ? `${Math.round(100 * share)} %` : `${(100 * share).toFixed(1)} %`;
}

function moment(seconds) {
  return new Date(1000 * seconds).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

function dot(color) {
  return el("span", { class: "dot", style: `background:${color}` });
}

function color(index) {
  return COLORS[index % COLORS.length];
}

function word(run) {
  return el("span", { class: `word ${run.status.word}` }, run.status.word);
}

// ---- how did it go

function tile(label, value, more) {
  return el("div", { class: "card tile" }, el("div", { class: "label" }, label), el("div", { class: "value" }, value),
    el("div", { class: "more" }, more || "\u00a0"));
}

function updates(summary) {
  const all = summary.max_steps;
  const many = number(summary.step);
  return all && all !== summary.step ? `${many} of ${number(all)} updates` : `${many} updates`;
}

function facts(run) {
  const found = run.summary;
  const said = [];
  if (found.model) said.push(`${found.model}, ${number(found.parameters)} parameters`);
  if (found.device) said.push(found.processes > 1 ? `${found.processes} × ${found.device}` : found.device);
  if (found.rows_per_update) said.push(`${number(found.rows_per_update)} rows an update`);
  if (found.epochs) said.push(`${number(found.epochs)} epoch${found.epochs === 1 ? "" : "s"}`);
  if (found.began) said.push(moment(found.began));
  return said.join(" · ");
}

function remarks(run) {
  const said = [];
  const add = (text, kind) => said.push(el("p", { class: `said ${kind || ""}` }, text));
  if (run.status.more) add(run.status.more, run.status.word === "failed" ? "bad" : "");
  if (run.hint) add(run.hint);
  const waits = run.ranks.map((share, rank) => [share, rank]).sort((a, b) => b[0] - a[0]);
  if (waits.length > 1 && waits[0][0] > 0.02 && waits[0][0] > 1.5 * waits[waits.length - 1][0]) {
    add(`Ranks wait for data unevenly: rank ${waits[0][1]} ${percent(waits[0][0])} of its time, rank ${waits[waits.length - 1][1]} ${percent(waits[waits.length - 1][0])}.`);
  }
  if (run.resumed.length) {
    const lost = run.lost ? `; ${run.lost} row${run.lost === 1 ? "" : "s"} of the log after it, which were lost, are left out` : "";
    add(`Went on from step ${run.resumed.map(number).join(", ")}${lost}.`);
  }
  if (run.earlier) add(`The same record holds ${run.earlier} earlier run${run.earlier === 1 ? "" : "s"}, which ${run.earlier === 1 ? "is" : "are"} left out.`);
  if (!run.has_record) add("Made of trainer_state.json alone, which tells neither configuration, plugins nor times.");
  return said;
}

function spent(run, named) {
  const entries = Object.entries(run.parts).sort((a, b) => b[1] - a[1]);
  const whole = entries.reduce((sum, [, seconds]) => sum + seconds, 0);
  if (!whole) return null;
  const shown = entries.filter(([, seconds]) => seconds / whole >= 0.0005);
  const dear = run.plugins_spent.filter(([, seconds]) => seconds / whole >= 0.0005);
  return el("div", { class: named ? "" : "card spent" },
    el("div", { class: "title" }, el("h3", {}, named ? run.name : "Where the time went"), el("span", { class: "soft small" }, duration(whole))),
    el("div", { class: "bar", role: "img", "aria-label": shown.map(([part, seconds]) => `${part} ${percent(seconds / whole)}`).join(", ") },
      shown.map(([part, seconds]) => el("span", { style: `flex:${seconds / whole};background:${PARTS[part] || "#999"}`, title: `${part}: ${duration(seconds)}` }))),
    el("div", { class: "legend" }, shown.map(([part, seconds]) => el("span", {}, dot(PARTS[part] || "#999"), `${part} `, el("strong", {}, percent(seconds / whole))))),
    dear.length ? el("div", { class: "legend soft" }, "Plugins: ", dear.map(([name, seconds]) => el("span", {}, `${name} ${duration(seconds)}`))) : null);
}

function best(summary) {
  return summary.best ? `${number(summary.best.value)}` : "–";
}

function one(run) {
  const found = run.summary;
  const fell = found.first_loss !== null && found.first_loss !== found.loss ? `from ${number(found.first_loss)}` : "";
  const slow = found.seconds && found.step ? `, ${duration2(found.seconds / found.step)} each` : "";
  return [
    el("header", {}, el("h1", {}, run.name), word(run)),
    el("p", { class: "facts" }, facts(run)),
    el("div", { class: "tiles" },
      tile("Last loss", number(found.loss), fell),
      tile(found.best ? `Best ${found.best.name}` : "Best metric", best(found), found.best ? found.best.where : "no evaluation"),
      tile("Time", duration(found.seconds), `${updates(found)}${slow}`),
      tile("Rows a second", number(found.rows_per_second), found.memory ? `memory ${bytes(found.memory)}` : "")),
    spent(run, false), remarks(run),
  ];
}

function duration2(seconds) {
  return seconds < 1 ? `${Number((1000 * seconds).toPrecision(3))} ms` : duration(seconds);
}

function common(runs) {
  const [first, ...others] = runs.map((run) => facts(run).split(" · "));
  return first.filter((fact) => others.every((other) => other.includes(fact))).join(" · ");
}

function several(runs) {
  const heads = ["Run", "", "Last loss", "Best metric", "Time", "Updates", "Rows a second", "Memory"];
  const rows = runs.map((run, index) => {
    const found = run.summary;
    return el("tr", {}, el("td", { class: "text" }, dot(color(index)), el("strong", {}, run.name)), el("td", {}, word(run)), el("td", {}, number(found.loss)),
      el("td", {}, found.best ? `${found.best.name} ${best(found)}` : "–", found.best ? el("span", { class: "soft" }, ` ${found.best.where || ""}`) : null),
      el("td", {}, duration(found.seconds)), el("td", {}, updates(found).replace(" updates", "")), el("td", {}, number(found.rows_per_second)),
      el("td", {}, found.memory ? bytes(found.memory) : "–"));
  });
  const said = runs.flatMap((run) => remarks(run).map((remark) => {
    remark.prepend(el("strong", {}, `${run.name}: `));
    return remark;
  }));
  const bars = runs.map((run) => spent(run, true)).filter((bar) => bar);
  return [
    el("header", {}, el("h1", {}, `${runs.length} runs`)),
    el("p", { class: "facts" }, common(runs)),
    el("div", { class: "card scroll" }, el("table", { class: "wide" }, el("thead", {}, el("tr", {}, heads.map((head) => el("th", {}, head)))), el("tbody", {}, rows))),
    bars.length ? el("div", { class: "card spent", style: "display:grid;gap:18px" }, el("h2", { style: "margin:0" }, "Where the time went"), bars) : null,
    said,
  ];
}

// ---- tables

function configuration() {
  const rows = data.configuration;
  if (!rows.length) return null;
  const many = data.runs.length > 1;
  const differ = rows.filter((row) => row.differs).length;
  const heads = many ? ["", ...data.runs.map((run) => run.name)] : ["", ""];
  const line = (row) => el("tr", { class: many && row.differs ? "differs" : "" }, el("td", { class: "name" }, row.name),
    row.values.map((value) => el("td", { class: "text" }, String(value))));
  const table = (lines) => el("div", { class: "scroll" }, el("table", {},
    many ? el("thead", {}, el("tr", {}, heads.map((head) => el("th", {}, head)))) : null, el("tbody", {}, lines.map(line))));
  if (!many) return [el("h2", {}, "Configuration: what is not default"), el("div", { class: "card" }, table(rows))];
  const same = rows.filter((row) => !row.differs);
  return [el("h2", {}, differ ? "In what they differ" : "They do not differ in their configuration"),
    el("div", { class: "card" }, differ ? table(rows.filter((row) => row.differs)) : null,
      same.length ? el("details", {}, el("summary", {}, `${same.length} not default, and the same in all`), table(same)) : null)];
}

function lists() {
  const cards = [];
  const told = new Set();
  const same = new Set(data.runs.map((run) => JSON.stringify([run.plugins, run.versions]))).size === 1;
  for (const run of data.runs) {
    const title = (text) => el("h3", {}, data.runs.length > 1 ? `${text} · ${run.name}` : text);
    if (run.warnings.length || run.notes.length) {
      const lines = run.notes.map((note) => el("li", {}, note)).concat(run.warnings.map((warning) =>
        el("li", {}, el("span", { class: "soft small" }, `${moment(warning.time)} `), warning.message)));
      cards.push(el("div", { class: "card" }, title("Warnings and notes"), el("ul", { class: "plain" }, lines)));
    }
    if (run.checkpoints.length) {
      cards.push(el("div", { class: "card scroll" }, title("Checkpoints that were written"), el("table", {}, el("tbody", {}, run.checkpoints.map((found) =>
        el("tr", {}, el("td", { class: "text" }, found.name), el("td", {}, found.best ? el("strong", {}, "best") : "")))))));
    }
    if (run.predictions.length) {
      cards.push(el("div", { class: "card scroll" }, title("Predictions"), run.predictions.map((found) => el("table", {}, el("tbody", {},
        Object.entries(found).map(([name, value]) => el("tr", {}, el("td", { class: "text" }, name), el("td", {}, number(value)))))))));
    }
    const made = JSON.stringify([run.plugins, run.versions]);
    if (run.plugins.length && !told.has(made)) {
      told.add(made);
      const cells = run.plugins.map(([kind, name, version, reason]) => el("tr", {}, el("td", { class: "soft" }, kind), el("td", { class: "text" }, `${name} `, el("span", { class: "soft" }, version)),
        el("td", { class: "text soft" }, reason)));
      const versions = Object.entries(run.versions).map(([name, version]) => `${name} ${version}`).join(", ");
      cards.push(el("div", { class: "card scroll" }, same ? el("h3", {}, "Plugins and versions") : title("Plugins and versions"), el("table", {}, el("tbody", {}, cells)), el("p", { class: "soft small" }, versions)));
    }
  }
  return cards.length ? [el("h2", {}, "What it ran with"), el("div", { class: "columns" }, cards)] : null;
}

// ---- plots

function xs(series) {
  const own = series[view.x];
  if (view.x !== "time") return own;
  return own.map((seconds) => (seconds === null ? null : seconds / 60));
}

function smoothed(values) {
  let mean = 0, weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = view.smooth * mean + (1 - view.smooth) * value;
    weight = view.smooth * weight + (1 - view.smooth);
    return mean / weight;
  });
}

function line(series, name, ink, more) {
  const few = series.y.length < 3;
  return Object.assign({ x: xs(series), y: series.y, name, mode: few ? "lines+markers" : "lines", line: { color: ink, width: 1.8 }, connectgaps: false,
    hovertemplate: `%{y:.5g}<extra>${name.replace(/</g, "&lt;")}</extra>` }, more);
}

function curves(key, more) {
  const found = [];
  data.runs.forEach((run, index) => {
    const series = run.series[key];
    if (!series || view.hidden.has(index)) return;
    const name = (more && more.name) || TITLES[key] || key.replace(/^[a-z]+\//, "");
    const label = data.runs.length > 1 ? (more && more.name ? `${run.name}, ${more.name}` : run.name) : name;
    const ink = data.runs.length > 1 ? color(index) : (more && more.color) || color(0);
    const style = more && more.dash ? { mode: "lines+markers", line: { color: ink, width: 1.8, dash: "dot" }, marker: { color: ink, size: 5 } } : {};
    if (view.smooth > 0 && !style.mode && series.y.length > 5) {
      found.push(line(series, label, ink, { opacity: 0.25, showlegend: false, hoverinfo: "skip", hovertemplate: null }));
      found.push(line({ ...series, y: smoothed(series.y) }, label, ink));
    } else found.push(line(series, label, ink, style));
  });
  return found;
}

function checkpoints() {
  const found = [];
  data.runs.forEach((run, index) => {
    const series = run.series.loss || run.series["eval/loss"];
    if (!series || view.hidden.has(index) || !run.checkpoints.length) return;
    const places = run.checkpoints.map((saved) => {
      let place = series.step.findIndex((step) => step >= saved.step);
      if (place < 0) place = series.step.length - 1;
      return place;
    });
    found.push({ x: places.map((place) => xs(series)[place]), y: places.map((place) => series.y[place]), mode: "markers", type: "scatter",
      name: data.runs.length > 1 ? `${run.name}, checkpoints` : "checkpoints", text: run.checkpoints.map((saved) => saved.name + (saved.best ? ", the best" : "")),
      hovertemplate: "%{text}<extra></extra>", marker: { symbol: run.checkpoints.map((saved) => (saved.best ? "star" : "diamond-open")), size: run.checkpoints.map((saved) => (saved.best ? 13 : 8)), color: color(index) } });
  });
  return found;
}

function plots() {
  const names = new Set(data.runs.flatMap((run) => Object.keys(run.series)));
  const made = [];
  const add = (title, traces, more) => {
    if (traces.length) made.push({ title, traces, ...more });
  };
  const evaluation = data.runs.length > 1 ? { name: "evaluation", dash: true } : { name: "evaluation", dash: true, color: color(1) };
  add("Loss", [...curves("loss", data.runs.length > 1 ? null : { name: "training" }), ...curves("eval/loss", evaluation), ...checkpoints()], { first: true, log: true });
  for (const key of [...names].filter((name) => name.startsWith("eval/") && name !== "eval/loss").sort()) add(key.slice(5), curves(key));
  add("Learning rate", curves("learning_rate"), { exponent: true });
  add("Gradient norm", curves("figures/grad_norm"), { log: true });
  add("Rows a second", curves("figures/rows_per_second"), { zero: true });
  const memory = names.has("memory/device") ? ["memory/device", "memory/device_peak", "memory/host"] : ["memory/host"];
  add("Memory", memory.flatMap((key, place) => curves(key, { name: key.slice(7).replace("_", " "), color: color(place) })).map((trace) =>
    ({ ...trace, y: trace.y.map((value) => (value === null ? null : value / 1e9)) })), { unit: "GB", zero: true });
  data.runs.forEach((run, index) => {
    if (view.hidden.has(index)) return;
    const parts = Object.keys(run.series).filter((name) => name.startsWith("parts/"));
    const order = Object.keys(PARTS).map((part) => `parts/${part}`).filter((name) => parts.includes(name));
    const traces = order.map((name) => {
      const part = name.slice(6);
      return line(run.series[name], part, PARTS[part], { stackgroup: "one", line: { width: 0.5, color: PARTS[part] }, fillcolor: PARTS[part], hovertemplate: `%{y:.3g} ms<extra>${part}</extra>` });
    }).filter((trace) => trace.y.some((value) => value > 0));
    add(data.runs.length > 1 ? `An update's time · ${run.name}` : "An update's time", traces, { unit: "ms", zero: true, wide: data.runs.length === 1 });
  });
  for (const key of [...names].filter((name) => name.startsWith("also/")).sort()) add(key.slice(5), curves(key));
  return made;
}

function thinned() {
  let of = 0, drawn = 0;
  for (const run of data.runs) {
    for (const series of Object.values(run.series)) {
      if (series.of && series.of > of) [of, drawn] = [series.of, series.y.length];
    }
  }
  return of ? `Of ${of.toLocaleString("en")} points of a line about ${drawn.toLocaleString("en")} are drawn: first, lowest, highest and last of each stretch.` : null;
}

function layout(plot) {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--soft").trim(), grid = style.getPropertyValue("--line").trim();
  const card = style.getPropertyValue("--card").trim();
  const axis = { gridcolor: grid, zeroline: false, linecolor: grid, tickfont: { color: ink, size: 11 }, automargin: true };
  const legends = plot.traces.filter((trace) => trace.showlegend !== false).length > 1;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: getComputedStyle(document.body).fontFamily, color: ink, size: 12 },
    margin: { l: 8, r: 12, t: 10, b: 8 }, hovermode: "x unified", hoverlabel: { bgcolor: card, bordercolor: grid, font: { color: style.getPropertyValue("--ink").trim(), size: 12 } },
    xaxis: { ...axis, title: { text: AXES[view.x], font: { size: 11, color: ink }, standoff: 4 }, nticks: 8 },
    yaxis: { ...axis, type: plot.log && view.log ? "log" : "linear", rangemode: plot.zero ? "tozero" : "normal", exponentformat: plot.exponent ? "power" : "none", ticksuffix: plot.unit ? ` ${plot.unit}` : "", nticks: 6 },
    legend: { orientation: "h", yref: "container", yanchor: "bottom", y: 0, x: 0, font: { color: ink, size: 12 }, itemwidth: 20 }, showlegend: legends, uirevision: "kept", dragmode: "zoom",
  };
}

let library = null;

function unpack() {
  if (library) return library;
  const packed = document.getElementById("library").textContent.trim();
  library = (async () => {
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = el("script", {});
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  })();
  return library;
}

async function draw() {
  await unpack();
  const found = plots(), place = document.getElementById("plots");
  const old = [...place.children];
  found.forEach((plot, index) => {
    let card = old[index];
    if (!card) {
      card = el("div", {}, el("div", { class: "head" }, el("h3", {})), el("div", { class: "plot" }));
      place.append(card);
    }
    card.className = `card ${plot.first ? "first" : ""} ${plot.wide ? "wide" : ""}`;
    card.querySelector("h3").textContent = plot.title;
    Plotly.react(card.querySelector(".plot"), plot.traces, layout(plot), { displaylogo: false, responsive: true, displayModeBar: false, scrollZoom: false, doubleClick: "reset" });
  });
  old.slice(found.length).forEach((card) => card.remove());
  document.body.dataset.drawn = String(found.length);
}

function controls() {
  const axes = Object.keys(AXES).filter((name) => data.runs.some((run) => Object.values(run.series).some((series) => series[name].some((value) => value !== null))));
  const choice = el("span", { class: "choice", role: "group", "aria-label": "horizontal axis" }, axes.map((name) =>
    el("button", { type: "button", "aria-pressed": String(view.x === name), onclick: (event) => {
      view.x = name;
      choice.querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", String(button === event.target)));
      draw();
    } }, name)));
  const smooth = el("label", {}, "smooth", el("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: view.smooth, oninput: (event) => {
    view.smooth = Number(event.target.value);
    draw();
  } }));
  const log = el("label", {}, el("input", { type: "checkbox", onchange: (event) => {
    view.log = event.target.checked;
    draw();
  } }), "log scale");
  const runs = data.runs.length > 1 ? data.runs.map((run, index) => el("button", { class: "run", type: "button", "aria-pressed": String(!view.hidden.has(index)), onclick: (event) => {
    if (!view.hidden.delete(index)) view.hidden.add(index);
    event.currentTarget.setAttribute("aria-pressed", String(!view.hidden.has(index)));
    draw();
  } }, dot(color(index)), run.name)) : [];
  return el("div", { class: "controls" }, choice, smooth, log, runs);
}

function told() {
  return [data.runs.length > 1 ? several(data.runs) : one(data.runs[0])].flat(2);
}

function below() {
  const thin = thinned();
  return [thin ? el("p", { class: "soft small" }, thin) : null, configuration(), lists(),
    el("p", { class: "soft small", style: "margin-top:32px" }, `${data.live ? "Following" : "Made"} by drivetrain report, ${moment(data.made)}. ${data.runs.map((run) => run.source).join(", ")}`)].flat(2);
}

function fill(id, children) {
  document.getElementById(id).replaceChildren(...children.filter((child) => child));
}

async function follow() {
  let seen = data.made;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 2000));
    try {
      const answer = await fetch(`data?after=${seen}`);
      if (answer.status !== 200) continue;
      data = await answer.json();
      seen = data.made;
      fill("told", told());
      fill("below", below());
      await draw();
    } catch (error) {
      document.title = `(stopped) ${document.title.replace(/^\(stopped\) /, "")}`;
    }
  }
}

document.getElementById("page").append(el("section", { id: "told" }), controls(), el("section", { class: "plots", id: "plots" }), el("section", { id: "below" }));
fill("told", told());
fill("below", below());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
requestAnimationFrame(() => setTimeout(draw));
if (data.live) follow();
