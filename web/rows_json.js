// The row editor's value: a JSON list of {on, name, model, clip, ...}. Keys that the editor does not
// know (blocks, start, end) stay as they are.

/** The rows in `text`. Throws an Error that says what is wrong with it. */
export function parseRows(text) {
  if (!text.trim()) return [];
  const rows = JSON.parse(text);
  if (!Array.isArray(rows)) throw new Error("not a list of rows");
  rows.forEach((row, i) => {
    const wrong = whatIsWrong(row);
    if (wrong) throw new Error(`row ${i + 1}: ${wrong}`);
  });
  return rows;
}

function whatIsWrong(row) {
  if (typeof row !== "object" || row === null || Array.isArray(row)) return "not an object";
  if (typeof row.name !== "string") return '"name" is not a text';
  for (const key of ["model", "clip"]) {
    if (key in row && typeof row[key] !== "number") return `"${key}" is not a number`;
  }
  if ("on" in row && typeof row.on !== "boolean") return '"on" is neither true nor false';
  return "";
}

export const formatRows = (rows) => JSON.stringify(rows);

export const newRow = () => ({ on: true, name: "", model: 1, clip: 1 });

/** What `row` says besides the columns that are shown. */
export const otherKeys = (row) => Object.keys(row).filter((key) => !["on", "name", "model", "clip"].includes(key));
