// Shows the text that a node reports, on the node.

import { chain, el, onGraph, shareEvents } from "./dom.js";

const MARGIN = 6;
const MIN_HEIGHT = 60;

/** Adds a read-only text to `node`; each run of the node fills it anew. */
export function addReportText(node) {
  const text = el("pre", { class: "lora-loom-report lora-loom-scrolls lora-loom-selectable", tabindex: "0" });
  const widget = node.addDOMWidget("lora_loom_report", "LOOM_REPORT", text, {
    serialize: false, // not sent with the prompt
    margin: MARGIN,
    getMinHeight: () => MIN_HEIGHT,
  });
  widget.serialize = false; // not among a saved graph's widgets_values
  chain(node, "onExecuted", (output) => {
    text.textContent = output?.text?.join("\n") ?? "";
  });
  onGraph(
    node,
    text,
    () => {},
    () => {},
  );
  shareEvents(text);
}
