// Elements, numbers and the little state that the parts of the page share.
// A text reaches the page only through `textContent`: nothing here, or below, makes HTML of a string.

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

// A memory's text, in a box of its own: characters that turn the writing direction do not reach beyond it.
function memory(text, tag = "span") {
  return element(tag, { className: "memory", dir: "auto", textContent: text });
}

function section(title, ...children) {
  const heading = element("h2", { textContent: title, id: `section-${document.querySelectorAll("section").length}` });
  return element("section", { "aria-labelledby": heading.id }, heading, ...children);
}

function note(text) {
  return text ? element("p", { className: "note", textContent: text }) : null;
}

function unpack(base64, Numbers) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Numbers(bytes.buffer);
}

function format(number) {
  return number === null ? "" : number.toLocaleString("en-US", { maximumFractionDigits: 4 });
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// A table with a header; `cell` makes the content of each cell, a node or a text.
function makeTable(columns, rows, cell, label) {
  const header = element("tr", {}, ...columns.map((name) => element("th", { scope: "col", textContent: name })));
  const body = rows.map((row) => element("tr", {}, ...columns.map((_, column) => cell(row, column))));
  const caption = element("caption", { className: "unseen", textContent: label });
  return element("table", {}, caption, element("thead", {}, header), element("tbody", {}, ...body));
}

function isNumber(text) {
  return /^-?[\d,.]+%?$/.test(text);
}
