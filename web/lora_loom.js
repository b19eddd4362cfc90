// LoRA Loom's one extension: puts the run widget, the row editor and reports on the pack's nodes.

import { app } from "../../scripts/app.js";
import { createRowsWidget } from "./adapter_rows.js";
import { loadStyle } from "./dom.js";
import { showAllDigits } from "./number_digits.js";
import { addReportText } from "./report_text.js";
import { listen } from "./run_feed.js";
import { addRunWidget } from "./run_widget.js";

const ROWS_WIDGET = "LOOM_ADAPTER_ROWS";
// The kind of run that each node starts.
const TRAININGS = {
  LoomTrainLoRA: "train_lora",
  LoomTrainTextualInversion: "textual_inversion",
  LoomFineTune: "fine_tune",
};
const REPORTING = new Set([
  "LoomApplyAdapters",
  "LoomBakeCheckpoint",
  "LoomCheckDataset",
  "LoomCompareMethods",
  "LoomDatasetFromFolder",
  "LoomExtractAdapter",
  "LoomInspectAdapter",
  "LoomLoadAdapter",
  "LoomMergeAdapters",
  "LoomResizeAdapter",
  "LoomSaveAdapter",
]);

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
    if (node.comfyClass in TRAININGS) addRunWidget(node, { task: TRAININGS[node.comfyClass], curve: true });
    if (node.comfyClass === "LoomCaptionDataset") addRunWidget(node, { task: "caption", curve: false });
    if (REPORTING.has(node.comfyClass)) addReportText(node);
    if (node.comfyClass?.startsWith("Loom")) node.widgets?.forEach(showAllDigits);
  },
});
