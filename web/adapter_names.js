// The names of the adapters here, shared by all row editors: LoRAs as in models/loras, embeddings and hypernetworks with a
// prefix that says which they are.

import { api } from "../../scripts/api.js";

const PREFIXES = { loras: "", embeddings: "embedding:", hypernetworks: "hypernetwork:" };

const listeners = new Set();
/** Folder -> its names as rows have them. A folder that could not be read is missing. */
const byFolder = new Map();
let entries = [];
let toldOnce = false;
let request = null;

/** The folder of models/ that `name` is in. */
export const folderOf = (name) => Object.keys(PREFIXES).findLast((folder) => name.startsWith(PREFIXES[folder]));

/** Whether the adapter exists here; true as long as the folder's list is not known. */
export const isKnown = (name) => byFolder.get(folderOf(name))?.has(name) ?? true;

/** `name` as {value, prefix, folder, base, extension, text}; `text` is what a search looks in. */
export function partsOf(name) {
  const prefix = PREFIXES[folderOf(name)];
  const [, folder, base, extension] = name.slice(prefix.length).match(/^(.*[\\/])?(.*?)(\.[^.\\/]*)?$/s);
  return { value: name, prefix, folder: folder ?? "", base, extension: extension ?? "", text: searchText(name) };
}

/** Every adapter here, as its parts. */
export const knownAdapters = () => entries;

/** The adapter of models/`folder` whose name without extension, or without folders too, is `stem`; undefined if there is none. */
export function findByStem(folder, stem) {
  const wanted = searchText(stem);
  const of = entries.filter((entry) => entry.prefix === PREFIXES[folder]);
  const path = (entry) => searchText(entry.folder + entry.base);
  return (
    of.find((entry) => path(entry) === wanted || path(entry) + entry.extension.toLowerCase() === wanted) ??
    of.find((entry) => entry.base.toLowerCase() === wanted)
  )?.value;
}

/** `name` as a row of models/`folder` has it. */
export const withPrefix = (folder, name) => PREFIXES[folder] + name;

/** Text in the form that searches compare: case and the kind of slash do not matter. */
export const searchText = (text) => text.toLowerCase().replaceAll("\\", "/");

/** Reads the lists again; editors are told when they have changed. */
export async function refreshNames() {
  request ??= readFolders().finally(() => (request = null));
  await request;
}

/** Calls `listener` after each change of the lists; returns the function that ends it. */
export function onNames(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

async function readFolders() {
  const read = await Promise.all(
    Object.entries(PREFIXES).map(async ([folder, prefix]) => {
      const names = await fetchNames(folder);
      if (names) byFolder.set(folder, new Set(names.map((name) => prefix + name)));
      return Boolean(names);
    }),
  );
  if (!read.some(Boolean)) return;
  const now = Object.keys(PREFIXES).flatMap((folder) => [...(byFolder.get(folder) ?? [])].map(partsOf));
  // The first reading tells too, if only that there is nothing.
  if (toldOnce && now.length === entries.length && now.every(({ value }, i) => value === entries[i].value)) return;
  entries = now;
  toldOnce = true;
  for (const listener of listeners) listener();
}

async function fetchNames(folder) {
  try {
    const response = await api.fetchApi(`/models/${folder}`);
    return response.ok ? await response.json() : null;
  } catch {
    return null; // No connection: the next focus asks again.
  }
}
