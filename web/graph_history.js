// The steps that Ctrl+Z takes back.

import { app } from "../../scripts/app.js";

const STILL_FRAMES = 5;
const MOST_FRAMES = 30;

/** Makes what was changed in `node` a step. `resized`: the node is going to follow its content's new height, which is the same step. */
export async function addStep(node, resized) {
  const history = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  if (!resized) return history?.checkState();
  history?.beforeChange();
  // Nodes 2.0 measure their elements after a frame is drawn, and tell the graph some frames later.
  let size = "";
  for (let still = 0, frame = 0; still < STILL_FRAMES && frame < MOST_FRAMES; frame++) {
    await new Promise(requestAnimationFrame);
    still = String(node.size) === size ? still + 1 : 0;
    size = String(node.size);
  }
  history?.afterChange();
}
