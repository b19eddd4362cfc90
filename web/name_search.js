// Searching adapters by parts of their names.

import { searchText } from "./adapter_names.js";

/**
 * The adapters whose names contain every word of `query`, in any order: first the one that is named exactly so, then those whose
 * file name starts with the first word, then those with all words in the file name, then the rest. An empty query finds all.
 */
export function search(adapters, query) {
  const whole = searchText(query.trim());
  const words = whole.split(/\s+/).filter(Boolean);
  if (!words.length) return adapters;
  const ranks = [[], [], [], []];
  for (const adapter of adapters) {
    if (words.every((word) => adapter.text.includes(word))) ranks[rank(adapter, whole, words)].push(adapter);
  }
  return ranks.flat();
}

function rank(adapter, whole, words) {
  const base = adapter.base.toLowerCase();
  if (adapter.text === whole || base === whole) return 0;
  if (base.startsWith(words[0]) && words.every((word) => base.includes(word))) return 1;
  return words.every((word) => base.includes(word)) ? 2 : 3;
}
