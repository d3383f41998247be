// The server and the doctor: what runs, what it holds in memory, and what is wrong with the installation.

import { get, post } from "./api.js";
import { add, button, el, fill, hold } from "./dom.js";
import { on } from "./events.js";
import { counted, size } from "./format.js";
import { complain, errorBox, say, waiting } from "./notices.js";
import { facts } from "./panel.js";

export function mount(root) {
  const about = el("div", {}, waiting());
  const found = el("div", { "aria-live": "polite" });
  const check = button("Check again", examine, { kind: "quiet" });
  let isAlive = true;
  add(root, el("div", { class: "page" }, el("h1", {}, "Server"), about,
    el("div", { class: "heading-line" }, el("h2", {}, "Doctor"), check),
    el("p", { class: "hint" }, "The installation, the library and the settings, as civman doctor checks them."), found));

  async function describe() {
    try {
      const server = await get("/api/v1/server");
      const free = button("Free this memory", async () => {
        try {
          await post("/api/v1/unload");
          say("The rendering process has ended; the next render starts it again.");
          describe();
        } catch (error) {
          complain(error);
        }
      });
      const { engine } = server;
      if (!isAlive) return;
      fill(about, facts([
        ["version", server.version],
        ["rendering", engine.pid ? `process ${engine.pid}, ${counted(engine.loaded_models, "model")} loaded` : "the process starts with the first render"],
        ["memory", `${size(engine.loaded_bytes)} of at most ${size(engine.budget_bytes)} for loaded models`],
        ["jobs", server.unfinished_jobs ? `${server.unfinished_jobs} not done` : "none waiting"],
        ["API", el("a", { href: "/api/v1/openapi.json" }, "/api/v1/openapi.json")],
      ]), engine.pid ? el("p", { class: "actions" }, free) : null);
    } catch (error) {
      if (isAlive) fill(about, errorBox(error, { retry: describe }));
    }
  }

  async function examine() {
    fill(found, waiting("Checking …"));
    hold(check, true);
    try {
      const { findings } = await get("/api/v1/doctor");
      if (isAlive) fill(found, el("ul", { class: "findings" }, findings.map(finding)));
    } catch (error) {
      if (isAlive) fill(found, errorBox(error, { retry: examine }));
    }
    hold(check, false);
  }

  const stops = [on("jobs", (job) => { if (!job || ["done", "failed", "cancelled"].includes(job.state)) describe(); })];
  describe();
  examine();
  return { unmount: () => { isAlive = false; stops.forEach((stop) => stop()); } };
}

function finding(each) {
  return el("li", { class: `finding is-${each.state}` }, el("span", { class: "state" }, each.state), el("div", {},
    el("p", {}, el("strong", {}, each.name), ` ${each.value}`),
    each.source ? el("p", { class: "hint" }, `from ${each.source}`) : null,
    each.remedy && each.state !== "ok" ? el("p", {}, `→ ${each.remedy}`) : null));
}
