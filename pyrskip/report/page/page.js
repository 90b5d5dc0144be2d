"use strict";
// Draws the report from the data in the page. Text is always set as text, never as HTML.
const report = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)").matches;
const drawn = [];

function add(parent, tag, options = {}) {
  const { text, ...rest } = options;
  const element = Object.assign(document.createElement(tag), rest);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// What is black on paper is ink on any background; the other colours are told apart on both.
function themed(figure) {
  const ink = colour("--ink");
  const copy = structuredClone(figure);
  for (const trace of copy.data) {
    for (const part of ["line", "marker", "error_y"]) {
      if (trace[part] && trace[part].color === "#000000") trace[part].color = ink;
    }
    if (trace.type === "heatmap") {
      trace.colorscale = [[0, colour("--panel")], [1, dark.matches ? "#1f7db8" : "#4ba3d6"]];
      trace.textfont = { color: ink };
    }
  }
  const layout = Object.assign(copy.layout, {
    font: { color: ink, family: "system-ui, sans-serif", size: 12 },
    hoverlabel: { align: "left", bgcolor: colour("--panel"), bordercolor: colour("--line"), font: { color: ink } },
    // a finger scrolls the page
    dragmode: touch ? false : "zoom",
    // the page's own legend wraps on a phone, where plotly's covers the plot
    showlegend: false,
    // a title is the page's own, above the chart: plotly's would be under its tool bar
    title: undefined,
  });
  return [copy.data, layout];
}

// One legend for all plots of a section: a button a trace name.
function legend(parent, places) {
  const names = new Map();
  for (const place of places) {
    for (const trace of place.data) if (trace.name) names.set(trace.name, names.get(trace.name) ?? trace);
  }
  if (names.size < 2) return;
  const box = add(parent, "div", { className: "legend" });
  for (const [name, trace] of names) {
    const button = add(box, "button", { type: "button", ariaPressed: String(trace.visible !== "legendonly") });
    const swatch = add(button, "i");
    const own = trace.line?.color ?? trace.marker?.color;
    swatch.style.color = own === colour("--ink") ? "inherit" : own;
    if (trace.mode === "markers") swatch.className = "point";
    swatch.style.borderTopStyle = { dash: "dashed", dashdot: "dashed", dot: "dotted" }[trace.line?.dash] ?? "solid";
    add(button, "span", { text: name });
    button.addEventListener("click", () => {
      const show = button.ariaPressed !== "true";
      button.ariaPressed = String(show);
      for (const place of places) {
        const which = place.data.flatMap((other, i) => (other.name === name ? [i] : []));
        if (which.length) Plotly.restyle(place, { visible: show ? true : "legendonly" }, which);
      }
    });
  }
}

function plot(place, figure) {
  drawn.push([place, figure]);
  Plotly.newPlot(place, ...themed(figure), { responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover" });
  return place;
}

dark.addEventListener("change", () => {
  for (const [place, figure] of drawn) {
    const [data, layout] = themed(figure);
    data.forEach((trace, i) => (trace.visible = place.data[i].visible));
    Plotly.react(place, data, layout);
  }
});

// As many decimals in the whole column as its size asks for.
function decimals(values) {
  const numbers = values.filter((value) => typeof value === "number");
  if (numbers.every(Number.isInteger)) return 0;
  return Math.max(...numbers.map(Math.abs)) >= 10 ? 2 : 3;
}

function shown(value, digits) {
  if (value === null || value === undefined) return "";
  return typeof value === "number" ? value.toFixed(digits) : String(value);
}

function table(parent, columns, rows) {
  const scroll = add(parent, "div", { className: "scroll", tabIndex: 0 });
  const element = add(scroll, "table");
  const head = add(add(element, "thead"), "tr");
  const body = add(element, "tbody");
  const isText = columns.map((_, i) => rows.some((row) => typeof row[i] === "string"));
  const digits = columns.map((_, i) => decimals(rows.map((row) => row[i])));
  const fill = (sorted) => {
    body.replaceChildren();
    for (const row of sorted) {
      const line = add(body, "tr");
      row.forEach((value, i) => add(line, "td", { text: shown(value, digits[i]), className: isText[i] ? "text" : "" }));
    }
  };
  columns.forEach((name, i) => {
    const cell = add(head, "th", { className: isText[i] ? "text" : "", scope: "col" });
    add(cell, "button", { text: name, type: "button" }).addEventListener("click", () => {
      const up = cell.ariaSort !== "ascending";
      for (const other of head.children) other.removeAttribute("aria-sort");
      cell.ariaSort = up ? "ascending" : "descending";
      const empty = (value) => value === null || value === undefined;
      fill([...rows].sort((a, b) => {
        // what has no value comes last, either way
        if (empty(a[i]) || empty(b[i])) return empty(a[i]) - empty(b[i]);
        const order = isText[i] ? String(a[i]).localeCompare(String(b[i]), "en", { numeric: true }) : a[i] - b[i];
        return up ? order : -order;
      }));
    });
  });
  fill(rows);
}

function gallery(parent, samples) {
  const filters = add(parent, "div", { className: "filters" });
  const choice = (label, name, values) => {
    const select = add(add(filters, "label", { text: `${label} ` }), "select", { name });
    for (const value of ["all", ...values]) add(select, "option", { text: value, value });
    select.addEventListener("change", filter);
    return select;
  };
  const type = choice("type", "type", [...new Set(samples.map((s) => s.type))].sort());
  const answer = choice("answer", "answer", ["right", "wrong"]);
  const count = add(filters, "output");
  const grid = add(parent, "div", { className: "gallery" });
  const figures = samples.map((sample) => {
    const figure = add(grid, "figure");
    add(figure, "img", { src: sample.picture, alt: `levels kept: ${sample.levels.join(", ")}`, decoding: "async" });
    const caption = add(figure, "figcaption");
    add(caption, "div", { text: sample.question });
    const said = sample.right ? `✓ ${sample.answer}` : `✗ ${sample.answer || "(nothing)"} (right: ${sample.truth})`;
    add(caption, "div", { text: said, className: `answer ${sample.right ? "right" : "wrong"}` });
    const cost = `${(100 * sample.relative_flops).toFixed(0)} % of full, ${sample.tokens} tokens`;
    add(caption, "div", { text: `${sample.type} · ${cost}`, className: "meta" });
    return figure;
  });
  function filter() {
    let seen = 0;
    samples.forEach((sample, i) => {
      const fits = (type.value === "all" || type.value === sample.type) &&
        (answer.value === "all" || (answer.value === "right") === sample.right);
      figures[i].hidden = !fits;
      seen += fits;
    });
    count.textContent = `${seen} of ${samples.length} samples`;
  }
  filter();
}

const main = document.querySelector("main");
const nav = document.querySelector("nav");
for (const part of report.sections) {
  const section = add(main, "section");
  if (part.title) {
    section.id = part.title.toLowerCase().replace(/[^a-z]+/g, "-");
    add(nav, "a", { text: part.title, href: `#${section.id}` });
    add(section, "h2", { text: part.title });
  }
  if (part.note) add(section, "p", { text: part.note, className: "note" });
  if (part.kind === "cards") {
    const grid = add(section, "div", { className: "cards" });
    for (const card of part.cards) {
      const box = add(grid, "div", { className: "card" });
      add(box, "b", { text: card.value });
      add(box, "span", { text: card.label });
    }
  } else if (part.kind === "plots") {
    const grid = add(section, "div", { className: part.tall ? "plots tall" : "plots" });
    // all places first: a plot takes the size of its place, which shrinks while others are added
    const places = part.plots.map((figure, i) => {
      const chart = add(grid, "div", { className: "chart" });
      const title = figure.layout.title?.text;
      if (title) add(chart, "h3", { text: title });
      const place = add(chart, "div", { className: "plot" });
      add(chart, "p", { text: part.hints[i], className: "hint" });
      return place;
    });
    legend(section, places.map((place, i) => plot(place, part.plots[i])));
  } else if (part.kind === "table") {
    table(section, part.columns, part.rows);
  } else if (part.kind === "gallery") {
    gallery(section, part.samples);
  } else {
    add(section, "pre", { text: part.text });
  }
}
