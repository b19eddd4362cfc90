// One row of the row editor. Edits go into the row object itself.

import { folderOf, isKnown, knownAdapters, partsOf, refreshNames } from "./adapter_names.js";
import { offerChoices } from "./choice_list.js";
import { el, setText } from "./dom.js";
import { rowsOfTags } from "./lora_tags.js";
import { search } from "./name_search.js";
import { numberField } from "./number_field.js";
import { buildDetails } from "./row_details.js";
import { dragByHandle } from "./row_drag.js";
import { LARGEST_WEIGHT, changedDetails, clipWeight, detail, isOn, modelWeight, unknownKeys } from "./rows_json.js";
import { showSwitch, switchButton } from "./switch_button.js";

/** How the names of adapters' files end. */
const FILE = /\.(safetensors|sft|pt|pth|ckpt|bin)$/i;

/**
 * Builds the row's element. `state` is {open, solo}: its details are unfolded, it is the one row that is tried.
 *
 * `actions` are {edited(row), done(), switched(), fold(index), solo(index), move(from, to, control), duplicate(index),
 * remove(index), insert(index, rows), removeKey(index, key)}; `control` selects what has the focus then.
 */
export function buildRow(row, index, count, state, actions) {
  const label = `row ${index + 1}`;
  const { done } = actions;
  const edited = () => actions.edited(row);
  const element = el("div", { class: "lora-loom-row", role: "listitem", "aria-label": label });

  const on = switchButton({
    className: "lora-loom-on",
    role: "switch",
    title: "Use this adapter",
    label: `Use ${label}`,
    flip(wanted) {
      row.on = wanted;
      showState();
      actions.switched();
    },
  });

  const solo = button("lora-loom-solo", "S", `Only ${label}: the others are off until it is pressed again`, () => actions.solo(index));
  solo.setAttribute("aria-pressed", String(state.solo));
  const fold = button("lora-loom-fold", state.open ? "▾" : "▸", "", () => actions.fold(index));
  fold.setAttribute("aria-expanded", String(state.open));
  const duplicate = button("lora-loom-duplicate", "", `Duplicate ${label}`, () => actions.duplicate(index));
  const remove = button("lora-loom-remove", "✕", `Remove ${label}`, () => actions.remove(index));

  const problem = el("div", { class: "lora-loom-problem-line", role: "status", hidden: "" });
  const showState = () => {
    showSwitch(on, isOn(row));
    element.classList.toggle("lora-loom-off", !isOn(row));
    const changed = changedDetails(row);
    fold.classList.toggle("lora-loom-changed", changed.length > 0);
    fold.title = `Blocks and schedule of ${label}${changed.length ? `; set: ${changed.join(", ")}` : ""}`;
    fold.setAttribute("aria-label", fold.title);
    const wrong = detail(row, "start") >= detail(row, "end");
    setText(problem, wrong ? "The start has to be below the end." : "");
  };
  const weights = weightFields(row, label, edited, done);
  element.append(...moveControls(element, label, index, count, actions), on, nameField(row, index, label, actions), ...weights);
  element.append(solo, fold, duplicate, remove);
  if (state.open) {
    const changed = () => {
      showState();
      edited();
    };
    element.append(buildDetails(row, label, { edited: changed, done }));
  }
  element.append(problem, ...unknownKeys(row).map((key) => unknownKey(key, label, () => actions.removeKey(index, key))));
  showState();
  return element;
}

/** A handle to drag the row by, and arrows for those who do not drag. */
function moveControls(element, label, index, count, actions) {
  const move = (to, control) => {
    if (to >= 0 && to < count && to !== index) actions.move(index, to, control);
  };
  const handle = button("lora-loom-handle", "", `Move ${label}: drag it, or press the up and down arrow keys`);
  const up = button("lora-loom-move lora-loom-up", "▲", `Move ${label} up`, () => move(index - 1, ".lora-loom-up"));
  const down = button("lora-loom-move lora-loom-down", "▼", `Move ${label} down`, () => move(index + 1, ".lora-loom-down"));
  up.disabled = index === 0;
  down.disabled = index === count - 1;
  dragByHandle(handle, element, (to) => move(to, ".lora-loom-handle"));
  handle.addEventListener("keydown", (event) => {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    move(index + by, ".lora-loom-handle");
  });
  return [handle, el("span", { class: "lora-loom-moves" }, up, down)];
}

/** Shows whether the adapter exists. */
export function markName(input, name) {
  const missing = Boolean(name) && !isKnown(name);
  input.classList.toggle("lora-loom-missing", missing);
  input.setAttribute("aria-invalid", String(missing));
  input.title = missing ? `${name} is not in models/${folderOf(name)}` : name;
}

function nameField(row, index, label, actions) {
  const input = el("input", {
    class: "lora-loom-text lora-loom-name",
    type: "text",
    placeholder: "search, or paste <lora:…>",
    "aria-label": `Adapter of ${label}`,
  });
  markName(input, row.name);
  offerChoices(input, {
    choices(query) {
      const found = search(knownAdapters(), query).map(({ value, prefix, folder, base, extension }) => ({
        value,
        before: prefix + folder,
        text: base,
        after: extension,
      }));
      const typed = query.trim();
      // An adapter may be named before its file is there; beside what is found, what was typed is a part of a name.
      return typed && !found.length ? [{ value: typed, before: "not here: ", text: typed }] : found;
    },
    current: () => row.name,
    shown: shortName,
    // What finds something was a search that was given up, unless it is a whole name.
    settle: (text) => (text && (isKnown(text) || FILE.test(text) || !search(knownAdapters(), text).length) ? text : null),
    set(value) {
      row.name = value;
      markName(input, value);
      actions.edited(row);
      actions.done();
    },
  });
  input.addEventListener("focus", refreshNames);
  input.addEventListener("paste", (event) => {
    const rows = rowsOfTags(event.clipboardData?.getData("text") ?? "");
    if (!rows.length) return;
    event.preventDefault();
    event.stopPropagation();
    actions.insert(index, rows);
  });
  return input;
}

/** The file's own name first: in a narrow node there is no room for its folder too. */
function shortName(name) {
  const { prefix, base, folder } = partsOf(name);
  return prefix + base + (folder ? ` · ${folder}` : "");
}

function weightFields(row, label, edited, done) {
  // Until the CLIP weight is edited by itself, it is the model weight.
  let follows = clipWeight(row) === modelWeight(row);
  const limits = { min: -LARGEST_WEIGHT, max: LARGEST_WEIGHT, step: 0.05, fine: 0.01, done };
  const clip = numberField({
    ...limits,
    label: `CLIP weight of ${label}`,
    className: "lora-loom-clip",
    get: () => clipWeight(row),
    set(value) {
      row.clip = value;
      follows = false;
      edited();
    },
  });
  const model = numberField({
    ...limits,
    label: `Model weight of ${label}`,
    className: "lora-loom-model",
    get: () => modelWeight(row),
    set(value) {
      row.model = value;
      if (follows) row.clip = clip.valueAsNumber = value;
      edited();
    },
  });
  return [model, clip];
}

function button(className, text, label, action = null) {
  const made = el("button", { type: "button", class: `lora-loom-button ${className}`, text, title: label, "aria-label": label });
  made.addEventListener("click", action);
  return made;
}

function unknownKey(key, label, remove) {
  const line = el("div", { class: "lora-loom-problem-line lora-loom-unknown", role: "status" }, `Unknown key "${key}": the node refuses it. `);
  line.append(button("lora-loom-remove-key", "Remove the key", `Remove the key ${key} from ${label}`, remove));
  return line;
}
