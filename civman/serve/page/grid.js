// A list of any length of which only the visible part exists: rows of equal height, read from the server in pages, with one
// tab stop and the arrow keys. For screen readers it is a grid that says how many rows it has and which one is which.

import { el } from "./dom.js";

const MOST_PAGES = 12;
const SETTLE_MS = 90;
const OVERSCAN = 1;

/**
 * Make a grid.
 * `load(offset, limit, signal)`: a promise of `{items, total}`; with `more: true`, the total may grow.
 * `fill(cell, item)`: put an item into an empty cell. `keyOf(item)`: what identifies it. `onOpen(item, cell)`: Enter, click.
 * `shape(width)`: `{columns, rowHeight}` for a width in pixels. `onTotal(total, answer)`: the first answer of a reload.
 * `onError(error)`: an answer that could not be read. `pageSize`: how many items one request reads.
 */
export function makeGrid({ label, load, fill, keyOf, onOpen, shape, onTotal = () => {}, onError = () => {}, pageSize = 100 }) {
  const space = el("div", { class: "grid-space", role: "grid", "aria-label": label, tabindex: "-1" });
  const root = el("div", { class: "grid", tabindex: "-1" }, space);
  const rows = new Map();
  const pages = new Map();
  let total = 0;
  let columns = 1;
  let rowHeight = 100;
  let active = 0;
  let chosen = null;
  let generation = 0;
  let settling = 0;
  let drawing = 0;
  let isAlive = true;

  const rowCount = () => Math.ceil(total / columns);

  function measure() {
    const width = space.clientWidth;
    if (!width) return false;
    const next = shape(width);
    if (next.columns !== columns || next.rowHeight !== rowHeight) {
      const top = Math.floor(root.scrollTop / rowHeight) * columns;
      ({ columns, rowHeight } = next);
      clear();
      resize();
      root.scrollTop = Math.floor(top / columns) * rowHeight;
    }
    return true;
  }

  function resize() {
    space.style.height = `${rowCount() * rowHeight}px`;
    space.style.setProperty("--columns", columns);
    space.setAttribute("aria-rowcount", rowCount());
    space.setAttribute("aria-colcount", columns);
  }

  function clear() {
    for (const row of rows.values()) row.remove();
    rows.clear();
  }

  function visible() {
    const first = Math.max(0, Math.floor(root.scrollTop / rowHeight) - OVERSCAN);
    const last = Math.min(rowCount() - 1, Math.floor((root.scrollTop + root.clientHeight) / rowHeight) + OVERSCAN);
    return { first, last };
  }

  function itemAt(index) {
    const page = pages.get(Math.floor(index / pageSize));
    return page?.items?.[index % pageSize] ?? null;
  }

  function draw() {
    drawing = 0;
    if (!isAlive || !measure()) return;
    const { first, last } = visible();
    for (const [number, row] of rows) {
      if ((number < first || number > last) && !row.contains(document.activeElement)) {
        row.remove();
        rows.delete(number);
      }
    }
    for (let number = first; number <= last; number += 1) drawRow(number);
    clearTimeout(settling);
    settling = setTimeout(want, pages.size ? SETTLE_MS : 0, first, last);
  }

  function drawRow(number) {
    let row = rows.get(number);
    if (!row) {
      row = el("div", { class: "grid-row", role: "row", "aria-rowindex": number + 1 });
      row.style.transform = `translateY(${number * rowHeight}px)`;
      row.style.height = `${rowHeight}px`;
      rows.set(number, row);
      const after = [...rows.keys()].filter((each) => each > number).sort((one, other) => one - other)[0];
      space.insertBefore(row, after === undefined ? null : rows.get(after));
    }
    for (let column = 0; column < columns; column += 1) {
      const index = number * columns + column;
      if (index >= total) break;
      const cell = row.children[column] ?? row.appendChild(makeCell(index));
      const item = itemAt(index);
      if (item && cell.dataset.key !== String(keyOf(item))) {
        cell.replaceChildren();
        cell.dataset.key = keyOf(item);
        cell.classList.remove("pending");
        fill(cell, item);
      }
      cell.tabIndex = index === active ? 0 : -1;
      cell.setAttribute("aria-selected", item !== null && String(keyOf(item)) === chosen ? "true" : "false");
    }
  }

  function makeCell(index) {
    return el("div", {
      class: "cell pending", role: "gridcell", "aria-colindex": (index % columns) + 1, data: { index },
    });
  }

  function want(first, last) {
    const from = Math.floor((first * columns) / pageSize);
    const to = Math.floor(Math.max(0, Math.min(total - 1, (last + 1) * columns - 1)) / pageSize);
    for (const [number, page] of pages) {
      if (!page.items && (number < from || number > to)) {
        page.stop.abort();
        pages.delete(number);
      }
    }
    for (let number = from; number <= to; number += 1) if (!pages.has(number)) read(number);
    while (pages.size > MOST_PAGES) {
      const far = [...pages.keys()].sort((one, other) => distance(other, from, to) - distance(one, from, to))[0];
      if (distance(far, from, to) === 0) break;
      pages.delete(far);
    }
  }

  const distance = (number, from, to) => (number < from ? from - number : number > to ? number - to : 0);

  async function read(number) {
    const mine = generation;
    const page = { stop: new AbortController(), items: null };
    pages.set(number, page);
    try {
      const answer = await load(number * pageSize, pageSize, page.stop.signal);
      if (mine !== generation || !isAlive) return;
      page.items = answer.items;
      const now = answer.more ? Math.max(total, answer.total) : answer.total;
      if (now !== total) {
        total = now;
        resize();
      }
      onTotal(total, answer);
    } catch (error) {
      if (mine !== generation || error.name === "AbortError") return;
      pages.delete(number);
      onError(error);
      return;
    }
    schedule();
  }

  function schedule() {
    drawing ||= requestAnimationFrame(draw);
  }

  function focus(index) {
    active = Math.max(0, Math.min(total - 1, index));
    const number = Math.floor(active / columns);
    const top = number * rowHeight;
    if (top < root.scrollTop) root.scrollTop = top;
    else if (top + rowHeight > root.scrollTop + root.clientHeight) root.scrollTop = top + rowHeight - root.clientHeight;
    drawRow(number);
    for (const row of rows.values()) {
      for (const cell of row.children) cell.tabIndex = Number(cell.dataset.index) === active ? 0 : -1;
    }
    rows.get(number)?.children[active % columns]?.focus({ preventScroll: true });
    schedule();
  }

  function steps(key) {
    const screen = Math.max(1, Math.floor(root.clientHeight / rowHeight)) * columns;
    return {
      ArrowRight: active + 1, ArrowLeft: active - 1, ArrowDown: active + columns, ArrowUp: active - columns,
      PageDown: active + screen, PageUp: active - screen, Home: 0, End: total - 1,
    }[key];
  }

  space.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !event.target.classList.contains("cell")) return;
    const target = steps(event.key);
    if (target !== undefined) {
      event.preventDefault();
      if (target >= 0 && target < total) focus(target);
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      open(event.target);
    }
  });
  space.addEventListener("click", (event) => {
    const cell = event.target.closest(".cell");
    if (cell) open(cell);
  });
  space.addEventListener("focusin", (event) => {
    const cell = event.target.closest(".cell");
    if (!cell || Number(cell.dataset.index) === active) return;
    active = Number(cell.dataset.index);
    schedule();
  });

  function open(cell) {
    const item = itemAt(Number(cell.dataset.index));
    if (!item) return;
    active = Number(cell.dataset.index);
    onOpen(item, cell);
    schedule();
  }

  root.addEventListener("scroll", schedule, { passive: true });
  const watcher = new ResizeObserver(schedule);
  watcher.observe(root);

  return {
    root,
    /** Read everything again, from the top or (`keep`) from where it is. */
    reload({ keep = false } = {}) {
      generation += 1;
      for (const page of pages.values()) page.stop.abort();
      pages.clear();
      if (!keep) {
        clear();
        active = 0;
        root.scrollTop = 0;
        total = 0;
        read(0);
      } else {
        for (const row of rows.values()) for (const cell of row.children) cell.dataset.key = "";
        schedule();
      }
    },
    /** Show again what an item looks like, after it changed. */
    update(item) {
      for (const page of pages.values()) {
        const place = page.items?.findIndex((each) => keyOf(each) === keyOf(item)) ?? -1;
        if (place >= 0) page.items[place] = { ...page.items[place], ...item };
      }
      for (const row of rows.values()) {
        for (const cell of row.children) if (cell.dataset.key === String(keyOf(item))) cell.dataset.key = "";
      }
      schedule();
    },
    /** Mark the item with this key as chosen; null: none. */
    choose(key) {
      chosen = key === null ? null : String(key);
      schedule();
    },
    /** Move the keyboard to the active cell. */
    focus() { focus(active); },
    /** Measure again, after the layout changed. */
    reshape() { clear(); rowHeight = -1; schedule(); },
    get total() { return total; },
    close() {
      isAlive = false;
      watcher.disconnect();
      generation += 1;
      for (const page of pages.values()) page.stop.abort();
    },
  };
}
