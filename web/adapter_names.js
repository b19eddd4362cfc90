// The names of the adapters in models/loras, shared by all row editors: one list, one <datalist>.

import { api } from "../../scripts/api.js";
import { el } from "./dom.js";

export const DATALIST_ID = "lora-loom-adapter-names";

const listeners = new Set();
let names = null;
let request = null;

/** Whether the adapter exists here; true as long as the list is not known. */
export const isKnown = (name) => names === null || names.has(name);

/** Reads the list again; editors are told when it is there. */
export async function refreshNames() {
  request ??= fetchNames().finally(() => (request = null));
  const found = await request;
  if (!found) return;
  names = new Set(found);
  datalist().replaceChildren(...found.map((value) => el("option", { value })));
  for (const listener of listeners) listener();
}

/** Calls `listener` after each reading of the list; returns the function that ends it. */
export function onNames(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

async function fetchNames() {
  try {
    const response = await api.fetchApi("/models/loras");
    return response.ok ? await response.json() : null;
  } catch {
    return null; // No connection: the next focus asks again.
  }
}

function datalist() {
  let list = document.getElementById(DATALIST_ID);
  if (!list) {
    list = el("datalist", { id: DATALIST_ID });
    document.body.append(list);
  }
  return list;
}
