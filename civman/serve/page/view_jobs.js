// Jobs: what the server does, what waits, and what became of the rest.

import { api, post } from "./api.js";
import { add, button, el, fill, hold, icon, set } from "./dom.js";
import { allJobs, noteJob, on, placesOf, refreshJobs } from "./events.js";
import { clock } from "./format.js";
import { image, OWN } from "./images.js";
import { isOver, progressOf, stateWords, timeOf } from "./job_words.js";
import { complain, empty } from "./notices.js";
import { hrefOf } from "./route.js";
import { VIEWS } from "./views.js";

const MOST_ENDED = 60;

export function mount(root) {
  const active = el("ol", { class: "jobs", "aria-label": "Running and waiting jobs" });
  const ended = el("ol", { class: "jobs", "aria-label": "Jobs that are over" });
  const nothing = el("div", {});
  const heading = el("h2", { class: "list-heading", hidden: true }, "Over");
  const rows = new Map();
  let drawing = 0;
  add(root, el("div", { class: "page" }, el("h1", {}, "Jobs"), nothing, active, heading, ended));

  function draw() {
    drawing = 0;
    const jobs = allJobs();
    const open = jobs.filter((job) => !isOver(job)).sort(inOrder);
    const over = jobs.filter(isOver).slice(0, MOST_ENDED);
    place(active, open);
    place(ended, over);
    heading.hidden = !over.length || !open.length;
    const kept = new Set([...open, ...over].map((job) => job.id));
    for (const [id, row] of rows) if (!kept.has(id)) { row.root.remove(); rows.delete(id); }
    fill(nothing, jobs.length ? null : empty("No jobs", "Renders and downloads of this page, the command line and other programs appear here."));
  }

  function place(list, jobs) {
    jobs.forEach((job, index) => {
      let row = rows.get(job.id);
      if (!row) rows.set(job.id, row = jobRow());
      row.show(job);
      if (list.children[index] !== row.root) keepFocus(() => list.insertBefore(row.root, list.children[index] || null));
    });
  }

  const schedule = () => { drawing ||= requestAnimationFrame(draw); };
  const stops = [on("jobs", schedule), on("step", (job) => rows.get(job.id)?.show(job)), on("preview", (value) => rows.get(value.id)?.preview(value))];
  const ticking = setInterval(() => { for (const job of allJobs()) if (job.state === "running") rows.get(job.id)?.show(job); }, 1000);
  draw();
  refreshJobs();
  return { unmount: () => { stops.forEach((stop) => stop()); clearInterval(ticking); } };
}

function keepFocus(move) {
  const at = document.activeElement;
  move();
  if (at && at !== document.activeElement && at.isConnected) at.focus();
}

function inOrder(one, other) {
  if (one.state !== other.state) return one.state === "running" ? -1 : 1;
  const places = placesOf();
  return (places[one.id] || 0) - (places[other.id] || 0) || one.id - other.id;
}

/** One job in the list; `show(job)` brings it up to date without making it anew. */
function jobRow() {
  let job = null;
  const title = el("p", { class: "job-title" });
  const about = el("p", { class: "job-about" });
  const bar = el("progress", { max: 1, "aria-label": "Progress" });
  const result = el("div", { class: "job-result" });
  const cancel = button("Cancel", async () => {
    try { noteJob(await api("DELETE", `/api/v1/jobs/${job.id}`)); } catch (error) { complain(error); }
  }, { iconName: "close", kind: "quiet" });
  const moves = ["first", "up", "down"].map((to) => button({ first: "To the front", up: "Earlier", down: "Later" }[to], async () => {
    try { await post(`/api/v1/jobs/${job.id}/move`, { to }); await refreshJobs(); } catch (error) { complain(error); }
  }, { iconName: to, iconOnly: true, kind: "quiet" }));
  const tools = el("div", { class: "job-tools" }, moves, cancel);
  const mark = el("span", { class: "job-mark" });
  const root = el("li", { class: "job", tabindex: "-1" }, mark, el("div", { class: "job-words" }, title, about, bar, result), tools);
  let shown = "";

  function show(next) {
    job = next;
    const { part, words } = progressOf(job);
    root.className = `job is-${job.state}`;
    fill(title, `${job.kind === "download" ? "Download" : job.kind === "command" ? "Command" : "Render"} `, el("strong", {}, job.progress?.name || job.title), el("small", {}, ` job ${job.id}`));
    const place = job.state === "queued" && placesOf()[job.id] ? `place ${placesOf()[job.id]} of its client's jobs` : "";
    fill(about, [stateWords(job), place, isOver(job) ? "" : words, timeOf(job), `for ${job.client}`, clock(job.created_at)].filter(Boolean).join(" · "));
    bar.hidden = job.state !== "running";
    if (part === null) bar.removeAttribute("value");
    else bar.value = part;
    set(bar, { "aria-label": `Progress of job ${job.id}` });
    hold(cancel, job.is_cancelling);
    set(cancel, { hidden: isOver(job), "aria-label": `Cancel job ${job.id}` });
    for (const each of moves) each.hidden = job.state !== "queued";
    if (tools.contains(document.activeElement) && document.activeElement.hidden) root.focus();
    const outcome = job.state + JSON.stringify(job.error);
    if (outcome === shown) return;
    shown = outcome;
    fill(mark, icon({ done: "check", failed: "warning", cancelled: "close" }[job.state] || (job.kind === "download" ? "download" : "draw")));
    fill(result, resultOf(job));
  }

  return { root, show, preview: () => {} };
}

function resultOf(job) {
  if (job.state === "failed" && job.error) {
    return [el("p", { class: "wrong" }, `Error [${job.error.code}]: ${job.error.message}`), job.error.hint ? el("p", { class: "hint" }, `Hint: ${job.error.hint}`) : null];
  }
  if (job.state !== "done" || !job.result) return null;
  if (job.kind === "download") {
    return el("a", { href: hrefOf("library", { open: job.result.sha256 }) }, `${job.result.name} is in the library`);
  }
  const made = job.result.pictures || [];
  const hasPictures = VIEWS.some((view) => view.name === "pictures");
  return made.length ? el("div", { class: "strip" }, made.map((each) => {
    const shown = image(`/api/v1/pictures/${each.id}/thumb`, OWN, { alt: job.title });
    return hasPictures ? el("a", { href: hrefOf("pictures", { open: each.id }) }, shown) : shown;
  })) : null;
}
