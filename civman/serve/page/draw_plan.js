// The plan of what Draw asks for: size, memory, warnings and licence, shown before anything is drawn.

import { post } from "./api.js";
import { el, fill } from "./dom.js";
import { counted, namesOf, size } from "./format.js";
import { errorBox } from "./notices.js";

const DELAY = 450;
const PICTURE_ROLES = ["picture", "mask", "control image", "reference picture"];

/** A place that shows the plan of `body()`, asked again shortly after `ask()`; `onPlan(plan or null)` tells of each. */
export function planBox(body, onPlan) {
  const root = el("div", { class: "plan", role: "status", "aria-label": "Plan" });
  let timer = 0;
  let asked = 0;
  let hasShown = false;

  async function read() {
    const mine = ++asked;
    const wanted = body();
    if (!wanted) {
      hasShown = false;
      fill(root, el("p", { class: "hint" }, "Choose a checkpoint above."));
      onPlan(null);
      return;
    }
    if (!hasShown) fill(root, el("p", { class: "waiting" }, "Planning …")); // the first plan loads the libraries
    try {
      const plan = await post("/api/v1/plan?soft=1", wanted); // refusals are no failed requests while somebody types
      if (mine !== asked) return;
      hasShown = true;
      if (plan.error) throw plan.error;
      fill(root, planWords(plan));
      onPlan(plan);
    } catch (error) {
      if (mine !== asked) return;
      fill(root, errorBox(error));
      onPlan(null);
    }
  }

  return {
    root,
    ask() { clearTimeout(timer); timer = setTimeout(read, DELAY); },
    askNow() { clearTimeout(timer); return read(); },
    stop() { clearTimeout(timer); asked += 1; },
  };
}

/** A plan in words: what is drawn, what to know before, and what may be done with the images. */
export function planWords(plan) {
  const { recipe } = plan;
  const sampler = [recipe.sampler, recipe.schedule === "Automatic" ? "" : recipe.schedule].filter(Boolean).join(" ");
  const licence = plan.licence;
  return [
    el("p", {}, el("b", {}, `${counted(plan.images, "image")}, ${recipe.width}×${recipe.height}`),
      ` · ${sampler}, ${counted(recipe.steps, "step")}, CFG ${recipe.guidance_scale} · about ${size(plan.needed_bytes)} of memory`),
    plan.files?.length ? el("p", {}, "With ", filesWords(plan)) : null,
    plan.notices.length ? el("ul", { class: "notices" }, plan.notices.map((each) => el("li", {}, each))) : null,
    el("p", { class: "licence" }, el("span", {}, "Licence: "), licence.words.join("; ")),
    licence.reasons.length ? el("ul", { class: "reasons" }, licence.reasons.map((each) => el("li", {}, each))) : null,
  ];
}

/** The files of a plan by name, LoRAs with their scales. */
function filesWords(plan) {
  const names = namesOf(plan.files);
  return plan.files.filter((file) => !PICTURE_ROLES.includes(file.role)).map((file) => {
    const lora = (plan.recipe.loras || []).find((each) => each.sha256 === file.sha256);
    return `${names[file.sha256]}${lora ? ` at ${lora.scale}` : ""}`;
  }).join(", ");
}
