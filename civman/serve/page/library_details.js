// The details of a stored file: what it is, what it may be used for, and what you noted about it.

import { api } from "./api.js";
import { button, copyButton, el, fill, icon, set } from "./dom.js";
import { checkpointRef, chooseCheckpoint, chosenCheckpoint, isCheckpoint, verdictBox } from "./checkpoint.js";
import { counted, day, factsWords, size, titleOf } from "./format.js";
import { framed, image, OWN } from "./images.js";
import { complain } from "./notices.js";
import { facts, section } from "./panel.js";
import { hrefOf } from "./route.js";
import { VIEWS } from "./views.js";

/** The parts of the panel for the answer of `GET /models/{sha256}`. `changed(models)` is called after an edit. */
export function libraryDetails(details, { changed }) {
  const { model } = details;
  const sha256 = model.blob.sha256;
  return [
    model.has_preview ? framed(`/api/v1/models/${sha256}/preview`, model.preview_level, { alt: `Preview of ${titleOf(model)}`, eager: true }) : null,
    el("p", { class: "about" }, [model.version_name, model.type_raw || model.facts.kind, model.base_model, model.creator ? `by ${model.creator}` : ""].filter(Boolean).join(" · ")),
    actions(model),
    problems(model),
    section("Trigger words", triggers(model)),
    isCheckpoint(model) ? null : section("Fit", verdictBox({ ref: `sha256:${sha256}` })),
    section("Licence", el("p", {}, details.licence.words.join("; ")),
      details.licence.reasons.length ? el("ul", { class: "reasons" }, details.licence.reasons.map((each) => el("li", {}, each))) : null),
    section("Yours", own(model, changed)),
    details.pictures.length ? section("Images made with it", pictures(details.pictures)) : null,
    details.others.length ? section("Other files of this model", el("ul", { class: "files" }, details.others.map(other))) : null,
    section("File", facts([
      ["is", factsWords(model)], ["name", model.name], ["size", size(model.blob.size_bytes)],
      ["tensors", model.facts.tensor_count ? String(model.facts.tensor_count) : ""], ["rank", model.facts.rank ? String(model.facts.rank) : ""],
      ["claims", model.facts.claimed_base], ["added", day(model.added_at)], ["last used", day(model.last_used_at)],
      ["digest by", model.blob.declared_by], ["ref", copyButton(model.ref, { kind: "chip code" })],
      ["sha256", copyButton(sha256, { label: `${sha256.slice(0, 16)}…`, kind: "chip code" })],
    ])),
    details.version_description ? section("About this version", el("p", { class: "description" }, details.version_description)) : null,
    details.description ? section("Description", el("p", { class: "description" }, details.description)) : null,
  ];
}

function actions(model) {
  const ref = model.ref || `sha256:${model.blob.sha256}`;
  const views = new Set(VIEWS.map((view) => view.name));
  const made = el("p", { class: "actions" });
  if (isCheckpoint(model)) {
    const choose = button("", () => chooseCheckpoint(chosenCheckpoint()?.sha256 === model.blob.sha256 ? null : model), { iconName: "check" });
    const show = () => {
      const isChosen = chosenCheckpoint()?.sha256 === model.blob.sha256;
      set(choose, { "aria-pressed": String(isChosen) });
      choose.lastChild.textContent = isChosen ? "Chosen checkpoint" : "Choose as checkpoint";
    };
    show();
    choose.addEventListener("click", show);
    made.append(choose);
  }
  if (views.has("draw")) {
    const params = isCheckpoint(model) ? { checkpoint: ref } : { checkpoint: checkpointRef(), add: ref };
    made.append(el("a", { class: "button primary", href: hrefOf("draw", params) }, icon("draw"), el("span", {}, "Draw with it")));
  }
  if (model.model_id && views.has("civitai")) {
    made.append(el("a", { class: "button", href: hrefOf("civitai", { open: model.model_id }) }, icon("civitai"), el("span", {}, "On CivitAI")));
  }
  return made;
}

function problems(model) {
  const words = [...(model.facts.conflicts || []).map((each) => `contradiction: ${each}`)];
  if (model.presence === "missing") words.push("the file is missing: it is no longer at its path");
  if (model.presence === "away") words.push("the file is on a drive that is not connected");
  return words.length ? el("ul", { class: "problems" }, words.map((each) => el("li", {}, each))) : null;
}

function triggers(model) {
  const words = model.trigger_words.filter((each) => each.word);
  if (!words.length) return el("p", { class: "hint" }, "None known.");
  const all = words.map((each) => each.word).join(", ");
  return el("p", { class: "chips" }, words.map((each) => set(copyButton(each.word), { title: `Copy; from ${each.from.join(", ")}` })),
    words.length > 1 ? copyButton(all, { label: "Copy all", kind: "quiet" }) : null);
}

function pictures(list) {
  return el("div", { class: "strip" }, list.map((each) => el("a", { href: hrefOf("pictures", { open: each.id }), title: each.prompt },
    each.is_here ? image(`/api/v1/pictures/${each.id}/thumb`, OWN, { alt: each.prompt || `Image ${each.id}` }) : `Image ${each.id}`)));
}

function other(model) {
  return el("li", {}, el("a", { href: hrefOf("library", { open: model.blob.sha256 }) }, model.version_name || model.name),
    el("small", {}, [model.base_model, factsWords(model), size(model.blob.size_bytes)].filter(Boolean).join(" · ")));
}

/** Your rating, favourite, tags, alias and note; every change is saved at once. */
function own(first, changed) {
  let model = first;
  const root = el("div", { class: "own" });

  async function save(edit) {
    try {
      const answer = await api("PATCH", `/api/v1/models/${model.blob.sha256}`, { body: edit });
      model = answer.models.find((each) => each.ref === model.ref) || answer.models[0];
      changed(answer.models);
      return true;
    } catch (error) {
      complain(error);
      return false;
    } finally {
      draw();
    }
  }

  const rating = el("div", { class: "rating", role: "group", "aria-label": "Your rating" });
  const heart = button("Favourite", () => save({ is_favourite: !model.own.is_favourite }), { iconName: "heart", kind: "heart" });
  const tags = el("div", { class: "chips" });
  const newTag = el("input", { class: "tag-input", placeholder: "Add a tag", "aria-label": "Add a tag", autocomplete: "off", maxlength: 60 });
  newTag.addEventListener("keydown", async (event) => {
    if (event.key !== "Enter" || !newTag.value.trim()) return;
    const typed = newTag.value;
    newTag.value = "";
    if (!(await save({ tags: [typed] }))) newTag.value = typed;
  });
  const alias = el("input", { placeholder: "A short name for commands", "aria-label": "Alias", autocomplete: "off", maxlength: 80 });
  const note = el("textarea", { rows: 3, placeholder: "Your note", "aria-label": "Note" });
  alias.addEventListener("change", () => save({ alias: alias.value }));
  note.addEventListener("change", () => save({ note: note.value }));
  note.addEventListener("keydown", (event) => { if (event.key === "Enter" && event.ctrlKey) note.blur(); });

  function draw() {
    const at = document.activeElement?.dataset?.star;
    fill(rating, [1, 2, 3, 4, 5].map((number) => {
      const star = el("button", {
        type: "button", class: `star${number <= (model.own.rating || 0) ? " on" : ""}`, "aria-pressed": String(model.own.rating === number),
        "aria-label": counted(number, "star"), title: model.own.rating === number ? "Remove the rating" : counted(number, "star"), data: { star: number },
      }, icon("star"));
      star.addEventListener("click", () => save({ rating: model.own.rating === number ? 0 : number }));
      return star;
    }));
    if (at) rating.querySelector(`[data-star="${at}"]`)?.focus();
    set(heart, { "aria-pressed": String(model.own.is_favourite) });
    const hadFocus = tags.contains(document.activeElement);
    fill(tags, model.own.tags.map((tag) => {
      const chip = button(tag, () => save({ no_tags: [tag] }), { kind: "chip on", "aria-label": `Remove tag ${tag}` });
      chip.append(icon("close"));
      return chip;
    }), newTag);
    if (hadFocus) newTag.focus();
    if (document.activeElement !== alias) alias.value = model.alias || "";
    if (document.activeElement !== note) note.value = model.own.note;
  }

  draw();
  root.append(el("div", { class: "own-line" }, rating, heart), tags, el("label", { class: "field" }, el("span", {}, "Alias"), alias), note);
  return root;
}
