// The map: points on a canvas that can be hovered, clicked, searched, zoomed and walked through with the arrow keys.
//
// `entries` is shared by all views of the same entries; `makeMap` returns what the page puts where, and `show`, which
// any other part calls to choose an entry.

const REACH = 14; // pixels around a point that count as on it
const MOST_DISCS = 4000; // squares are several times as fast to fill, and at that number look the same

function readEntries(map) {
  const nearest = unpack(map.nearest, Uint32Array);
  const similarities = unpack(map.similarities, Int16Array);
  const count = map.ids.length;
  const width = count ? nearest.length / count : 0;
  return {
    count,
    ids: map.ids,
    lengths: map.lengths,
    text: (row) => map.texts[row] ?? "",
    places: unpack(map.positions, Uint16Array),
    colourings: map.colourings.map((one) => ({ ...one, codes: unpack(one.codes, Uint8Array) })),
    searched: map.ids.map((id, row) => `${id}\n${map.texts[row] ?? ""}`.toLowerCase()),
    neighbours: (row) => Array.from({ length: width }, (_, place) => ({
      row: nearest[row * width + place],
      score: similarities[row * width + place] / 10000,
    })),
  };
}

function makeMap(entries, { onChoose }) {
  const canvas = element("canvas", {
    tabIndex: 0,
    role: "application",
    "aria-roledescription": "map",
    "aria-label": `Map of ${format(entries.count)} entries. Arrow keys go to the next entry in that direction, ` +
      "Enter lists its nearest, plus and minus zoom, zero shows all. The table below holds the same entries.",
  });
  const tip = element("div", { className: "tip", hidden: true, "aria-hidden": "true" });
  const spoken = element("div", { className: "unseen", "aria-live": "polite" });
  const plane = element("div", { className: "plane" }, canvas, zoomButtons(), tip, spoken);
  const context = canvas.getContext("2d");
  const state = {
    colouring: entries.colourings[0],
    matches: null, // Uint8Array of what is searched for, or null for all
    group: null, // the only group shown in full colour, or null
    chosen: null,
    pointed: null,
    scale: 1,
    x: 0.5, // the middle of the view
    y: 0.5,
  };
  let width = 0;
  let height = 0;
  let waiting = false;

  function side() { return Math.min(width, height) * 0.94 * state.scale; }
  function screen(row) {
    const size = side();
    return [
      width / 2 + (entries.places[2 * row] / 65535 - state.x) * size,
      height / 2 - (entries.places[2 * row + 1] / 65535 - state.y) * size,
    ];
  }
  function inFull(row) {
    return (state.matches === null || state.matches[row] === 1)
      && (state.group === null || state.colouring.codes[row] === state.group);
  }

  function redraw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; drawNow(); });
  }

  function drawNow() {
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const zoomed = Math.sqrt(state.scale);
    const radius = Math.min(6, Math.max(1.5, (90 / Math.sqrt(entries.count || 1)) * zoomed));
    const narrowed = state.matches !== null || state.group !== null;
    const rows = Array.from(state.colouring.groups, () => []);
    const faint = [];
    for (let row = 0; row < entries.count; row++) (inFull(row) ? rows[state.colouring.codes[row]] : faint).push(row);
    context.globalAlpha = 0.25;
    fill(faint, Math.max(1, radius * 0.7), colour("c11"));
    context.globalAlpha = narrowed ? 1 : 0.85;
    rows.forEach((some, group) => fill(some, narrowed ? radius * 1.25 : radius, groupColour(state.colouring, group)));
    context.globalAlpha = 1;
    drawChosen(radius);
  }

  function fill(rows, radius, style) {
    context.fillStyle = style;
    const discs = entries.count <= MOST_DISCS;
    context.beginPath();
    for (const row of rows) {
      const [x, y] = screen(row);
      if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
      if (discs) { context.moveTo(x + radius, y); context.arc(x, y, radius, 0, 7); }
      else context.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
    }
    if (discs) context.fill();
  }

  function ring(row, radius, style, line) {
    const [x, y] = screen(row);
    context.beginPath();
    context.arc(x, y, radius, 0, 7);
    context.strokeStyle = style;
    context.lineWidth = line;
    context.stroke();
  }

  function drawChosen(radius) {
    if (state.chosen !== null) {
      const [x, y] = screen(state.chosen);
      context.strokeStyle = colour("soft");
      context.lineWidth = 1;
      for (const { row } of entries.neighbours(state.chosen)) {
        context.beginPath();
        context.moveTo(x, y);
        context.lineTo(...screen(row));
        context.stroke();
      }
      fill(entries.neighbours(state.chosen).map(({ row }) => row), radius + 0.5, colour("mark"));
      ring(state.chosen, radius + 4, colour("mark"), 3);
    }
    if (state.pointed !== null) ring(state.pointed, radius + 3, colour("ink"), 2);
  }

  function at(x, y) {
    let best = null;
    let least = REACH * REACH;
    for (let row = 0; row < entries.count; row++) {
      if (!inFull(row)) continue;
      const [a, b] = screen(row);
      const distance = (a - x) ** 2 + (b - y) ** 2;
      if (distance < least) { least = distance; best = row; }
    }
    return best;
  }

  function point(row, { aloud = false } = {}) {
    if (row === state.pointed && !aloud) return;
    state.pointed = row;
    tip.hidden = row === null;
    if (row !== null) {
      tip.replaceChildren(element("div", { className: "id", textContent: entries.ids[row] }), memory(entries.text(row), "div"));
      const [x, y] = screen(row);
      tip.style.left = `${Math.max(4, Math.min(x + 12, width - tip.offsetWidth - 4))}px`;
      const below = y + 14;
      tip.style.top = `${below + tip.offsetHeight > height ? Math.max(4, y - tip.offsetHeight - 14) : below}px`;
      if (aloud) spoken.textContent = `${entries.ids[row]}: ${entries.text(row)}`;
    }
    redraw();
  }

  function choose(row) {
    state.chosen = row;
    redraw();
    onChoose(row);
  }

  // Moves the view so that an entry is in sight.
  function reveal(row) {
    const [x, y] = screen(row);
    if (x < 20 || y < 20 || x > width - 20 || y > height - 20) {
      state.x = entries.places[2 * row] / 65535;
      state.y = entries.places[2 * row + 1] / 65535;
    }
  }

  function zoom(factor, x = width / 2, y = height / 2) {
    const before = side();
    state.scale = Math.min(60, Math.max(1, state.scale * factor));
    const change = 1 / before - 1 / side();
    state.x += (x - width / 2) * change;
    state.y -= (y - height / 2) * change;
    if (state.scale === 1) { state.x = 0.5; state.y = 0.5; }
    point(null);
    redraw();
  }

  function pan(dx, dy) {
    state.x -= dx / side();
    state.y += dy / side();
    redraw();
  }

  function zoomButtons() {
    const button = (text, label, action) => {
      const made = element("button", { type: "button", textContent: text, "aria-label": label });
      made.addEventListener("click", action);
      return made;
    };
    return element("div", { className: "zoom" },
      button("+", "Zoom in", () => zoom(1.6)),
      button("−", "Zoom out", () => zoom(1 / 1.6)),
      button("⤢", "Show all", () => zoom(0)));
  }

  // The nearest entry in the direction of an arrow key, within 45 degrees of it.
  function step(dx, dy) {
    const from = state.pointed ?? state.chosen;
    if (from === null) return at(width / 2, height / 2) ?? firstInFull();
    const [x, y] = screen(from);
    let best = null;
    let least = Infinity;
    for (let row = 0; row < entries.count; row++) {
      if (row === from || !inFull(row)) continue;
      const [a, b] = screen(row);
      const along = (a - x) * dx + (b - y) * dy;
      const across = Math.abs((a - x) * dy) + Math.abs((b - y) * dx);
      const distance = along + 2 * across;
      if (along > 0 && across <= along && distance < least) { least = distance; best = row; }
    }
    return best ?? from;
  }

  function firstInFull() {
    for (let row = 0; row < entries.count; row++) if (inFull(row)) return row;
    return null;
  }

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in ARROWS) {
      const next = step(...ARROWS[event.key]);
      if (next !== null) { reveal(next); point(next, { aloud: true }); }
    } else if (event.key === "Enter" || event.key === " ") {
      if (state.pointed !== null) choose(state.pointed);
    } else if (event.key === "+" || event.key === "=") zoom(1.6);
    else if (event.key === "-") zoom(1 / 1.6);
    else if (event.key === "0") zoom(0);
    else if (event.key === "Escape") { point(null); choose(null); }
    else return;
    event.preventDefault();
  });

  const fingers = new Map();
  let moved = 0;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
    moved = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) { point(at(event.offsetX, event.offsetY)); return; }
    const now = [event.offsetX, event.offsetY];
    moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (fingers.size === 2) {
      const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
      const apart = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]) || 1;
      zoom(apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    } else if (moved > 4) { point(null); pan(now[0] - before[0], now[1] - before[1]); }
    fingers.set(event.pointerId, now);
  });
  canvas.addEventListener("pointerup", (event) => {
    fingers.delete(event.pointerId);
    if (moved > 4 || fingers.size) return;
    const row = at(event.offsetX, event.offsetY);
    point(row);
    choose(row);
  });
  canvas.addEventListener("pointercancel", (event) => fingers.delete(event.pointerId));
  canvas.addEventListener("pointerleave", () => { if (!fingers.size) point(null); });
  canvas.addEventListener("blur", () => point(null));
  canvas.addEventListener("wheel", (event) => {
    // Scrolling past the map scrolls the page; once the map has been clicked, or with Ctrl, it zooms.
    if (!event.ctrlKey && document.activeElement !== canvas) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 300), event.offsetX, event.offsetY);
  }, { passive: false });

  new ResizeObserver(() => {
    const ratio = window.devicePixelRatio || 1;
    width = plane.clientWidth;
    height = plane.clientHeight;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    redraw();
  }).observe(plane);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  return {
    plane,
    screen,
    drawNow,
    zoom,
    show(row) { if (row !== null) reveal(row); choose(row); },
    colourBy(colouring) { state.colouring = colouring; state.group = null; redraw(); },
    narrowTo(group) { state.group = group; redraw(); },
    match(matches) { state.matches = matches; point(null); redraw(); },
  };
}

function groupColour(colouring, group) {
  if (!colouring.steps) return colour(`c${group % 12}`);
  const last = Math.max(1, colouring.groups.length - 1);
  return colour(`s${Math.round((group / last) * 5)}`);
}
