// The details of a model on CivitAI: versions, what fits, files to download, example images, licence and description.

import { get, post } from "./api.js";
import { add, button, copyButton, el, fill, hold, icon } from "./dom.js";
import { allJobs, noteJob, on } from "./events.js";
import { checkpointRef, isCheckpoint, verdictBox } from "./checkpoint.js";
import { select } from "./filters.js";
import { count, day, size } from "./format.js";
import { framed, image, levelName } from "./images.js";
import { isOver, progressOf } from "./job_words.js";
import { complain, errorBox, waiting } from "./notices.js";
import { facts, section } from "./panel.js";
import { planWords } from "./draw_plan.js";
import { edit, redraw } from "./picture_read.js";
import { amend, hrefOf } from "./route.js";
import { VIEWS } from "./views.js";

const ROLES = { LORA: "lora", LoCon: "lora", DoRA: "lora", TextualInversion: "embedding", VAE: "vae" };
const SUPPORT = { full: "fits the chosen checkpoint", partial: "partly fits the chosen checkpoint", none: "does not fit the chosen checkpoint" };

/** The parts of the panel for the answer of `GET /civitai/model`; `wanted`: the id of the version to show. */
export function siteDetails(details, wanted) {
  const { model } = details;
  if (!model) return el("p", {}, "CivitAI does not know this file. The library does:", held(details.held));
  const version = details.versions.find((each) => String(each.id) === wanted) || details.versions.find((each) => each.id === details.version?.id) || details.versions[0];
  if (!version) return [el("p", {}, "CivitAI lists no version of this model at the moment."), held(details.held)];
  const role = ROLES[model.type];
  return [
    details.is_saved_copy ? el("p", { class: "hint" }, "CivitAI did not answer; this is what was saved before.") : null,
    el("p", { class: "about" }, [model.type_raw, model.creator ? `by ${model.creator}` : "", model.download_count === null ? "" : `${count(model.download_count)} downloads`, model.mode?.toLowerCase(), model.real_person ? "shows a real person" : ""].filter(Boolean).join(" · ")),
    details.versions.length > 1
      ? select("Version", details.versions.map((each) => [String(each.id), [each.name, each.base_model, each.access].filter(Boolean).join(" · ")]), String(version.id), (value) => amend({ v: value }, { replace: true }))
      : null,
    el("p", {}, [version.base_model || "base model not stated", version.published_at ? `published ${day(version.published_at)}` : ""].filter(Boolean).join(" · "),
      version.access ? el("span", { class: "verdict care" }, ` ${version.access}`) : null),
    examples(version),
    section("Download", files(version, details.held, model.type)),
    role ? section("Fit", version.support ? el("p", {}, `By its base model, it ${SUPPORT[version.support]}.`) : null, verdictBox({ ref: version.ref, role })) : null,
    section("Images that others made with it", others(version)),
    version.trained_words.length ? section("Trigger words", el("p", { class: "chips" }, version.trained_words.map((word) => copyButton(word)),
      version.trained_words.length > 1 ? copyButton(version.trained_words.join(", "), { label: "Copy all", kind: "quiet" }) : null)) : null,
    section("Licence", el("p", {}, version.licence.words.join("; ")), el("p", { class: "hint" }, `The creator: ${details.licence_words}`),
      version.licence.reasons.length ? el("ul", { class: "reasons" }, version.licence.reasons.map((each) => el("li", {}, each))) : null),
    model.tags.length ? section("Tags", el("p", { class: "chips" }, model.tags.map((tag) => el("a", { class: "button chip", href: hrefOf("civitai", { tag }) }, tag)))) : null,
    version.description ? section("About this version", el("p", { class: "description" }, version.description)) : null,
    details.description ? section("Description", el("p", { class: "description" }, details.description)) : null,
    section("Refs", facts([["model", copyButton(String(model.id), { kind: "chip code" })], ["version", copyButton(version.ref, { kind: "chip code" })], ["AIR", version.air ? copyButton(version.air, { kind: "chip code" }) : ""]])),
  ];
}

function held(models) {
  return el("ul", { class: "files" }, models.map((model) => el("li", {}, el("a", { href: hrefOf("library", { open: model.blob.sha256 }) }, model.name))));
}

function files(version, stored, type) {
  if (!version.files.length) return el("p", { class: "hint" }, "CivitAI lists no files of this version.");
  const byDigest = new Map(stored.map((model) => [model.blob.sha256, model]));
  return el("ul", { class: "site-files" }, version.files.map((file) => {
    const isDefault = file.id === version.default_file;
    const about = [size(file.size_bytes), file.type, file.precision, file.size_class, file.format, ...file.warnings].filter(Boolean).join(" · ");
    const here = byDigest.get(file.hashes.sha256);
    return el("li", {}, el("div", { class: "site-file" }, el("strong", {}, file.name), el("small", {}, about)),
      here ? heldLinks(here.blob.sha256, isCheckpoint(here))
        : downloadBox(file, { isDefault, isBase: type === "Checkpoint" }));
  }));
}

/** The ways on from a file that the library has. */
function heldLinks(sha256, isBase) {
  const ref = `sha256:${sha256}`;
  const draws = VIEWS.some((view) => view.name === "draw");
  return el("p", { class: "actions" },
    el("a", { class: "button", href: hrefOf("library", { open: sha256 }) }, icon("check"), el("span", {}, "In the library")),
    draws ? el("a", { class: "button primary", href: hrefOf("draw", isBase ? { checkpoint: ref } : { checkpoint: checkpointRef(), add: ref }) }, icon("draw"), el("span", {}, "Draw with it")) : null);
}

/** A download button that becomes the download's progress, and then the way to the file. */
function downloadBox(file, { isDefault, isBase }) {
  const box = el("div", { class: "download" });
  const bar = el("progress", { max: 1, "aria-label": `Download of ${file.name}` });
  const words = el("small", { "aria-live": "off" });
  let number = allJobs().find((job) => job.kind === "download" && !isOver(job) && job.title === file.ref)?.id ?? null;

  const begin = button(`Download ${size(file.size_bytes)}`, async () => {
    hold(begin, true);
    try {
      const job = await post("/api/v1/jobs", { kind: "download", ref: file.ref });
      number = job.id;
      noteJob(job);
    } catch (error) {
      complain(error);
      hold(begin, false);
    }
  }, { iconName: "download", kind: isDefault ? "primary" : "" });

  function show(job) {
    const hadFocus = box.contains(document.activeElement);
    change(job);
    if (hadFocus && !box.contains(document.activeElement)) box.querySelector("a, button")?.focus();
  }

  function change(job) {
    if (job.state === "done") {
      fill(box, heldLinks(job.result.sha256, isBase));
      return;
    }
    if (isOver(job)) {
      hold(begin, false);
      fill(box, begin, job.error ? el("p", { class: "wrong" }, `${job.error.message}${job.error.hint ? `; ${job.error.hint}` : ""}`) : null);
      return;
    }
    const progress = progressOf(job);
    if (progress.part === null) bar.removeAttribute("value");
    else bar.value = progress.part;
    words.textContent = job.state === "queued" ? "queued" : progress.words;
    if (!bar.isConnected) fill(box, bar, words, el("a", { href: hrefOf("jobs") }, "Jobs"));
  }

  let ended = null; // the job whose end is shown
  const showOwn = () => { // also after the whole list was read again, which names no job
    const job = number === null ? null : allJobs().find((each) => each.id === number);
    if (!job || (isOver(job) && ended === job.id)) return;
    ended = isOver(job) ? job.id : null;
    show(job);
  };
  const stops = [on("jobs", showOwn), on("step", (job) => { if (job.id === number) show(job); })];
  const watcher = setInterval(() => { // the panel replaces its contents without a word
    if (box.isConnected) return;
    stops.forEach((stop) => stop());
    clearInterval(watcher);
  }, 5000);
  add(box, begin);
  showOwn();
  if (number === null && isDefault) tellBefore(file, box);
  return box;
}

/** What the command line's `--dry-run` says about the file, before anybody presses the button. */
async function tellBefore(file, box) {
  try {
    const plan = await get("/api/v1/civitai/plan", { ref: file.ref });
    if (plan.notices.length) add(box, el("ul", { class: "reasons" }, plan.notices.map((each) => el("li", {}, each))));
  } catch (error) {
    if (error.name !== "AbortError") add(box, el("p", { class: "wrong" }, error.message), error.hint ? el("p", { class: "hint" }, error.hint) : null);
  }
}

function examples(version) {
  const stills = version.previews.filter((each) => each.thumb);
  return stills.length ? strip(stills, "Example image") : null;
}

function strip(stills, name) {
  return el("div", { class: "strip examples" }, stills.map((each, index) => {
    const shown = el("button", { type: "button", class: "example", "aria-label": `${name} ${index + 1}, rated ${levelName(each.nsfw_level)}` }, image(each.thumb, each.nsfw_level));
    shown.addEventListener("click", () => openExample(stills, index));
    return shown;
  }));
}

/** Images of other people, asked for only when somebody wants to see them. */
function others(version) {
  const box = el("div", {});
  const ask = button("Show them", async () => {
    fill(box, waiting("Asking CivitAI …"));
    try {
      const { images } = await get("/api/v1/civitai/images", { version: version.id, limit: 40 });
      const stills = images.filter((each) => each.thumb);
      fill(box, stills.length ? strip(stills, "Image") : el("p", { class: "hint" }, "CivitAI shows none."));
    } catch (error) {
      fill(box, errorBox(error, { retry: () => fill(box, ask) }));
    }
  }, { iconName: "pictures" });
  add(box, ask);
  return box;
}

const AGAIN = { exact: "civman can draw it again from these settings.", differs: "civman can draw it, with differences:", "needs-input": "Drawing it again needs an image that is not in its settings:", no: "civman cannot draw it:" };

/** One example image, large, with the settings that CivitAI shows for it. */
function openExample(stills, first) {
  let index = first;
  const body = el("div", { class: "example-body" });
  const place = el("span", { class: "hint" });
  const step = (by) => { index = (index + by + stills.length) % stills.length; show(); };
  const dialog = el("dialog", { class: "example-dialog", "aria-label": "Example image" },
    el("div", { class: "heading-line" }, button("Earlier image", () => step(-1), { iconName: "up", iconOnly: true, kind: "quiet turn" }), place,
      button("Next image", () => step(1), { iconName: "down", iconOnly: true, kind: "quiet turn" }), el("span", { class: "spacer" }),
      button("Close", () => dialog.close(), { iconName: "close", iconOnly: true, kind: "quiet" })), body);
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") step(1);
    if (event.key === "ArrowLeft") step(-1);
  });
  dialog.addEventListener("close", () => dialog.remove());

  async function show() {
    const shown = stills[index];
    place.textContent = `${index + 1} of ${stills.length} · ${levelName(shown.nsfw_level)}`;
    const settings = el("div", { class: "example-settings" }, waiting("Asking for its settings …"));
    fill(body, framed(`${shown.thumb}?large=1`, shown.nsfw_level, { alt: `Example image ${index + 1}`, eager: true }), settings);
    if (shown.meta !== undefined) {
      fill(settings, settingsOf(shown));
      return;
    }
    if (!shown.id) {
      fill(settings, el("p", { class: "hint" }, "CivitAI shows no settings for it."));
      return;
    }
    try {
      const found = await get(`/api/v1/civitai/images/${shown.id}`);
      if (stills[index] === shown) fill(settings, settingsOf(found));
    } catch (error) {
      if (stills[index] === shown) fill(settings, errorBox(error));
    }
  }

  document.body.append(dialog);
  dialog.showModal();
  show();
}

function settingsOf(found) {
  const meta = found.meta || {};
  const text = (value) => (value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : String(value));
  const known = ["prompt", "negativePrompt", "civitaiResources", "resources", "hashes", "comfy", "extra"];
  const pairs = Object.entries(meta).filter(([name, value]) => !known.includes(name) && text(value) && text(value).length < 200).slice(0, 24);
  if (!meta.prompt && !pairs.length) return el("p", { class: "hint" }, "Its creator shows no settings.");
  return [
    found.username ? el("p", { class: "hint" }, `by ${found.username}`) : null,
    meta.prompt ? section("Prompt", el("p", { class: "description" }, text(meta.prompt)), el("p", {}, copyButton(text(meta.prompt), { label: "Copy prompt", kind: "" }))) : null,
    meta.negativePrompt ? section("Negative prompt", el("p", { class: "description" }, text(meta.negativePrompt))) : null,
    pairs.length ? section("Settings", facts(pairs.map(([name, value]) => [name, text(value)]))) : null,
    found.redraw?.drawable ? section("Again", el("p", {}, AGAIN[found.redraw.drawable] || found.redraw.drawable),
      found.redraw.reasons.length ? el("ul", { class: "reasons" }, found.redraw.reasons.map((each) => el("li", {}, each.words || each.message || String(each)))) : null) : null,
    found.meta && !["no", "needs-input"].includes(found.redraw?.drawable) ? drawAgain(found.id) : null,
    found.version_ids.length ? section("Models", el("p", { class: "chips" }, found.version_ids.map((id) => el("a", { class: "button chip", href: hrefOf("civitai", { open: `@${id}` }) }, `version ${id}`)))) : null,
  ];
}

/** A button that plans a render with an image's settings, and then draws it or takes the settings over into Draw. */
function drawAgain(number) {
  const box = el("div", { class: "draw-again" });
  const result = el("div", { class: "verdict-box", role: "status" });
  const ask = button("Draw with these settings", async () => {
    fill(box, waiting("Planning …"));
    try {
      const again = await get(`/api/v1/civitai/images/${number}/redraw`);
      fill(box, again.plan ? drawable(again) : [el("p", {}, ask), errorBox(obstacle(again.error))], result);
    } catch (error) {
      fill(box, errorBox(error, { retry: () => fill(box, ask) }));
    }
  }, { iconName: "draw" });

  function drawable(again) {
    const begin = button("Draw it", () => redraw(again.job, result), { iconName: "draw", kind: "primary" });
    const change = again.request ? button("Edit in Draw", () => { box.closest("dialog").close(); edit(again); }, { iconName: "settings" }) : null;
    return [el("div", { class: "plan" }, planWords(again.plan)), el("p", { class: "actions" }, begin, change)];
  }

  return add(box, ask);
}

/** What stands against a render, with a remedy that this page has. */
function obstacle(error) {
  return error.code === "missing-files" ? { ...error, hint: "download them from CivitAI; Models below opens those that it knows" } : error;
}
