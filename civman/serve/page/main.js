// The frame of the page: header, views, keys, and what the server says.

import { add, button, el, fill, icon, set } from "./dom.js";
import { allJobs, connection, listen, on } from "./events.js";
import { menuButton, select } from "./filters.js";
import { LEVELS, toggleHidden } from "./images.js";
import { complain } from "./notices.js";
import { go, hrefOf, route } from "./route.js";
import { change, onSetting, setting } from "./settings.js";
import { progressOf } from "./job_words.js";
import { checkpointMenu } from "./checkpoint.js";
import { VIEWS } from "./views.js";

const lastParams = new Map();
const tabs = new Map();
const main = el("main", { id: "view", tabindex: "-1" });
const lost = el("div", { class: "lost", role: "alert", hidden: true },
  "The server does not answer. Start it again with ", el("code", {}, "civman serve"), "; this page goes on by itself.");
const hideButton = button("Hide all images", toggleHidden, { iconName: "eye", iconOnly: true, kind: "quiet" });
const running = el("span", { class: "tab-count" });
let mounted = null;
let current = null;

function applyTheme() {
  const theme = setting("theme");
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

function applyHidden() {
  const isHidden = setting("hideAll");
  set(hideButton, { "aria-pressed": String(isHidden), title: isHidden ? "Images are hidden (B)" : "Hide all images (B)" });
  hideButton.replaceChildren(icon(isHidden ? "hide" : "eye"));
}

function header() {
  for (const view of VIEWS) {
    const tab = el("a", { href: hrefOf(view.name), class: "tab", title: `${view.title} (g ${view.key})` },
      icon(view.name), el("span", {}, view.title));
    tab.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      visit(view.name);
    });
    tabs.set(view.name, tab);
  }
  tabs.get("jobs").append(running);
  return el("header", { class: "top" },
    el("a", { class: "skip", href: "#view", onclick: (event) => { event.preventDefault(); main.focus(); } }, "Skip to the contents"),
    el("a", { class: "brand", href: hrefOf("library"), "aria-label": "civman, library" }, "civman"),
    el("nav", { class: "tabs", "aria-label": "Views" }, [...tabs.values()]),
    el("div", { class: "top-tools" }, checkpointMenu().root, hideButton, settingsMenu().root));
}

function settingsMenu() {
  return menuButton("Settings", () => el("div", { class: "settings" },
    select("Show images rated up to", LEVELS.map((each) => [String(each.bit), each.name]), String(setting("level")),
      (value) => change("level", Number(value))),
    el("p", { class: "hint" }, "Images above it are blurred. Unrated ones count as X."),
    select("Theme", [["system", "as the system"], ["light", "light"], ["dark", "dark"]], setting("theme"),
      (value) => change("theme", value)),
    button("Keyboard shortcuts", help, { kind: "quiet" })), { iconName: "settings", iconOnly: true, kind: "quiet" });
}

/** Go to a view as it was when it was left. */
function visit(name) {
  if (current === name) return;
  go(name, lastParams.get(name) || {});
}

async function show() {
  const { name, params } = route();
  const view = VIEWS.find((each) => each.name === name) || VIEWS[0];
  lastParams.set(view.name, params);
  if (current === view.name) {
    mounted?.update?.(params);
    return;
  }
  current = view.name;
  mounted?.unmount?.();
  mounted = null;
  for (const [each, tab] of tabs) set(tab, { "aria-current": each === view.name ? "page" : null });
  document.title = `${view.title} · civman`;
  fill(main);
  main.className = `view-${view.name}`;
  try {
    const module = await view.load();
    if (current !== view.name) return;
    mounted = module.mount(main, route().params);
  } catch (error) {
    current = null;
    complain(error);
  }
}

const KEYS = [
  ["/", "search"], ["arrow keys, Home, End, Page up, Page down", "move in a list"], ["Enter", "open what is marked"],
  ["Esc", "close the panel or the menu"], ["b", "hide or show all images"], ["?", "this list"],
];

function help() {
  const rows = [...VIEWS.map((view) => [`g ${view.key}`, view.title]), ...KEYS];
  const dialog = el("dialog", { class: "help", "aria-label": "Keyboard shortcuts" },
    el("h2", {}, "Keyboard shortcuts"),
    el("dl", { class: "facts" }, rows.map(([keys, what]) => [el("dt", {}, keys.split(" ").length === 2 ? keys.split(" ").map((key) => el("kbd", {}, key)) : el("kbd", {}, keys)), el("dd", {}, what)])),
    button("Close", () => dialog.close(), { kind: "primary" }));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

let awaitsView = 0;

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.target.closest("input, textarea, select, [contenteditable], dialog[open]")) return;
  if (Date.now() - awaitsView < 1500) {
    awaitsView = 0;
    const view = VIEWS.find((each) => each.key === event.key);
    if (view) {
      event.preventDefault();
      visit(view.name);
      main.focus({ preventScroll: true });
    }
    return;
  }
  if (event.key === "g") awaitsView = Date.now();
  else if (event.key === "b") toggleHidden();
  else if (event.key === "?") help();
  else if (event.key === "/" && mounted?.focusSearch) {
    event.preventDefault();
    mounted.focusSearch();
  }
}

function showRunning() {
  const unfinished = allJobs().filter((job) => job.state === "running" || job.state === "queued");
  const active = unfinished.find((job) => job.state === "running");
  running.textContent = unfinished.length ? String(unfinished.length) : "";
  set(tabs.get("jobs"), {
    "aria-label": unfinished.length ? `Jobs, ${unfinished.length} not done` : null,
    title: active ? `${active.title}: ${progressOf(active).words}` : "Jobs (g j)",
  });
}

applyTheme();
add(document.body, header(), lost, main);
applyHidden();
addEventListener("hashchange", show);
addEventListener("keydown", onKey);
onSetting((name) => {
  if (name === "theme") applyTheme();
  if (name === "hideAll") applyHidden();
});
on("state", () => { lost.hidden = connection() !== "lost"; });
on("jobs", showRunning);
on("step", showRunning);
show();
listen();
