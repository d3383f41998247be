// Pictures: what was made here, its recipe, replays and comparisons; and any image that is dropped, read and drawn again.

import { api, get } from "./api.js";
import { add, button, el, fill } from "./dom.js";
import { on } from "./events.js";
import { searchField } from "./filters.js";
import { counted } from "./format.js";
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
  const model = button("", () => amend({ model: null }, { replace: true }), { kind: "chip on", iconName: "close" });
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
  const bar = el("div", { class: "bar" }, search.root, el("div", { class: "bar-filters" }, pick, file, model), total);
  const compared = el("div", { class: "compare", hidden: true });
  add(root, bar, choosing, list, compared);

  function compareWith(id) {
    const first = now.get("compare").split(",")[0];
    if (String(id) !== first) amend({ compare: `${first},${id}`, open: null });
  }

  async function show(next) {
    now = next;
    if (document.activeElement !== search.field) search.field.value = now.get("q") || "";
    model.hidden = !now.get("model");
    model.lastChild.textContent = `made with ${(now.get("model") || "").slice(0, 12)}`;
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

function fillCard(cell, each) {
  cell.className = `cell card${each.is_here ? "" : " bare"}`;
  cell.dataset.kind = "the file is gone";
  if (each.is_here) cell.append(image(`/api/v1/pictures/${each.id}/thumb`, OWN, { eager: true }));
  cell.append(el("b", {}, each.prompt || each.upscaled || `Image ${each.id}`),
    el("span", {}, [`${each.width}×${each.height}`, each.seed === null ? each.upscaler : `seed ${each.seed}`, each.sampler].filter(Boolean).join(" · ")));
}
