// LoRA Loom's one extension: puts the run widget and the row editor on the pack's nodes.

import { app } from "../../scripts/app.js";
import { createRowsWidget } from "./adapter_rows.js";
import { loadStyle } from "./dom.js";
import { listen } from "./run_feed.js";
import { addRunWidget } from "./run_widget.js";

const ROWS_WIDGET = "LOOM_ADAPTER_ROWS";
/** Decimals of a learning rate, whose smallest value is 1e-7. */
const RATE_DIGITS = 7;

app.registerExtension({
  name: "lora_loom",

  init() {
    loadStyle();
    listen();
  },

  getCustomWidgets() {
    return {
      [ROWS_WIDGET]: (node, inputName, inputData) => ({
        widget: createRowsWidget(node, inputName, inputData, ROWS_WIDGET),
        minWidth: 400,
      }),
    };
  },

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== "LoomAdapterStack") return;
    // The input stays a STRING for the server, for links and for saved graphs: only its widget is another.
    const rows = nodeData.input?.required?.rows ?? nodeData.input?.optional?.rows;
    if (rows) rows[1] = { ...rows[1], widgetType: ROWS_WIDGET };
  },

  nodeCreated(node) {
    if (node.comfyClass === "LoomTrainLoRA") {
      addRunWidget(node, { task: "train_lora", curve: true });
      showSmallRates(node);
    }
    if (node.comfyClass === "LoomCaptionDataset") addRunWidget(node, { task: "caption", curve: false });
  },
});

// Nodes 2.0 (frontend 1.32) shows three decimals of any number, so 0.0001 would read 0; the canvas as many as the step has.
function showSmallRates(node) {
  const rate = node.widgets.find((widget) => widget.name === "learning_rate");
  if (rate) Object.assign(rate.options, { precision: RATE_DIGITS, maxFractionDigits: RATE_DIGITS });
}
