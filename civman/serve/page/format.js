// Numbers, sizes and times in words, as the command line prints them.

const COUNT = new Intl.NumberFormat("en");

/** 12345 → "12,345". */
export const count = (number) => COUNT.format(number);

/** "1 file", "12 files". */
export const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** Bytes in decimal units: "228.4 MB". */
export function size(bytes) {
  if (bytes === null || bytes === undefined) return "size unknown";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let place = 0;
  let value = bytes;
  while (value >= 999.95 && place < units.length - 1) {
    value /= 1000;
    place += 1;
  }
  return `${place === 0 ? value : value.toFixed(1)} ${units[place]}`;
}

/** "2026-03-01" of an ISO time. */
export const day = (text) => (text ? text.slice(0, 10) : "");

/** "14:05" of an ISO time, in this browser's zone. */
export const clock = (text) => (text ? new Date(text).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" }) : "");

/** "3 s", "2 min 5 s", "1 h 4 min". */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** The name under which a stored file is shown. */
export const titleOf = (model) => model.alias || model.model_name || model.name.replace(/\.\w+$/, "");

/** The names of a recipe's files by digest: the model's name on CivitAI, or the file's own. */
export const namesOf = (files) => Object.fromEntries(files.map((each) => [each.sha256, each.model ? [each.model, each.version].filter(Boolean).join(" ") : each.name]));

/** A value of a recipe in words; files are called by `names`, and by the start of their digest where it is unknown. */
export function recipeWords(value, names) {
  if (value === null || value === undefined || value === "") return "none";
  if (Array.isArray(value)) return value.length ? value.map((each) => recipeWords(each, names)).join(", ") : "none";
  if (typeof value === "object") {
    const { sha256, scale, text_scale: textScale, ...rest } = value;
    const scales = scale === undefined ? "" : ` at ${scale}${textScale === undefined || textScale === scale ? "" : ` (text ${textScale})`}`;
    const others = Object.entries(rest).filter(([, each]) => each !== null && each !== "").map(([name, each]) => `${name.replaceAll("_", " ")} ${recipeWords(each, names)}`);
    if (!sha256) return others.join(", ") || "none";
    return `${recipeWords(sha256, names)}${scales}${others.length ? ` (${others.join(", ")})` : ""}`;
  }
  if (/^[0-9a-f]{64}$/.test(value)) return names[value] || `${value.slice(0, 12)}…`;
  return String(value);
}

/** What a file's header shows, in a few words: "lora sdxl fp16". */
export function factsWords(model) {
  const facts = model.facts || {};
  const words = [facts.adapter || facts.kind, facts.architecture, facts.precision, ...(facts.flags || [])];
  return words.filter(Boolean).join(" ") || (model.blob.suffix || "").replace(".", "");
}

/** The class of a verdict, for its colour. */
export function verdictClass(verdict) {
  return { fits: "good", "fits with caution": "care", "partly applies": "bad", "cannot work": "bad" }[verdict] || "plain";
}
