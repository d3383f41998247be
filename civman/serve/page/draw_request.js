// What a person has set in Draw, and the bodies of the API's plans and jobs that it means.

import { change, setting } from "./settings.js";

const EMPTY = {
  prompt: "", negative: "", loras: [], sampler: "", schedule: "", steps: "", cfg: "", width: "", height: "", seed: "",
  count: "1", clipSkip: "", axes: [{ field: "", values: "" }, { field: "", values: "" }], extra: {},
};

/** What was set last time, or nothing. */
export const drawState = () => ({ ...structuredClone(EMPTY), ...(setting("draw") || {}) });

/** Remember what is set. */
export const keepDrawState = (state) => change("draw", state);

/** The render request, without what is left to civman's defaults. */
export function requestOf(state, checkpoint) {
  const request = { ...state.extra, checkpoint, prompt: state.prompt, negative_prompt: state.negative };
  if (state.loras.length) request.loras = state.loras.map(({ ref, scale }) => ({ ref, scale: Number(scale) }));
  const numbers = { steps: state.steps, guidance_scale: state.cfg, width: state.width, height: state.height, seed: state.seed, clip_skip: state.clipSkip };
  for (const [name, text] of Object.entries(numbers)) if (String(text).trim() !== "") request[name] = Number(text);
  if (state.sampler) request.sampler = state.sampler;
  if (state.schedule) request.schedule = state.schedule;
  if (!axesOf(state).length && Number(state.count) > 1) request.count = Number(state.count);
  return request;
}

/** The axes of the grid as `--grid` takes them. */
export const axesOf = (state) => state.axes.filter((axis) => axis.field && axis.values.trim()).map((axis) => `${axis.field}=${axis.values.trim()}`);

/** The body of a plan or job. */
export function bodyOf(state, checkpoint) {
  const request = requestOf(state, checkpoint);
  const axes = axesOf(state);
  return axes.length ? { kind: "grid", request, axes } : { kind: "render", request };
}

const KNOWN = ["checkpoint", "prompt", "negative_prompt", "loras", "sampler", "schedule", "steps", "guidance_scale", "width", "height", "seed", "clip_skip", "count", "batch_size", "init_image", "mask_image"];

/** The state that asks for the same image as a render request; fields that Draw does not show are kept. */
export function stateOf(request, names = {}) {
  const extra = Object.fromEntries(Object.entries(request).filter(([name]) => !KNOWN.includes(name)));
  const text = (value) => (value === null || value === undefined ? "" : String(value));
  return {
    ...structuredClone(EMPTY), prompt: request.prompt || "", negative: request.negative_prompt || "",
    loras: (request.loras || []).map((each) => ({ ref: each.ref, scale: String(each.scale ?? 1), name: names[each.ref] || each.ref, words: [] })),
    sampler: text(request.sampler), schedule: text(request.schedule), steps: text(request.steps), cfg: text(request.guidance_scale),
    width: text(request.width), height: text(request.height), seed: text(request.seed), clipSkip: text(request.clip_skip), extra,
  };
}

/** The same, from a finished image's recipe and the names of its files. */
export function stateOfRecipe(recipe, files = []) {
  const names = Object.fromEntries(files.map((each) => [`sha256:${each.sha256}`, each.model || each.name]));
  return stateOf({
    prompt: recipe.prompt, negative_prompt: recipe.negative_prompt, sampler: recipe.sampler, schedule: recipe.schedule,
    steps: recipe.steps, guidance_scale: recipe.guidance_scale, width: recipe.width, height: recipe.height, seed: recipe.seed,
    clip_skip: recipe.clip_skip,
    loras: (recipe.loras || []).map((each) => ({ ref: `sha256:${each.sha256}`, scale: each.scale })),
  }, names);
}
