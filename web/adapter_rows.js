// The widget of LoomAdapterStack.rows: a row for each adapter. Its value is the JSON text itself.

import { app } from "../../scripts/app.js";
import { onNames, refreshNames } from "./adapter_names.js";
import { buildRow, markName } from "./adapter_row.js";
import { chain, el, followHeight, onGraph, setText, shareEvents } from "./dom.js";
import { formatRows, newRow, parseRows } from "./rows_json.js";

const MARGIN = 6;
const MAX_HEIGHT = 440;
const EMPTY_HEIGHT = 60;
/** The origin of links that come from a subgraph's own input: the value is then edited on the subgraph's node. */
const SUBGRAPH_INPUT = -10;

export function createRowsWidget(node, inputName, inputData, type) {
  let text = inputData[1]?.default || "[]";
  let rows = [];
  let forgetNames = null;

  const list = el("div", { class: "lora-loom-row-list", role: "list" });
  const add = el("button", { class: "lora-loom-add lora-loom-button", type: "button", text: "Add adapter" });
  const heads = el("div", { class: "lora-loom-row-heads", "aria-hidden": "true" });
  heads.append(...["Adapter", "Model", "CLIP"].map((text) => el("span", { text })));
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
  // A field that goes away still says that it is done: that must not write the rows it belonged to.
  const edited = () => {
    text = formatRows(rows);
    widget.callback?.(text);
  };
  const done = () => {
    node.graph?.setDirtyCanvas(true, true);
    app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState();
  };
  const actions = {
    edited,
    done,
    remove(index) {
      rows.splice(index, 1);
      fill();
      (list.children[Math.min(index, rows.length - 1)]?.querySelector(".lora-loom-remove") ?? add).focus();
      edited();
      done();
    },
    move(index, by) {
      const [row] = rows.splice(index, 1);
      rows.splice(index + by, 0, row);
      fill();
      // The same button again, or at the end of the list the other one.
      const [up, down] = list.children[index + by].querySelectorAll(".lora-loom-move");
      const [same, other] = by < 0 ? [up, down] : [down, up];
      (same.disabled ? other : same).focus();
      edited();
      done();
    },
  };
  const fill = () => {
    heads.hidden = !rows.length;
    list.replaceChildren(...rows.map((row, index) => buildRow(row, index, rows.length, actions)));
  };
  const render = () => {
    let problem = "";
    try {
      rows = parseRows(text);
      fill();
    } catch (e) {
      problem = `These rows cannot be read (${e.message}). Repair the text below.`;
      if (raw.value !== text) raw.value = text;
    }
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
    fill();
    list.lastElementChild.querySelector(".lora-loom-name").focus();
    edited();
    done();
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
      forgetNames ??= onNames(() => list.querySelectorAll(".lora-loom-name").forEach((input, i) => markName(input, rows[i].name)));
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
