// A job's progress and kind in words, as `civman jobs` prints them.

import { duration, size } from "./format.js";

const STAGES = { download: "downloading", verify: "verifying", wait: "waiting", end: "finishing" };

/** How far a job is: `{part}` from 0 to 1, or null if that is unknown, and `{words}`. */
export function progressOf(job) {
  const progress = job.progress || {};
  if (progress.step !== undefined) {
    const which = (progress.count || 1) > 1 ? `, image ${progress.first} of ${progress.count}` : "";
    const done = ((progress.first || 1) - 1 + progress.step / progress.steps) / (progress.count || 1);
    return { part: Math.min(1, done), words: `step ${progress.step} of ${progress.steps}${which}` };
  }
  if (progress.total_bytes) {
    const isVerifying = progress.stage === "verify";
    const done = isVerifying ? progress.verified_bytes || 0 : progress.received_bytes || 0;
    const stage = progress.stage === "wait" && progress.reason ? `waiting: ${progress.reason}` : STAGES[progress.stage] || "";
    return {
      part: Math.min(1, done / progress.total_bytes),
      words: `${stage} ${size(done)} of ${size(progress.total_bytes)}${speed(job, done)}`.trim(),
    };
  }
  return { part: null, words: job.state === "running" ? "starting" : "" };
}

function speed(job, done) {
  if (job.state !== "running" || !job.started_at) return "";
  const seconds = (Date.now() - Date.parse(job.started_at)) / 1000;
  return seconds > 1 && done ? `, ${size(done / seconds)}/s` : "";
}

/** How long a job took or has been taking. */
export function timeOf(job) {
  if (!job.started_at) return "";
  const end = job.ended_at ? Date.parse(job.ended_at) : Date.now();
  return duration((end - Date.parse(job.started_at)) / 1000);
}

/** A job's state in words. */
export function stateWords(job) {
  if (job.is_cancelling && (job.state === "running" || job.state === "queued")) return "cancelling";
  return job.state;
}

export const isOver = (job) => !["queued", "running"].includes(job.state);
