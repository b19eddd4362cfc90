// The row editor's value: a JSON list of rows, each {on, name, model, clip} and, where they differ from their defaults,
// {blocks, start, end, curve}. `trainer/adapters/stack.py` (Row) reads the same.

export const CURVES = ["constant", "rising", "falling", "bell"];
export const LARGEST_WEIGHT = 100;

const DETAILS = { blocks: "", start: 0, end: 1, curve: "constant" };
const NUMBERS = ["model", "clip", "start", "end"];
const KNOWN = new Set(["on", "name", "model", "clip", ...Object.keys(DETAILS)]);

/** The rows in `text`; those of rgthree's loader are converted. Throws an Error that says what is wrong with it. */
export function parseRows(text) {
  if (!text.trim()) return [];
  const rows = JSON.parse(text);
  if (!Array.isArray(rows)) throw new Error("not a list of rows");
  return rows.map((given, i) => {
    const row = fromRgthree(given);
    const wrong = whatIsWrong(row);
    if (wrong) throw new Error(`row ${i + 1}: ${wrong}`);
    return row;
  });
}

/** rgthree's loader has rows {on, lora, strength, strengthTwo}; without strengthTwo both are the same. Others stay as they are. */
function fromRgthree(row) {
  if (typeof row !== "object" || row === null || !("lora" in row) || "name" in row) return row;
  const { on = true, lora, strength = 1, strengthTwo, ...others } = row;
  return { on, name: lora ?? "", model: strength, clip: strengthTwo ?? strength, ...others };
}

function whatIsWrong(row) {
  if (typeof row !== "object" || row === null || Array.isArray(row)) return "not an object";
  if (typeof row.name !== "string") return '"name" is not a text';
  if ("on" in row && typeof row.on !== "boolean") return '"on" is neither true nor false';
  for (const key of NUMBERS) {
    if (key in row && typeof row[key] !== "number") return `"${key}" is not a number`;
  }
  if ("blocks" in row && typeof row.blocks !== "string") return '"blocks" is not a text';
  if ("curve" in row && !CURVES.includes(row.curve)) return `"curve" is none of ${CURVES.join(", ")}`;
  return "";
}

export const formatRows = (rows) => JSON.stringify(rows);

export const newRow = () => ({ on: true, name: "", model: 1, clip: 1 });

export const isOn = (row) => row.on ?? true;
export const modelWeight = (row) => row.model ?? 1;
// As in Row, a weight that is not there is 1.
export const clipWeight = (row) => row.clip ?? 1;

/** blocks, start, end or curve of `row`. */
export const detail = (row, key) => row[key] ?? DETAILS[key];

/** Sets blocks, start, end or curve; a default is not written. */
export function setDetail(row, key, value) {
  if (value === DETAILS[key]) delete row[key];
  else row[key] = value;
}

/** Which of blocks, start, end and curve differ from their defaults. */
export const changedDetails = (row) => Object.keys(DETAILS).filter((key) => detail(row, key) !== DETAILS[key]);

/** Keys that no row has: the node refuses them. */
export const unknownKeys = (row) => Object.keys(row).filter((key) => !KNOWN.has(key));
