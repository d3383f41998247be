// Errors and short messages. An error shows the same three things as on the command line: message, hint and code.

import { announce, button, el, icon } from "./dom.js";

let stack = null;

function show(element, seconds) {
  stack ??= document.body.appendChild(el("div", { class: "toasts" }));
  stack.append(element);
  if (seconds) setTimeout(() => element.remove(), seconds * 1000);
}

/** Say briefly that something was done. `action`: `{label, run}` for a button. */
export function say(text, action = null) {
  const made = el("div", { class: "toast" }, el("span", {}, text));
  if (action) made.append(button(action.label, () => { made.remove(); action.run(); }, { kind: "quiet" }));
  announce(text);
  show(made, 6);
}

/** Show an error until it is dismissed. */
export function complain(error) {
  if (error.name === "AbortError") return;
  const made = errorBox(error, { dismiss: () => made.remove() });
  made.classList.add("toast");
  show(made, 0);
}

/** An error in place. `retry`: a function for a button "Try again". */
export function errorBox(error, { retry = null, dismiss = null } = {}) {
  const made = el("div", { class: "error", role: "alert" },
    icon("warning"),
    el("div", { class: "error-words" },
      el("p", {}, el("strong", {}, "Error"), error.code ? el("code", {}, ` [${error.code}]`) : null, ` ${error.message}`),
      error.hint ? el("p", { class: "hint" }, `Hint: ${error.hint}`) : null));
  if (retry) made.append(button("Try again", retry, { kind: "quiet" }));
  if (dismiss) made.append(button("Dismiss", dismiss, { iconName: "close", iconOnly: true, kind: "quiet" }));
  return made;
}

/** What stands where a list is empty: what is missing, and what to do. */
export function empty(title, words = null, ...actions) {
  return el("div", { class: "empty" }, el("h2", {}, title), words ? el("p", {}, words) : null,
    actions.length ? el("p", { class: "actions" }, actions) : null);
}

/** A placeholder while something is read. */
export const waiting = (words = "Reading …") => el("p", { class: "waiting" }, words);
