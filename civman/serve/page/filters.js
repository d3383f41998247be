// Filters above a list: a search field, menus with check marks, and chips that show what is filtered and remove it.

import { add, button, el, fill, icon } from "./dom.js";
import { count } from "./format.js";

let menus = 0;

/** A search field. `onInput(text)` is called shortly after typing stops, and at once on Enter. */
export function searchField({ label, placeholder, value = "", onInput, delay = 130 }) {
  const field = el("input", {
    type: "search", class: "search-input", "aria-label": label, placeholder, value, autocomplete: "off", spellcheck: "false",
    enterkeyhint: "search",
  });
  let timer = 0;
  const tell = () => {
    clearTimeout(timer);
    onInput(field.value.trim());
  };
  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(tell, delay);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") tell();
    if (event.key === "Escape" && field.value) {
      event.preventDefault();
      field.value = "";
      tell();
    }
  });
  const root = el("label", { class: "search" }, icon("search"), field, el("kbd", {}, "/"));
  return { root, field };
}

/** A button that opens a menu; `build(close)` makes its contents each time, so that a closed menu has no elements. */
export function menuButton(label, build, { iconName = null, iconOnly = false, kind = "", onOpen = () => {} } = {}) {
  menus += 1;
  const id = `menu-${menus}`;
  const opener = button(label, () => {}, { iconName, iconOnly, kind, popovertarget: id, "aria-haspopup": "dialog" });
  if (!iconOnly) opener.append(icon("more"));
  const menu = el("div", { class: "menu", id, popover: "auto", role: "dialog", "aria-label": label });
  menu.addEventListener("beforetoggle", (event) => {
    if (event.newState !== "open") return;
    onOpen();
    fill(menu, build(() => menu.hidePopover()));
  });
  menu.addEventListener("toggle", (event) => {
    opener.setAttribute("aria-expanded", event.newState === "open" ? "true" : "false");
    if (event.newState === "open") {
      place(menu, opener);
      (menu.querySelector("[autofocus]") || menu.querySelector("input, button, select"))?.focus();
    } else {
      menu.replaceChildren();
    }
  });
  menu.addEventListener("keydown", (event) => moveInside(menu, event));
  return { root: el("span", { class: "menu-holder" }, opener, menu), opener, menu };
}

function place(menu, opener) {
  const at = opener.getBoundingClientRect();
  const width = menu.offsetWidth;
  menu.style.left = `${Math.max(8, Math.min(at.left, innerWidth - width - 8))}px`;
  const below = innerHeight - at.bottom - 12;
  if (below < Math.min(menu.offsetHeight, 240) && at.top > below) {
    menu.style.top = "auto";
    menu.style.bottom = `${innerHeight - at.top + 4}px`;
    menu.style.maxHeight = `${at.top - 12}px`;
  } else {
    menu.style.bottom = "auto";
    menu.style.top = `${at.bottom + 4}px`;
    menu.style.maxHeight = `${below}px`;
  }
}

function moveInside(menu, event) {
  if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
  if (event.target.matches("textarea, select, input[type=number]")) return;
  const stops = [...menu.querySelectorAll("input, button, select")].filter((each) => each.offsetParent !== null);
  const next = stops.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1);
  if (stops[next]) {
    event.preventDefault();
    stops[next].focus();
  }
}

/**
 * A menu of values of which several can be chosen. `options()`: a promise of `[{value, label, count}]`.
 * `chosen()`: the values that are chosen; `onChange(values)`. A field narrows a long list.
 */
export function choiceMenu(label, { options, chosen, onChange }) {
  return menuButton(label, () => {
    const list = el("div", { class: "choices", role: "group", "aria-label": label });
    const body = el("div", {}, el("p", { class: "waiting" }, "Reading …"));
    options().then((given) => {
      const marked = new Set(chosen());
      const missing = [...marked].filter((value) => !given.some((each) => each.value === value));
      const all = [...missing.map((value) => ({ value, label: value, count: null })), ...given];
      const draw = (part) => fill(list, all.filter((each) => each.label.toLowerCase().includes(part)).slice(0, 80).map((each) => choice(each, marked, onChange)));
      const narrow = all.length > 12
        ? el("input", { type: "search", class: "narrow", placeholder: `Narrow ${all.length} values`, "aria-label": `Narrow ${label}`, autofocus: true })
        : null;
      narrow?.addEventListener("input", () => draw(narrow.value.trim().toLowerCase()));
      draw("");
      fill(body, all.length ? [narrow, list] : el("p", { class: "waiting" }, "Nothing to choose yet"));
      (narrow || list.querySelector("input"))?.focus();
    }, (error) => fill(body, el("p", { class: "hint" }, error.message)));
    return body;
  });
}

function choice(each, marked, onChange) {
  const box = el("input", { type: "checkbox" });
  box.checked = marked.has(each.value);
  box.addEventListener("change", () => {
    if (box.checked) marked.add(each.value);
    else marked.delete(each.value);
    onChange([...marked]);
  });
  return el("label", { class: "choice" }, box, el("span", {}, each.label || "none"),
    each.count === null ? null : el("small", {}, count(each.count)));
}

/** A labelled select for a menu or a bar. `options`: `[[value, label]]`. */
export function select(label, options, value, onChange, { hidden = false } = {}) {
  const field = el("select", { "aria-label": hidden ? label : null },
    options.map(([each, words]) => el("option", { value: each, selected: each === value }, words)));
  field.addEventListener("change", () => onChange(field.value));
  return hidden ? field : el("label", { class: "field" }, el("span", {}, label), field);
}

/** A labelled check box. */
export function toggle(label, isOn, onChange) {
  const box = el("input", { type: "checkbox" });
  box.checked = isOn;
  box.addEventListener("change", () => onChange(box.checked));
  return el("label", { class: "choice" }, box, el("span", {}, label));
}

/** Show what is filtered. `chips`: `[{label, remove}]`; an empty list shows nothing. */
export function showChips(holder, chips, clearAll) {
  const hadFocus = holder.contains(document.activeElement);
  holder.hidden = !chips.length;
  fill(holder, chips.map((chip) => button(chip.label, chip.remove, { kind: "chip on", "aria-label": `Remove filter ${chip.label}` })));
  for (const each of holder.children) each.append(icon("close"));
  if (chips.length > 1) add(holder, button("Clear all", clearAll, { kind: "quiet" }));
  if (hadFocus) (holder.querySelector("button") || document.querySelector(".search-input"))?.focus();
}
