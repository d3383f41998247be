// The checkpoint that a person works with: chosen once, and used for "fits this checkpoint" everywhere.

import { get, post } from "./api.js";
import { button, el, fill, set } from "./dom.js";
import { menuButton } from "./filters.js";
import { titleOf, verdictClass } from "./format.js";
import { change, onSetting, setting } from "./settings.js";

const REASONS = 6;

/** The chosen checkpoint: `{sha256, name}`, or null. */
export const chosenCheckpoint = () => setting("checkpoint");

/** The ref of the chosen checkpoint for the API, or null. */
export const checkpointRef = () => (setting("checkpoint") ? `sha256:${setting("checkpoint").sha256}` : null);

/** Choose a stored checkpoint; null: none. */
export function chooseCheckpoint(model) {
  change("checkpoint", model ? { sha256: model.blob.sha256, name: titleOf(model) } : null);
}

/** Whether a stored file is a checkpoint, by its tensors, else by its type. */
export const isCheckpoint = (model) => (model.facts?.kind ? model.facts.kind === "checkpoint" : model.type === "Checkpoint");

/** The menu in the header that shows and changes the chosen checkpoint. */
export function checkpointMenu() {
  const made = menuButton("Checkpoint", (close) => {
    const list = el("div", { class: "choices", role: "group", "aria-label": "Checkpoints" });
    const narrow = el("input", { type: "search", class: "narrow", placeholder: "Search checkpoints", "aria-label": "Search checkpoints", autofocus: true });
    const find = async () => {
      const answer = await get("/api/v1/models", { type: "Checkpoint", q: narrow.value.trim(), limit: 40, sort: narrow.value.trim() ? "" : "used" })
        .catch((error) => ({ error }));
      if (answer.error) {
        fill(list, el("p", { class: "hint" }, answer.error.message));
        return;
      }
      const none = chosenCheckpoint() && !narrow.value ? pick("None", null, close) : null;
      fill(list, none, answer.models.map((model) => pick(titleOf(model), model, close)),
        answer.models.length ? null : el("p", { class: "waiting" }, "No checkpoint in the library"));
    };
    let timer = 0;
    narrow.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(find, 130); });
    find();
    return el("div", {}, el("p", { class: "hint" }, "Everything that fits is measured against it."), narrow, list);
  }, { kind: "quiet checkpoint" });
  const label = made.opener.querySelector("span");
  const show = () => {
    const chosen = chosenCheckpoint();
    label.textContent = chosen ? chosen.name : "No checkpoint";
    set(made.opener, { "aria-label": chosen ? `Checkpoint ${chosen.name}` : null, title: chosen ? `Fits are checked with ${chosen.name}` : "Choose the checkpoint that others must fit" });
  };
  show();
  const stop = onSetting((name) => {
    if (name !== "checkpoint") return;
    if (made.root.isConnected) show();
    else stop();
  });
  return made;
}

function pick(label, model, close) {
  const isChosen = model ? chosenCheckpoint()?.sha256 === model.blob.sha256 : false;
  const about = model ? [model.base_model, model.facts.architecture].filter(Boolean).join(" · ") : "";
  const made = el("button", { type: "button", class: "choice pick", "aria-pressed": String(isChosen) },
    el("span", {}, label), about ? el("small", {}, about) : null);
  made.addEventListener("click", () => { chooseCheckpoint(model); close(); });
  return made;
}

/** Ask for the verdict on one part with the chosen checkpoint. `part`: a ref, or `{ref, role, file}`. */
export const verdictOn = (part, checkpoint = checkpointRef()) => post("/api/v1/check", { checkpoint, parts: [part] });

/** A verdict in the command line's words. */
export function verdictBadge(verdict) {
  return el("span", { class: `verdict ${verdictClass(verdict)}` }, verdict);
}

/** A place that shows the verdict on a part with the chosen checkpoint, and asks again when another one is chosen. */
export function verdictBox(part, { auto = true } = {}) {
  const box = el("div", { class: "verdict-box" });
  let asked = 0;
  const ask = async () => {
    const mine = ++asked;
    const chosen = chosenCheckpoint();
    if (!chosen) {
      fill(box, el("p", { class: "hint" }, "Choose a checkpoint to see whether this fits it."), checkpointMenu().root);
      return;
    }
    fill(box, el("p", { class: "waiting" }, `Comparing with ${chosen.name} …`));
    try {
      const answer = await verdictOn(part);
      if (mine === asked) fill(box, verdictWords(answer, chosen.name));
    } catch (error) {
      if (mine === asked) {
        fill(box, el("p", {}, verdictBadge("unknown"), ` ${error.message}`), error.hint ? el("p", { class: "hint" }, error.hint) : null);
      }
    }
  };
  const stop = onSetting((name) => {
    if (name !== "checkpoint") return;
    if (box.isConnected) ask();
    else stop();
  });
  if (auto || !chosenCheckpoint()) ask();
  else fill(box, button(`Check with ${chosenCheckpoint().name}`, ask, { iconName: "check" }));
  return box;
}

function verdictWords(answer, name) {
  const part = answer.parts[0];
  const reasons = [...answer.reasons, ...part.reasons];
  return [
    el("p", {}, verdictBadge(part.verdict), ` with ${name} `, el("small", {}, `compared by ${part.depth}`)),
    reasons.length ? el("ul", { class: "reasons" }, reasons.slice(0, REASONS).map((reason) => el("li", {}, reason)),
      reasons.length > REASONS ? el("li", {}, `… and ${reasons.length - REASONS} more`) : null) : null,
  ];
}
