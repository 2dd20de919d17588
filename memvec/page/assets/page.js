// Puts the page together from its contents.

const ROWS_ON_A_PAGE = 10;

function makeFacts(facts) {
  return element("dl", { className: "facts" }, ...facts.map(([name, value]) =>
    element("div", {}, element("dt", { textContent: name }), element("dd", {}, memory(value)))));
}

function makeExplorer(map) {
  const entries = readEntries(map);
  const chosen = element("div", { className: "chosen", role: "region", "aria-label": "Chosen entry and its nearest", tabIndex: 0, "aria-live": "polite" });
  const plot = makeMap(entries, { onChoose: (row) => describe(row) });
  const legend = element("div", { className: "legend", role: "group", "aria-label": "Groups; press one to see it alone" });
  const found = element("output", { "aria-live": "polite" });
  const list = makeList(entries, plot.show);

  function describe(row) {
    if (row === null) {
      chosen.replaceChildren(element("p", { className: "note", textContent: "Choose a point, or an entry in a table, to see what lies nearest to it." }));
      return;
    }
    const nearest = entries.neighbours(row);
    const items = nearest.map(({ row: other, score }) => {
      const button = element("button", { type: "button" },
        element("span", { className: "score", textContent: score.toFixed(3) }),
        element("span", {}, element("span", { className: "id", textContent: `${entries.ids[other]} ` }), memory(entries.text(other))));
      button.addEventListener("click", () => plot.show(other));
      return element("li", {}, button);
    });
    chosen.replaceChildren(
      element("div", { className: "self" },
        element("div", { className: "id", textContent: `${entries.ids[row]}, ${format(entries.lengths[row])} tokens` }), memory(entries.text(row), "div")),
      element("h3", { textContent: nearest.length ? `The ${nearest.length} nearest` : "No other entry" }),
      element("ol", {}, ...items));
  }

  function drawLegend(colouring) {
    const buttons = colouring.groups.map((group, index) => {
      const swatch = element("span", { className: "swatch" });
      swatch.style.background = colouring.steps
        ? `var(--s${Math.round((index / Math.max(1, colouring.groups.length - 1)) * 5)})` : `var(--c${index % 12})`;
      const button = element("button", { type: "button", "aria-pressed": "false" }, swatch,
        element("span", { className: "name", dir: "auto", textContent: group.name }), element("span", { className: "count", textContent: format(group.count) }));
      button.addEventListener("click", () => {
        const alone = button.getAttribute("aria-pressed") === "false";
        for (const other of buttons) other.setAttribute("aria-pressed", String(alone && other === button));
        plot.narrowTo(alone ? index : null);
      });
      return button;
    });
    legend.replaceChildren(...buttons);
  }

  const search = element("input", { type: "search", id: "search", autocomplete: "off", placeholder: "words in a text or an id" });
  let pause = 0;
  search.addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(() => {
      const wanted = search.value.trim().toLowerCase();
      const matches = wanted ? Uint8Array.from(entries.searched, (text) => Number(text.includes(wanted))) : null;
      const rows = matches ? [...matches.keys()].filter((row) => matches[row]) : null;
      found.textContent = rows ? `${format(rows.length)} of ${format(entries.count)}` : "";
      plot.match(matches);
      list.show(rows);
    }, 80);
  });

  const choice = element("select", { id: "colouring" }, ...entries.colourings.map((one, index) => element("option", { value: String(index), textContent: one.name })));
  choice.addEventListener("change", () => {
    const colouring = entries.colourings[Number(choice.value)];
    plot.colourBy(colouring);
    drawLegend(colouring);
  });

  const controls = element("div", { className: "controls" },
    element("label", {}, "Search the texts", search), element("label", {}, "Colour by", choice), found);
  drawLegend(entries.colourings[0]);
  describe(null);
  list.show(null);
  const how = "Near points are similar memories; directions and far distances mean nothing. Point to read, click for the nearest, drag to move; after a click the wheel zooms.";
  return {
    plot,
    entries,
    sections: [
      section("Map", note([map.note, how].filter(Boolean).join(" ")), controls,
        element("div", { className: "explore" }, plot.plane, chosen, legend)),
      section("Entries", list.holder),
    ],
  };
}

// The entries as a table, a page at a time: what the map shows, for whoever cannot see it.
function makeList(entries, onChoose) {
  const body = element("div", { className: "scroll" });
  const where = element("span", { role: "status" });
  const back = element("button", { type: "button", textContent: "Previous" });
  const on = element("button", { type: "button", textContent: "Next" });
  let rows = null;
  let page = 0;

  function draw() {
    const count = rows ? rows.length : entries.count;
    const start = page * ROWS_ON_A_PAGE;
    const end = Math.min(start + ROWS_ON_A_PAGE, count);
    const shown = Array.from({ length: end - start }, (_, place) => (rows ? rows[start + place] : start + place));
    body.replaceChildren(makeTable(["id", "text", "tokens"], shown, (row, column) => {
      if (column === 0) return element("td", { className: "id" }, entryButton(entries, row, onChoose));
      if (column === 1) return element("td", { className: "wide" }, memory(entries.text(row)));
      return element("td", { className: "number", textContent: format(entries.lengths[row]) });
    }, "Entries"));
    where.textContent = count ? `${format(start + 1)} to ${format(end)} of ${format(count)}` : "none";
    back.disabled = page === 0;
    on.disabled = end >= count;
  }

  back.addEventListener("click", () => { page -= 1; draw(); });
  on.addEventListener("click", () => { page += 1; draw(); });
  return {
    holder: element("div", {}, body, element("div", { className: "pages" }, back, on, where)),
    show(some) { rows = some; page = 0; draw(); },
  };
}

function entryButton(entries, row, onChoose) {
  const button = element("button", { type: "button", className: "memory", dir: "auto", textContent: entries.ids[row], title: "Show on the map" });
  button.addEventListener("click", () => {
    onChoose(row);
    document.querySelector(".plane").scrollIntoView({ block: "center" });
  });
  return button;
}

function makeTableSection(table, explorer) {
  const cell = (row, column) => {
    const text = row.cells[column];
    const place = table.columns.slice(0, column + 1).filter((name) => name === "id").length - 1;
    if (explorer && table.columns[column] === "id" && row.points.length) {
      return element("td", { className: "id" }, entryButton(explorer.entries, row.points[place], explorer.plot.show));
    }
    if (isNumber(text)) return element("td", { className: "number", textContent: text });
    return element("td", { className: table.columns[column] === "text" ? "wide" : "" }, memory(text));
  };
  const made = table.rows.length
    ? element("div", { className: "scroll tall", tabIndex: 0, role: "region", "aria-label": table.title }, makeTable(table.columns, table.rows, cell, table.title))
    : element("p", { className: "note", textContent: "None." });
  return section(table.title, note(table.note), made);
}

function makePage(contents) {
  document.title = `${contents.title} - memvec report`;
  document.getElementById("title").textContent = contents.title;
  document.getElementById("subtitle").textContent = contents.subtitle;
  const explorer = contents.map ? makeExplorer(contents.map) : null;
  const charts = element("div", { className: "charts" }, ...contents.charts.map(makeChart));
  const tables = contents.tables.map((table) => makeTableSection(table, explorer));
  document.getElementById("content").append(
    section(explorer ? "The run" : "The sweep", makeFacts(contents.facts)),
    ...(explorer ? [...explorer.sections, section("Lengths and speed", charts), ...tables] : [...tables, section("Compared", charts)]));
  return explorer;
}

// For tests and the console: where an entry is drawn, and a frame drawn at once.
window.memvec = makePage(JSON.parse(document.getElementById("contents").textContent));
