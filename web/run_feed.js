// The runs of this server, shared by all nodes: one websocket listener, one request for the list,
// one for each run's history. Nodes watch the feed; it tells each of them about the run it owns.

import { api } from "../../scripts/api.js";
import { fromHistory, isOver, newState, reduce } from "./run_state.js";

/** id -> {run, state, loading, waiting, seen}. `state` is there once a node shows the run. */
const entries = new Map();
const watchers = new Set();
let listing = null;
let nextListing = null;
/** Server time minus browser time, in seconds: the two machines' clocks may differ. */
let clockOffset = 0;

/** The server's unix time. */
export const serverNow = () => Date.now() / 1000 + clockOffset;

/** Starts telling `watcher` ({owns(run), show(state)}) about its newest run; returns the function that ends it. */
export function watch(watcher) {
  watchers.add(watcher);
  refresh();
  return () => watchers.delete(watcher);
}

/** Asks the trainer to save and leave. Throws when the server cannot be reached or says no. */
export async function stopRun(id) {
  const response = await api.fetchApi(`/lora_loom/runs/${encodeURIComponent(id)}/stop`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ save: true }),
  });
  const entry = entries.get(id);
  if (!response.ok) {
    if (entry) load(entry);
    throw new Error(response.status === 409 ? "This run is no longer running." : `The server answered ${response.status}.`);
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
    if (detail.output?.lora_loom) refresh();
  });
  // A trainer that was killed cannot say so; the server's list can.
  for (const type of ["execution_error", "execution_interrupted"]) api.addEventListener(type, () => refresh(true));
}

function receive({ run: id, node, name, event }) {
  clockOffset = event.time - Date.now() / 1000;
  const isNew = !entries.has(id);
  const entry = entryOf({ id, node, name, task: event.task ?? null, started: event.time });
  if (event.event === "started") entry.run.task = event.task;
  if (entry.loading) {
    entry.waiting.push(event);
    return;
  }
  if (!entry.state) {
    if (!isOwned(entry.run)) return;
    if (!(isNew && event.event === "started")) {
      load(entry, [event]);
      return;
    }
    entry.state = newState(entry.run);
  }
  apply(entry, event);
  tell();
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
    entry = { run, state: null, loading: false, waiting: [], seen: new Set() };
    entries.set(run.id, entry);
  }
  return entry;
}

const isOwned = (run) => [...watchers].some((watcher) => watcher.owns(run));

/** Reads the list of runs, and with `again` the histories of those still going. */
async function refresh(again = false) {
  const { known, answer } = await list();
  if (!answer) return;
  const listed = new Set();
  for (const run of answer.runs) {
    listed.add(run.id);
    const entry = entryOf(run);
    entry.run = { ...entry.run, ...run };
    const wanted = entry.state ? again && !isOver(entry.state) : isNewestOfAny(entry);
    if (wanted && !entry.loading) load(entry);
  }
  for (const entry of known) {
    if (listed.has(entry.run.id) || !entry.state || isOver(entry.state)) continue;
    // A new server knows nothing of its predecessor's runs; the trainer leaves when its server does.
    const warnings = [...entry.state.warnings, "ComfyUI was restarted during this run."];
    entry.state = { ...entry.state, status: "stopped", warnings };
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
  const answer = await getJson(`/lora_loom/runs/${encodeURIComponent(entry.run.id)}`);
  entry.loading = false;
  if (answer) {
    entry.run = { ...entry.run, ...answer.run };
    entry.state = fromHistory(answer.run, answer.events, answer.curve);
    entry.seen = new Set(answer.events.slice(-200).map(keyOf).filter(Boolean));
  }
  if (entry.state) for (const event of entry.waiting) apply(entry, event);
  entry.waiting = [];
  tell();
}

async function getList() {
  const known = [...entries.values()];
  return { known, answer: await getJson("/lora_loom/runs") };
}

async function getJson(route) {
  try {
    const response = await api.fetchApi(route);
    return response.ok ? await response.json() : null;
  } catch {
    return null; // No connection: "reconnected" asks again.
  }
}

function newestOf(watcher) {
  const owned = [...entries.values()].filter((entry) => watcher.owns(entry.run));
  return owned.reduce((newest, entry) => (newest && newest.run.started >= entry.run.started ? newest : entry), null);
}

const isNewestOfAny = (entry) => [...watchers].some((watcher) => newestOf(watcher) === entry);

function tell() {
  const shown = new Set();
  for (const watcher of watchers) {
    const entry = newestOf(watcher);
    if (entry?.state) watcher.show(entry.state);
    shown.add(entry);
  }
  // Curves of runs that are over and out of sight are not kept; the server has them.
  for (const entry of entries.values()) {
    if (entry.state && isOver(entry.state) && !shown.has(entry)) entry.state = null;
  }
}
