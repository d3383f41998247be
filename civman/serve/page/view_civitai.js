// CivitAI: its search with previews, and a panel with versions, files and example images.

import { get } from "./api.js";
import { add, button, el, fill, set } from "./dom.js";
import { on } from "./events.js";
import { choiceMenu, menuButton, searchField, select, showChips, toggle } from "./filters.js";
import { checkpointRef, chosenCheckpoint } from "./checkpoint.js";
import { count, counted } from "./format.js";
import { makeGrid } from "./grid.js";
import { image, isVeiled, levelName } from "./images.js";
import { empty, errorBox, waiting } from "./notices.js";
import { makePanel } from "./panel.js";
import { amend } from "./route.js";
import { onSetting, setting } from "./settings.js";
import { siteDetails } from "./site_details.js";
import { cardShape } from "./view_library.js";

const PAGE = 40;
const SAFE = 2; // PG-13: searches without `nsfw` have only models and images below it
const FILTERS = ["q", "type", "base", "tag", "creator", "sort", "period", "early_access", "fits"];
let known = null;

export function mount(root, params) {
  let now = params;
  let query = "";
  let wasOpen = "";
  let answers = {};
  const total = el("p", { class: "total", role: "status" });
  const chips = el("div", { class: "chips", hidden: true });
  const notice = el("div", { class: "grid-notice", hidden: true });
  const search = searchField({
    label: "Search CivitAI", placeholder: "Search CivitAI, or paste an address, AIR or hash", value: params.get("q") || "", delay: 450,
    onInput: (text) => (isRef(text) ? amend({ open: text, q: null, v: null }) : amend({ q: text }, { replace: true })),
  });
  const values = async (name) => {
    known ??= get("/api/v1/civitai/filters");
    return (await known)[name].map((value) => ({ value, label: value, count: null }));
  };
  const menus = ["type", "base"].map((name) => choiceMenu({ type: "Type", base: "Base model" }[name], {
    options: () => values(name), chosen: () => now.getAll(name), onChange: (chosen) => amend({ [name]: chosen }, { replace: true }),
  }));
  const more = menuButton("More", () => {
    const body = el("div", { class: "settings" }, waiting());
    Promise.all([values("sort"), values("period")]).then(([sorts, periods]) => {
      const options = (given, first) => [["", first], ...given.map((each) => [each.value, each.label])];
      fill(body, textField("Tag", "tag"), textField("Creator", "creator"),
        select("Sort", options(sorts, "as CivitAI does"), now.get("sort") || "", (value) => amend({ sort: value }, { replace: true })),
        select("Updated in", options(periods.filter((each) => each.value !== "AllTime"), "all time"), now.get("period") || "", (value) => amend({ period: value }, { replace: true })),
        toggle("Only in early access", now.has("early_access"), (isOn) => amend({ early_access: isOn }, { replace: true })));
    }, (error) => fill(body, errorBox(error)));
    return body;
  });
  const textField = (label, name) => {
    const field = el("input", { value: now.get(name) || "", autocomplete: "off" });
    field.addEventListener("change", () => amend({ [name]: field.value.trim() }, { replace: true }));
    return el("label", { class: "field" }, el("span", {}, label), field);
  };
  const fits = button("Fits", () => amend({ fits: now.has("fits") ? null : true }, { replace: true }), { iconName: "check" });
  const grid = makeGrid({
    label: "Models on CivitAI", pageSize: PAGE,
    load: async (offset, limit, signal) => {
      const answer = await get("/api/v1/civitai/search", { ...queryOf(now), offset, limit }, signal);
      const reached = offset + answer.models.length;
      answers = { reached: Math.max(reached, offset ? answers.reached || 0 : 0), more: answer.more };
      return { items: answer.models, total: reached + (answer.more ? PAGE : 0), more: answer.more };
    },
    fill: fillCard, keyOf: (found) => found.model.id,
    onOpen: (found) => amend({ open: found.model.id, v: null }),
    shape: cardShape,
    onTotal: (found) => {
      fill(total, answers.more ? `${count(answers.reached)} models and more` : counted(answers.reached, "model"));
      notice.hidden = found > 0;
      if (!found) fill(notice, empty("No models match", "Try fewer words or filters, or show images rated above PG-13 under Settings."));
    },
    onError: (error) => {
      notice.hidden = false;
      fill(notice, errorBox(error, { retry: () => { notice.hidden = true; grid.reload(); } }));
      fill(total, "");
    },
  });
  const panel = makePanel({ label: "Details", onClose: () => { amend({ open: null, v: null }); grid.focus(); } });
  add(root, el("div", { class: "bar" }, search.root, el("div", { class: "bar-filters" }, menus.map((menu) => menu.root), fits, more.root), total),
    chips, el("div", { class: "split" }, el("div", { class: "list" }, notice, grid.root), panel.root));

  function show(next) {
    now = next;
    if (document.activeElement !== search.field) search.field.value = now.get("q") || "";
    const asked = JSON.stringify(queryOf(now));
    if (asked !== query) {
      query = asked;
      notice.hidden = true;
      fill(total, "Asking CivitAI …");
      grid.reload();
    }
    showChips(chips, chipsOf(now), () => amend(Object.fromEntries(FILTERS.map((name) => [name, null])), { replace: true }));
    const chosen = chosenCheckpoint();
    set(fits, { "aria-pressed": String(now.has("fits")), disabled: !chosen && !now.has("fits"), title: chosen ? `Only what fits ${chosen.name} by its base model` : "Choose a checkpoint first" });
    open(now.get("open"), now.get("v"));
  }

  async function open(ref, version, { again = false } = {}) {
    const asked = JSON.stringify([ref, version]);
    if (asked === wasOpen && !again) return;
    const isOther = JSON.parse(wasOpen || "[null]")[0] !== ref;
    wasOpen = asked;
    grid.choose(ref && /^\d+$/.test(ref) ? ref : null);
    if (!ref) {
      panel.hide();
      return;
    }
    const focus = !panel.isOpen || matchMedia("(max-width: 899px)").matches;
    if (isOther) panel.show("…", waiting("Asking CivitAI …"), { focus });
    try {
      const details = await get("/api/v1/civitai/model", { ref, against: checkpointRef() });
      if (wasOpen !== asked) return;
      panel.show(details.model?.name || ref, siteDetails(details, version), { focus: focus && isOther });
      if (isOther) panel.scrollToTop();
    } catch (error) {
      if (wasOpen === asked) panel.show("Not found", errorBox(error, { retry: () => open(ref, version, { again: true }) }), { focus });
    }
  }

  const stops = [
    onSetting((name) => { if (name === "checkpoint" || name === "level") { show(now); if (now.get("open")) open(now.get("open"), now.get("v"), { again: true }); } }),
    on("library", (job) => { if (job?.kind === "download") { grid.reload({ keep: true }); if (now.get("open")) open(now.get("open"), now.get("v"), { again: true }); } }),
  ];
  show(params);
  return {
    update: show,
    focusSearch: () => { search.field.focus(); search.field.select(); },
    unmount: () => { stops.forEach((stop) => stop()); grid.close(); },
  };
}

/** Whether a text is an address, an AIR, a number or a hash rather than words to search for. */
const isRef = (text) => /^(https?:\/\/|urn:air:|civitai:|\d{3,}(@\d+)?$|[0-9a-f]{10,64}$)/i.test(text);

function queryOf(params) {
  return {
    q: params.get("q"), type: params.getAll("type"), base: params.getAll("base"), tag: params.get("tag"), creator: params.get("creator"),
    sort: params.get("sort"), period: params.get("period"), early_access: params.get("early_access"),
    nsfw: setting("level") > SAFE, fits: params.has("fits") ? checkpointRef() : null, against: checkpointRef(),
  };
}

function chipsOf(params) {
  const without = (name, value) => () => amend({ [name]: params.getAll(name).filter((each) => each !== value) }, { replace: true });
  const chips = ["type", "base"].flatMap((name) => params.getAll(name).map((value) => ({ label: value, remove: without(name, value) })));
  const flags = {
    tag: `tag ${params.get("tag")}`, creator: `by ${params.get("creator")}`, sort: params.get("sort"), period: `updated in ${params.get("period")}`,
    early_access: "early access", fits: `fits ${chosenCheckpoint()?.name || "no checkpoint"}`,
  };
  for (const [name, label] of Object.entries(flags)) {
    if (params.has(name)) chips.push({ label, remove: () => amend({ [name]: null }, { replace: true }) });
  }
  return chips;
}

const SUPPORT = { full: "fits", partial: "partly fits", none: "does not fit" };

function fillCard(cell, found) {
  const version = found.versions.find((each) => each.id === found.chosen);
  const stills = (version?.previews || []).filter((each) => each.thumb);
  const preview = stills.find((each) => !isVeiled(each.nsfw_level)) || stills[0];
  cell.className = `cell card${preview ? "" : " bare"}`;
  cell.dataset.kind = found.model.type_raw;
  cell.dataset.support = version?.support || "";
  if (preview) {
    cell.append(image(preview.thumb, preview.nsfw_level, { eager: true }));
    cell.dataset.rating = levelName(preview.nsfw_level);
  } else {
    delete cell.dataset.rating;
  }
  const marks = [found.is_here ? "in the library" : "", version?.access || "", found.model.mode?.toLowerCase() || ""].filter(Boolean);
  if (marks.length) cell.append(el("em", {}, marks.map((each) => each.replace(/ \(.*\)$/, "")).join(" · ")));
  cell.append(el("b", {}, found.model.name),
    el("span", {}, [version?.support ? SUPPORT[version.support] : "", found.model.type_raw, version?.base_model, found.model.download_count === null ? "" : `↓ ${count(found.model.download_count)}`].filter(Boolean).join(" · ")));
}
