// The panel beside a list: details of what is chosen there. On a narrow screen it covers the list.

import { button, el, fill } from "./dom.js";

/** Make a panel. `onClose` is called when it is closed by its button or by Escape. */
export function makePanel({ label, onClose }) {
  const body = el("div", { class: "panel-body" });
  const title = el("h2", { class: "panel-title", tabindex: "-1" });
  const close = button("Close", () => onClose(), { iconName: "close", iconOnly: true, kind: "quiet" });
  const root = el("aside", { class: "panel", "aria-label": label, hidden: true },
    el("header", { class: "panel-head" }, title, close), body);
  root.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented) return;
    event.preventDefault();
    onClose();
  });
  return {
    root,
    /** Show these contents. `focus`: move the keyboard there, for what was opened by a key. */
    show(heading, contents, { focus = true } = {}) {
      const was = !root.hidden;
      const hadFocus = root.contains(document.activeElement);
      root.hidden = false;
      fill(title, heading);
      fill(body, contents);
      if (!was) body.scrollTop = 0;
      const isLost = hadFocus && !root.contains(document.activeElement);
      if (focus || isLost) title.focus({ preventScroll: true });
    },
    fill: (contents) => fill(body, contents),
    scrollToTop: () => { body.scrollTop = 0; },
    hide() { root.hidden = true; },
    get isOpen() { return !root.hidden; },
  };
}

/** A part of a panel with a heading; nothing if it has no contents. */
export function section(heading, ...contents) {
  const kept = contents.flat().filter((each) => each !== null && each !== undefined && each !== false);
  return kept.length ? el("section", { class: "part" }, el("h3", {}, heading), kept) : null;
}

/** A list of names and values; pairs without a value are left out. */
export function facts(pairs) {
  const list = el("dl", { class: "facts" });
  for (const [name, value] of pairs) {
    if (value === null || value === undefined || value === "") continue;
    list.append(el("dt", {}, name), el("dd", {}, value));
  }
  return list;
}
