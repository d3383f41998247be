// Pictures: what was made here, its recipe, replays and comparisons; and any image that is dropped, read and drawn again.

import { api, get } from "./api.js";
import { add, button, el, fill, set } from "./dom.js";
import { on } from "./events.js";
import { menuButton, searchField } from "./filters.js";
import { counted, titleOf } from "./format.js";
import { makeGrid } from "./grid.js";
import { OWN, image } from "./images.js";
import { complain, empty, errorBox, waiting } from "./notices.js";
import { makePanel } from "./panel.js";
import { comparison } from "./picture_compare.js";
import { pictureDetails } from "./picture_details.js";
import { readDetails } from "./picture_read.js";
import { amend, hrefOf } from "./route.js";
import { cardShape } from "./view_library.js";

const MOST_BYTES = 64 * 1024 * 1024;

export function mount(root, params) {
  let now = params;
  let asked = null;
  let wasOpen = null;
  const total = el("p", { class: "total", role: "status" });
  const notice = el("div", { class: "grid-notice", hidden: true });
  const choosing = el("div", { class: "choosing", role: "status", hidden: true });
  const search = searchField({
    label: "Search images", placeholder: "Search prompts and models", value: params.get("q") || "",
    onInput: (text) => amend({ q: text }, { replace: true }),
  });
  const file = el("input", { type: "file", accept: "image/png,image/jpeg,image/webp", class: "offscreen", tabindex: "-1", "aria-label": "An image file to read" });
  const pick = button("Read an image …", () => file.click(), { iconName: "pictures", title: "Read the settings in an image of any program; or drop it here" });
  const models = menuButton("Model", (close) => modelMenu((model) => { amend({ model: model.blob.sha256 }, { replace: true }); close(); }));
  const model = button("", () => amend({ model: null, recipe: null }, { replace: true }), { kind: "chip on", iconName: "close" });
  const grid = makeGrid({
    label: "Images made here",
    load: async (offset, limit, signal) => {
      const answer = await get("/api/v1/pictures", { q: now.get("q"), model: now.get("model"), recipe: now.get("recipe"), offset, limit }, signal);
      return { ...answer, items: answer.pictures };
    },
    fill: fillCard,
    keyOf: (each) => each.id,
    onOpen: (each) => (now.get("compare") ? compareWith(each.id) : amend({ open: each.id })),
    shape: cardShape,
    onTotal: (found) => {
      fill(total, counted(found, "image"));
      notice.hidden = found > 0;
      if (!found) fill(notice, now.get("q") || now.get("model") ? empty("No images match", "Try fewer words.")
        : empty("No images yet", "What you draw here or with civman render is listed here.", el("a", { class: "button primary", href: hrefOf("draw") }, "Draw")));
    },
    onError: (error) => { notice.hidden = false; fill(notice, errorBox(error, { retry: () => grid.reload() })); fill(total, ""); },
  });
  const panel = makePanel({ label: "Details", onClose: () => { amend({ open: null }); if (wasOpen === null) panel.hide(); grid.focus(); } });
  const list = el("div", { class: "split" }, el("div", { class: "list" }, notice, grid.root), panel.root);
  const bar = el("div", { class: "bar" }, search.root, el("div", { class: "bar-filters" }, models.root, pick, file, model), total);
  const compared = el("div", { class: "compare", hidden: true });
  add(root, bar, choosing, list, compared);

  function compareWith(id) {
    const first = now.get("compare").split(",")[0];
    if (String(id) !== first) amend({ compare: `${first},${id}`, open: null });
  }

  async function show(next) {
    now = next;
    if (document.activeElement !== search.field) search.field.value = now.get("q") || "";
    nameFilter();
    const query = JSON.stringify([now.get("q"), now.get("model"), now.get("recipe")]);
    if (query !== asked) {
      asked = query;
      grid.reload();
    }
    const [one, other] = (now.get("compare") || "").split(",");
    choosing.hidden = !one || Boolean(other);
    fill(choosing, el("span", {}, `Choose the image to compare image ${one} with.`), button("Do not compare", () => amend({ compare: null }), { kind: "quiet" }));
    bar.hidden = list.hidden = Boolean(other);
    compared.hidden = !other;
    if (other) comparison(compared, one, other, () => amend({ compare: null, open: one }));
    open(now.get("open"));
  }

  /** Say in the chip which images are left out. */
  async function nameFilter() {
    const [sha256, recipe] = [now.get("model"), now.get("recipe")];
    model.hidden = !sha256 && !recipe;
    const show = (words) => {
      model.lastChild.textContent = words;
      set(model, { "aria-label": `Remove filter ${words}` });
    };
    if (recipe) show(`recipe ${recipe.slice(0, 12)}…`);
    if (!sha256) return;
    show(`made with ${sha256.slice(0, 12)}…`);
    const found = await get(`/api/v1/models/${sha256}`).catch(() => null);
    if (found && now.get("model") === sha256) show(`made with ${titleOf(found.model)}`);
  }

  async function open(id, { again = false } = {}) {
    if (id === wasOpen && !again) return;
    wasOpen = id;
    grid.choose(id);
    if (!id) {
      panel.hide();
      return;
    }
    try {
      const picture = await get(`/api/v1/pictures/${id}`);
      if (wasOpen !== id) return;
      panel.show(picture.prompt ? picture.prompt.slice(0, 90) : `Image ${id}`, pictureDetails(picture, { compare: () => amend({ compare: id, open: null }) }));
      panel.scrollToTop();
    } catch (error) {
      if (wasOpen === id) panel.show("Not found", errorBox(error));
    }
  }

  async function read(given) {
    if (given.size > MOST_BYTES) {
      complain(Object.assign(new Error(`${given.name} is larger than the 64 MiB that the server reads`), { code: "too-large" }));
      return;
    }
    if (now.get("open")) amend({ open: null });
    wasOpen = null;
    panel.show(given.name, waiting("Reading the image …"));
    try {
      const told = await api("POST", "/api/v1/pictures/read", { query: { name: given.name }, bytes: given });
      panel.show(given.name, readDetails(told, URL.createObjectURL(given)));
    } catch (error) {
      panel.show(given.name, errorBox(error));
    }
    panel.scrollToTop();
  }

  file.addEventListener("change", () => { if (file.files[0]) read(file.files[0]); file.value = ""; });
  const over = (event) => {
    if (![...(event.dataTransfer?.types || [])].includes("Files")) return;
    event.preventDefault();
    root.classList.add("dropping");
  };
  const drop = (event) => {
    root.classList.remove("dropping");
    const given = event.dataTransfer?.files?.[0];
    if (!given) return;
    event.preventDefault();
    read(given);
  };
  const leave = (event) => { if (!root.contains(event.relatedTarget)) root.classList.remove("dropping"); };
  root.addEventListener("dragover", over);
  root.addEventListener("drop", drop);
  root.addEventListener("dragleave", leave);
  const stops = [on("library", () => grid.reload({ keep: true }))];
  show(params);
  return {
    update: show,
    focusSearch: () => { search.field.focus(); search.field.select(); },
    unmount() {
      stops.forEach((stop) => stop());
      for (const [name, listener] of [["dragover", over], ["drop", drop], ["dragleave", leave]]) root.removeEventListener(name, listener);
      root.classList.remove("dropping");
      grid.close();
    },
  };
}

/** A menu of stored models; `choose(model)` is called with the one that is picked. */
function modelMenu(choose) {
  const list = el("div", { class: "choices", role: "group", "aria-label": "Models" });
  const narrow = el("input", { type: "search", class: "narrow", placeholder: "Search models", "aria-label": "Search models", autofocus: true });
  const find = async () => {
    const text = narrow.value.trim();
    const answer = await get("/api/v1/models", { q: text, limit: 40, sort: text ? "" : "used" }).catch((error) => ({ models: [], error }));
    fill(list, answer.models.map((each) => el("button", { type: "button", class: "choice pick", onclick: () => choose(each) },
      el("span", {}, titleOf(each)), el("small", {}, [each.type_raw, each.base_model].filter(Boolean).join(" · ")))),
    answer.models.length ? null : el("p", { class: "waiting" }, answer.error ? answer.error.message : "No model matches"));
  };
  let timer = 0;
  narrow.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(find, 130); });
  find();
  return el("div", {}, el("p", { class: "hint" }, "Only images that were made with it."), narrow, list);
}

function fillCard(cell, each) {
  cell.className = `cell card${each.is_here ? "" : " bare"}`;
  cell.dataset.kind = "the file is gone";
  if (each.is_here) cell.append(image(`/api/v1/pictures/${each.id}/thumb`, OWN, { eager: true }));
  cell.append(el("b", {}, each.prompt || each.upscaled || `Image ${each.id}`),
    el("span", {}, [`${each.width}×${each.height}`, each.seed === null ? each.upscaler : `seed ${each.seed}`, each.sampler].filter(Boolean).join(" · ")));
}
