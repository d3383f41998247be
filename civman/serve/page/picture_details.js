// The panel of one image that was made here: its recipe in a fixed order, and what can be done with it.

import { get, post } from "./api.js";
import { button, copyButton, el, fill, icon } from "./dom.js";
import { noteJob, on } from "./events.js";
import { clock, day, namesOf } from "./format.js";
import { OWN, image } from "./images.js";
import { isOver, progressOf } from "./job_words.js";
import { complain, errorBox } from "./notices.js";
import { facts, section } from "./panel.js";
import { hrefOf } from "./route.js";

export const VERDICTS = { identical: "good", close: "care", different: "bad" };

/** Everything about an image. `compare()`: begin a comparison with another one. */
export function pictureDetails(picture, { compare }) {
  const recipe = picture.recipe;
  const isDrawn = recipe.prompt !== undefined;
  const told = el("div", { class: "verdict-box", role: "status" });
  const names = namesOf(picture.files || []);
  return [
    picture.is_here ? el("a", { href: `/api/v1/pictures/${picture.id}/file`, target: "_blank", rel: "noopener", title: "Open the file" },
      image(`/api/v1/pictures/${picture.id}/file`, OWN, { alt: picture.prompt || `Image ${picture.id}`, class: "shown" })) : el("p", { class: "hint" }, "The file no longer exists; its recipe is kept."),
    el("p", { class: "actions" },
      isDrawn ? el("a", { class: "button primary", href: hrefOf("draw", { from: picture.id }) }, icon("draw"), el("span", {}, "Use all settings")) : null,
      isDrawn ? button("Replay", () => replay(picture, told), { iconName: "check", title: "Render it again and compare every pixel" }) : null,
      picture.is_here ? button("Compare", compare, { iconName: "pictures" }) : null),
    told,
    picture.prompt ? section("Prompt", el("p", { class: "picture-settings" }, picture.prompt), el("p", { class: "chips" }, copyButton(picture.prompt, { label: "Copy", kind: "chip" }))) : null,
    picture.negative_prompt ? section("Negative prompt", el("p", { class: "picture-settings" }, picture.negative_prompt)) : null,
    section("Settings", facts([
      ["image", `${picture.id}`], ["made", `${day(picture.made_at)} ${clock(picture.made_at)}`], ["size", `${picture.width}×${picture.height}`],
      ["seed", picture.seed === null ? null : copyButton(String(picture.seed))], ["sampler", picture.sampler],
      ["schedule", recipe.schedule], ["steps", picture.steps], ["CFG scale", recipe.guidance_scale], ["clip skip", recipe.clip_skip],
      ["upscaler", picture.upscaler],
      ["recipe", copyButton(picture.recipe_sha256, { label: `${picture.recipe_sha256.slice(0, 12)}…` })],
      ["pixels", copyButton(picture.pixel_sha256, { label: `${picture.pixel_sha256.slice(0, 12)}…` })],
    ])),
    section("Models", el("ul", { class: "files" }, (picture.files || []).map((each) => el("li", {}, el("a", { href: hrefOf("library", { open: each.sha256 }) }, names[each.sha256]),
      el("small", {}, useOf(recipe, each.sha256)))))),
    Object.keys(names).length ? null : el("p", { class: "hint" }, "No model is recorded."),
    picture.parent ? section("Made from", el("a", { href: hrefOf("pictures", { recipe: picture.parent }) }, `recipe ${picture.parent.slice(0, 12)}…`)) : null,
    section("Computed with", facts(Object.entries(picture.environment || {}).filter(([, value]) => value !== "" && value !== 0))),
  ];
}

/** What a recipe uses a file for: its scale as a LoRA, the word of an embedding, or the name of its field. */
function useOf(recipe, sha256) {
  const lora = (recipe.loras || []).find((each) => each.sha256 === sha256);
  if (lora) return `scale ${lora.scale}`;
  const embedding = (recipe.embeddings || []).find((each) => each.sha256 === sha256);
  if (embedding) return `embedding ${embedding.word}`;
  const field = Object.keys(recipe).find((name) => name !== "files" && JSON.stringify(recipe[name]).includes(sha256));
  return field ? field.replaceAll("_", " ") : "";
}

async function replay(picture, told) {
  try {
    followed(await post("/api/v1/jobs", { kind: "replay", picture: picture.id }), told, (result) => replayWords(result));
  } catch (error) {
    complain(error);
  }
}

/** Show a job's progress in `told`, and then what `words(result)` makes of its result. */
export function followed(job, told, words) {
  fill(told, el("p", { class: "waiting" }, "Waiting for its turn …"));
  const stops = [];
  const show = (now) => {
    if (now?.id !== job.id) return;
    if (!told.isConnected && isOver(now)) stops.forEach((stop) => stop());
    if (!isOver(now)) {
      fill(told, el("p", { class: "waiting" }, `Rendering: ${progressOf(now).words}`));
      return;
    }
    stops.forEach((stop) => stop());
    if (now.state === "done") fill(told, words(now.result));
    else fill(told, now.error ? errorBox(now.error) : el("p", { class: "hint" }, "Cancelled."));
  };
  stops.push(on("jobs", show), on("step", show));
  noteJob(job);
  get(`/api/v1/jobs/${job.id}`).then(show, complain); // it may be over already
}

function replayWords(result) {
  return result.replayed.map((each) => [
    el("p", {}, el("span", { class: `verdict ${VERDICTS[each.verdict] || "plain"}` }, each.verdict), verdictWords(each)),
    each.environment.length ? el("ul", { class: "reasons" }, each.environment.map((fact) => el("li", {}, `${fact.what}: ${fact.then ?? "not recorded"} then, ${fact.now ?? "not recorded"} now`))) : null,
    each.file_change ? el("p", { class: "hint" }, `The file ${each.file_change.words}.`) : null,
    each.notices.length ? el("ul", { class: "notices" }, each.notices.map((words) => el("li", {}, words))) : null,
  ]).concat(result.pictures.map((made) => el("p", {}, el("a", { href: hrefOf("pictures", { open: made.id }) }, `Saved as image ${made.id}`))));
}

function verdictWords(each) {
  if (each.verdict === "identical") return ": every pixel is the same as when it was made";
  if (each.psnr_db === null) return "";
  return `: PSNR ${each.psnr_db.toFixed(1)} dB, largest difference ${each.largest_difference} of 255`;
}

