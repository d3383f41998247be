// What is being drawn and what was drawn: the live preview with its progress, the images, and a strip of earlier ones.

import { api, get } from "./api.js";
import { button, el, fill, set } from "./dom.js";
import { allJobs, noteJob, on, wantPreviews } from "./events.js";
import { OWN, image } from "./images.js";
import { isOver, progressOf, timeOf } from "./job_words.js";
import { complain, errorBox } from "./notices.js";
import { hrefOf } from "./route.js";

const KINDS = ["render", "grid", "replay", "redraw", "upscale"];
const EARLIER = 24;

/** Make the stage. It follows the page's own jobs; `follow(job)` adds one. */
export function drawStage() {
  const preview = el("img", { class: "preview", alt: "The image as it is being computed", hidden: true });
  const words = el("p", { class: "stage-words" });
  const bar = el("progress", { max: 1, "aria-label": "Progress", hidden: true });
  const cancel = button("Cancel", stop, { iconName: "close", hidden: true });
  const shown = el("div", { class: "stage-images" });
  const strip = el("div", { class: "strip results" });
  const heading = el("h2", { class: "list-heading" }, "Earlier");
  const root = el("section", { class: "stage", "aria-label": "Result" }, el("div", { class: "stage-now" }, preview, words, bar, cancel),
    shown, heading, strip);
  let current = null;
  const mine = new Set();

  async function stop() {
    if (!current) return;
    try { noteJob(await api("DELETE", `/api/v1/jobs/${current}`)); } catch (error) { complain(error); }
  }

  /** Show how far a job is. */
  function show() {
    const waiting = allJobs().filter((job) => mine.has(job.id) && !isOver(job));
    const job = waiting.find((each) => each.state === "running") || waiting[waiting.length - 1] || null;
    if (job?.id !== current) preview.hidden = true;
    current = job ? job.id : null;
    bar.hidden = cancel.hidden = !job;
    if (!job) {
      preview.hidden = true;
      fill(words);
      return;
    }
    const progress = progressOf(job);
    if (progress.part === null) bar.removeAttribute("value");
    else bar.value = progress.part;
    const more = waiting.length > 1 ? `, ${waiting.length - 1} more waiting` : "";
    fill(words, `${job.is_cancelling ? "cancelling" : job.state === "queued" ? "waiting for its turn" : progress.words} ${timeOf(job)}${more}`);
    set(cancel, { disabled: job.is_cancelling });
  }

  function ended(job) {
    if (job.state === "failed" && job.error) fill(shown, errorBox(job.error));
    else if (job.state === "cancelled") fill(shown, el("p", { class: "hint" }, "Cancelled. Images that were finished before are kept."));
    else if (job.state === "done" && job.result) fill(shown, resultOf(job));
    earlier();
  }

  async function earlier() {
    try {
      const { pictures } = await get("/api/v1/pictures", { limit: EARLIER });
      heading.textContent = pictures.length ? "Earlier" : "Images that you draw appear here";
      fill(strip, pictures.filter((each) => each.is_here).map((each) => el("a", { href: hrefOf("pictures", { open: each.id }), title: each.prompt },
        image(`/api/v1/pictures/${each.id}/thumb`, OWN, { alt: each.prompt || `Image ${each.id}` }))));
    } catch (error) {
      complain(error);
    }
  }

  const stops = [
    on("jobs", (job) => {
      if (job && mine.has(job.id) && isOver(job)) { mine.delete(job.id); ended(job); }
      show();
    }),
    on("step", (job) => { if (mine.has(job.id)) show(); }),
    on("preview", ({ id, jpeg }) => {
      if (id !== current) return;
      preview.src = `data:image/jpeg;base64,${jpeg}`;
      preview.hidden = false;
    }),
  ];
  wantPreviews(true);
  for (const job of allJobs()) if (!isOver(job) && job.client.startsWith("page") && KINDS.includes(job.kind)) mine.add(job.id);
  show();
  earlier();
  return {
    root,
    follow(job) {
      mine.add(job.id);
      noteJob(job);
      show();
      // on a narrow screen the form covers the window
      if (matchMedia("(max-width: 899px)").matches) root.scrollIntoView({ block: "start" });
    },
    close() { wantPreviews(false); stops.forEach((end) => end()); },
  };
}

function resultOf(job) {
  const made = job.result.pictures || [];
  const sheet = job.kind === "grid" ? el("a", { href: `/api/v1/jobs/${job.id}/sheet`, target: "_blank", rel: "noopener" },
    image(`/api/v1/jobs/${job.id}/sheet`, OWN, { alt: `The grid: ${job.title}` })) : null;
  const columns = made.length > 1 ? "several" : "one";
  return [
    sheet,
    el("div", { class: `made ${columns}` }, made.map((each) => el("a", { href: hrefOf("pictures", { open: each.id }), title: `Seed ${each.seed ?? ""}: open image ${each.id}` },
      image(`/api/v1/pictures/${each.id}/file`, OWN, { alt: job.title })))),
    job.result.notices?.length ? el("ul", { class: "notices" }, job.result.notices.map((each) => el("li", {}, each))) : null,
  ];
}
