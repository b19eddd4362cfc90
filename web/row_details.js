// The folded part of a row: the blocks an adapter works on, and when while sampling.

import { offerChoices } from "./choice_list.js";
import { el } from "./dom.js";
import { numberField } from "./number_field.js";
import { CURVES, detail, setDetail } from "./rows_json.js";

/** Presets of sd-webui-lora-block-weight; `trainer/adapters/blocks.py` (PRESETS) says what is in them. */
const PRESETS = {
  ALL: "every block",
  NONE: "no block",
  INS: "shallow half of the input blocks",
  IND: "deep half of the input blocks",
  INALL: "all input blocks",
  MIDD: "the deep middle: IND, middle, OUTD",
  OUTD: "deep half of the output blocks",
  OUTS: "shallow half of the output blocks",
  OUTALL: "all output blocks",
};
/** The share of the weight at `x`, 0 to 1, of the part of the steps. */
const SHAPES = {
  constant: () => 1,
  rising: (x) => x,
  falling: (x) => 1 - x,
  bell: (x) => Math.sin(Math.PI * x),
};
const SVG = "http://www.w3.org/2000/svg";
const PICTURE = { width: 44, height: 16, points: 16 };

/** Builds the fields. `label` names the row; `edited()` follows each change, `done()` each finished one. */
export function buildDetails(row, label, { edited, done }) {
  const picture = el("span", { class: "lora-loom-schedule", "aria-hidden": "true" });
  const show = () => picture.replaceChildren(drawing(row));
  const set = (key, value) => {
    setDetail(row, key, value);
    show();
    edited();
  };
  const percent = (key, text, meaning) =>
    numberField({
      label: `${text} of ${label}, percent of the steps`,
      title: meaning,
      className: `lora-loom-${key}`,
      min: 0,
      max: 100,
      step: 5,
      fine: 1,
      get: () => Number((100 * detail(row, key)).toFixed(2)),
      set: (value) => set(key, Number((value / 100).toFixed(4))),
      done,
    });
  const start = percent("start", "Start", "Works on the model from this percent of the steps on");
  const end = percent("end", "End", "Works on the model up to this percent of the steps");
  show();
  return el(
    "div",
    { class: "lora-loom-details", role: "group", "aria-label": `Details of ${label}` },
    field("Blocks", blocksField(row, label, set, done)),
    field("From %", start),
    field("To %", end),
    field("Curve", curveField(row, label, set, done)),
    picture,
  );
}

const field = (text, input) => el("label", { class: "lora-loom-field" }, el("span", { class: "lora-loom-field-name", text }), input);

function blocksField(row, label, set, done) {
  const input = el("input", {
    class: "lora-loom-text lora-loom-blocks",
    type: "text",
    placeholder: "all",
    maxlength: "1000",
    title: "A preset, or a weight for each block, with commas between them",
    "aria-label": `Blocks of ${label}`,
  });
  offerChoices(input, {
    choices(query) {
      const typed = query.trim().toUpperCase();
      return Object.entries(PRESETS)
        .filter(([name]) => name.includes(typed))
        .sort(([a], [b]) => Number(b === typed) - Number(a === typed))
        .map(([value, meaning]) => ({ value, text: value, after: ` ${meaning}` }));
    },
    current: () => detail(row, "blocks"),
    shown: (value) => value,
    settle: (text) => (text.toUpperCase() in PRESETS ? text.toUpperCase() : text),
    set(value) {
      set("blocks", value);
      done();
    },
  });
  return input;
}

function curveField(row, label, set, done) {
  const select = el("select", {
    class: "lora-loom-text lora-loom-curve-choice",
    title: "How the weight goes between start and end",
    "aria-label": `Curve of ${label}`,
  });
  select.append(...CURVES.map((value) => el("option", { value, text: value })));
  select.value = detail(row, "curve");
  select.addEventListener("change", () => {
    set("curve", select.value);
    done();
  });
  // Nodes 2.0 would drag the node instead of opening the list.
  select.addEventListener("pointerdown", (event) => {
    if (event.button === 0) event.stopPropagation();
  });
  return select;
}

/** The weight over the steps, drawn small. */
function drawing(row) {
  const { width, height, points } = PICTURE;
  const [start, end] = [detail(row, "start"), detail(row, "end")];
  const shape = SHAPES[detail(row, "curve")];
  const at = (x, weight) => `${(1 + x * (width - 2)).toFixed(1)},${(height - 1 - weight * (height - 2)).toFixed(1)}`;
  const inside = Array.from({ length: points + 1 }, (_, i) => at(start + (end - start) * (i / points), shape(i / points)));
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", [at(0, 0), at(start, 0), ...inside, at(end, 0), at(1, 0)].join(" "));
  svg.append(line);
  return svg;
}
