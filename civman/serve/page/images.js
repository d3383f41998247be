// Images with CivitAI's ratings: what is rated above the chosen level is blurred, and so is everything while images are
// hidden. An unrated image counts as X. Images made here have no rating; they are blurred only while all are hidden.

import { el } from "./dom.js";
import { change, onSetting, setting } from "./settings.js";

export const LEVELS = [
  { bit: 1, name: "PG" }, { bit: 2, name: "PG-13" }, { bit: 4, name: "R" }, { bit: 8, name: "X" }, { bit: 16, name: "XXX" },
];
export const OWN = null;
const UNRATED_AS = 8;

/** The highest rating in a bit mask; 0 means unrated. */
export const highest = (mask) => (mask ? 2 ** Math.floor(Math.log2(mask)) : 0);

/** The name of a rating. */
export function levelName(mask) {
  const bit = highest(mask);
  return LEVELS.find((level) => level.bit === bit)?.name || (bit > 16 ? "blocked" : "unrated");
}

/** Whether an image with this rating is blurred now. */
export function isVeiled(level) {
  if (setting("hideAll")) return true;
  if (level === OWN) return false;
  return (highest(level) || UNRATED_AS) > setting("level");
}

/** An image that is blurred if its rating asks for it. `level`: a rating's bits, or OWN for an image made here. */
export function image(src, level, { alt = "", eager = false, ...props } = {}) {
  const made = el("img", {
    src, alt, decoding: "async", draggable: "false", loading: eager ? null : "lazy", ...props,
    data: { level: level === OWN ? "own" : String(level) },
  });
  veil(made);
  made.addEventListener("error", () => made.classList.add("broken"));
  return made;
}

function veil(made) {
  const level = made.dataset.level === "own" ? OWN : Number(made.dataset.level);
  made.classList.toggle("veiled", isVeiled(level) && !made.dataset.shown);
}

/** An image in a frame, with a button that shows it if it is blurred. */
export function framed(src, level, props = {}) {
  const picture = image(src, level, props);
  const frame = el("div", { class: "frame" }, picture);
  if (level !== OWN) frame.dataset.rating = levelName(level);
  const show = el("button", { type: "button", class: "button reveal" }, `Show (${level === OWN ? "hidden" : levelName(level)})`);
  show.addEventListener("click", () => {
    picture.dataset.shown = "yes";
    veil(picture);
  });
  frame.append(show);
  return frame;
}

/** Hide or show all images. */
export const toggleHidden = () => change("hideAll", !setting("hideAll"));

onSetting((name) => {
  if (name !== "level" && name !== "hideAll") return;
  for (const each of document.querySelectorAll("img[data-level]")) {
    if (setting("hideAll")) delete each.dataset.shown;
    veil(each);
  }
});
