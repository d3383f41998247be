// The panel of a file that was dropped: what it says, which of its models are here, and drawing it again.

import { get, post } from "./api.js";
import { button, copyButton, el } from "./dom.js";
import { chooseCheckpoint } from "./checkpoint.js";
import { keepDrawState, stateOf } from "./draw_request.js";
import { planWords } from "./draw_plan.js";
import { namesOf } from "./format.js";
import { OWN, image } from "./images.js";
import { complain, errorBox } from "./notices.js";
import { facts, section } from "./panel.js";
import { followed } from "./picture_details.js";
import { go, hrefOf } from "./route.js";

/** Everything that an image file says. `url`: the address of the file in this browser. */
export function readDetails(told, url) {
  const metadata = told.metadata;
  const result = el("div", { class: "verdict-box", role: "status" });
  const again = told.redraw;
  const shown = image(url, OWN, { alt: told.name, class: "shown" });
  shown.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
  return [
    shown,
    metadata ? el("p", { class: "about" }, `Made with ${metadata.generator}`, told.number ? el("a", { href: hrefOf("pictures", { open: told.number }) }, ` · image ${told.number} of this library`) : null)
      : el("p", { class: "hint" }, "The file says nothing about how it was made. Uploads and messengers remove this often."),
    told.problem ? el("p", { class: "wrong" }, told.problem) : null,
    again.plan ? el("p", { class: "actions" },
      button("Draw it again", () => redraw(again.job, result), { iconName: "draw", kind: "primary" }),
      again.request ? button("Edit in Draw", () => edit(again, told.models), { iconName: "settings" }) : null) : null,
    result,
    again.plan ? section("The plan", el("div", { class: "plan" }, planWords(again.plan))) : null,
    again.error ? section("It cannot be drawn again now", errorBox(again.error)) : null,
    metadata?.prompt ? section("Prompt", el("p", { class: "picture-settings" }, metadata.prompt), el("p", { class: "chips" }, copyButton(metadata.prompt, { label: "Copy", kind: "chip" }))) : null,
    metadata?.negative ? section("Negative prompt", el("p", { class: "picture-settings" }, metadata.negative)) : null,
    metadata ? section("Settings", facts(settingsOf(metadata.settings))) : null,
    told.models.length ? section("Models", el("ul", { class: "files" }, told.models.map(model))) : null,
    metadata?.notes.length ? section("Notes", el("ul", { class: "notices" }, metadata.notes.map((each) => el("li", {}, each)))) : null,
  ];
}

function settingsOf(settings) {
  const size = settings.width ? `${settings.width}×${settings.height}` : null;
  return [["size", size], ["seed", settings.seed === null ? null : copyButton(String(settings.seed))], ["sampler", settings.sampler],
    ["schedule", settings.schedule], ["steps", settings.steps], ["CFG scale", settings.cfg], ["clip skip", settings.clip_skip], ["strength", settings.denoising]];
}

function model({ resource, held, by }) {
  const name = resource.name || resource.hash || `version ${resource.version_id}`;
  return el("li", {},
    held ? el("a", { href: hrefOf("library", { open: held.blob.sha256 }) }, name) : el("span", {}, name),
    el("small", {}, [resource.kind, resource.weight === null ? "" : `scale ${resource.weight}`, held ? `in the library, recognised by its ${by}` : "not in the library"].filter(Boolean).join(" · ")));
}

/** Submit a job that draws an image again, and show its progress and result in `result`. */
export async function redraw(job, result) {
  try {
    followed(await post("/api/v1/jobs", job), result, (done) => [
      done.verdict ? el("p", {}, el("span", { class: `verdict ${done.verdict === "identical" ? "good" : "bad"}` }, done.verdict),
        done.verdict === "identical" ? ": every pixel is the same as when it was made" : ": the pixels differ from those of the original") : null,
      el("div", { class: "strip results" }, done.pictures.map((each) => el("a", { href: hrefOf("pictures", { open: each.id }) },
        image(`/api/v1/pictures/${each.id}/file`, OWN, { alt: `Image ${each.id}` })))),
    ]);
  } catch (error) {
    complain(error);
  }
}

/** Take the settings of an image that can be drawn again over into Draw. `models`: what its settings call the files. */
export async function edit(again, models = []) {
  const names = {
    ...Object.fromEntries(Object.entries(namesOf(again.plan.files)).map(([sha256, name]) => [`sha256:${sha256}`, name])),
    ...Object.fromEntries(models.filter((each) => each.held && each.resource.name).map((each) => [`sha256:${each.held.blob.sha256}`, each.resource.name])),
  };
  keepDrawState(stateOf(again.request, names));
  try {
    const { model: checkpoint } = await get(`/api/v1/models/${again.plan.recipe.checkpoint}`);
    chooseCheckpoint(checkpoint);
    go("draw");
  } catch (error) {
    complain(error);
  }
}
