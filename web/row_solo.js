// Trying one row alone: the others are off until it ends. Which were on before is kept in the node's properties, so that it survives
// saving, reloading and undo; rows themselves have no place for it.

import { isOn } from "./rows_json.js";

const PROPERTY = "lora_loom_solo";

export function createSolo(node) {
  let chosen = null;
  let before = new Map();

  const wasOn = (row) => before.get(row) ?? isOn(row);
  const forget = () => {
    chosen = null;
    before = new Map();
  };
  /** What was on before is on again. Rows made since then stay as they are. */
  const end = (rows) => {
    for (const row of rows) row.on = wasOn(row);
    forget();
  };
  return {
    active: () => chosen !== null,
    is: (row) => row === chosen,
    /** Only `row` is on; if it was so already, solo ends. */
    toggle(rows, row) {
      if (row === chosen) return end(rows);
      chosen = row;
      for (const each of rows) {
        if (!before.has(each)) before.set(each, isOn(each));
        each.on = each === row;
      }
    },
    end,
    /** Leaves the rows as they are now: they were switched by hand. */
    forget,
    /** Notes in the node how it is with `rows`. */
    keep(rows) {
      if (chosen === null) delete node.properties[PROPERTY];
      else node.properties[PROPERTY] = { row: rows.indexOf(chosen), on: rows.map(wasOn) };
    },
    /** Takes up what the node has noted, if it can be of these rows. */
    restore(rows) {
      forget();
      const { row, on } = node.properties[PROPERTY] ?? {};
      if (!rows[row] || !isOn(rows[row]) || on?.length !== rows.length) return;
      chosen = rows[row];
      before = new Map(rows.map((each, i) => [each, Boolean(on[i])]));
    },
  };
}
