// What happens on the server, as it happens. One tab of the browser holds the stream and tells the others: browsers open
// only six connections to a server, so a stream in every tab would leave none for anything else.

import { get } from "./api.js";

const NAMES = ["job", "step", "preview", "library"];
const jobs = new Map();
const listeners = new Map();
const channel = "BroadcastChannel" in window ? new BroadcastChannel("civman-events") : null;
let places = {};
let state = "starting";
let pending = null;
const heardMeanwhile = new Map();

/** Call `listener(value)` on "jobs" (the list changed), "step", "preview", "library" (files were added) or "state". */
export function on(name, listener) {
  if (!listeners.has(name)) listeners.set(name, new Set());
  listeners.get(name).add(listener);
  return () => listeners.get(name).delete(listener);
}

/** All known jobs, newest first. */
export const allJobs = () => [...jobs.values()].sort((one, other) => other.id - one.id);

/** The place of each waiting job among its client's, by its number. */
export const placesOf = () => places;

/** Whether the server is heard: "starting", "live" or "lost". */
export const connection = () => state;

/** Read the list of jobs again. */
export function refreshJobs() {
  if (pending) return pending;
  heardMeanwhile.clear();
  pending = get("/api/v1/jobs").then(
    (answer) => {
      pending = null;
      jobs.clear();
      for (const job of answer.jobs) jobs.set(job.id, job);
      // the server may have made the list before these events
      for (const job of heardMeanwhile.values()) jobs.set(job.id, later(jobs.get(job.id), job));
      places = answer.places || {};
      setState("live");
      tell("jobs");
    },
    () => {
      pending = null;
      setState("lost");
    },
  );
  return pending;
}

/** Take in a job that an answer contains, before its event arrives. */
export function noteJob(job) {
  heard("job", job);
  channel?.postMessage({ name: "job", value: job });
}

/** The later one of two descriptions of a job; answers and events may arrive in another order than they were sent. */
function later(known, job) {
  const rank = ({ state }) => ["queued", "running"].indexOf(state) + 1 || 3;
  return known && rank(known) > rank(job) ? known : job;
}

function tell(name, value) {
  for (const listener of [...(listeners.get(name) || [])]) listener(value);
}

function setState(now) {
  if (state === now) return;
  state = now;
  tell("state", now);
}

function heard(name, value) {
  if (name === "job") {
    const before = jobs.get(value.id);
    value = later(before, value);
    jobs.set(value.id, value);
    if (pending) heardMeanwhile.set(value.id, value);
    if (value.state === "queued" || (before && before.state === "queued")) schedulePlaces();
    tell("jobs", value);
    const isNews = value.state === "done" && (!before || before.state !== "done");
    if (isNews) tell("library", value);
  } else if (name === "step") {
    const job = jobs.get(value.id);
    if (!job) return;
    job.progress = value.progress;
    tell("step", job);
  } else if (name === "want") {
    wanted(value);
  } else if (name === "state") {
    if (value === "live" && state !== "live") refreshJobs();
    setState(value);
  } else {
    tell(name, value);
  }
}

let placing = 0;
function schedulePlaces() {
  clearTimeout(placing);
  placing = setTimeout(refreshJobs, 150);
}

function relay(name, value) {
  heard(name, value);
  channel?.postMessage({ name, value });
}

const tab = Math.random().toString(36).slice(2);
const watchers = new Set();
let stream = null;
let watch = 0;

/** Ask for small images of what is being computed ("preview": `{id, jpeg}`), or say that they are no longer shown. */
export function wantPreviews(isOn) {
  wanted({ tab, isOn });
  channel?.postMessage({ name: "want", value: { tab, isOn } });
}

function wanted({ tab: who, isOn }) {
  const before = watchers.size;
  if (isOn) watchers.add(who);
  else watchers.delete(who);
  if (stream && (before > 0) !== watchers.size > 0) openStream();
}

function openStream() {
  stream?.close();
  clearInterval(watch);
  stream = new EventSource(`/api/v1/events${watchers.size ? "?previews=1" : ""}`);
  stream.onopen = () => {
    refreshJobs();
    relay("state", "live");
  };
  stream.onerror = () => relay("state", "lost"); // the browser tries again by itself
  for (const name of NAMES) {
    stream.addEventListener(name, (event) => relay(name, JSON.parse(event.data)));
  }
  // after an answer with an error, such as 429, the browser does not try again
  watch = setInterval(() => { if (stream.readyState === EventSource.CLOSED) openStream(); }, 5000);
}

function poll() {
  setInterval(() => {
    if (!document.hidden) refreshJobs();
  }, 2000);
}

/** Begin to listen. */
export function listen() {
  refreshJobs();
  if (channel) channel.onmessage = (message) => heard(message.data.name, message.data.value);
  // locks exist only on loopback and https; elsewhere, asking now and then is enough
  if (navigator.locks && channel) {
    navigator.locks.request("civman-events", () => {
      openStream();
      return new Promise(() => {});
    });
  } else {
    poll();
  }
}
