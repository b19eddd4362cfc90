// Shows the text that a node reports, on the node.

import { chain, el, isVueNode, onGraph, shareEvents } from "./dom.js";

const MARGIN = 6;
const EMPTY_HEIGHT = 40;
const LINE_HEIGHT = 18;
const MOST_LINES = 15; // beyond, it scrolls until the node is made higher

/** Adds a read-only text to `node`; each run of the node fills it anew. */
export function addReportText(node) {
  const text = el("pre", { class: "lora-loom-report lora-loom-scrolls lora-loom-selectable", tabindex: "0" });
  let height = EMPTY_HEIGHT;
  const widget = node.addDOMWidget("lora_loom_report", "LOOM_REPORT", text, {
    serialize: false, // not sent with the prompt
    margin: MARGIN,
    getMinHeight: () => height,
  });
  widget.serialize = false; // not among a saved graph's widgets_values
  chain(node, "onExecuted", (output) => {
    text.textContent = output?.text?.join("\n") ?? "";
    const lines = text.textContent.split("\n").length;
    height = EMPTY_HEIGHT + Math.min(lines, MOST_LINES) * LINE_HEIGHT;
    // Nodes 2.0 grow by themselves.
    if (!isVueNode(text)) node.expandToFitContent();
  });
  onGraph(
    node,
    text,
    () => {},
    () => {},
  );
  shareEvents(text);
}
