// One row of the row editor: on/off, name, two weights, order, removal. Edits go into the row object itself.

import { DATALIST_ID, isKnown, refreshNames } from "./adapter_names.js";
import { el } from "./dom.js";
import { otherKeys } from "./rows_json.js";

/** Builds the row's element. `actions` are {edited(), done(), remove(index), move(index, by)}. */
export function buildRow(row, index, count, actions) {
  const label = row.name || `row ${index + 1}`;
  const on = el("input", { type: "checkbox", class: "lora-loom-on", "aria-label": `Use ${label}` });
  on.checked = row.on ?? true;
  const name = nameInput(row, actions);
  const model = weightInput("lora-loom-model", `Model weight of ${label}`, row.model ?? 1);
  const clip = weightInput("lora-loom-clip", `CLIP weight of ${label}`, row.clip ?? row.model ?? 1);
  // Until the CLIP weight is edited by itself, it is the model weight.
  let follows = (row.clip ?? row.model ?? 1) === (row.model ?? 1);
  const up = moveButton("↑", `Move ${label} up`, index === 0, () => actions.move(index, -1));
  const down = moveButton("↓", `Move ${label} down`, index === count - 1, () => actions.move(index, 1));
  const remove = el("button", {
    type: "button",
    class: "lora-loom-remove lora-loom-button",
    text: "✕",
    title: "Remove",
    "aria-label": `Remove ${label}`,
  });
  const element = el("div", { class: "lora-loom-row", role: "listitem" }, on, name, model, clip, up, down, remove);
  const more = otherKeys(row);
  if (more.length) {
    element.title = `Also set: ${more.join(", ")}`;
    element.classList.add("lora-loom-row-more");
  }
  element.classList.toggle("lora-loom-off", !on.checked);

  on.addEventListener("change", () => {
    row.on = on.checked;
    element.classList.toggle("lora-loom-off", !row.on);
    actions.edited();
    actions.done();
  });
  onWeight(model, () => row.model ?? 1, actions, (value) => {
    row.model = value;
    if (!follows) return;
    row.clip = value;
    clip.value = value;
  });
  onWeight(clip, () => row.clip ?? row.model ?? 1, actions, (value) => {
    row.clip = value;
    follows = false;
  });
  remove.addEventListener("click", () => actions.remove(index));
  return element;
}

/** Shows whether the adapter exists. */
export function markName(input, name) {
  const missing = Boolean(name) && !isKnown(name);
  input.classList.toggle("lora-loom-missing", missing);
  input.title = missing ? `${name} is not in models/loras` : name;
}

function nameInput(row, actions) {
  const input = el("input", {
    class: "lora-loom-name",
    type: "text",
    list: DATALIST_ID,
    placeholder: "choose an adapter",
    "aria-label": "Adapter",
    autocomplete: "off",
    spellcheck: "false",
  });
  input.value = row.name;
  markName(input, row.name);
  // Browsers offer only the names that contain what is in the field: empty it to offer all.
  input.addEventListener("focus", () => {
    refreshNames();
    input.placeholder = row.name || "type to search";
    input.value = "";
  });
  input.addEventListener("input", () => {
    if (!input.value) return;
    row.name = input.value;
    markName(input, row.name);
    actions.edited();
  });
  input.addEventListener("change", actions.done);
  input.addEventListener("blur", () => {
    input.value = row.name;
    input.placeholder = "choose an adapter";
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.ctrlKey) input.blur();
  });
  return input;
}

function weightInput(className, label, value) {
  const input = el("input", { class: className, type: "number", step: "0.05", "aria-label": label });
  input.value = value;
  return input;
}

function onWeight(input, current, actions, set) {
  input.addEventListener("input", () => {
    // Half-typed numbers ("-", "1e") are no value yet.
    if (!Number.isFinite(input.valueAsNumber)) return;
    set(input.valueAsNumber);
    actions.edited();
  });
  input.addEventListener("change", () => {
    input.value = current();
    actions.done();
  });
}

function moveButton(text, label, disabled, action) {
  const button = el("button", { type: "button", class: "lora-loom-move lora-loom-button", text, "aria-label": label });
  button.disabled = disabled;
  button.addEventListener("click", action);
  return button;
}
