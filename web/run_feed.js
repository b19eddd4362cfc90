// The runs of this server, shared by all nodes: one websocket listener, one request for the list,
// one for each run's history. Nodes watch the feed; it tells each of them about the run it owns.

import { api } from "../../scripts/api.js";
import { listenToQueue } from "./run_queue.js";
import { NotRunning, getRun, getRuns, postStop } from "./run_routes.js";
import { settingsOf } from "./run_settings.js";
import { fromHistory, isOver, reduce } from "./run_state.js";

/**
 * id -> {run, asked, askers, state, settings, loading, waiting, seen}. `askers` are the nodes that asked for the run, each as {workflow, node}:
 * the workflow's id and the path in it; `asked` is when one last did. `state` is there once a node shows the run, and `settings` are those that
 * it was asked for with.
 */
const entries = new Map();
const watchers = new Set();
let listing = null;
let nextListing = null;
/** Server time minus browser time, in seconds: the two machines' clocks may differ. */
let clockOffset = 0;

/** The server's unix time. */
export const serverNow = () => Date.now() / 1000 + clockOffset;

/**
 * Starts telling `watcher` ({owns(run, askers), workflowOf(path), show(state, settings)}) about its newest run, and that the queue or the graph has
 * changed; returns the function that ends it.
 */
export function watch(watcher) {
  watchers.add(watcher);
  refresh();
  return () => watchers.delete(watcher);
}

/** Asks the trainer to save and leave. Throws when the server cannot be reached or says no. */
export async function stopRun(id) {
  const entry = entries.get(id);
  try {
    await postStop(id);
  } catch (error) {
    if (entry && error instanceof NotRunning) load(entry);
    throw error;
  }
  if (entry?.state && !isOver(entry.state)) entry.state = { ...entry.state, status: "stopping" };
  tell();
}

/** Starts listening to the server; to be called once, before it says anything. */
export function listen() {
  api.addEventListener("lora_loom.run", (e) => receive(e.detail));
  // Events sent while the connection was down are gone: read the histories again.
  api.addEventListener("reconnected", () => refresh(true));
  // A training that is found done sends no events; the server lists it once its node has answered.
  api.addEventListener("executed", ({ detail }) => {
    const [result] = detail.output?.lora_loom ?? [];
    if (result) refresh().then(() => adopt(result.run, detail.display_node ?? detail.node));
  });
  // A trainer that was killed cannot say so; the server's list can.
  for (const type of ["execution_error", "execution_interrupted"]) api.addEventListener(type, () => refresh(true));
  listenToQueue(tell);
  // Settings may have been changed; a field's value is set when it is left.
  api.addEventListener("graphChanged", tell);
  window.addEventListener("focusout", () => requestAnimationFrame(tell));
}

function receive({ run: id, event, ...told }) {
  clockOffset = event.time - Date.now() / 1000;
  const entry = entryOf({ id, ...told });
  const isAnew = entry.run.started !== told.started;
  merge(entry, told);
  if (entry.loading) entry.waiting.push(event);
  else if (!entry.state || isAnew) {
    if (isOwned(entry)) load(entry, [event]);
  } else {
    apply(entry, event);
    tell();
  }
}

/** Takes what the server says of a run. */
function merge(entry, run) {
  entry.run = { ...entry.run, ...run };
  entry.asked = Math.max(entry.asked, run.started);
  addAsker(entry, run.workflow, run.node);
}

function addAsker({ askers }, workflow, node) {
  if (!workflow || askers.some((asker) => asker.workflow === workflow && asker.node === node)) return;
  askers.push({ workflow, node });
}

/** What the node of this page got is its run, also where another one asked for it first and ComfyUI has kept the result. */
function adopt(id, path) {
  const entry = entries.get(id);
  if (!entry) return;
  for (const watcher of watchers) {
    const workflow = watcher.workflowOf(path);
    if (!workflow) continue;
    addAsker(entry, workflow, String(path));
    entry.asked = serverNow();
  }
  if (!entry.state && !entry.loading && isOwned(entry)) load(entry);
  else tell();
}

function apply(entry, event) {
  if (entry.seen.has(keyOf(event))) return;
  entry.state = reduce(entry.state, event);
}

// An event can reach the page twice, once in the history and once live. Progress events count their
// steps themselves (and only the last is in the history); the others are told apart by their content.
const keyOf = (event) => (event.event === "progress" ? "" : JSON.stringify(event, Object.keys(event).sort()));

function entryOf(run) {
  let entry = entries.get(run.id);
  if (!entry) {
    entry = { run, asked: 0, askers: [], state: null, settings: null, loading: false, waiting: [], seen: new Set() };
    entries.set(run.id, entry);
  }
  return entry;
}

const isOwned = (entry) => [...watchers].some((watcher) => watcher.owns(entry.run, entry.askers));

/** Reads the list of runs, and with `again` the histories of those still going. */
async function refresh(again = false) {
  const { known, answer } = await list();
  if (!answer) return;
  const listed = new Set();
  for (const run of answer.runs) {
    listed.add(run.id);
    const entry = entryOf(run);
    const isAnew = entry.run.started !== run.started;
    merge(entry, run);
    const wanted = entry.state ? isAnew || (again && !isOver(entry.state)) : isNewestOfAny(entry);
    if (wanted && !entry.loading) load(entry);
  }
  for (const entry of known) {
    if (listed.has(entry.run.id) || !entry.state || isOver(entry.state)) continue;
    // Its folder is gone, and its process with the server that started it.
    entry.state = { ...entry.state, status: "interrupted" };
  }
  tell();
}

/** The list as it is now: one that is already on its way may have been answered before what is asked about. */
function list() {
  if (!listing) return (listing = getList().finally(() => (listing = null)));
  nextListing ??= listing.then(() => {
    nextListing = null;
    return list();
  });
  return nextListing;
}

async function load(entry, waiting = []) {
  entry.loading = true;
  entry.waiting = waiting;
  const answer = await getRun(entry.run.id);
  entry.loading = false;
  if (answer) {
    merge(entry, answer.run);
    entry.settings = answer.workflow && settingsOf(answer.workflow, answer.run.node);
    entry.state = fromHistory(answer.run, answer.events, answer.curve);
    entry.seen = new Set(answer.events.slice(-200).map(keyOf).filter(Boolean));
  }
  if (entry.state) for (const event of entry.waiting) apply(entry, event);
  entry.waiting = [];
  tell();
}

async function getList() {
  const known = [...entries.values()];
  return { known, answer: await getRuns() };
}

function newestOf(watcher) {
  const owned = [...entries.values()].filter((entry) => watcher.owns(entry.run, entry.askers));
  return owned.reduce((newest, entry) => (newest && newest.asked >= entry.asked ? newest : entry), null);
}

const isNewestOfAny = (entry) => [...watchers].some((watcher) => newestOf(watcher) === entry);

function tell() {
  const shown = new Set();
  for (const watcher of watchers) {
    const entry = newestOf(watcher);
    watcher.show(entry?.state ?? null, entry?.settings ?? null);
    shown.add(entry);
  }
  // Curves of runs that are over and out of sight are not kept; the server has them.
  for (const entry of entries.values()) {
    if (entry.state && isOver(entry.state) && !shown.has(entry)) entry.state = null;
  }
}
