// Building elements. Everything from outside (names, descriptions, errors) becomes text nodes and attributes: this page
// has no place that parses HTML, and the Content-Security-Policy (trusted types) forbids one.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element. `props`: attributes, `on…` listeners, `class`, `data` (an object); null and false leave one out. */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  set(made, props);
  return add(made, ...children);
}

/** Set attributes, listeners, classes and data of an element. */
export function set(element, props) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) {
      if (!name.startsWith("on") && name !== "data") element.removeAttribute(name);
    } else if (name.startsWith("on")) {
      element.addEventListener(name.slice(2), value);
    } else if (name === "data") {
      for (const [key, item] of Object.entries(value)) {
        if (item !== null && item !== undefined) element.dataset[key] = item;
      }
    } else if (name === "value") {
      element.value = value;
    } else {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  return element;
}

/** Append children: elements, texts, lists of them; null and false are left out. */
export function add(element, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

/** Replace the children of an element. */
export function fill(element, ...children) {
  element.replaceChildren();
  return add(element, ...children);
}

const PATHS = {
  library: "M4 5h5v14H4zM10.5 5h4v14h-4zM16.6 5.6l3.4-.9 3.2 13.6-3.4.9z",
  civitai: "M12 3l7.8 4.5v9L12 21l-7.8-4.5v-9zM15.6 9.6a4.2 4.2 0 1 0 0 4.8",
  draw: "M4 20l4.2-1L20 7.2 16.8 4 5 15.8zM14.4 6.4l3.2 3.2",
  pictures: "M3.5 5h17v14h-17zM3.5 16l5-5 4 4 2.5-2.5 5.5 5M15.5 9.5h.01",
  jobs: "M4 6h16M4 12h10M4 18h6M17 14.5V20M14.3 17.3h5.4",
  server: "M4 5h16v6H4zM4 13h16v6H4zM7.5 8h.01M7.5 16h.01",
  search: "M10.5 4a6.5 6.5 0 1 1 0 13 6.5 6.5 0 0 1 0-13zM15.3 15.3L20.5 20.5",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h10v11H9zM5 15H4V4h11v1.5",
  eye: "M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12zM12 9.2a2.8 2.8 0 1 1 0 5.6 2.8 2.8 0 0 1 0-5.6z",
  hide: "M4 4l16 16M9.5 6a9 9 0 0 1 2.5-.5c6 0 9.5 6.5 9.5 6.5a17 17 0 0 1-3 3.7M6 8A17 17 0 0 0 2.5 12S6 18.5 12 18.5a9 9 0 0 0 3.6-.8",
  star: "M12 3.8l2.5 5.3 5.8.7-4.3 4 1.2 5.7L12 16.6l-5.2 2.9L8 13.8l-4.3-4 5.8-.7z",
  heart: "M12 19.5S4 14.8 4 9.3A4.2 4.2 0 0 1 12 7.5a4.2 4.2 0 0 1 8 1.8c0 5.5-8 10.2-8 10.2z",
  download: "M12 4v11M7.5 11L12 15.5 16.5 11M4.5 19.5h15",
  check: "M4.5 12.5l5 5L19.5 7",
  warning: "M12 4l9 16H3zM12 10v5M12 17.5h.01",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M15 4.8v4.4M9 14.8v4.4",
  rows: "M4 6h16M4 12h16M4 18h16",
  cards: "M4 4h7v7H4zM13 4h7v7h-7zM4 13h7v7H4zM13 13h7v7h-7z",
  up: "M12 19V6M6.5 11.5L12 6l5.5 5.5",
  down: "M12 5v13M6.5 12.5L12 18l5.5-5.5",
  first: "M5 4.5h14M12 20V9M6.5 14L12 8.5l5.5 5.5",
  more: "M6 9.5l6 6 6-6",
};

/** A line icon; decoration only, so name its button with text or `aria-label`. */
export function icon(name) {
  const made = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  set(made, { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" });
  path.setAttribute("d", PATHS[name]);
  made.append(path);
  return made;
}

/** A button. `label`: its text; with `iconName` alone, the text becomes its `aria-label` and tooltip. */
export function button(label, onclick, { iconName = null, iconOnly = false, kind = "", ...props } = {}) {
  const pressed = (event) => { if (!made.hasAttribute("aria-disabled")) onclick(event); };
  const made = el("button", { type: "button", class: `button ${kind}`.trim(), onclick: pressed, ...props });
  if (iconName) made.append(icon(iconName));
  if (iconOnly) set(made, { "aria-label": label, title: label });
  else made.append(el("span", {}, label));
  return made;
}

/** Make a button do nothing for now, without losing the keyboard's place as `disabled` does. */
export function hold(made, isHeld) {
  set(made, { "aria-disabled": isHeld ? "true" : null });
}

/** A button that copies a text and says so. */
export function copyButton(text, { label = text, kind = "chip", say = "Copied" } = {}) {
  const made = el("button", { type: "button", class: `button ${kind}`, title: `Copy ${text}` }, label);
  made.addEventListener("click", async () => {
    const done = await copyText(text);
    made.dataset.said = done ? say : "Copying is not allowed here";
    announce(done ? `${say}: ${text}` : "Copying is not allowed here");
    setTimeout(() => delete made.dataset.said, 1200);
  });
  return made;
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = el("textarea", { value: text, class: "offscreen" }); // over plain http there is no clipboard API
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}

let speaker = null;

/** Say something to screen readers. */
export function announce(text) {
  speaker ??= document.body.appendChild(el("div", { class: "offscreen", role: "status", "aria-live": "polite" }));
  speaker.textContent = text;
}
