// The form of Draw: prompts, LoRAs with their scales, sampler, size, seed, number of images, and the axes of a grid.

import { get } from "./api.js";
import { button, el, fill, set } from "./dom.js";
import { checkpointRef, chosenCheckpoint } from "./checkpoint.js";
import { menuButton, toggle } from "./filters.js";
import { titleOf } from "./format.js";
import { complain } from "./notices.js";

const ADAPTERS = ["LORA", "LoCon", "DoRA"];
const AXES = [["", "none"], ["seed", "seed"], ["cfg", "CFG scale"], ["steps", "steps"], ["sampler", "sampler"], ["clip_skip", "clip skip"], ["size", "size"], ["s/r", "replace text"]];
const HINTS = { seed: "1..4", cfg: "4, 6, 8", steps: "10, 20, 30", sampler: "Euler, DPM++ 2M", clip_skip: "1, 2", size: "512x512|768x512", "s/r": "red, green, blue" };

/** Make the form. `state` is changed in place and `changed()` is called after each change; `submit()`: Ctrl+Enter. */
export function drawForm(state, { changed, submit }) {
  const form = el("form", { class: "draw-form", "aria-label": "What to draw" });
  const loraList = el("ul", { class: "lora-rows" });
  const axisRows = el("div", { class: "axes" });

  const edit = (name) => (event) => { state[name] = event.target.value; changed(); };
  const area = (name, label, rows) => el("label", { class: "stacked" }, el("span", {}, label),
    el("textarea", { rows, spellcheck: "false", value: state[name], oninput: edit(name) }));
  const number = (name, label, props = {}) => el("label", { class: "stacked" }, el("span", {}, label),
    el("input", { type: "number", inputmode: "decimal", placeholder: "default", value: state[name], oninput: edit(name), ...props }));
  const prompt = area("prompt", "Prompt", 4);

  const named = (name, label, path, text) => {
    const field = el("select", { "aria-label": label });
    field.addEventListener("change", () => { state[name] = field.value; changed(); });
    const offer = (values) => fill(field, el("option", { value: "" }, "default"), values.map((each) => el("option", { value: each, selected: each === state[name] }, each)));
    offer(state[name] ? [state[name]] : []);
    get(path).then((list) => offer([...new Set([...list.map(text), ...(state[name] ? [state[name]] : [])])]), complain);
    return el("label", { class: "stacked" }, el("span", {}, label), field);
  };

  const add = menuButton("Add a LoRA", (close) => loraMenu(close), { iconName: "library" });
  const useWord = (word) => {
    const field = prompt.querySelector("textarea");
    state.prompt = field.value.trim() ? `${field.value.replace(/[\s,]+$/, "")}, ${word}` : word;
    field.value = state.prompt;
    changed();
  };

  function loraMenu(close) {
    const list = el("div", { class: "choices", role: "group", "aria-label": "LoRAs" });
    const narrow = el("input", { type: "search", class: "narrow", placeholder: "Search LoRAs", "aria-label": "Search LoRAs", autofocus: true });
    let fits = Boolean(chosenCheckpoint());
    const find = async () => {
      const query = { type: ADAPTERS, q: narrow.value.trim(), limit: 60, fits: fits ? checkpointRef() : null };
      const answer = await get("/api/v1/models", query).catch((error) => ({ error }));
      if (answer.error) {
        fill(list, el("p", { class: "hint" }, answer.error.message));
        return;
      }
      fill(list, answer.models.map((model) => loraChoice(model, close)),
        answer.models.length ? null : el("p", { class: "waiting" }, fits ? "No LoRA in the library fits this checkpoint" : "No LoRA in the library"));
    };
    let timer = 0;
    narrow.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(find, 130); });
    find();
    const only = chosenCheckpoint() ? toggle(`Only what fits ${chosenCheckpoint().name}`, fits, (isOn) => { fits = isOn; find(); }) : null;
    return el("div", {}, narrow, only, list);
  }

  function loraChoice(model, close) {
    const made = el("button", { type: "button", class: "choice pick" }, el("span", {}, titleOf(model)), el("small", {}, model.base_model || model.facts.architecture || ""));
    made.addEventListener("click", () => { addLora(model); close(); });
    return made;
  }

  /** Add a stored LoRA with the scale 1, unless it is there already. */
  function addLora(model) {
    const ref = `sha256:${model.blob.sha256}`;
    if (!state.loras.some((each) => each.ref === ref)) {
      state.loras.push({ ref, name: titleOf(model), scale: "1", words: model.trigger_words.filter((each) => each.word).map((each) => each.word) });
    }
    showLoras();
    changed();
  }

  function showLoras() {
    fill(loraList, state.loras.map((lora) => {
      const scale = el("input", { type: "number", step: "0.05", min: "-4", max: "4", value: lora.scale, "aria-label": `Scale of ${lora.name}` });
      scale.addEventListener("input", () => { lora.scale = scale.value; changed(); });
      const remove = button(`Remove ${lora.name}`, () => {
        state.loras = state.loras.filter((each) => each !== lora);
        showLoras();
        changed();
      }, { iconName: "close", iconOnly: true, kind: "quiet" });
      const words = (lora.words || []).slice(0, 8).map((word) => button(word, () => useWord(word), { kind: "chip", title: `Add ${word} to the prompt` }));
      return el("li", {}, el("b", {}, lora.name), scale, remove, words.length ? el("p", { class: "chips" }, words) : null);
    }));
    showAxes();
  }

  function showAxes() {
    const offered = [...AXES, ...state.loras.map((lora) => [`lora:${lora.ref}`, `scale of ${lora.name}`])];
    fill(axisRows, state.axes.map((axis, index) => {
      const label = index ? "Rows vary" : "Columns vary";
      const field = el("select", { "aria-label": label }, offered.map(([value, words]) => el("option", { value, selected: value === axis.field }, words)));
      const values = el("input", { type: "text", value: axis.values, "aria-label": `${label}: values`, placeholder: hintOf(axis.field), disabled: !axis.field });
      field.addEventListener("change", () => {
        axis.field = field.value;
        set(values, { placeholder: hintOf(axis.field), disabled: !axis.field });
        changed();
      });
      values.addEventListener("input", () => { axis.values = values.value; changed(); });
      return el("div", { class: "axis" }, el("span", {}, label), field, values);
    }));
  }

  const seed = number("seed", "Seed", { placeholder: "random", min: "0" });
  const random = button("Random seed", () => {
    state.seed = "";
    seed.querySelector("input").value = "";
    changed();
  }, { kind: "quiet" });
  fill(form, prompt, area("negative", "Negative prompt", 2),
    el("div", { class: "stacked" }, el("div", { class: "line" }, el("span", {}, "LoRAs"), add.root), loraList),
    el("div", { class: "numbers" },
      named("sampler", "Sampler", "/sdapi/v1/samplers", (each) => each.name),
      named("schedule", "Schedule", "/sdapi/v1/schedulers", (each) => each.label),
      number("steps", "Steps", { min: "1", max: "1000" }), number("cfg", "CFG scale", { step: "0.5" }),
      number("width", "Width", { step: "8", min: "8" }), number("height", "Height", { step: "8", min: "8" }),
      seed, number("count", "Images", { min: "1", max: "100", placeholder: "1" }), number("clipSkip", "Clip skip", { min: "1", max: "12" })),
    el("p", { class: "actions" }, random),
    el("details", { class: "grid-axes", open: state.axes.some((axis) => axis.field) }, el("summary", {}, "Grid: vary one or two settings"), axisRows,
      el("p", { class: "hint" }, "Values as for civman render --grid: 1..4, or 0, 0.5, 1. Every cell is an image of its own, and a sheet shows them all.")));
  form.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      submit();
    }
  });
  showLoras();
  return { root: form, addLora, focus: () => prompt.querySelector("textarea").focus() };
}

const hintOf = (field) => (field.startsWith("lora:") ? "0, 0.5, 1" : HINTS[field] || "");
