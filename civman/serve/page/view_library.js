// The library: every stored file as a card or a row, with search and filters, and a panel of details.

import { get } from "./api.js";
import { add, button, el, fill, icon, set } from "./dom.js";
import { on } from "./events.js";
import { choiceMenu, menuButton, searchField, select, showChips, toggle } from "./filters.js";
import { checkpointRef, chosenCheckpoint } from "./checkpoint.js";
import { counted, factsWords, size, titleOf } from "./format.js";
import { makeGrid } from "./grid.js";
import { image, levelName } from "./images.js";
import { libraryDetails } from "./library_details.js";
import { empty, errorBox } from "./notices.js";
import { makePanel } from "./panel.js";
import { amend, hrefOf } from "./route.js";
import { change, onSetting, setting } from "./settings.js";

const SORTS = [["", "relevance, added"], ["added", "added"], ["name", "name"], ["size", "size"], ["rating", "rating"], ["used", "used"]];
const RATINGS = [["", "any rating"], ["1", "★ and up"], ["2", "★★ and up"], ["3", "★★★ and up"], ["4", "★★★★ and up"], ["5", "★★★★★"]];
const FILTERS = ["q", "type", "base", "tag", "rating", "favourite", "commercial", "safe", "fits"];

export function mount(root, params) {
  let now = params;
  let query = "";
  let wasOpen = null;
  const total = el("p", { class: "total", role: "status" });
  const chips = el("div", { class: "chips", hidden: true });
  const notice = el("div", { class: "grid-notice", hidden: true });

  const search = searchField({
    label: "Search the library", placeholder: "Search names, tags, trigger words, notes", value: params.get("q") || "",
    onInput: (text) => amend({ q: text }, { replace: true }),
  });
  const facet = async (name) => (await get("/api/v1/models/facets"))[name].map((each) => ({ ...each, label: each.value || "none" }))
    .filter((each) => each.value);
  const menus = ["type", "base", "tag"].map((name) => choiceMenu({ type: "Type", base: "Base model", tag: "Tag" }[name], {
    options: () => facet(name), chosen: () => now.getAll(name), onChange: (values) => amend({ [name]: values }, { replace: true }),
  }));
  const more = menuButton("More", () => el("div", { class: "settings" },
    select("Your rating", RATINGS, now.get("rating") || "", (value) => amend({ rating: value }, { replace: true })),
    toggle("Favourites", now.has("favourite"), (isOn) => amend({ favourite: isOn }, { replace: true })),
    toggle("Licence allows selling images", now.has("commercial"), (isOn) => amend({ commercial: isOn }, { replace: true })),
    toggle("Only models rated PG or PG-13", now.has("safe"), (isOn) => amend({ safe: isOn }, { replace: true })),
    select("Sort", SORTS, now.get("sort") || "", (value) => amend({ sort: value }, { replace: true }))));
  const fits = button("Fits", () => amend({ fits: now.has("fits") ? null : true }, { replace: true }), { iconName: "check" });
  const layout = button("Rows", () => change("layout", setting("layout") === "rows" ? "cards" : "rows"), { iconOnly: true, iconName: "rows", kind: "quiet" });

  const grid = makeGrid({
    label: "Stored files",
    load: async (offset, limit, signal) => {
      const answer = await get("/api/v1/models", { ...queryOf(now), offset, limit }, signal);
      return { ...answer, items: answer.models };
    },
    fill: (cell, model) => (setting("layout") === "rows" ? fillRow(cell, model) : fillCard(cell, model)),
    keyOf: (model) => model.blob.sha256,
    onOpen: (model) => amend({ open: model.blob.sha256 }),
    shape: (width) => (setting("layout") === "rows"
      ? { columns: 1, rowHeight: 52 }
      : cardShape(width)),
    onTotal: (found, answer) => {
      fill(total, counted(found, "file"), corrected(answer.corrections));
      notice.hidden = found > 0;
      if (!found) fill(notice, nothing(now));
    },
    onError: (error) => {
      notice.hidden = false;
      fill(notice, errorBox(error, { retry: () => grid.reload() }));
      fill(total, "");
    },
  });
  const panel = makePanel({ label: "Details", onClose: close });
  add(root, el("div", { class: "bar" }, search.root, el("div", { class: "bar-filters" }, menus.map((menu) => menu.root), fits, more.root, layout), total),
    chips, el("div", { class: "split" }, el("div", { class: "list" }, notice, grid.root), panel.root));

  function close() {
    amend({ open: null });
    grid.focus();
  }

  function show(next) {
    now = next;
    if (document.activeElement !== search.field) search.field.value = now.get("q") || "";
    const asked = JSON.stringify(queryOf(now));
    if (asked !== query) {
      query = asked;
      grid.reload();
    }
    showChips(chips, chipsOf(now), () => amend(Object.fromEntries(FILTERS.map((name) => [name, null])), { replace: true }));
    const chosen = chosenCheckpoint();
    set(fits, { "aria-pressed": String(now.has("fits")), disabled: !chosen && !now.has("fits"), title: chosen ? `Only what fits ${chosen.name}` : "Choose a checkpoint first" });
    showLayout();
    open(now.get("open"));
  }

  function showLayout() {
    const isRows = setting("layout") === "rows";
    root.classList.toggle("as-rows", isRows);
    layout.replaceChildren(icon(isRows ? "cards" : "rows"));
    set(layout, { "aria-label": isRows ? "Show cards" : "Show rows", title: isRows ? "Show cards" : "Show rows" });
  }

  async function open(sha256, { again = false } = {}) {
    if (sha256 === wasOpen && !again) return;
    const isNew = sha256 !== wasOpen;
    wasOpen = sha256;
    grid.choose(sha256);
    if (!sha256) {
      panel.hide();
      return;
    }
    try {
      const details = await get(`/api/v1/models/${sha256}`);
      if (wasOpen !== sha256) return;
      const isFirst = !panel.isOpen;
      panel.show(titleOf(details.model), libraryDetails(details, { changed: (models) => models.forEach((each) => grid.update(each)) }),
        { focus: isNew && (isFirst || matchMedia("(max-width: 899px)").matches) });
      if (isNew) panel.scrollToTop();
    } catch (error) {
      if (wasOpen === sha256) panel.show("Not found", errorBox(error));
    }
  }

  const stops = [
    onSetting((name) => {
      if (name === "layout") { showLayout(); grid.reshape(); }
      if (name === "checkpoint") show(now);
    }),
    on("library", () => { grid.reload({ keep: true }); if (wasOpen) open(wasOpen, { again: true }); }),
  ];
  show(params);
  return {
    update: show,
    focusSearch: () => { search.field.focus(); search.field.select(); },
    unmount: () => { stops.forEach((stop) => stop()); grid.close(); },
  };
}

function queryOf(params) {
  return {
    q: params.get("q"), type: params.getAll("type"), base: params.getAll("base"), tag: params.getAll("tag"),
    rating: params.get("rating"), favourite: params.get("favourite"), commercial: params.get("commercial"),
    safe: params.get("safe"), sort: params.get("sort"), fits: params.has("fits") ? checkpointRef() : null,
  };
}

function chipsOf(params) {
  const without = (name, value) => () => amend({ [name]: params.getAll(name).filter((each) => each !== value) }, { replace: true });
  const chips = ["type", "base", "tag"].flatMap((name) => params.getAll(name).map((value) => ({ label: value, remove: without(name, value) })));
  const flags = {
    rating: `★ ${params.get("rating")} and up`, favourite: "favourites", commercial: "may be sold", safe: "PG or PG-13",
    fits: `fits ${chosenCheckpoint()?.name || "no checkpoint"}`,
  };
  for (const [name, label] of Object.entries(flags)) {
    if (params.has(name)) chips.push({ label, remove: () => amend({ [name]: null }, { replace: true }) });
  }
  return chips;
}

function corrected(corrections) {
  const pairs = Object.entries(corrections || {});
  return pairs.length ? el("span", { class: "hint" }, pairs.map(([typed, read]) => ` no results for “${typed}”; showing results for ${read}`)) : null;
}

function nothing(params) {
  if (FILTERS.some((name) => params.has(name))) {
    return empty("No files match", "Try fewer words or filters.", button("Clear filters", () => amend(Object.fromEntries(FILTERS.map((name) => [name, null])))));
  }
  return empty("The library is empty", "Download a model from CivitAI, or import what you have: civman import FOLDER",
    el("a", { class: "button primary", href: hrefOf("civitai") }, "Search CivitAI"));
}

/** How many cards fit in a row of this width, and how high each is. */
export function cardShape(width) {
  const columns = Math.max(2, Math.floor((width + 12) / 196));
  const card = (width - 12 * (columns - 1)) / columns;
  return { columns, rowHeight: Math.round(card * 1.16) + 58 + 12 };
}

function marks(model) {
  const words = [];
  if (model.presence !== "here") words.push(model.presence);
  if (model.facts.conflicts?.length) words.push("contradiction");
  return words;
}

function fillCard(cell, model) {
  const title = titleOf(model);
  const wrong = marks(model);
  cell.className = `cell card${model.has_preview ? "" : " bare"}`;
  cell.dataset.kind = model.facts.architecture || model.facts.kind || model.type_raw || "file";
  if (model.has_preview) {
    cell.append(image(`/api/v1/models/${model.blob.sha256}/preview`, model.preview_level, { eager: true }));
    cell.dataset.rating = levelName(model.preview_level);
  } else {
    delete cell.dataset.rating;
  }
  cell.append(el("b", {}, `${model.own.is_favourite ? "♥ " : ""}${title}`),
    el("span", { class: wrong.length ? "wrong" : null }, wrong.length ? wrong.join(" · ")
      : [model.type_raw || model.facts.kind, model.base_model || model.facts.architecture, stars(model), size(model.blob.size_bytes)].filter(Boolean).join(" · ")));
}

const stars = (model) => (model.own.rating ? "★".repeat(model.own.rating) : "");

function fillRow(cell, model) {
  const title = titleOf(model);
  const wrong = marks(model);
  cell.className = `cell row${model.has_preview ? "" : " bare"}`;
  delete cell.dataset.rating;
  cell.append(
    model.has_preview ? image(`/api/v1/models/${model.blob.sha256}/preview`, model.preview_level, { eager: true }) : el("i", {}),
    el("b", {}, `${model.own.is_favourite ? "♥ " : ""}${title}`, model.version_name ? el("small", {}, ` ${model.version_name}`) : null),
    el("span", {}, model.type_raw || model.facts.kind), el("span", {}, model.base_model || ""), el("span", { class: "wide" }, factsWords(model)),
    el("span", { class: wrong.length ? "wrong" : "stars" }, wrong.length ? wrong.join(" · ") : stars(model)),
    el("span", { class: "number" }, size(model.blob.size_bytes)));
}
