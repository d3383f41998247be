// What this browser remembers: theme, how far images are shown, the chosen checkpoint, and how the library is laid out.

const KEY = "civman-settings";
const DEFAULTS = { theme: "system", level: 2, hideAll: false, checkpoint: null, layout: "cards" };
const listeners = new Set();
let settings = read();

function read() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(KEY) || "{}") };
  } catch {
    return { ...DEFAULTS };
  }
}

/** One setting. `checkpoint`: `{sha256, name, ref}` or null; `level`: the highest rating bit that is shown clearly. */
export const setting = (name) => settings[name];

/** Change one setting, here and in the other tabs. */
export function change(name, value) {
  settings = { ...settings, [name]: value };
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // a browser that stores nothing still keeps the settings for this tab
  }
  tell(name);
}

/** Call `listener(name)` after each change; returns the function that ends this. */
export function onSetting(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function tell(name) {
  for (const listener of [...listeners]) listener(name);
}

addEventListener("storage", (event) => {
  if (event.key !== KEY) return;
  const before = settings;
  settings = read();
  for (const name of Object.keys(settings)) {
    if (JSON.stringify(before[name]) !== JSON.stringify(settings[name])) tell(name);
  }
});
