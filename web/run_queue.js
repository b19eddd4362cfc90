// Which nodes wait for their turn in ComfyUI's queue, or have it and say nothing yet.

import { api } from "../../scripts/api.js";
import { leadsTo } from "./node_path.js";

/** The prompts in the queue, each as {id, workflow, nodes}: the workflow's id and the paths of its nodes. */
let running = [];
let pending = [];
/** The prompt of this page that is executed, its node that is, and those it is done with. */
let own = { prompt: null, node: null, done: new Set() };
const listeners = new Set();

/** Starts listening to the server; `listener` is called after each change. To be called once. */
export function listenToQueue(listener) {
  listeners.add(listener);
  // The server sends it to every page whenever the queue has changed.
  api.addEventListener("status", ({ detail }) => detail && read());
  api.addEventListener("execution_start", ({ detail }) => begin(detail.prompt_id));
  api.addEventListener("execution_cached", ({ detail }) => finish(detail.nodes));
  api.addEventListener("executing", ({ detail }) => {
    finish(own.node === null ? [] : [own.node]);
    own.node = detail === null ? null : String(detail);
    tell();
  });
}

/** "queued" while `node` waits, "starting" while it is executed, "" otherwise. */
export function turnOf(node) {
  const workflow = node.graph?.rootGraph?.id;
  const isIn = (prompt) => prompt.workflow === workflow && prompt.nodes.some((path) => leadsTo(path, node));
  // Of a prompt that began before this page was loaded it is not known how far it is.
  const current = running.find((prompt) => prompt.id === own.prompt && isIn(prompt));
  if (own.node !== null && leadsTo(own.node, node) && running.some(isIn)) return "starting";
  if (current && !current.nodes.some((path) => own.done.has(path) && leadsTo(path, node))) return "queued";
  return pending.some(isIn) ? "queued" : "";
}

function begin(prompt) {
  own = { prompt, node: null, done: new Set() };
  tell();
}

function finish(nodes) {
  for (const node of nodes) own.done.add(String(node));
}

async function read() {
  try {
    const response = await api.fetchApi("/queue");
    if (!response.ok) return;
    const { queue_running, queue_pending } = await response.json();
    running = queue_running.map(prompt);
    pending = queue_pending.map(prompt);
    tell();
  } catch {
    // No connection: the server sends its status when there is one again.
  }
}

const prompt = ([, id, nodes, extra]) => ({ id, workflow: extra?.extra_pnginfo?.workflow?.id, nodes: Object.keys(nodes) });

function tell() {
  for (const listener of listeners) listener();
}
