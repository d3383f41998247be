// Draw: a prompt with LoRAs, the plan with its warnings and licence, and the image as it comes.

import { get, post } from "./api.js";
import { add, button, el, set } from "./dom.js";
import { checkpointRef, chooseCheckpoint, chosenCheckpoint } from "./checkpoint.js";
import { bodyOf, drawState, keepDrawState, stateOfRecipe } from "./draw_request.js";
import { drawForm } from "./draw_form.js";
import { planBox } from "./draw_plan.js";
import { drawStage } from "./draw_stage.js";
import { complain } from "./notices.js";
import { amend } from "./route.js";
import { onSetting } from "./settings.js";

export function mount(root, params) {
  let state = drawState();
  let form = null;
  const draw = button("Draw", submit, { iconName: "draw", kind: "primary", title: "Draw (Ctrl+Enter)" });
  const plan = planBox(() => (checkpointRef() ? bodyOf(state, checkpointRef()) : null), (found) => set(draw, { disabled: !found }));
  const stage = drawStage();
  const holder = el("div", { class: "form-holder" });
  const heading = el("p", { class: "hint" });

  function changed() {
    keepDrawState(state);
    plan.ask();
  }

  function build() {
    form = drawForm(state, { changed, submit });
    holder.replaceChildren(form.root);
    const chosen = chosenCheckpoint();
    heading.textContent = chosen ? `With ${chosen.name}` : "No checkpoint is chosen yet.";
    plan.askNow();
  }

  async function submit() {
    if (!checkpointRef()) return;
    set(draw, { disabled: true });
    try {
      stage.follow(await post("/api/v1/jobs", bodyOf(state, checkpointRef())));
    } catch (error) {
      complain(error);
    }
    set(draw, { disabled: false });
  }

  /** Take over what the address asks for: a checkpoint, a LoRA to add, or the settings of an image. */
  async function take(asked) {
    const wanted = { checkpoint: asked.get("checkpoint"), add: asked.get("add"), from: asked.get("from") };
    if (!wanted.checkpoint && !wanted.add && !wanted.from) return;
    amend({ checkpoint: null, add: null, from: null }, { replace: true });
    try {
      if (wanted.from) {
        const picture = await get(`/api/v1/pictures/${Number(wanted.from)}`);
        state = stateOfRecipe({ ...picture.recipe, seed: picture.seed }, picture.files);
        await chooseBy(`sha256:${picture.recipe.checkpoint}`);
      }
      if (wanted.checkpoint) await chooseBy(wanted.checkpoint);
      keepDrawState(state);
      build();
      if (wanted.add) form.addLora(await stored(wanted.add));
    } catch (error) {
      complain(error);
    }
  }

  add(root, el("div", { class: "draw" },
    el("div", { class: "draw-left" }, el("h1", { class: "offscreen" }, "Draw"), heading, holder, plan.root, el("p", { class: "actions submit" }, draw)),
    stage.root));
  const stops = [onSetting((name) => { if (name === "checkpoint") build(); })];
  build();
  take(params);
  return {
    update: take,
    focusSearch: () => form.focus(),
    unmount() { stops.forEach((stop) => stop()); plan.stop(); stage.close(); },
  };
}

/** A stored file by its ref. */
async function stored(ref) {
  if (ref.startsWith("sha256:")) return (await get(`/api/v1/models/${ref.slice(7)}`)).model;
  const { models } = await get("/api/v1/models", { ref });
  const found = models.find((each) => each.ref === ref);
  if (!found) throw Object.assign(new Error(`${ref} is not in the library`), { code: "not-found" });
  return found;
}

async function chooseBy(ref) {
  chooseCheckpoint(await stored(ref));
}
