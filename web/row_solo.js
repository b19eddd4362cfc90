// Trying one row alone: the others are off until it ends. What was on before is known to the page only.

import { isOn } from "./rows_json.js";

export function createSolo() {
  let chosen = null;
  let before = new Map();

  const forget = () => {
    chosen = null;
    before = new Map();
  };
  /** What was on before is on again. Rows made since then stay as they are. */
  const end = (rows) => {
    for (const row of rows) row.on = before.get(row) ?? isOn(row);
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
  };
}
