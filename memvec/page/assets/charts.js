// Charts: columns, rows of bars, lines. Each has its numbers below it as a table.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 220;
const MARGIN = { left: 56, right: 8, top: 8, bottom: 40 };

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function makeChart(chart) {
  const title = element("h3", { textContent: chart.title });
  const holder = element("div", {}, title, note(chart.note));
  if (chart.kind === "rows") {
    holder.append(element("div", { className: "scroll" }, rowsOfBars(chart)), note(chart.axis));
    return holder;
  }
  const label = `${chart.title}: ${chart.unit} by ${chart.axis}. The numbers are in the table below.`;
  const drawing = shape("svg", { role: "img", "aria-label": label });
  holder.append(drawing);
  if (chart.kind === "lines") holder.append(lineLegend(chart));
  holder.append(numbers(chart));
  new ResizeObserver(() => draw(chart, drawing)).observe(drawing);
  return holder;
}

function draw(chart, drawing) {
  const width = drawing.clientWidth;
  if (!width) return;
  drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  const values = chart.series.flatMap((one) => one.values).filter((value) => value !== null);
  const top = niceTop(Math.max(...values, 0));
  const frame = {
    width: width - MARGIN.left - MARGIN.right,
    height: HEIGHT - MARGIN.top - MARGIN.bottom,
    slot: (width - MARGIN.left - MARGIN.right) / chart.labels.length,
    y: (value) => HEIGHT - MARGIN.bottom - (value / top) * (HEIGHT - MARGIN.top - MARGIN.bottom),
  };
  const marks = chart.kind === "lines" ? lines(chart, frame) : columns(chart, frame);
  drawing.replaceChildren(...scale(frame, top), ...marks, ...ticks(chart, frame));
}

function niceTop(value) {
  if (value <= 0) return 1;
  const step = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((times) => times * step).find((nice) => nice >= value);
}

function scale(frame, top) {
  return [0, 0.5, 1].flatMap((share) => {
    const y = frame.y(top * share);
    const line = shape("line", { class: "grid", x1: MARGIN.left, x2: MARGIN.left + frame.width, y1: y, y2: y });
    const text = shape("text", { x: MARGIN.left - 6, y: y + 4, "text-anchor": "end" }, format(top * share));
    return [line, text];
  });
}

function ticks(chart, frame) {
  const widest = Math.max(...chart.labels.map((label) => label.length)) * 7 + 14;
  const every = Math.max(1, Math.ceil(widest / frame.slot));
  const y = HEIGHT - MARGIN.bottom;
  const shown = chart.labels.map((label, place) => [label, place]).filter(([, place]) => place % every === 0);
  const texts = shown.map(([label, place]) =>
    shape("text", { x: MARGIN.left + (place + 0.5) * frame.slot, y: y + 16, "text-anchor": "middle" }, label));
  const middle = MARGIN.left + frame.width / 2;
  return [...texts, shape("text", { x: middle, y: HEIGHT - 4, "text-anchor": "middle" }, chart.axis)];
}

function columns(chart, frame) {
  const gap = frame.slot > 4 ? 1 : 0;
  return chart.series[0].values.map((value, place) => {
    const y = frame.y(value);
    const x = MARGIN.left + place * frame.slot;
    const bar = shape("rect", {
      class: "bar", x, y, width: Math.max(0.5, frame.slot - gap), height: HEIGHT - MARGIN.bottom - y,
    });
    bar.append(shape("title", {}, `${chart.labels[place]}: ${format(value)} ${chart.unit}`));
    return bar;
  });
}

function lines(chart, frame) {
  return chart.series.flatMap((one, index) => {
    const points = one.values
      .map((value, place) => [MARGIN.left + (place + 0.5) * frame.slot, value, place])
      .filter(([, value]) => value !== null);
    const path = points.map(([x, value]) => `${x},${frame.y(value)}`).join(" ");
    const trace = shape("polyline", { class: "trace", points: path, stroke: `var(--c${index % 12})` });
    const dots = points.map(([x, value, place]) => {
      const dot = shape("circle", { cx: x, cy: frame.y(value), r: 4, fill: `var(--c${index % 12})` });
      dot.append(shape("title", {}, `${one.name}, ${chart.axis} ${chart.labels[place]}: ${format(value)}`));
      return dot;
    });
    return [trace, ...dots];
  });
}

function lineLegend(chart) {
  const items = chart.series.map((one, index) => {
    const swatch = element("span", { className: "swatch" });
    swatch.style.background = `var(--c${index % 12})`;
    return element("span", { className: "key" }, swatch, memory(one.name));
  });
  return element("div", { className: "legend" }, ...items);
}

function rowsOfBars(chart) {
  const values = chart.series[0].values;
  const most = Math.max(...values) || 1;
  return makeTable(["", chart.unit, ""], [...values.keys()], (place, column) => {
    const value = values[place];
    if (column === 0) return element("td", {}, memory(chart.labels[place]));
    if (column === 1) return element("td", { className: "number", textContent: format(value) });
    const bar = element("span", { className: "meter" });
    bar.style.width = `${(100 * value) / most}%`;
    return element("td", { className: "bars" }, bar);
  }, chart.title);
}

function numbers(chart) {
  const columnNames = [chart.axis, ...chart.series.map((one) => one.name)];
  const made = makeTable(columnNames, chart.labels.map((_, place) => place), (place, column) =>
    element("td", {
      className: "number",
      textContent: column === 0 ? chart.labels[place] : format(chart.series[column - 1].values[place]),
    }), chart.title);
  const scroller = element("div", { className: "scroll tall", tabIndex: 0, role: "region", "aria-label": `Numbers of ${chart.title}` }, made);
  return element("details", {}, element("summary", { textContent: "Numbers" }), scroller);
}
