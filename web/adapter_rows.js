// The widget of LoomAdapterStack.rows: a row for each adapter. Its value is the JSON text itself.

import { onNames, refreshNames } from "./adapter_names.js";
import { buildRow, markName } from "./adapter_row.js";
import { refreshChoices } from "./choice_list.js";
import { chain, el, followHeight, isVueNode, onGraph, setText, shareEvents } from "./dom.js";
import { addStep } from "./graph_history.js";
import { createSolo } from "./row_solo.js";
import { formatRows, isOn, newRow, parseRows } from "./rows_json.js";
import { showSwitch, switchButton } from "./switch_button.js";

const MARGIN = 6;
const MAX_HEIGHT = 440;
const EMPTY_HEIGHT = 60;
/** The origin of links that come from a subgraph's own input: the value is then edited on the subgraph's node. */
const SUBGRAPH_INPUT = -10;

export function createRowsWidget(node, inputName, inputData, type) {
  let text = inputData[1]?.default || "[]";
  let rows = [];
  let forgetNames = null;
  const solo = createSolo(node);
  /** The rows whose details are unfolded. */
  const unfolded = new WeakSet();

  const list = el("div", { class: "lora-loom-row-list", role: "list" });
  const add = el("button", { class: "lora-loom-add lora-loom-button", type: "button", text: "Add adapter" });
  const all = switchButton({
    className: "lora-loom-all",
    role: "checkbox",
    title: "All adapters on or off",
    label: "Use all rows",
    flip(wanted) {
      solo.forget();
      for (const row of rows) row.on = wanted;
      fill();
      edited();
      done();
    },
  });
  const heads = el("div", { class: "lora-loom-row-heads" }, all);
  heads.append(...["Adapter", "Model", "CLIP"].map((text) => el("span", { text, "aria-hidden": "true" })));
  const fields = el("fieldset", { class: "lora-loom-fields" }, heads, list, add);
  const linkNote = el("div", { class: "lora-loom-linked", text: "The rows are supplied by the linked input.", hidden: "" });
  const error = el("div", { class: "lora-loom-error lora-loom-selectable", role: "alert" });
  const raw = el("textarea", { class: "lora-loom-raw", "aria-label": "Rows as JSON", spellcheck: "false", rows: "6" });
  const repair = el("div", { class: "lora-loom-repair", hidden: "" }, error, raw);
  const body = el("div", { class: "lora-loom-rows-body" }, linkNote, repair, fields);
  const root = el("div", { class: "lora-loom-rows lora-loom-scrolls widget-expands" }, body);

  const measured = followHeight(node, root, [body], () => 2 * MARGIN, EMPTY_HEIGHT);
  const widget = node.addDOMWidget(inputName, type, root, {
    margin: MARGIN,
    // What is on can be seen at zooms that are too small for typing.
    hideOnZoom: false,
    getValue: () => text,
    setValue(value) {
      const newText = typeof value === "string" ? value : JSON.stringify(value ?? []);
      if (newText === text) return;
      text = newText;
      render();
    },
    getMinHeight: () => Math.min(MAX_HEIGHT, measured.height()),
    getMaxHeight: () => measured.height(),
  });

  // While a field is being typed in the value follows; the graph's history gets the result only.
  const edited = (row) => {
    // A field that goes away may still have something to say about a row that is no more.
    if (row && !rows.includes(row)) return;
    text = formatRows(rows);
    solo.keep(rows);
    widget.callback?.(text);
  };
  const done = () => {
    node.graph?.setDirtyCanvas(true, true);
    const resized = measured.measure();
    addStep(node, resized && isVueNode(root));
  };
  const showAll = () => {
    const count = rows.filter(isOn).length;
    showSwitch(all, count > 0 && count < rows.length ? "mixed" : count > 0);
  };
  const fill = () => {
    heads.hidden = !rows.length;
    showAll();
    const stateOf = (row) => ({ open: unfolded.has(row), solo: solo.is(row) });
    list.replaceChildren(...rows.map((row, index) => buildRow(row, index, rows.length, stateOf(row), actions)));
  };
  const focus = (index, control) => {
    const wanted = list.children[index]?.querySelector(control);
    // At the end of the list only the other one of the two arrows can be pressed.
    const pressable = wanted?.disabled ? list.children[index].querySelector(".lora-loom-move:enabled") : wanted;
    (pressable ?? add).focus();
  };
  /** The rows were changed, and the row at `index` is the one to go on with. */
  const show = (index, control) => {
    fill();
    focus(index, control);
    edited();
    done();
  };
  const actions = {
    edited,
    done,
    switched() {
      if (solo.active()) {
        solo.forget();
        list.querySelectorAll(".lora-loom-solo").forEach((button) => button.setAttribute("aria-pressed", "false"));
      }
      showAll();
      edited();
      done();
    },
    fold(index) {
      const row = rows[index];
      if (!unfolded.delete(row)) unfolded.add(row);
      fill();
      focus(index, ".lora-loom-fold");
    },
    solo(index) {
      solo.toggle(rows, rows[index]);
      show(index, ".lora-loom-solo");
    },
    move(from, to, control) {
      const [row] = rows.splice(from, 1);
      rows.splice(to, 0, row);
      show(to, control);
    },
    duplicate(index) {
      const copy = { ...rows[index] };
      if (unfolded.has(rows[index])) unfolded.add(copy);
      rows.splice(index + 1, 0, copy);
      show(index + 1, ".lora-loom-duplicate");
    },
    remove(index) {
      if (solo.is(rows[index])) solo.end(rows);
      rows.splice(index, 1);
      show(Math.min(index, rows.length - 1), ".lora-loom-remove");
    },
    /** Puts `made` after the row at `index`, or in its place if it names nothing yet. */
    insert(index, made) {
      const unused = !rows[index].name;
      rows.splice(unused ? index : index + 1, unused ? 1 : 0, ...made);
      show((unused ? index : index + 1) + made.length - 1, ".lora-loom-name");
    },
    removeKey(index, key) {
      delete rows[index][key];
      show(index, ".lora-loom-name");
    },
  };
  const render = () => {
    let problem = "";
    try {
      rows = parseRows(text);
    } catch (e) {
      rows = [];
      problem = `These rows cannot be read (${e.message}). Repair the text below.`;
      if (raw.value !== text) raw.value = text;
    }
    solo.restore(rows);
    fill();
    repair.hidden = !problem;
    fields.hidden = Boolean(problem);
    setText(error, problem);
  };
  const showLink = () => {
    const link = node.inputs?.find((input) => input.widget?.name === inputName)?.link;
    const origin = link == null ? null : node.graph?.getLink(link)?.origin_id;
    const linked = link != null && origin !== SUBGRAPH_INPUT;
    linkNote.hidden = !linked;
    fields.disabled = raw.disabled = linked;
  };

  add.addEventListener("click", () => {
    rows.push(newRow());
    show(rows.length - 1, ".lora-loom-name");
    // As if it was clicked: it offers its choices.
    list.lastElementChild.querySelector(".lora-loom-name").click();
  });
  raw.addEventListener("input", () => {
    text = raw.value;
    widget.callback?.(text);
  });
  raw.addEventListener("change", () => {
    render();
    done();
  });
  // The link is set or gone only after the hook was called.
  chain(node, "onConnectionsChange", () => queueMicrotask(showLink));
  onGraph(
    node,
    root,
    () => {
      forgetNames ??= onNames(() => {
        list.querySelectorAll(".lora-loom-name").forEach((input, i) => markName(input, rows[i].name));
        refreshChoices();
      });
      refreshNames();
    },
    () => {
      forgetNames?.();
      forgetNames = null;
    },
  );
  shareEvents(root);
  render();
  return widget;
}
